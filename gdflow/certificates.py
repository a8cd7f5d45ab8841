"""What can be proved about the limit from a single state, without an integrator.

- The *level certificate*: the loss falls along the flow, every trajectory converges to a critical point, and critical
  values form a finite set. So from a state with a loss below the second-lowest critical value, by more than round-off
  (`gdflow.rounding`), the exact flow converges to a global minimum.
- An explicit *radius* that no trajectory from here ever leaves.
- *Exponential rates* for pyramidal states.
- Which starts can reach no *non-strict saddle*: `gdflow.avoidance`.
- Which balanced starts can reach no *limit of full rank*: from the sign of their determinant.

What a certificate does not cover is the integration error up to the state it is given: watch the drift of the conserved
quantities, and audit.
"""

import dataclasses
from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Bool, Float, Int
from rich.console import RenderableType

from gdflow.avoidance import excludes_non_strict_saddles
from gdflow.factorizations import determinant_sign
from gdflow.invariants import conserved, is_balanced
from gdflow.landscape import NormalForm
from gdflow.levels import CriticalValues, level_groups, nested_levels
from gdflow.network import LayerTuple, matmul
from gdflow.perturbation import is_traced
from gdflow.problem import Problem, check_problem, critical_values
from gdflow.ranks import equal_threshold, zero_threshold
from gdflow.rounding import gamma, product_error, residual_error
from gdflow.tables import Printable, key_value_table

#: Certified means a loss below the level by at least this many eps·‖Ȳ‖², besides the round-off of the loss.
SLACK_EPS = 100.0

#: Starts are balanced to round-off if the C_j are at most this multiple of the weights: some hundred times their round-off.
BALANCED = 1e-12

KINDS = ("exact", "almost sure", "balanced")


def certificate_levels(
    problem: Problem, widths: Iterable[int], *, kind: str = "exact", depth: int = 16
) -> CriticalValues:
    """The lowest `depth + 1` levels that a certificate of a kind tells apart, with their subsets."""
    widths = problem.check_widths(widths)
    max_rank = problem.max_rank(widths)
    if kind != "almost sure" or len(widths) == 2:
        return critical_values(problem, max_rank, lowest=depth + 1, num_layers=len(widths) - 1)
    s = np.asarray(problem.singular_values, dtype=np.float64)
    return nested_levels(s, max_rank, lowest=depth + 1, tolerance=problem.level_tolerance)


def _second_level(problem: Problem, widths: Iterable[int], kind: str) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """The second-lowest level, infinite if there is none, and whether the lowest is one critical value: in closed form.

    With `r` the largest rank, the second-lowest value differs from the lowest by one exchange, `½(s_i² − s_j²)` with
    `i ≤ r < j` (`s_j = 0` for none), or from the lowest nested one by leaving out `i = r`. Exchanges inside a group of
    `gdflow.levels.level_groups` belong to the lowest level; that is one value if all of them cost nothing.
    """
    widths = problem.check_widths(widths)
    return _second_of(problem.singular_values, problem.neglected, problem.max_rank(widths), len(widths) == 2, kind)


@eqx.filter_jit
def _second_of(s: Array, neglected: Array, rank: int, single_layer: bool, kind: str) -> tuple[Array, Array]:
    scale = jnp.sum(s**2)
    halves = jnp.concatenate([0.5 * s**2, jnp.zeros(1, s.dtype)])
    groups = level_groups(halves, equal_threshold(1.0, float(jnp.finfo(s.dtype).eps)) * scale)
    if single_layer:  # convex
        return jnp.asarray(jnp.inf, s.dtype), jnp.asarray(True)
    # What was taken for zero and is not belongs to the lowest level, where the rank leaves room for it.
    known = ~((neglected > 0) & (jnp.sum(s > 0) < rank))
    if kind == "almost sure":
        i = jnp.arange(halves.size)
        kept = jnp.sum((i < rank) & (groups != groups[-1]))
        second = jnp.where(kept > 0, jnp.sum(jnp.where(i >= kept - 1, halves, 0.0)), jnp.inf)
        return second, known & ~jnp.any((i >= kept) & (i < rank) & (halves > 0))
    gaps = halves[:rank, None] - halves[None, rank:]
    apart = groups[:rank, None] != groups[None, rank:]
    least = jnp.min(jnp.where(apart, gaps, jnp.inf))
    return jnp.sum(halves[rank:]) + least, known & ~jnp.any(~apart & (gaps > 0))


def certificate_threshold(problem: Problem, widths: Iterable[int], kind: str = "exact") -> Float[Array, ""]:
    """The second-lowest level less the slack, in closed form: `thresholds[0]` of a `LevelCertificate`.

    Infinite if there is no second level. Differentiable in the singular values, unlike the listing of levels.
    """
    return _second_level(problem, widths, kind)[0] - certificate_slack(problem)


def certificate_slack(problem: Problem) -> Float[Array, ""]:
    """`100·eps·‖Ȳ‖²`: so far below a critical value must a loss lie because of the round-off of that value."""
    s = problem.singular_values
    return SLACK_EPS * float(jnp.finfo(s.dtype).eps) * jnp.sum(s**2)


def residual_bound(threshold: Float[Array, "*n"], num_entries: int) -> Float[Array, "*n"]:
    """`√(2T)`, less the round-off of the computed `√(2L̂)`: a sum of so many squares, and a few operations more."""
    shrink = 1 - gamma(num_entries + 16, float(jnp.finfo(threshold.dtype).eps))
    positive = threshold > 0
    return jnp.where(positive, shrink * jnp.sqrt(2 * jnp.where(positive, threshold, 1.0)), 0.0)


def check_precision(problem: Problem, allow_float32: bool) -> None:
    """`ValueError` unless the problem is in double precision, or certificates in single precision are allowed."""
    dtype = problem.target.dtype
    if dtype != jnp.float64 and not allow_float32:
        raise ValueError(
            f"certificates need float64 but the problem is {dtype}: call "
            'jax.config.update("jax_enable_x64", True) before anything else, or pass allow_float32=True'
        )


class LevelCertificate(eqx.Module):
    """The levels a falling loss crosses on its way down, and what each crossing proves.

    **Arguments:**

    - `problem`: with the squared error.
    - `widths`: `(d_0, …, d_N)`. A single layer is convex: its one critical value is certified at once.
    - `kind`: `"exact"`: the lowest distinct critical values; a loss below all but the first proves, for this very state,
      that the exact flow converges to a global minimum. `"almost sure"`: the nested levels `ℓ({1..r})` only, the claim
      being that outside a set of starts of Lebesgue measure zero no other limit occurs (Terstiege, Rauhut, Bah,
      Westdickenberg 2022, Theorem 5a): weaker, but it stops earlier where the bottleneck is narrower than the rank of the
      target. Nothing follows for laws on null sets (balanced, λ-balanced, orthogonal starts). `"balanced"`: for exactly
      balanced starts, like `"exact"`, and for those on the wrong side of `det W = 0` (`full_rank_is_out_of_reach`) a loss
      below all but the two lowest values proves that the limit is at the second-lowest.
    - `depth`: at most that many levels above the minimum are told apart (`K`).
    - `allow_float32`: certify in single precision, where `eps = 1.2e-7`.

    Fields: `levels`, the distinct critical values from the lowest, `(K+1,)`; `thresholds`, `levels[1:]` less the slack
    `100·eps·‖Ȳ‖²`; `slack`; `separated`, whether the lowest level is one critical value: where round-off cannot tell it from
    others (`s = (1, 5e-7)`), what is certified is only that the limit's value is one of these; `num_merged`, how many levels
    stand for several values; `complete`, whether there are no levels above these; `num_entries`, of the target.

    Every decision takes the loss as computed and a bound `δ` on the error of the computed residual (`gdflow.rounding`):
    below a threshold `T` means `√(2L̂) + δ < √(2T)` (`residual_bound`).

    **Raises:** `ValueError` for losses without levels, widths that do not fit, and float32 without `allow_float32`.
    """

    levels: Float[Array, " K_plus_1"]
    thresholds: Float[Array, " K"]
    slack: Float[Array, ""]
    kind: str = eqx.field(static=True)
    separated: bool = eqx.field(static=True)
    num_merged: int = eqx.field(static=True)
    complete: bool = eqx.field(static=True)
    num_entries: int = eqx.field(static=True)

    def __init__(
        self,
        problem: Problem,
        widths: Iterable[int],
        *,
        kind: str = "exact",
        depth: int = 16,
        allow_float32: bool = False,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        check_precision(problem, allow_float32)
        dtype = problem.target.dtype
        widths = problem.check_widths(widths)
        self.slack = certificate_slack(problem)
        table = certificate_levels(problem, widths, kind=kind, depth=depth)
        self.num_merged = sum(level.width > 0 for level in table)
        self.levels = jnp.asarray(table.values, dtype=dtype)
        second, separated = _second_level(problem, widths, kind)
        above = jnp.concatenate([jnp.reshape(second, 1), self.levels[2:]])[: len(table) - 1]
        self.thresholds = above.astype(dtype) - self.slack
        self.kind, self.complete, self.separated = kind, table.complete, bool(separated)
        self.num_entries = int(problem.target.size)

    @property
    def verdicts(self) -> tuple[str, str]:
        """What is proved of the limit of a start certified at level 0, and of one certified at level 1."""
        lowest = "global minimum" if self.separated else "lowest levels (merged)"
        return lowest + (" (almost surely)" if self.kind == "almost sure" else ""), "lower rank"

    def _bounds(self, thresholds: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return residual_bound(thresholds, self.num_entries)

    def level(self, loss: Float[Array, "*n"], error: Float[Array, "*n"]) -> Int[Array, "*n"]:
        """Distance from the bottom: 0 certifies the lowest level; `k`: the limit is at one of the lowest `k+1` levels.

        Capped at `K`, where nothing is claimed; `K` also for a loss that is not a number. `error`: `δ`, see above.
        """
        reach = jnp.sqrt(2 * loss) + error
        below = reach[..., None] < self._bounds(self.thresholds).reshape((1,) * loss.ndim + (-1,))
        return self.thresholds.shape[0] - jnp.sum(below, axis=-1)

    def threshold(self, lowest: Int[Array, "*n"] | int = 0) -> Float[Array, "*n"]:
        """The value below which a limit is certified to be at the level `lowest`, the lowest one that the start can reach."""
        beyond = jnp.inf if self.complete else -jnp.inf  # no level above the last: any loss is below it
        thresholds = jnp.append(self.thresholds, beyond)
        if self.kind != "balanced":  # `lowest` is 0: no need to look it up
            return jnp.broadcast_to(thresholds[0], jnp.shape(lowest))
        return thresholds[jnp.minimum(lowest, self.thresholds.shape[0])]

    def goal(self, error: Float[Array, "*n"], lowest: Int[Array, "*n"] | int = 0) -> Float[Array, "*n"]:
        """The computed loss below which a state is certified: `½(√(2T) − δ)²`, zero where that is never."""
        return 0.5 * jnp.square(jnp.maximum(self._bounds(self.threshold(lowest)) - error, 0.0))

    def certified(
        self, loss: Float[Array, "*n"], error: Float[Array, "*n"], lowest: Int[Array, "*n"] | int = 0
    ) -> Bool[Array, "*n"]:
        """Whether a loss proves convergence to the level `lowest`, the lowest one that the start can reach.

        At 0 that is a global minimum, if the lowest level is `separated`. `error`: `δ`, see above.
        """
        return jnp.sqrt(2 * loss) + error < self._bounds(self.threshold(lowest))

    def lowest_level(self, problem: Problem, net: LayerTuple) -> Int[Array, ""]:
        """The lowest level that the flow from a start can reach: 0, or 1 for balanced starts that full rank is out of reach
        of (`kind="balanced"` only).
        """
        if self.kind != "balanced":
            return jnp.asarray(0)
        return full_rank_is_out_of_reach(problem, net).astype(int)


def full_rank_is_out_of_reach(problem: Problem, net: LayerTuple) -> Bool[Array, ""]:
    """Whether a *balanced* start is on the wrong side of `det W = 0`, so that its limit has a rank below `d = d_x = d_y`.

    The end-to-end matrix of a balanced start keeps its rank for all finite times (Terstiege, Rauhut, Bah, Westdickenberg
    2022, Theorem 4), so a square one of full rank keeps the sign of its determinant. The only critical point of `L¹` of
    full rank is `YXᵀ(XXᵀ)^{-1}`, for a target of full rank; a start whose determinant has the other sign cannot converge to
    it. Its limit is on the boundary, at one of the values `ℓ(S)`, `|S| < d`, the lowest of which is the second-lowest
    critical value. `False` where `W` is not square, `net` narrower than `d`, `X` or the target not of full rank, or the
    sign in doubt (`gdflow.factorizations.determinant_sign`): there nothing is claimed. That the start is balanced is not
    checked, and meant exactly: what is balanced up to round-off only leaves the set in the end.

    Traceable: `jax.vmap` it over batches.
    """
    d, s = problem.d_out, problem.singular_values
    if problem.d_in != d or min(net.widths) < d or s.shape[0] < d:
        return jnp.asarray(False)
    full_rank = 0.5 * s[-1] ** 2 > equal_threshold(1.0, float(jnp.finfo(s.dtype).eps)) * jnp.sum(s**2)  # else one level
    # Of the exact product, and of balanced starts that these are the rounding of.
    error, _ = product_error(net, 2 * d)
    # The minimum solves W DDᵀ = ADᵀ.
    norm = jnp.linalg.norm(problem.design)
    round_off = gamma(3 * d, float(jnp.finfo(s.dtype).eps)) * jnp.linalg.norm(problem.target)
    minimum = determinant_sign(matmul(problem.target, problem.design.T), (problem.data_error + round_off) * norm)
    return full_rank & (determinant_sign(net.end_to_end, error) * minimum < 0)


def check_side(problem: Problem, net: LayerTuple) -> None:
    """`ValueError` for a start, or a batch of them, that is balanced to round-off on the wrong side of `det W = 0`.

    The exact flow from the balanced start keeps the sign and never gets to a global minimum, but an integration of the factors
    does, carried across by round-off: a plain certificate at its end would be false of the start.
    """
    batch = jax.tree.map(lambda w: w if net.batch_shape else w[None], net)

    def wrong(start):
        return is_balanced(start, BALANCED) & full_rank_is_out_of_reach(problem, start)

    if net.depth == 1 or problem.spectrum is None or problem.d_in != problem.d_out:
        return
    found = np.flatnonzero(np.asarray(jax.vmap(wrong)(batch)))
    if found.size:
        which = f"start number {found[0]} of the batch" if net.batch_shape else "this start"
        raise ValueError(
            f"{which} is balanced (C_j = 0 up to round-off) and on the wrong side of det W = 0: its exact flow keeps the sign "
            "and ends at lower rank, but round-off takes an integration of the factors across, to a minimum never reached. "
            'Take gdflow.riemannian_flow(problem, net, N, t1, form="graded"), and for many starts gdflow.basin_sizes with a law '
            "that says that it is balanced"
        )


def radius_bounds(problem: Problem, net: LayerTuple) -> np.ndarray:
    """Explicit bounds on `‖W_j(t)‖_F` for all `t ≥ 0`, shape `(N,)`: the trajectory through `net` is bounded.

    With `g = ‖W_N‖²`, `δ_j = |‖W_j‖² − ‖W_N‖²|` and `c_j = ‖C_j‖_2`, all conserved, `κ = min(d_N, d_{N-1})` and
    `R_0 = (‖Σ_Y‖_F + √(2L(0)))/σ_min(D)`:

        g^N/κ^{N-1} − E(g) ≤ ‖ΠW‖²_F ≤ R_0²,
        E(g) = Σ_{m=1}^{N-1} [∏_{j>m}(g+δ_j)]·[(g+δ_{m+1}+c_m)^m − (g+δ_{m+1})^m],

    so `g` stays below the largest root of the difference: the constructive form of Lemma 2.4 and Proposition 1 of Chitour,
    Liao, Couillet (2022). `E` has non-negative coefficients and degree `N − 1`, so by Descartes' rule that root is the only
    positive one. Computed on the host in float64; not differentiable.
    """
    isometric = problem.isometric()
    reduced = problem.convert(net, problem.coordinates, isometric.coordinates)
    norms = np.asarray(reduced.layer_norms(), dtype=np.float64) ** 2
    f, N = problem.decomposition, net.depth
    sigma_min = float(jnp.min(jnp.diagonal(isometric.design)))
    loss = float(problem.effective_loss(net))
    R0 = (float(jnp.linalg.norm(f.s)) + np.sqrt(2 * max(loss, 0.0))) / sigma_min
    kappa = min(net.widths[-1], net.widths[-2])
    c = np.array([float(jnp.linalg.norm(C, ord=2)) for C in conserved(reduced)])
    # In units in which all of these are at most one, so that no power leaves the floating-point range.
    sizes = np.array([R0 ** (2 / N), *norms, *c])
    unit = float(sizes.max())
    if not np.all(np.isfinite(sizes)):
        return np.full(N, np.inf)
    root = (
        unit * _largest_root(N, (R0 ** (1 / N) / unit**0.5) ** (2 * N), norms / unit, c / unit, kappa) if unit else 0.0
    )
    squares = np.maximum(root * (1 + 1e-10) + norms - norms[-1], 0.0)
    # The part of W_1 on the null directions of X never moves and adds to its norm.
    whole = float(jnp.sum(net.weights[0] ** 2))
    squares[0] += max(whole - norms[0], 0.0)
    return np.sqrt(squares)


def _largest_root(N: int, R0_square: float, norms: np.ndarray, c: np.ndarray, kappa: int) -> float:
    """The largest root of `g^N/κ^{N-1} − E(g) − R_0²`, at least the present `‖W_N‖²`."""
    P = np.polynomial.Polynomial
    delta = abs(norms - norms[-1])
    excess = P([R0_square])
    for m in range(1, N):
        outer = P([1.0])
        for j in range(m + 1, N + 1):
            outer *= P([delta[j - 1], 1.0])
        excess += outer * (P([delta[m] + c[m - 1], 1.0]) ** m - P([delta[m], 1.0]) ** m)
    bound = P([0.0] * N + [1 / kappa ** (N - 1)]) - excess
    low = float(norms[-1])
    if bound(low) >= 0:  # the bound is attained
        return low
    high = max(low, 1.0)
    while bound(high) <= 0:
        high *= 2
    return float(scipy.optimize.brentq(bound, low, high, xtol=1e-300, rtol=1e-12, maxiter=1000))


@dataclasses.dataclass(frozen=True)
class Rates:
    """Exponential rates: `L(t) ≤ L(0)e^{-2αt}`; `None` where the bound does not apply.

    - `alpha`: `∏_l μ_l`, Proposition 2 of Chitour, Liao, Couillet (2022), times `σ_min(D)²` in data coordinates.
    - `alpha_sharp`: `∏_l b_l ≥ α`, the same with Weyl's inequality iterated.
    - `reason`: why there is none, if there is none.
    """

    alpha: float | None
    alpha_sharp: float | None
    reason: str = ""


def exponential_rates(problem: Problem, net: LayerTuple) -> Rates:
    """Guaranteed exponential rates of the loss from this state on, for pyramidal widths `d_1 ≥ … ≥ d_H ≥ d_y`.

    With `μ_l = λ_{d_l−d_{l+1}+1}(C_l)`, `l = 1..H` (eigenvalues ascending: the `d_{l+1}`-th *largest*; the paper prints
    "smallest"), `α = ∏μ_l` if all `μ_l > 0`; and `α' = ∏b_l` with `b_0 = 0`, `b_l = max(0, μ_l + b_{l-1})`. Computed on the
    host; not differentiable.
    """
    widths = net.widths
    if net.depth == 1:
        return Rates(None, None, "a single layer has no conserved quantities")
    if any(a < b for a, b in zip(widths[1:-1], widths[2:], strict=True)):
        return Rates(None, None, f"widths {widths} are not pyramidal: d_1 ≥ … ≥ d_H ≥ d_y fails")
    isometric = problem.isometric()
    reduced = problem.convert(net, problem.coordinates, isometric.coordinates)
    factor = float(jnp.min(jnp.diagonal(isometric.design))) ** 2
    norms = np.asarray(net.layer_norms(), dtype=np.float64) ** 2

    def eigenvalue(C, k, scale):
        """The `k`-th eigenvalue, less its round-off."""
        return float(np.linalg.eigvalsh(np.asarray(C))[k]) - zero_threshold(scale, C.shape[0])

    mu = [
        eigenvalue(C, d - after, max(pair))
        for C, d, after, *pair in zip(conserved(reduced), widths[1:-1], widths[2:], norms[:-1], norms[1:], strict=True)
    ]
    b, alpha_sharp = 0.0, 1.0
    for m in mu:
        b = max(0.0, m + b)
        alpha_sharp *= b
    alpha = float(np.prod(mu)) * factor if min(mu) > 0 else None
    reason = "" if alpha_sharp > 0 else f"eigenvalue condition fails: min μ_l = {min(mu):.3g}"
    return Rates(alpha, alpha_sharp * factor if alpha_sharp > 0 else None, reason)


@dataclasses.dataclass(frozen=True, repr=False)
class Certificate(Printable):
    """What is proved about the limit of the trajectory through one state.

    - `loss`: effective loss at the state; `error`: how far it may be from the exact loss of this state, by round-off.
    - `level`: 0 if convergence to the lowest level is proved, else the number of critical values (above the lowest) that
      the loss is not yet below, capped.
    - `at_lowest_level`: the limit's value is proved to be at the lowest level, for this state and the exact flow.
    - `global_minimum`: that, and the lowest level is one critical value, so that the limit is a global minimum. Where levels
      merge (`lowest_width > 0`) only `at_lowest_level` is claimed.
    - `almost_surely`: a global minimum for Lebesgue-almost every start. It says nothing of a start from a null set; for
      balanced ones it is not claimed.
    - `levels`: the critical values used, from the lowest; `num_merged`: how many of them stand for several.
    - `lowest_width`: the highest minus the lowest of the critical values that the lowest level stands for.
    - `radius`: bounds on `‖W_j(t)‖_F`, `t ≥ 0`.
    - `rates`: exponential rates.
    - `avoids_non_strict`: whether the conserved quantities exclude every non-strict saddle as the limit; `None` where
      nothing is known (four layers and more, tied or zero singular values).
    - `assumptions`: singular values of the data that were taken for zero, in words.
    """

    loss: float
    error: float
    level: int
    at_lowest_level: bool
    global_minimum: bool
    almost_surely: bool
    levels: np.ndarray
    num_merged: int
    lowest_width: float
    radius: np.ndarray
    rates: Rates
    avoids_non_strict: bool | None
    assumptions: tuple[str, ...]

    def __rich__(self) -> RenderableType:
        if self.global_minimum:
            limit = "converges to a global minimum"
        elif self.at_lowest_level:
            width = f", up to {self.lowest_width:.2g} above it" if self.lowest_width else ""
            limit = (
                f"its limit's value is at the lowest level, {self.levels[0]:.6g}, or one that round-off cannot tell apart from "
                f"it{width}: the minimum or a saddle"
            )
        elif self.almost_surely:
            limit = "converges to a global minimum, except for starts in a set of Lebesgue measure zero"
        else:
            limit = f"undecided: the loss is not below {self.level} critical value(s) above the lowest"
        rates = (
            self.rates.reason
            if self.rates.alpha_sharp is None
            else f"L(t) ≤ L(0)exp(-2α't), α'={self.rates.alpha_sharp:.6g}"
            + ("" if self.rates.alpha is None else f" (α={self.rates.alpha:.6g})")
        )
        merged = f" ({self.num_merged} stand for several that round-off cannot tell apart)" if self.num_merged else ""
        rows = [
            ("exact flow", limit),
            *(("assuming", note) for note in self.assumptions),
            ("effective loss", f"{self.loss:.8g} (round-off ≤ {self.error:.1e})"),
            ("lowest levels", ", ".join(f"{v:.6g}" for v in self.levels[:6]) + merged),
            ("norms ‖W_j‖ ≤", ", ".join(f"{r:.4g}" for r in self.radius)),
            ("rate", rates),
            ("non-strict saddles", {
                True: "excluded as limits by the conserved quantities" if len(self.radius) > 2 else "there are none",
                False: "not excluded by the conserved quantities",
                None: "nothing known",
            }[self.avoids_non_strict]),
        ]  # fmt: skip
        return key_value_table("Certificate", rows)


def certify(problem: Problem, net: LayerTuple, *, allow_float32: bool = False) -> Certificate:
    """Everything that is proved about the limit from one state: level verdict, radius and rates.

    **Arguments:** `net`: one network in the problem's coordinates; `allow_float32`: see
    `gdflow.certificates.LevelCertificate`. On the host.

    **Raises:** `ValueError` for losses without levels, networks that do not fit, entries that are not finite, and float32;
    `TypeError` inside `jax.jit`, `vmap` or `grad`.

    ```python
    >>> certify(problem, net).global_minimum
    ```
    """
    if is_traced(problem, net):
        raise TypeError(
            "certify runs on the host and cannot be transformed by jax.jit, vmap or grad: call it on concrete networks, one by "
            "one; gdflow.certificates.LevelCertificate and gdflow.rounding.residual_error can be traced"
        )
    check_problem(problem).check_network(net)
    exact = LevelCertificate(problem, net.widths, allow_float32=allow_float32)
    almost = LevelCertificate(problem, net.widths, kind="almost sure", allow_float32=allow_float32)
    loss, error = problem.effective_loss(net), residual_error(problem, net)
    at_lowest = bool(exact.certified(loss, error))
    minimum = at_lowest and exact.separated
    almost_surely = bool(almost.certified(loss, error)) and almost.separated and (minimum or not bool(is_balanced(net)))
    lowest = certificate_levels(problem, net.widths, depth=1)[0]
    return Certificate(
        loss=float(loss),
        error=float(jnp.sqrt(2 * loss) * error + 0.5 * error**2),
        level=int(exact.level(loss, error)),
        at_lowest_level=at_lowest,
        global_minimum=minimum,
        almost_surely=almost_surely,
        levels=np.asarray(exact.levels),
        num_merged=exact.num_merged,
        lowest_width=lowest.width,
        radius=radius_bounds(problem, net),
        rates=exponential_rates(problem, net),
        avoids_non_strict=(
            bool(excludes_non_strict_saddles(problem, net))
            if net.depth in (2, 3) and NormalForm(problem).degeneracy() is None
            else None
        ),
        assumptions=problem.assumptions_of_rank,
    )
