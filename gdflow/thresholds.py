"""The level certificate: which critical values a loss has provably passed, in floating point.

The loss falls along the flow, every trajectory converges to a critical point, and critical values form a finite set. So from a
state with a loss below the second-lowest critical value, by more than round-off (`gdflow.rounding`), the exact flow converges
to a global minimum.
"""

from collections.abc import Iterable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gdflow.checks import check_count
from gdflow.levels import CriticalValues, level_groups, nested_levels
from gdflow.problem import Problem, critical_values
from gdflow.ranks import equal_threshold
from gdflow.rounding import gamma

#: Certified means a loss below the level by at least this many eps·‖Ȳ‖², besides the round-off of the loss.
SLACK_EPS = 100.0


def certificate_levels(
    problem: Problem, widths: Iterable[int], *, nested: bool = False, num_levels: int = 16
) -> CriticalValues:
    """The lowest `num_levels + 1` levels that a certificate tells apart, with their subsets.

    **Arguments:** `nested`: the values `ℓ({1..r})` only, the levels at which limits lie for almost every start.
    """
    widths = problem.check_widths(widths)
    max_rank = problem.max_rank(widths)
    if not nested or len(widths) == 2:
        return critical_values(problem, max_rank, lowest=num_levels + 1, num_layers=len(widths) - 1)
    s = np.asarray(problem.singular_values, dtype=np.float64)
    return nested_levels(s, max_rank, lowest=num_levels + 1, tolerance=problem.level_tolerance)


def _second_level(problem: Problem, widths: Iterable[int], nested: bool) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """The second-lowest level, infinite if there is none, and whether the lowest is one critical value: in closed form.

    With `r` the largest rank, the second-lowest value differs from the lowest by one exchange, `½(s_i² − s_j²)` with
    `i ≤ r < j` (`s_j = 0` for none), or from the lowest nested one by leaving out `i = r`. Exchanges inside a group of
    `gdflow.levels.level_groups` belong to the lowest level; that is one value if all of them cost nothing.
    """
    widths = problem.check_widths(widths)
    return _second_of(problem.singular_values, problem.neglected, problem.max_rank(widths), len(widths) == 2, nested)


@eqx.filter_jit
def _second_of(s: Array, neglected: Array, rank: int, single_layer: bool, nested: bool) -> tuple[Array, Array]:
    scale = jnp.sum(s**2)
    halves = jnp.concatenate([0.5 * s**2, jnp.zeros(1, s.dtype)])
    groups = level_groups(halves, equal_threshold(1.0, float(jnp.finfo(s.dtype).eps)) * scale)
    if single_layer:  # convex
        return jnp.asarray(jnp.inf, s.dtype), jnp.asarray(True)
    # What was taken for zero and is not belongs to the lowest level, where the rank leaves room for it.
    known = ~((neglected > 0) & (jnp.sum(s > 0) < rank))
    if nested:
        i = jnp.arange(halves.size)
        kept = jnp.sum((i < rank) & (groups != groups[-1]))
        second = jnp.where(kept > 0, jnp.sum(jnp.where(i >= kept - 1, halves, 0.0)), jnp.inf)
        return second, known & ~jnp.any((i >= kept) & (i < rank) & (halves > 0))
    gaps = halves[:rank, None] - halves[None, rank:]
    apart = groups[:rank, None] != groups[None, rank:]
    least = jnp.min(jnp.where(apart, gaps, jnp.inf))
    return jnp.sum(halves[rank:]) + least, known & ~jnp.any(~apart & (gaps > 0))


def certificate_threshold(problem: Problem, widths: Iterable[int], *, nested: bool = False) -> Float[Array, ""]:
    """The second-lowest level less the slack, in closed form: the first of `Thresholds.values`.

    Infinite if there is no second level. Differentiable in the singular values, unlike the listing of levels.
    """
    return _second_level(problem, widths, nested)[0] - certificate_slack(problem)


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


class Thresholds(eqx.Module):
    """The levels that a falling loss crosses on its way down, each with the value below which it has provably crossed it.

    **Arguments:**

    - `problem`: with the squared error.
    - `widths`: `(d_0, …, d_N)`. A single layer is convex: its one critical value is certified at once.
    - `nested`: the values `ℓ({1..r})` only instead of all critical values.
    - `num_levels`: at most that many levels above the minimum are told apart (`K`).
    - `allow_float32`: certify in single precision, where `eps = 1.2e-7`.

    Fields: `levels`, the distinct critical values from the lowest, `(K+1,)`; `values`, `levels[1:]` less the slack
    `100·eps·‖Ȳ‖²`; `slack`; `separated`, whether the lowest level is one critical value: where round-off cannot tell it from
    others (`s = (1, 5e-7)`), what is certified is only that the limit's value is one of these; `complete`, whether there are
    no levels above these; `num_entries`, of the target.

    Every decision takes the loss as computed and a bound `δ` on the error of the computed residual (`gdflow.rounding`):
    below a threshold `T` means `√(2L̂) + δ < √(2T)` (`residual_bound`).

    **Raises:** `ValueError` for losses without levels, widths that do not fit, and float32 without `allow_float32`.
    """

    levels: Float[Array, " K_plus_1"]
    values: Float[Array, " K"]
    slack: Float[Array, ""]
    separated: bool = eqx.field(static=True)
    complete: bool = eqx.field(static=True)
    num_entries: int = eqx.field(static=True)

    def __init__(
        self,
        problem: Problem,
        widths: Iterable[int],
        *,
        nested: bool = False,
        num_levels: int = 16,
        allow_float32: bool = False,
    ):
        num_levels = check_count("num_levels", num_levels)
        check_precision(problem, allow_float32)
        dtype = problem.target.dtype
        widths = problem.check_widths(widths)
        self.slack = certificate_slack(problem)
        table = certificate_levels(problem, widths, nested=nested, num_levels=num_levels)
        self.levels = jnp.asarray(table.values, dtype=dtype)
        second, separated = _second_level(problem, widths, nested)
        above = jnp.concatenate([jnp.reshape(second, 1), self.levels[2:]])[: len(table) - 1]
        self.values = above.astype(dtype) - self.slack
        self.complete, self.separated = table.complete, bool(separated)
        self.num_entries = int(problem.target.size)

    def _bounds(self, thresholds: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return residual_bound(thresholds, self.num_entries)

    @property
    def bounds(self) -> Float[Array, " K"]:
        """Of `values`, what `√(2L̂) + δ` has to be below."""
        return self._bounds(self.values)

    def bound(self, ground: Int[Array, "*n"] | int = 0) -> Float[Array, "*n"]:
        """What `√(2L̂) + δ` has to be below for a limit at the level `ground`, the lowest one that the start can reach."""
        return self._bounds(self.threshold(ground))

    def level(self, loss: Float[Array, "*n"], error: Float[Array, "*n"]) -> Int[Array, "*n"]:
        """Distance from the bottom: 0 certifies the lowest level; `k`: the limit is at one of the lowest `k+1` levels.

        Capped at `K`, where nothing is claimed; `K` also for a loss that is not a number. `error`: `δ`, see above.
        """
        reach = jnp.sqrt(2 * loss) + error
        below = reach[..., None] < self.bounds.reshape((1,) * loss.ndim + (-1,))
        return self.values.shape[0] - jnp.sum(below, axis=-1)

    def threshold(self, ground: Int[Array, "*n"] | int = 0) -> Float[Array, "*n"]:
        """The value below which a limit is certified to be at the level `ground`, the lowest one that the start can reach."""
        beyond = jnp.inf if self.complete else -jnp.inf  # no level above the last: any loss is below it
        thresholds = jnp.append(self.values, beyond)
        if isinstance(ground, int):  # no need to look it up in every lane
            return thresholds[min(ground, self.values.shape[0])]
        return thresholds[jnp.minimum(ground, self.values.shape[0])]

    def goal(self, error: Float[Array, "*n"], ground: Int[Array, "*n"] | int = 0) -> Float[Array, "*n"]:
        """The computed loss below which a state is certified: `½(√(2T) − δ)²`, zero where that is never."""
        return 0.5 * jnp.square(jnp.maximum(self.bound(ground) - error, 0.0))

    def certified(
        self, loss: Float[Array, "*n"], error: Float[Array, "*n"], ground: Int[Array, "*n"] | int = 0
    ) -> Bool[Array, "*n"]:
        """Whether a loss proves convergence to the level `ground`, the lowest one that the start can reach.

        At 0 that is a global minimum, if the lowest level is `separated`. `error`: `δ`, see above.
        """
        return jnp.sqrt(2 * loss) + error < self.bound(ground)
