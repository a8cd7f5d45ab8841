"""Exact one-sided bounds for the probability of success of independent trials.

For a number of trials that was fixed in advance those of Clopper and Pearson (1934). For numbers that may depend on what was
seen, the mixture of Robbins (1970): with `S` successes in `n` trials the ratio

    B(1 + S, 1 + n − S) / (p^S (1 − p)^(n−S))

of the likelihood under a uniformly distributed probability to that under `p` is a martingale of mean 1 if `p` is the true one.
It ever reaches `1/α` with probability at most `α` (Ville), so all `p` at which it is below make a set that holds the true one
for all `n` at once with probability at least `1 − α` (Howard, Ramdas, McAuliffe, Sekhon 2021; MATH.md, section 19).
"""

import math

import scipy.optimize
import scipy.special
import scipy.stats


def clopper_pearson_lower(count: int, num: int, alpha: float) -> float:
    """One-sided lower Clopper–Pearson bound: with probability at least `1 − alpha` below the success probability."""
    return 0.0 if count == 0 else float(scipy.stats.beta.ppf(alpha, count, num - count + 1))


def clopper_pearson_upper(count: int, num: int, alpha: float) -> float:
    """One-sided upper Clopper–Pearson bound."""
    return 1.0 if count == num else float(scipy.stats.beta.ppf(1 - alpha, count + 1, num - count))


def anytime_lower(count: int, num: int, alpha: float) -> float:
    """One-sided lower bound that holds for all numbers of trials at once: it ever fails with probability at most `alpha`."""
    if count == 0:
        return 0.0
    mixture = float(scipy.special.betaln(1 + count, 1 + num - count)) + math.log(alpha)

    def excess(p: float) -> float:
        """The logarithm of the martingale at `p`, less that of `1/alpha`; it decreases up to `count/num`."""
        return mixture - count * math.log(p) - (num - count) * (math.log1p(-p) if p < 1 else 0.0)

    most = count / num
    if count < num and excess(most) >= 0:
        return most  # for alpha close to 1 alone
    least = most
    while excess(least) <= 0:
        least /= 2
    return least if least == most else float(scipy.optimize.brentq(excess, least, most, xtol=1e-300, rtol=1e-14))


def anytime_upper(count: int, num: int, alpha: float) -> float:
    """One-sided upper bound that holds for all numbers of trials at once."""
    return 1.0 - anytime_lower(num - count, num, alpha)
