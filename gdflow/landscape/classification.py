"""What kind of critical point a network is: conditions, subset, ranks, strictness by two independent ways, escape direction."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType

from gdflow.landscape.curvature import Inertia, check_tolerance, extreme_eigenpairs, inertia, zero_eigenvalue
from gdflow.landscape.escape import escape_direction
from gdflow.landscape.normal_form import NormalForm, hidden_product, subset_indices
from gdflow.landscape.pivots import Pivots, find_pivots
from gdflow.landscape.scaling import scaled
from gdflow.landscape.second_variation import second_variation
from gdflow.levels import subset_text
from gdflow.network import LayerTuple
from gdflow.problem import Problem, iterate_critical_values
from gdflow.ranks import RankDecision
from gdflow.tables import Printable, key_value_table

#: Up to so many parameters all eigenvalues of the Hessian are computed; beyond, the smallest one.
MAX_EIGENVALUES = 2048

#: The nearest critical value is looked for among so many, from the lowest.
MAX_LEVELS = 4096


@dataclasses.dataclass(frozen=True, repr=False)
class Classification(Printable):
    """What is known of a point of the landscape.

    - `critical`: whether the relative gradient norm is at most `tolerance`.
    - `gradient_norm`: `‖∇L‖`; `relative_gradient`: in normal-form coordinates, over `‖Σ‖∏max(1, ‖W_j‖)`, with units in which
      `s_1^{1/N}` is about one and the norms of the layers levelled.
    - `loss`: effective loss; `nearest_level`, `level_value`, `level_distance`: the critical value nearest to it, its number
      from the lowest, and how far it is. Above the lowest 4096 levels the number is `None`; the value is then `ℓ(S)` at a
      critical point, `None` elsewhere.
    - `residuals`: of the conditions of Lemmas 3.1 and 3.2 of Chitour, Liao, Couillet (2022), each relative to the sizes of
      its terms.
    - `subset`: `S`; `rank`: `r = rank R`; `rank_Z`: `r_Z = rank (ΠW)_2^H`, with margins. `None` where the point is not
      critical.
    - `kind`: `"global minimum"`, `"strict saddle"`, `"non-strict saddle"`, `"not critical"`, or `"uncertain"` where a rank
      that decides lies too close to its threshold (`uncertain` names it).
    - `by_pivots`, `by_hessian`: the same verdict by the ranks and by the smallest eigenvalue alone.
    - `smallest_eigenvalue` of `∇²L` and `eigenvalue_threshold`, at or below which a size counts as zero; `inertia` for up
      to 2048 parameters.
    - `factors`: all one, but where the layers' norms are very unequal (or the inputs in other units than the layers). Then
      ranks and eigenvalues are those of the network with layers `factors_j·W_j` and inputs over the product of the factors,
      which has the same end-to-end map; ranks and signs of eigenvalues are the same, too.
    - `pivots`: all ranks with margins. `None` for a single layer, as are `rank` and `rank_Z`: it is convex.
    - `escape`: at a strict saddle a unit direction in which the loss falls, `escape_value = H_W(escape) < 0`, and how it
      was found.
    """

    critical: bool
    kind: str
    gradient_norm: float
    relative_gradient: float
    loss: float
    nearest_level: int | None
    level_value: float | None
    level_distance: float | None
    tolerance: float
    residuals: Mapping[str, float] = dataclasses.field(default_factory=dict)
    subset: tuple[int, ...] | None = None
    rank: RankDecision | None = None
    rank_Z: RankDecision | None = None
    by_pivots: str | None = None
    by_hessian: str | None = None
    smallest_eigenvalue: float | None = None
    eigenvalue_threshold: float | None = None
    inertia: Inertia | None = None
    pivots: Pivots | None = None
    factors: tuple[float, ...] = ()
    uncertain: tuple[str, ...] = ()
    escape: LayerTuple | None = None
    escape_value: float | None = None
    escape_source: str | None = None

    def __rich__(self) -> RenderableType:
        number = f"above the lowest {MAX_LEVELS}" if self.nearest_level is None else str(self.nearest_level)
        level = f"level {number}" + (
            "" if self.level_value is None else f" at {self.level_value:.8g}, distance {self.level_distance:.2g}"
        )
        rows = [
            ("kind", self.kind),
            (
                "gradient",
                f"‖∇L‖ = {self.gradient_norm:.3g}, relative {self.relative_gradient:.2g} (zero: ≤ {self.tolerance:.2g})",
            ),
            ("effective loss", f"{self.loss:.8g}; nearest {level}"),
        ]
        if self.critical:
            assert self.subset is not None
            rows.append(("S", subset_text(self.subset)))
            if self.pivots is not None:
                assert self.rank is not None
                assert self.rank_Z is not None
                tight = sum(p.tightened for p in self.pivots.pivots)
                rows += [
                    (
                        "ranks",
                        f"r = {_decided(self.rank)}; r_Z = {_decided(self.rank_Z)}; r_max = {self.pivots.max_rank}",
                    ),
                    ("by pivots", f"{self.by_pivots}: {tight} of {len(self.pivots.pivots)} pivots tightened"),
                ]
            rows += [
                *([("layers times", ", ".join(f"{f:.3g}" for f in self.factors))]
                    if any(f != 1 for f in self.factors) else []),
                ("by Hessian", f"{self.by_hessian}: λ_min = {self.smallest_eigenvalue:.6g}"
                    f" (zero: ≤ {self.eigenvalue_threshold:.2g})"),
                *([("inertia", f"{self.inertia.negative} negative, {self.inertia.zero} zero, {self.inertia.positive} positive")]
                    if self.inertia else []),
                *([("conditions", ", ".join(f"{name}: {value:.1e}" for name, value in self.residuals.items()))]
                    if self.residuals else []),
                *([("escape", f"H_W = {self.escape_value:.6g} along a unit direction ({self.escape_source})")]
                    if self.escape else []),
            ]  # fmt: skip
        rows += [("UNCERTAIN", reason) for reason in self.uncertain]
        return key_value_table("Classification", rows)


def _decided(decision: RankDecision) -> str:
    margins = []
    if np.isfinite(decision.smallest_kept):
        margins.append(f"kept ≥ {decision.smallest_kept / decision.threshold:.1e} thresholds")
    if decision.largest_dropped > 0:
        margins.append(f"dropped ≤ {decision.largest_dropped / decision.threshold:.1e}")
    return f"{decision.rank}" + (f" ({', '.join(margins)})" if margins else "")


def classify(problem: Problem, net: LayerTuple, *, tolerance: float = 1e-9) -> Classification:
    """Is this network a critical point, on which stratum, and is it a minimum, a strict or a non-strict saddle?

    Two independent answers to the last question stand side by side: by the ranks of partial products (pivots, see
    `gdflow.landscape.pivots`) and by the smallest eigenvalue of the Hessian. Where they disagree, or a rank on which the
    verdict rests has a singular value within a factor 10 of the threshold, `kind` is `"uncertain"`.

    **Arguments:**

    - `net`: in the problem's coordinates. A single layer is convex: its critical points are global minima.
    - `tolerance`: a gradient, a singular value of a partial product or an eigenvalue counts as zero at or below this
      multiple of its natural size. Take it well above the accuracy to which the point is known: the end of a flow with
      relative gradient 1e-8 needs 1e-6 or so.

    Everything is measured at the network brought to sizes of order one (`gdflow.landscape.scaling`): the verdict does not
    depend on units, nor on how the norms of the layers are shared out.

    **Raises:** `ValueError` for tied or zero singular values of two or more layers (levels and `inertia` still work), losses
    other than the squared error, networks that do not fit or are not finite.

    ```python
    >>> print(classify(problem, sample_critical_point(problem, (6, 5, 5, 3), (1,), key=key, kind="non-strict")))
    ```
    """
    problem.check_network(net)
    check_tolerance(tolerance)
    form = NormalForm(problem)
    if net.depth > 1:
        form.check_distinct("classification")
    # From here on a problem and a network of sizes of order one; what is reported is scaled back.
    N, unit = net.depth, scaled(problem, net)
    form = NormalForm(unit.problem)
    target = np.asarray(form.target, dtype=np.float64)
    layers = [np.asarray(w, dtype=np.float64) for w in form.into(unit.net).weights]
    relative = form.gradient_norm(layers) / max(
        float(np.linalg.norm(target)) * _size(layers), float(np.finfo(float).tiny)
    )
    gradient = zip(np.asarray(unit.problem.gradient(unit.net).layer_norms()), unit.factors, strict=True)
    loss = float(problem.effective_loss(net))
    number, value = _nearest_level(problem, form.max_rank(net.widths), loss)
    subset = None
    if relative <= tolerance:
        subset = _subset_of(layers, form.singular_values) if N > 1 else form.positive_subset()
    if N == 1:
        # Convex: the minimum is the only critical value.
        number, value = 0, 0.0
    elif number is None and subset is not None:
        _, outside = subset_indices(subset, form.rank_bound)
        value = unit.unscaled(0.5 * float(np.sum(form.singular_values[outside] ** 2)), 2 * N)
    facts: dict[str, Any] = dict(
        gradient_norm=math.hypot(*(unit.unscaled(g * t, 2 * N - 1) for g, t in gradient)), relative_gradient=relative,
        loss=loss, nearest_level=number, level_value=value,
        level_distance=None if value is None else abs(loss - value), tolerance=tolerance, factors=unit.factors,
    )  # fmt: skip
    if subset is None:
        return Classification(critical=False, kind="not critical", **facts)

    if net.num_parameters <= MAX_EIGENVALUES:
        signs = inertia(unit.problem, unit.net, tolerance=tolerance)
        smallest, threshold = float(signs.eigenvalues[0]), signs.threshold
    else:
        signs = None
        smallest = float(extreme_eigenpairs(unit.problem, unit.net)[0][0])
        largest = float(extreme_eigenpairs(unit.problem, unit.net, which="largest", tolerance=1e-3)[0][0])
        threshold = zero_eigenvalue(unit.problem, unit.net, max(abs(smallest), abs(largest)), tolerance)
    descends, degree = smallest < -threshold, 2 * N - 2
    facts |= dict(
        critical=True,
        subset=subset,
        smallest_eigenvalue=unit.unscaled(smallest, degree),
        eigenvalue_threshold=unit.unscaled(threshold, degree),
        inertia=None if signs is None else signs.times(unit.unscaled(1.0, degree)),
    )
    if N == 1:
        return Classification(kind="global minimum", by_hessian="global minimum", **facts)

    pivots = find_pivots(layers, target, subset, tolerance=tolerance)
    rank = pivots.products[2, N]
    rank_Z = pivots.products[2, N - 1] if N > 2 else _full_rank(layers[0].shape[0])
    uncertain = list(pivots.uncertain)
    if rank.rank != len(subset) or not rank.certain:
        uncertain.append(f"rank R = {_decided(rank)} while W fits {subset_text(subset)}")
    by_pivots = "global minimum" if pivots.minimum else "non-strict saddle" if pivots.non_strict else "strict saddle"
    by_hessian = "strict saddle" if descends else by_pivots if by_pivots != "strict saddle" else "no descent"
    below, zero = facts["smallest_eigenvalue"], facts["eigenvalue_threshold"]
    if by_hessian == "no descent":
        uncertain.append(f"the ranks say strict saddle, but λ_min = {below:.3g} is not below −{zero:.2g}")
    elif by_hessian != by_pivots:
        uncertain.append(f"the ranks say {by_pivots}, but λ_min = {below:.3g} is below −{zero:.2g}")
    found = None
    if by_pivots == by_hessian == "strict saddle":
        found = escape_direction(problem, net, subset, tolerance=tolerance)
    return Classification(
        kind="uncertain" if uncertain else by_pivots,
        residuals=_residuals(layers, target, subset),
        rank=rank,
        rank_Z=rank_Z,
        by_pivots=by_pivots,
        by_hessian=by_hessian,
        pivots=pivots,
        uncertain=tuple(uncertain),
        escape=None if found is None else found[0],
        escape_value=None if found is None else float(second_variation(problem, net, found[0])),
        escape_source=None if found is None else found[1],
        **facts,
    )


def _size(layers: list[np.ndarray]) -> float:
    """`∏max(1, ‖W_j‖)` of a network in units in which the layers that fit the target are of size one."""
    return math.prod(max(1.0, float(np.linalg.norm(w))) for w in layers)


def _nearest_level(problem: Problem, max_rank: int, loss: float) -> tuple[int | None, float | None]:
    """Number and value of the critical value nearest to `loss`; `None` where it is not among the lowest `MAX_LEVELS`."""
    nearest: tuple[int | None, float | None] = (None, None)
    values = (level.value for level in iterate_critical_values(problem, max_rank))
    for k, value in enumerate(itertools.islice(values, MAX_LEVELS)):
        if nearest[1] is None or abs(value - loss) < abs(nearest[1] - loss):
            nearest = (k, value)
        if value >= loss:
            return nearest
    return nearest if next(values, None) is None else (None, None)


def _full_rank(d: int) -> RankDecision:
    return RankDecision(d, float(np.finfo(float).tiny), 1.0, 0.0)


def _subset_of(layers: list[np.ndarray], s: np.ndarray) -> tuple[int, ...]:
    """The singular values that `RW_{1,1} = S_YD_S` fits."""
    product = np.linalg.multi_dot(layers[::-1])
    return tuple(int(i) + 1 for i in np.flatnonzero(np.diagonal(product)[: len(s)] > 0.5 * s))


def _residuals(layers: list[np.ndarray], target: np.ndarray, subset: tuple[int, ...]) -> dict[str, float]:
    """Residuals of Lemma 3.1 (eq. (16)) and Lemma 3.2 (item 1 and eq. (20)) of Chitour, Liao, Couillet (2022), relative."""
    d = len(target)
    inside, outside = subset_indices(subset, d)
    S, W1, WN = target[:, :d], layers[0], layers[-1]
    W11, W12 = W1[:, :d], W1[:, d:]
    Z = hidden_product(layers)
    R = WN @ Z
    Q = R @ W11
    fitted = np.zeros((d, d))
    fitted[inside, inside] = np.diagonal(S)[inside]
    norm = np.linalg.norm
    rest = _size(layers)
    size = float(norm(S)) * rest

    def relative(matrix, scale):
        return float(norm(matrix)) / scale

    return {
        "3.1: RᵀS=RᵀRW_11": relative(R.T @ S - R.T @ Q, size * rest),
        "3.1: RW_12=0": relative(R @ W12, rest),
        "3.1: RW_11S=RW_11W_11ᵀRᵀ": relative(Q @ S - Q @ Q.T, size * rest),
        "3.2: RW_11=SD": relative(Q - fitted, rest),
        "3.2: W_N2Z=0": relative(WN[outside] @ Z, rest),
        "3.2: W_N1ZW_111=D": relative(WN[inside] @ Z @ W11[:, inside] - fitted[np.ix_(inside, inside)], rest),
        "3.2: ZW_112=0": relative(Z @ W11[:, outside], rest),
        "3.2: W_N1ZW_12=0": relative(WN[inside] @ Z @ W12, rest),
    }
