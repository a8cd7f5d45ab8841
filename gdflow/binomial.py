"""Exact one-sided bounds for the probability of success of independent trials (Clopper and Pearson 1934)."""

import scipy.stats


def clopper_pearson_lower(count: int, num: int, alpha: float) -> float:
    """One-sided lower Clopper–Pearson bound: with probability at least `1 − alpha` below the success probability."""
    return 0.0 if count == 0 else float(scipy.stats.beta.ppf(alpha, count, num - count + 1))


def clopper_pearson_upper(count: int, num: int, alpha: float) -> float:
    """One-sided upper Clopper–Pearson bound."""
    return 1.0 if count == num else float(scipy.stats.beta.ppf(1 - alpha, count + 1, num - count))
