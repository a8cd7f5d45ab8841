"""What is claimed of spurious minima, and whether the runs bear it out."""

import itertools
from collections.abc import Sequence

import numpy as np

from gdflow.basins.intervals import verdict_interval
from gdflow.binomial import clopper_pearson_upper
from gdflow.experiments.results import Claim, every
from gdflow.experiments.spurious_minima.runs import (
    ALPHA,
    EQUAL,
    FIRST,
    FLOW,
    LOOSE,
    NEAR_ZERO,
    STEP,
    Results,
    Sweep,
    difference,
)


def percent(interval: tuple[float, float]) -> str:
    """An interval of a probability in per cent."""
    return f"[{100 * interval[0]:.3g}, {100 * interval[1]:.3g}] %"


def _large(sweeps: Sequence[Sweep]) -> list[Sweep]:
    return [sweep for sweep in sweeps if sweep.k >= FIRST]


def none_for_few(results: Results) -> Claim:
    """That below `FIRST` no start ends at a spurious minimum."""
    some = [sweep for pair in results.pairs for sweep in pair if sweep.k < FIRST]
    bounds = [clopper_pearson_upper(s.count + int(s.unknown.sum()), s.num, ALPHA) for s in some]
    return Claim(
        f"no spurious minimum is found for k ≤ {FIRST - 1}",
        "no start ends at one; not decided where a start has no limit",
        every(False if s.count else None if s.unknown.any() else True for s in some) if some else None,
        "; ".join(
            f"k={s.k}, {s.name}: {s.count} of {s.num}, probability at most {bound:.2g}"
            for s, bound in zip(some, bounds, strict=True)
        )
        or "no such k",
        ours=True,
    )


def positive_measure(results: Results) -> Claim:
    """That from `FIRST` on spurious minima are found, and are strict."""
    some, verdicts, texts = _large(results.flows), [], []
    for sweep in some:
        low, high = sweep.interval(ALPHA / len(some))
        bad = [m for m in sweep.classes if not m.is_global]
        least = min((m.smallest for m in bad if not m.zero and not m.index), default=0.0)
        verdicts.append(True if low > 0 and least > 0 else None)
        more = f", λ_min {least:.2g}" if least else "" if bad else ", none found"
        texts.append(f"k={sweep.k}: {percent((low, high))}{more}")
    return Claim(
        f"from k = {FIRST} on the flow ends at spurious minima from a set of starts of positive measure",
        "for every k the lower end of the interval, simultaneous over all k, is above 0, and a spurious minimum has a positive "
        "definite Hessian; not decided where no start of the flow ends at one",
        every(verdicts) if verdicts else None,
        "; ".join(texts) or "no such k",
    )


def grows(results: Results) -> Claim:
    """That the fraction increases with `k`."""
    some = _large(results.descents)
    intervals = [sweep.interval(ALPHA / max(len(some), 1)) for sweep in some]
    fractions = [sweep.fraction for sweep in some]
    verdict: bool | None = None
    if any(later[1] < earlier[0] for earlier, later in itertools.combinations(intervals, 2)):
        verdict = False
    elif len(some) > 1 and fractions == sorted(fractions) and intervals[-1][0] > intervals[0][1]:
        verdict = True
    return Claim(
        "the probability that gradient descent ends at a spurious minimum increases with k",
        "the fraction increases from every k to the next, and the interval of the last k lies above that of the first "
        "(simultaneous over all k); not confirmed if one lies below that of a smaller k",
        verdict,
        ", ".join(f"k={s.k}: {100 * s.fraction:.3g} % {percent(i)}" for s, i in zip(some, intervals, strict=True))
        or "no such k",
    )


def same_fractions(results: Results) -> Claim:
    """That flow and descent have the same fractions."""
    pairs = [pair for pair in results.pairs if pair[0].k >= FIRST]
    found = [difference(*pair, alpha=ALPHA / len(pairs)) for pair in pairs]
    return Claim(
        f"the flow and gradient descent with step {STEP:g} end at spurious minima equally often",
        f"for every k the interval of the difference, paired and simultaneous over all k, lies between −{100 * EQUAL:g} % and "
        f"{100 * EQUAL:g} %; not confirmed if one does not contain 0",
        every(d.same for d in found) if found else None,
        "flow − descent: "
        + ("; ".join(f"k={p[0].k}: {d.text}" for p, d in zip(pairs, found, strict=True)) or "no such k"),
        ours=True,
    )


def same_for_all_steps(results: Results) -> Claim:
    """That the fraction does not depend on the step."""
    found = [difference(run, results.reference, alpha=ALPHA / len(results.steps)) for run in results.steps]
    return Claim(
        f"for k = {results.loose.k} the fraction does not depend on the step of gradient descent",
        f"for every step the interval of the difference to the flow, paired and simultaneous, lies between −{100 * EQUAL:g} % "
        f"and {100 * EQUAL:g} %; not confirmed if one does not contain 0",
        every(d.same for d in found),
        "descent − flow: " + "; ".join(f"step {s.step:g}: {d.text}" for s, d in zip(results.steps, found, strict=True)),
        ours=True,
    )


def more_differ(results: Results) -> Claim:
    """That the longer the step, the more starts have another limit than by the flow."""
    flow, alpha = results.reference, ALPHA / len(results.steps)
    counts = [difference(run, flow).differ for run in results.steps]
    bounds = [verdict_interval(count, count, flow.num, alpha) for count in counts]
    verdict: bool | None = None
    if any(later[1] < earlier[0] for earlier, later in itertools.combinations(bounds, 2)):
        verdict = False
    elif counts == sorted(counts) and bounds[-1][0] > bounds[0][1]:
        verdict = True
    return Claim(
        f"for k = {flow.k}, the longer the step of gradient descent, the more starts end elsewhere than by the flow",
        "their number does not decrease from any step to the next, and the interval of the longest step lies above that of the "
        "shortest (simultaneous over all steps); not confirmed if one lies below that of a shorter step",
        verdict,
        ", ".join(
            f"step {s.step:g}: {c} of {s.num} {percent(b)}"
            for s, c, b in zip(results.steps, counts, bounds, strict=True)
        ),
        ours=True,
    )


def one_against(results: Results) -> Claim:
    """That at the most frequent spurious minimum one student points against a teacher."""
    verdicts: list[bool | None] = []
    texts = []
    for sweep in _large(results.flows):
        counts = np.bincount(sweep.labels[sweep.spurious], minlength=1)
        if not counts.any():
            verdicts.append(None)
            continue
        minimum, k = sweep.classes[int(np.argmax(counts))], sweep.k
        verdicts.append((minimum.along, minimum.against, minimum.alike) == (k - 1, 1, (k - 1, 1)))
        texts.append(f"k={k}: {minimum.loss:.10g} ({minimum.pattern}), {counts.max()} of {counts.sum()}")
    return Claim(
        "at the most frequent spurious minimum one student points against a teacher, all others along one, and all teachers but "
        "that one are alike",
        "for every k the most frequent class of the flow has this pattern; not decided where none was found",
        every(verdicts) if verdicts else None,
        "; ".join(texts) or "none found",
        ours=True,
    )


def all_strict(results: Results) -> Claim:
    """That all starts end at strict minima."""
    classes = {id(m): m for run in results.runs for m in run.classes}.values()
    flat = [m for m in classes if m.zero or m.index]
    lost = sum(int(np.sum(run.labels < 0)) for run in results.runs)
    return Claim(
        "every start ends at a minimum with a positive definite Hessian",
        "no start is without a limit, and no limit has a Hessian with an eigenvalue that is zero or negative",
        False if flat else True if not lost else None,
        f"{len(classes)} classes, {len(flat)} of them flat; least eigenvalue {min(m.smallest for m in classes):.2g}; "
        f"{lost} of {sum(run.num for run in results.runs)} runs without a limit",
        ours=True,
    )


def away_from_zero(results: Results) -> Claim:
    """That no start comes near a student at zero."""
    near = sum(int(run.near_zero.sum()) for run in results.runs)
    least = min(results.runs, key=lambda run: float(run.smallest.min()))
    return Claim(
        "no start comes near w_i = 0, where the flow need not be unique",
        f"after every step the norms of all students are at least {NEAR_ZERO:g}; other starts are counted as without a limit",
        near == 0,
        f"{near} of {sum(run.num for run in results.runs)} runs; "
        f"smallest norm {least.smallest.min():.3g} (k={least.k}, {least.name})",
        ours=True,
    )


def tolerances_suffice(results: Results) -> Claim:
    """That the labels of the flow do not depend on the tolerances."""
    reference, loose = results.reference, results.loose
    audited, flips = (sum(getattr(flow, name) for flow in results.flows) for name in ("audited", "flips"))
    differ = int(np.sum(reference.labels != loose.labels))
    audit = f"; audits with another solver at 100 times tighter tolerances contradict {flips} of {audited}"
    return Claim(
        "the limits of the flow do not depend on the tolerances of its integration",
        f"for k = {loose.k} no start has another limit at rtol {LOOSE[0]:g} than at {FLOW[0]:g}, and no audit contradicts one "
        "(with `fast` there is none)",
        differ == 0 and flips == 0,
        f"{differ} of {loose.num} differ" + (audit if audited else ""),
        ours=True,
    )


#: All claims, in order.
CLAIMS = (
    positive_measure, grows, none_for_few, same_fractions, same_for_all_steps, more_differ, one_against, all_strict,
    away_from_zero, tolerances_suffice,
)  # fmt: skip
