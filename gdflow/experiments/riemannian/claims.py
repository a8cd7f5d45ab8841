"""What decides a claim: certificates for limits, sign tests and intervals over draws for times.

*Two sets of draws.* An order, or its absence, is decided on the even draws and again on the odd ones; where the two differ it is
not decided. Within a set, an order of two times is tested at the level `ALPHA` by the signs of their differences, draw by draw;
of times of different dimensions, whose draws have nothing in common, by the rank test of Mann and Whitney. The second is not
longer where an interval for the median of their ratio, of the same level, lies within `NEGLIGIBLE` of 1 or below it. A claim on
several pairs is confirmed where some show its order and none the contrary; it is denied where one shows the contrary, or all show
that the second is not longer.

*Runs that end early* have times between the end of the run and infinity, and a difference of two such times has no sign: it
counts against either order.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy.stats
from jaxtyping import Float

from gdflow.experiments.results import Claim, every, number_text
from gdflow.experiments.riemannian.runs import DEVIATIONS, Case, Group, Start, Times

#: Relative errors, `‖W(t) − W*‖_F/‖W*‖_F`, are compared by the times at which they fall to this: fractions of the first error
#: would mean different distances for different starts.
RANKED = 1e-2
#: … and, to be told beside that, to this one.
LATER = 1e-4
#: The level of a sign test, one-sided, and of each end of an interval.
ALPHA = 0.02
#: A ratio of times between 1/1.1 and 1.1 is no dependence …
NEGLIGIBLE = 1.1
#: … and one below 2 is alike, or slight.
ALIKE = 2.0

#: Lower and upper bounds of a ratio, draw by draw.
Ratios = Float[np.ndarray, "2 draws"]
Pair = tuple[Group, Group]
Verdict = TypeVar("Verdict")
Panels = Sequence[Sequence[Group]]
Decision = Callable[[Ratios], int | None]
Combination = Callable[[Iterable[Any]], bool | None]


def ratios(first: Times, second: Times) -> Ratios:
    """The second time over the first, draw by draw, between two bounds."""
    count = min(first.bounds.shape[1], second.bounds.shape[1])
    (low_a, high_a), (low_b, high_b) = first.bounds[:, :count], second.bounds[:, :count]
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = low_b / high_a, high_b / low_a
    return np.stack([np.where(np.isnan(low), 0.0, low), np.where(np.isnan(high), np.inf, high)])


def ratio_interval(values: Ratios) -> tuple[float, float]:
    """An interval for the median of a ratio, each end wrong with a probability of `ALPHA` at most; by order statistics."""
    count = values.shape[1]
    # The k-th least is above the median with the probability that fewer than k are below it.
    k = int(scipy.stats.binom.ppf(ALPHA, count, 0.5))
    if k > 0 and scipy.stats.binom.cdf(k - 1, count, 0.5) <= ALPHA:
        return float(np.sort(values[0])[k - 1]), float(np.sort(values[1])[count - k])
    return 0.0, math.inf


def sign_test(wins: int, draws: int) -> float:
    """The probability of so many signs or more if either sign is as likely."""
    return float(scipy.stats.binom.sf(wins - 1, draws, 0.5))


def sign_probabilities(values: Ratios) -> tuple[float, float]:
    """`sign_test` of the ratios above 1, and of those below."""
    count = values.shape[1]
    return sign_test(int(np.sum(values[0] > 1)), count), sign_test(int(np.sum(values[1] < 1)), count)


def rank_probabilities(first: Times, second: Times) -> tuple[float, float]:
    """The same by ranks, of Mann and Whitney: that the second times are longer, and that they are shorter.

    Times known by bounds only count at the end that is against the order that is tested.
    """
    (low_a, high_a), (low_b, high_b) = first.bounds, second.bounds
    longer = scipy.stats.mannwhitneyu(low_b, high_a, alternative="greater").pvalue
    shorter = scipy.stats.mannwhitneyu(high_b, low_a, alternative="less").pvalue
    return float(longer), float(shorter)


def twice(decide: Callable[[Ratios], Verdict], values: Ratios) -> Verdict | None:
    """What is decided on the even draws and on the odd ones alike."""
    one, other = decide(values[:, ::2]), decide(values[:, 1::2])
    return one if one == other else None


def order_of(values: Ratios) -> int | None:
    """1 where ratios are above 1 more often than not, −1 where below; 0 where their median is near 1 or below; else `None`."""
    return _order(ratio_interval(values), *sign_probabilities(values))


def _order(interval: tuple[float, float], longer: float, shorter: float) -> int | None:
    """The order from an interval for the ratio, and the probabilities of the data if there were none."""
    low, high = interval
    if low > 1 / NEGLIGIBLE and high < NEGLIGIBLE:
        return 0
    if longer <= ALPHA:
        return 1
    if shorter <= ALPHA:
        return -1
    return 0 if high < NEGLIGIBLE else None


def order_of_samples(first: Times, second: Times) -> int | None:
    """`order_of` where draws are not paired, as for different dimensions: `rank_probabilities` in place of signs."""
    intervals = [ratio_interval(times.bounds) for times in (first, second)]
    low, high = intervals[1][0] / intervals[0][1], intervals[1][1] / intervals[0][0] if intervals[0][0] else math.inf
    return _order((low, high), *rank_probabilities(first, second))


def halves(times: Times) -> tuple[Times, Times]:
    """The even draws and the odd ones."""
    return Times(times.bounds[:, ::2]), Times(times.bounds[:, 1::2])


def in_order(orders: Iterable[int | None]) -> bool | None:
    """Whether some pairs have the order 1 and none the contrary; `None` if that could not be told."""
    orders = list(orders)
    if -1 in orders:
        return False
    return True if 1 in orders else None if None in orders else False


def is_alike(values: Ratios) -> bool | None:
    """Whether the median ratio lies within `ALIKE` of 1."""
    low, high = ratio_interval(values)
    return True if low > 1 / ALIKE and high < ALIKE else False if high < 1 / ALIKE or low > ALIKE else None


def sign_of(values: Ratios) -> int | None:
    """1 where ratios are above 1 more often than not, by however little, −1 where below, `None` if neither shows."""
    longer, shorter = sign_probabilities(values)
    return 1 if longer <= ALPHA else -1 if shorter <= ALPHA else None


def slight_order_of(values: Ratios) -> int | None:
    """`sign_of` where the median ratio is within `ALIKE` of 1, −1 where it is beyond."""
    alike = is_alike(values)
    return sign_of(values) if alike else -1 if alike is False else None


def ratio_text(values: Ratios) -> str:
    """The median of the ratios, draw by draw, or where it lies."""
    low, high = np.median(values, axis=1)
    if low == high:
        return f"×{low:.3g}"
    return f"×{low:.3g} to {high:.3g}" if low > 0 or np.isfinite(high) else "not reached"


def ratio_detail(values: Ratios) -> str:
    """Median ratio, its interval, signs and their probability."""
    low, high = ratio_interval(values)
    wins, losses, count = int(np.sum(values[0] > 1)), int(np.sum(values[1] < 1)), values.shape[1]
    side, more = ("longer", wins) if wins >= losses else ("shorter", losses)
    return (
        f"{ratio_text(values)}, median in [{low:.3g}, {high:.3g}], {side} in {more} of {count} draws (p = "
        f"{sign_test(more, count):.1g})"
    )


def pair_text(first: Case, second: Case) -> str:
    """What two cases have in common, and what not: `d=20, balanced: N=20 over N=2`."""
    common, one, other = [], [], []
    for a, b in zip(_features(first), _features(second), strict=True):
        if a == b:
            common.append(a)
        else:
            one.append(a)
            other.append(b)
    return f"{', '.join(common)}: {', '.join(other)} over {', '.join(one)}"


def _features(case: Case) -> tuple[str, ...]:
    return f"d={case.d}", f"r={case.rank}", f"N={case.depth}", case.start_name


def _compare(
    pairs: Sequence[Pair], decide: Decision, combine: Combination, statement: str, criterion: str, **measure: Any
) -> Claim:
    """A claim on the ratio of the times of every pair.

    **Arguments:** `combine`: what follows from what is decided of the pairs; `measure`: level and quantity of the times.
    """
    measure = {"level": RANKED, **measure}
    values = {pair_text(a.case, b.case): ratios(a.times(**measure), b.times(**measure)) for a, b in pairs}
    later = {pair_text(a.case, b.case): ratios(a.times(LATER), b.times(LATER)) for a, b in pairs}
    parts = {pair_text(a.case, b.case): _both(a, b, a.times(**measure), b.times(**measure), decide) for a, b in pairs}
    verdicts = {label: one if one == other else None for label, (one, other) in parts.items()}
    details = {pair_text(a.case, b.case): _detail(a, b, a.times(**measure), b.times(**measure)) for a, b in pairs}
    confirmed = combine(verdicts.values())
    left = "; ".join(f"{label} ({_why(parts[label])})" for label, verdict in verdicts.items() if verdict is None)
    groups = list(dict.fromkeys(group for pair in pairs for group in pair))
    return Claim(
        statement,
        criterion,
        confirmed,
        "; ".join(f"{label} {ratio_text(value)} ({_word(verdicts[label])})" for label, value in values.items()),
        left if confirmed is None else "",
        details=(
            *(
                f"{label}: {_word(verdicts[label])} (even draws {_word(parts[label][0])}, odd draws "
                f"{_word(parts[label][1])}); {details[label]}; to a relative error of {LATER:g} "
                f"{ratio_text(later[label])}"
                for label, value in values.items()
            ),
            "median times: " + ", ".join(f"{g.name} {number_text(g.times(**measure).median)}" for g in groups),
        ),
    )


def _both(a: Group, b: Group, first: Times, second: Times, decide: Decision) -> tuple[int | None, int | None]:
    """What the even draws and the odd ones say of a pair of groups."""
    if decide is order_of and a.case.d != b.case.d:
        one, other = (order_of_samples(*some) for some in zip(halves(first), halves(second), strict=True))
        return one, other
    values = ratios(first, second)
    return decide(values[:, ::2]), decide(values[:, 1::2])


def _why(parts: tuple[int | None, int | None]) -> str:
    """Why a pair is not decided."""
    return (
        "open in both sets of draws" if parts == (None, None) else "decided in one set of draws, not alike in the other"
    )


def _detail(a: Group, b: Group, first: Times, second: Times) -> str:
    """Ratio, interval and test of a pair of groups: by the draws they share, or, where they share none, by ranks."""
    if a.case.d == b.case.d:
        return ratio_detail(ratios(first, second))
    longer, shorter = rank_probabilities(first, second)
    word, p = ("longer", longer) if longer <= shorter else ("shorter", shorter)
    return f"medians ×{second.median / first.median:.3g}, {word} by ranks (p = {p:.1g})" if first.median > 0 else word


def _word(verdict: int | None) -> str:
    """What is decided of a pair."""
    if verdict is None:
        return "open"
    if isinstance(verdict, bool):
        return "yes" if verdict else "no"
    return {1: "yes", 0: "not longer", -1: "no"}[verdict]


#: How an order is decided.
TESTED = (
    f"more often than not: sign tests (rank tests between dimensions) at the level {ALPHA:g} on the even and on the odd "
    f"draws, and a median ratio that is not within {100 * (NEGLIGIBLE - 1):.0f} % of 1"
)
#: … of which times.
LONGER = f"for the relative error to fall to {RANKED:g}, {TESTED}"


def takes_longer(pairs: Sequence[Pair], statement: str, what: str, *, loss: bool = False) -> Claim:
    """That of every pair the second takes longer than the first.

    **Arguments:** `what`: what the pairs are; `loss`: whether losses are compared, which are squares.
    """
    level, quantity = (RANKED**2, "relative_losses") if loss else (RANKED, "relative_errors")
    longer = f"for the loss to fall to {level:g} of that of W = 0, {TESTED}" if loss else LONGER
    criterion = f"{what} in at least one pair it takes longer {longer}; in no pair it takes less long"
    return _compare(pairs, order_of, in_order, statement, criterion, level=level, quantity=quantity)


def ends(groups: Sequence[Group]) -> Pair:
    """The first and the last: least and largest."""
    return groups[0], groups[-1]


def slower_with_depth(panels: Sequence[Sequence[Group]], statement: str, *, loss: bool = False) -> Claim:
    """That in every panel the deepest networks take longer than the shallowest.

    A panel without the deepest networks of the others decides nothing.
    """
    deepest = max(group.case.depth for panel in panels for group in panel)
    whole = [panel for panel in panels if panel[-1].case.depth == deepest]
    claim = takes_longer([ends(panel) for panel in whole], statement, f"from N = 2 to N = {deepest}", loss=loss)
    missing = len(panels) - len(whole)
    if not missing:
        return claim
    return dataclasses.replace(
        claim, measured=f"{claim.measured}; N = {deepest} was not run in {missing} of {len(panels)} panels"
    )


def slower_with_size(panels: Panels, statement: str) -> Claim:
    """That for every depth the networks of the second panel take longer than those of the first."""
    small = {group.case.depth: group for group in panels[0]}
    pairs = [(small[group.case.depth], group) for group in panels[1] if group.case.depth in small]
    return takes_longer(pairs, statement, "from the left panel's size to the right one's, N by N,")


def alike(pairs: Sequence[Pair], statement: str) -> Claim:
    """That of every pair the two take about as long."""
    criterion = (
        f"for every N and size an interval for the median ratio of the times to a relative error of {RANKED:g} lies "
        f"within 1/{ALIKE:g} and {ALIKE:g}, each end of it wrong with a probability of {ALPHA:g}, on the even and on "
        "the odd draws"
    )
    return _compare(pairs, is_alike, every, statement, criterion)


def slightly_longer(pairs: Sequence[Pair], statement: str) -> Claim:
    """That the second takes longer, and by no more than a slight factor."""
    criterion = (
        f"for some N and size it takes longer for the relative error to fall to {RANKED:g}, by sign tests at the level "
        f"{ALPHA:g} on the even and on the odd draws; for none it takes less long, and nowhere is the median ratio above "
        f"{ALIKE:g} or below 1/{ALIKE:g}"
    )
    return _compare(pairs, slight_order_of, in_order, statement, criterion)


def stronger(weak: Pair, strong: Pair, statement: str) -> Claim:
    """That a time grows by a larger factor from one group to the other in the second pair than in the first."""
    growths = [ratios(a.times(RANKED), b.times(RANKED)) for a, b in (weak, strong)]
    value = ratios(Times(growths[0]), Times(growths[1]))
    verdict = in_order([twice(order_of, value)])
    labels = [f"{b.case.task}, {pair_text(a.case, b.case)}" for a, b in (weak, strong)]
    return Claim(
        statement,
        f"the time to a relative error of {RANKED:g} grows by a larger factor, {TESTED}",
        verdict,
        "; ".join(f"{label} {ratio_text(growth)}" for label, growth in zip(labels, growths, strict=True)),
        "not decided alike in both sets of draws" if verdict is None else "",
        details=(
            *(f"{label}: {ratio_detail(growth)}" for label, growth in zip(labels, growths, strict=True)),
            f"the second factor over the first: {ratio_detail(value)}",
        ),
    )


def converges(groups: Sequence[Group], statement: str, shown: Collection[str] = ()) -> Claim:
    """That every run's limit is proved to be a global minimum. **Arguments:** `shown`: depths or dimensions of the paper's."""
    runs = [run for group in groups for run in group.runs]
    certified, arrived = sum(run.certified for run in runs), sum(run.converged for run in runs)
    reasons = [_why_open(group) for group in groups if not all(run.certified for run in group.runs)]
    known = {text for group in groups for text in (f"N = {group.case.depth}", f"d = {group.case.d}")}
    if missing := sorted(set(shown) - known):
        reasons.append(f"{', '.join(missing)}: not run")
    return Claim(
        statement,
        "in every run the loss falls below the second-lowest critical value, which proves that the flow from the "
        "computed state tends to a global minimum: to W*, for the best fit of that rank is unique here; where it does "
        "not, nothing is decided",
        None if reasons else True,
        f"{certified} of {len(runs)} runs certified; in {arrived} the error falls to 1e-5 of the first",
        "; ".join(reasons),
        details=tuple(_course(group) for group in groups),
    )


def _course(group: Group) -> str:
    runs = group.runs
    return (
        f"{group.name}: {sum(run.certified for run in runs)} of {len(runs)} certified, "
        f"{sum(run.converged for run in runs)} arrived, median end t = {np.median([run.end for run in runs]):.3g}, "
        f"largest error at the end {max(run.errors[-1] / run.errors[0] for run in runs):.2g} of the first"
    )


def _why_open(group: Group) -> str:
    rest = [run for run in group.runs if not run.certified]
    above = float(np.median([(run.losses[-1] - run.least) / (run.level - run.least) for run in rest]))
    ends = sorted({run.status for run in rest})
    rate = float(np.median([run.rate for run in rest]))
    slow = f"; their slowest direction decays at a rate of about {rate:.2g} (median)" if np.isfinite(rate) else ""
    return (
        f"{len(rest)} of {len(group.runs)} runs of {group.name} end before, at t = {max(run.end for run in rest):.4g} "
        f"({', '.join(ends)}), where the excess of the loss is {above:.2g} times that of the level (median){slow}"
    )


def by_law(panels: Mapping[Start, Panels], decide: Callable[[Panels], Claim]) -> Claim:
    """One claim for starts whose law the print does not give: what all laws agree on."""
    claims = {law: decide(groups) for law, groups in panels.items()}
    verdicts = {law: claim.confirmed for law, claim in claims.items()}
    first = next(iter(claims.values()))
    common = next(iter(verdicts.values())) if len(set(verdicts.values())) == 1 else None
    unprinted = True in verdicts.values() and False in verdicts.values()
    reason = "; ".join(f"{law}: {claim.reason}" for law, claim in claims.items() if claim.reason)
    if unprinted:
        reason = "it hangs on the standard deviation of the starts, which the print does not give"
    elif common is None and False in verdicts.values():
        reason = f"not confirmed for {', '.join(law for law, v in verdicts.items() if v is False)}; {reason}"
    return dataclasses.replace(
        first,
        criterion=f"{first.criterion}; for each standard deviation of the entries of W_j: "
        + ", ".join(f"{DEVIATIONS[law]} ({law})" for law in claims),
        confirmed=common,
        measured=" | ".join(f"{law}: {claim.verdict}, {_short(claim.measured)}" for law, claim in claims.items()),
        reason=reason if common is None else "",
        details=tuple(f"{law}: {claim.verdict}; {detail}" for law, claim in claims.items() for detail in claim.details),
        unprinted=unprinted,
    )


def _short(measured: str) -> str:
    """What was measured, and of what was compared the sizes and depths only."""
    return ", ".join(_shorter(part) for part in measured.split("; "))


def _shorter(part: str) -> str:
    if "×" not in part:
        return part
    common, ratio = part.split(":")[0].split(", "), part.rsplit("×", 1)[1]
    kept = ", ".join(text for text in common if text.startswith(("d=", "N=")))
    return f"{kept}: ×{ratio}" if kept else f"×{ratio}"
