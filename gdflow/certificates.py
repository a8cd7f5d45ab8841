"""What can be proved about the limit from a single state, without an integrator.

- The *level certificate*: the loss falls along the flow, every trajectory converges to a critical point, and critical
  values form a finite set. So from a state with a loss below the second-lowest critical value, by more than round-off
  (`gdflow.rounding`), the exact flow converges to a global minimum.
- An explicit *radius* that no trajectory from here ever leaves.
- *Exponential rates* for pyramidal states.

The level certificate itself is in `gdflow.thresholds`, which starts can reach no non-strict saddle in `gdflow.avoidance`, which
balanced ones no limit of full rank in `gdflow.sides`.

What a certificate does not cover is the integration error up to the state it is given: watch the drift of the conserved
quantities, and audit.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from rich.console import RenderableType

from gdflow.avoidance import excludes_non_strict_saddles
from gdflow.checks import is_traced
from gdflow.invariants import conserved, is_balanced
from gdflow.landscape import NormalForm
from gdflow.network import LayerTuple
from gdflow.problem import Problem, check_problem
from gdflow.ranks import zero_threshold
from gdflow.rounding import residual_error
from gdflow.tables import Printable, key_value_table
from gdflow.thresholds import Thresholds, certificate_levels


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

    def _below(self) -> str:
        """How far below the second level a certified loss is: printed to eight digits the two may look alike."""
        proved = self.at_lowest_level and len(self.levels) > 1
        return f", below the second level by {self.levels[1] - self.loss:.2g}" if proved else ""

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
            ("effective loss", f"{self.loss:.8g} (round-off ≤ {self.error:.1e}){self._below()}"),
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
    `gdflow.thresholds.Thresholds`. On the host.

    **Raises:** `ValueError` for losses without levels, networks that do not fit, entries that are not finite, and float32;
    `TypeError` inside `jax.jit`, `vmap` or `grad`.

    ```python
    >>> certify(problem, net).global_minimum
    ```
    """
    if is_traced(problem, net):
        raise TypeError(
            "certify runs on the host and cannot be transformed by jax.jit, vmap or grad: call it on concrete networks, one by "
            "one; gdflow.thresholds.Thresholds and gdflow.rounding.residual_error can be traced"
        )
    check_problem(problem).check_network(net)
    exact = Thresholds(problem, net.widths, allow_float32=allow_float32)
    almost = Thresholds(problem, net.widths, nested=True, allow_float32=allow_float32)
    table = certificate_levels(problem, net.widths)
    loss, error = problem.effective_loss(net), residual_error(problem, net)
    at_lowest = bool(exact.certified(loss, error))
    minimum = at_lowest and exact.separated
    almost_surely = bool(almost.certified(loss, error)) and almost.separated and (minimum or not bool(is_balanced(net)))
    return Certificate(
        loss=float(loss),
        error=float(jnp.sqrt(2 * loss) * error + 0.5 * error**2),
        level=int(exact.level(loss, error)),
        at_lowest_level=at_lowest,
        global_minimum=minimum,
        almost_surely=almost_surely,
        levels=np.asarray(exact.levels),
        num_merged=sum(level.width > 0 for level in table),
        lowest_width=table[0].width,
        radius=radius_bounds(problem, net),
        rates=exponential_rates(problem, net),
        avoids_non_strict=(
            bool(excludes_non_strict_saddles(problem, net))
            if net.depth in (2, 3) and NormalForm(problem).degeneracy() is None
            else None
        ),
        assumptions=problem.assumptions_of_rank,
    )
