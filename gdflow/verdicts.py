"""What is claimed of the limit of a start, and when.

A *verdict* looks at a start before and after every step and says when its limit is decided; in the end it names the limit, and
what is not excluded of a start that it could not decide. `LevelVerdict` claims what the level certificate proves
(`gdflow.thresholds`): it is about the exact flow through the computed state. `AlmostSure` and `Balanced` claim more of starts
that are known to lie, or not to lie, on a set of measure zero. Others can be written against `AbstractVerdict`.

What none of these covers is the integration error up to the state at which a limit is decided: drift and audit watch it.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gdflow.initialization import Support
from gdflow.levels import CriticalValues, subset_text
from gdflow.network import LayerTuple
from gdflow.objective import Objective, check_linear
from gdflow.problem import AbstractProblem, Problem, check_problem
from gdflow.sides import sign_decides, wrong_side
from gdflow.smoothness import DataSizes, hessian_bound, settles
from gdflow.thresholds import Thresholds, certificate_levels


class Moment(eqx.Module):
    """The lanes at one moment, as verdicts and riders see them; the first axis of every array counts the lanes.

    - `t`: flow times.
    - `networks`: the states, a batch, in the coordinates of the objective.
    - `loss`: effective losses; `residual_error`: how far the computed residuals may lie from the exact ones
      (`gdflow.rounding`), of linear networks; else it is no number.
    - `gradient_norm`: `‖∇L‖`.
    """

    t: Float[Array, " lanes"]
    networks: Any
    loss: Float[Array, " lanes"]
    residual_error: Float[Array, " lanes"]
    gradient_norm: Float[Array, " lanes"]


class AbstractVerdict(eqx.Module):
    """When the limit of a start is decided, and what is claimed of it.

    Everything but `labels` and `check` is traced, for all lanes at once. A state is any pytree of arrays whose first axis
    counts the lanes. Example: a start is decided once its end-to-end matrix is within 1e-3 of one of two given matrices; see
    `tests/test_third_party.py`.
    """

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The possible limits, in words; a start that is undecided may be at the first so many of them."""

    @abstractmethod
    def begin(self, objective: Objective, now: Moment) -> tuple[Any, Bool[Array, " lanes"]]:
        """At the starts: a state, and which starts are decided already."""

    @abstractmethod
    def look(
        self, objective: Objective, state: Any, now: Moment, kept: Bool[Array, " lanes"]
    ) -> tuple[Any, Bool[Array, " lanes"]]:
        """After a step: the state, which must not change in lanes that are not `kept`, and which lanes are decided now."""

    @abstractmethod
    def settle(
        self, objective: Objective, state: Any, now: Moment, decided: Bool[Array, " lanes"]
    ) -> tuple[Int[Array, " lanes"], Int[Array, " lanes"]]:
        """In the end: the limit, an index of `labels` or −1, and the highest index that is not excluded.

        Of a lane that is `decided` the limit may still be −1: the verdict is withdrawn.
        """

    @property
    def discovers(self) -> bool:
        """Whether limits are found in the run, not known beforehand: `labels` are then those that are."""
        return False

    def at_rest(
        self, objective: Objective, state: Any, now: Moment
    ) -> tuple[Int[Array, " lanes"], Bool[Array, " lanes"]] | None:
        """Of states whose gradient vanishes, or has stayed below its tolerance: the limit, an index of `labels` or −1, and
        whether that is certain; by default (`None`) nothing is claimed of them."""
        return None

    def goal(self, objective: Objective, state: Any, now: Moment) -> Float[Array, " lanes"] | None:
        """The loss at whose crossing, inside its last step, a start was decided; by default that is the step's end (`None`)."""
        return None

    def check(self, problem: AbstractProblem, starts: Any) -> None:
        """`ValueError` where the verdict would mislead of such starts (`gdflow.basins.starts`); by default it never does."""

    def check_step(self, step: float | None, name: str) -> None:
        """`ValueError` where the verdict would mislead of a method with this `AbstractMethod.descent_step`; by default it never
        does. `name`: of the method."""

    def without_info(self) -> "AbstractVerdict":
        """The same verdict without what only people read, for which programs would be compiled anew."""
        return self


class _Passed(eqx.Module):
    """The lowest level that a start can reach, and the highest that its limit can be at."""

    ground: Int[Array, " lanes"]
    highest: Int[Array, " lanes"]


class AbstractLevelVerdict(AbstractVerdict):
    """What verdicts by levels have in common: decided is a start whose loss is below all levels but those it can reach.

    `table`: the levels with their subsets, for people; `None` where these are left out.
    """

    thresholds: eqx.AbstractVar[Thresholds]
    table: eqx.AbstractVar[CriticalValues | None]

    def without_info(self) -> "AbstractLevelVerdict":
        copy = jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(self))
        object.__setattr__(copy, "table", None)  # it is static: no leaf that eqx.tree_at could replace
        return copy

    def check_step(self, step: float | None, name: str) -> None:
        if step is not None:
            raise ValueError(
                f"{type(self).__name__} says where the gradient flow goes from a state, and the method is {name}: leave the "
                "verdict out"
            )

    @property
    def of_every_start(self) -> bool:
        """Whether a loss below the threshold says where the flow from *this* start ends, not from almost every one only."""
        return False

    @property
    def minimum(self) -> str:
        """What a limit at the lowest level is."""
        return "global minimum" if self.thresholds.separated else "lowest levels (merged)"

    @property
    def labels(self) -> tuple[str, ...]:
        assert self.table is not None
        above = [
            f"level {k} {subset_text(level.subsets[0])}" + (" …" if level.num_subsets > 1 else "")
            for k, level in enumerate(self.table)
        ][1:]
        if above and not self.table.complete:
            above[-1] = f"level {len(above)} or above"
        return (self.minimum, *above)

    def ground(self, objective: Objective, networks: LayerTuple) -> Int[Array, " lanes"] | int:
        """The lowest level that the flow from each start can reach."""
        return 0

    def begin(self, objective: Objective, now: Moment) -> tuple[Any, Bool[Array, " lanes"]]:
        ground = self.ground(objective, now.networks)
        highest = self.thresholds.level(now.loss, now.residual_error)
        decided = self.thresholds.certified(now.loss, now.residual_error, ground)
        return _Passed(jnp.broadcast_to(ground, highest.shape), highest), decided

    def look(self, objective, state, now, kept):
        highest = jnp.minimum(self.thresholds.level(now.loss, now.residual_error), state.highest)
        decided = self.thresholds.certified(now.loss, now.residual_error, self._known(state.ground))
        return _Passed(state.ground, jnp.where(kept, highest, state.highest)), kept & decided

    def goal(self, objective, state, now):
        return self.thresholds.goal(now.residual_error, state.ground)

    def settle(self, objective, state, now, decided):
        # Decided is a start at its ground; where that has changed, the integration's error carried it across.
        kept = decided & (self.ground(objective, now.networks) == state.ground)
        unknown = jnp.where(decided, self.thresholds.values.shape[0], state.highest)
        return jnp.where(kept, state.ground, -1), jnp.where(kept, state.ground, unknown)

    def _known(self, ground: Int[Array, " lanes"]) -> Int[Array, " lanes"] | int:
        return 0


class LevelVerdict(AbstractLevelVerdict):
    """A loss below all critical values but the lowest proves, for this very state, that the exact flow ends at the lowest level.

    That is a global minimum, if round-off can tell the lowest critical value from the others.

    **Arguments:** as for `gdflow.thresholds.Thresholds`.

    ```python
    >>> gf.basin_sizes(problem, law, 1000, key=key, verdict=gf.verdicts.LevelVerdict(problem, law.widths, num_levels=40))
    ```
    """

    thresholds: Thresholds
    table: CriticalValues | None = eqx.field(static=True)

    def __init__(self, problem: Problem, widths: Iterable[int], *, num_levels: int = 16, allow_float32: bool = False):
        self.thresholds = Thresholds(problem, widths, num_levels=num_levels, allow_float32=allow_float32)
        self.table = certificate_levels(problem, widths, num_levels=num_levels)

    @property
    def of_every_start(self) -> bool:
        return True

    def check(self, problem: AbstractProblem, starts: Any) -> None:
        if starts.invariant_set is Support.BALANCED and sign_decides(check_problem(problem), starts.widths):
            raise ValueError(
                f"LevelVerdict would mislead for the exactly balanced starts of {starts.name}: their flow keeps the sign of "
                "det W, but round-off takes the integration across, to minima that the exact flow never reaches. Leave the "
                "verdict out: the limits of lower rank are certified then, too"
            )


class AlmostSure(AbstractLevelVerdict):
    """The claim that outside a set of starts of Lebesgue measure zero the limit is a best fit of some rank.

    So only the nested levels `ℓ({1..r})` have to be passed (Terstiege, Rauhut, Bah, Westdickenberg 2022, Theorem 5a): weaker
    than `LevelVerdict`, but decided earlier where the bottleneck is narrower than the rank of the target. Nothing follows
    for laws on null sets (balanced, λ-balanced, orthogonal starts): these are refused.

    **Arguments:** as for `gdflow.thresholds.Thresholds`.
    """

    thresholds: Thresholds
    table: CriticalValues | None = eqx.field(static=True)

    def __init__(self, problem: Problem, widths: Iterable[int], *, num_levels: int = 16, allow_float32: bool = False):
        self.thresholds = Thresholds(problem, widths, nested=True, num_levels=num_levels, allow_float32=allow_float32)
        self.table = certificate_levels(problem, widths, nested=True, num_levels=num_levels)

    @property
    def minimum(self) -> str:
        return super().minimum + " (almost surely)"

    def check(self, problem: AbstractProblem, starts: Any) -> None:
        if starts.invariant_set is not Support.FULL:
            raise ValueError(
                f"AlmostSure speaks of Lebesgue-almost every start, and the starts of {starts.name} lie on a set of measure zero "
                "(its `invariant_set`), of which that says nothing: leave the verdict out"
            )


class Balanced(AbstractLevelVerdict):
    """For exactly balanced starts: like `LevelVerdict`, and those on the wrong side of `det W = 0` are certified at lower rank.

    These can reach no limit of full rank (`gdflow.sides`), so a loss below all but the two lowest values proves that the limit
    is at the second-lowest. A start that ends on another side than it began on was carried across by the integration's error,
    and nothing is claimed of it.

    **Arguments:** as for `gdflow.thresholds.Thresholds`.
    """

    thresholds: Thresholds
    table: CriticalValues | None = eqx.field(static=True)
    has_sides: bool = eqx.field(static=True)

    def __init__(self, problem: Problem, widths: Iterable[int], *, num_levels: int = 16, allow_float32: bool = False):
        self.thresholds = Thresholds(problem, widths, num_levels=num_levels, allow_float32=allow_float32)
        self.table = certificate_levels(problem, widths, num_levels=num_levels)
        self.has_sides = sign_decides(problem, tuple(widths))

    @property
    def of_every_start(self) -> bool:
        return not self.has_sides

    @property
    def labels(self) -> tuple[str, ...]:
        minimum, *above = super().labels
        if above and self.has_sides:
            above[0] = above[0].replace("level 1", "lower rank")
        return (minimum, *above)

    def ground(self, objective: Objective, networks: LayerTuple) -> Int[Array, " lanes"] | int:
        if not self.has_sides:
            return 0
        linear = check_linear(objective)
        return jax.vmap(lambda net: wrong_side(linear, net))(networks).astype(int)

    def _known(self, ground):
        return ground if self.has_sides else 0

    def check(self, problem: AbstractProblem, starts: Any) -> None:
        if starts.invariant_set is not Support.BALANCED:
            raise ValueError(
                f"verdicts.Balanced is about exactly balanced starts, and {starts.name} does not say that its starts are (its "
                "`invariant_set`): the smallest imbalance decides where the flow ends in the long run. Leave the verdict out"
            )
        check_problem(problem).check_full_row_rank()


class DescentLevel(AbstractLevelVerdict):
    """For gradient descent with a fixed step `η`, and for other algorithms (`step` infinite), on problems with critical values.

    *Certified* is a global minimum as the limit of the iterates themselves,

    - below the second-lowest critical value, if from the start on `η ≤ 1/β`, `β` bounding `‖∇²L‖` wherever the descent goes: the
      loss falls, and the iterates converge (`gdflow.smoothness`);
    - at the start, or where the gradient has become small, if an inequality of Polyak and Łojasiewicz holds around the state and
      `η` is below `2/‖∇²L‖` there. That asks for a loss of zero at the minimum, and for hidden layers of which none is narrower
      than both `d_y` and the rank of the data: at a bottleneck there is no such certificate.

    Else a state with a small gradient and a loss below the second-lowest critical value is *located* at a global minimum if the
    step is stable there: `η λ_max(∇²L) < 2`, with momentum the like. If it is not, or of an optimizer of which that is not known,
    the minimum is only *reached*: the iterates may leave it again, and it is not counted as the limit. Nothing is excluded of a
    start that is undecided: losses need not fall.

    **Arguments:** `step`: `η`, or infinity; the others as for `gdflow.thresholds.Thresholds`.

    ```python
    >>> gf.basin_sizes(problem, law, 1000, key=key, method=gf.basins.GradientDescent(0.01))  # this verdict is its default
    ```
    """

    thresholds: Thresholds
    sizes: DataSizes
    step: Float[Array, ""]
    certifies: bool = eqx.field(static=True)
    table: CriticalValues | None = eqx.field(static=True)

    def __init__(
        self, problem: Problem, widths: Iterable[int], step: float, *, num_levels: int = 16, allow_float32: bool = False
    ):
        self.thresholds = Thresholds(problem, widths, num_levels=num_levels, allow_float32=allow_float32)
        self.sizes = DataSizes(problem, tuple(widths))
        self.step, self.certifies = jnp.asarray(step, float), bool(np.isfinite(step))
        self.table = certificate_levels(problem, widths, num_levels=num_levels)

    def begin(self, objective: Objective, now: Moment) -> tuple[Any, Bool[Array, " lanes"]]:
        safe = near = jnp.zeros(now.loss.shape, bool)
        if self._applies(objective):
            beta = jax.vmap(lambda net, loss: hessian_bound(self.sizes, net, loss, self.step))(now.networks, now.loss)
            safe, near = self.step * beta <= 1, self._settles(objective, now)
        return safe, (safe | near) & self._low(now)

    def _settles(self, objective: Objective, now: Moment) -> Bool[Array, " lanes"]:
        linear = check_linear(objective)
        return jax.vmap(lambda net, loss: settles(linear, net, loss, self.step))(now.networks, now.loss)

    def _applies(self, objective: Objective) -> bool:
        """Whether the bounds do: to gradient descent, and in coordinates with a diagonal design."""
        return self.certifies and check_linear(objective).diagonal

    def look(self, objective, state, now, kept):
        return state, kept & state & self._low(now)  # the state: whether the step is safe all the way from the start

    def _low(self, now: Moment) -> Bool[Array, " lanes"]:
        return self.thresholds.certified(now.loss, now.residual_error)

    def goal(self, objective, state, now):
        return None  # iterates have no times in between

    def settle(self, objective, state, now, decided):
        return jnp.where(decided, 0, -1), jnp.where(decided, 0, self.thresholds.values.shape[0])

    def at_rest(self, objective, state, now):
        low = self._low(now)
        certain = self._settles(objective, now) if self._applies(objective) else jnp.zeros(now.loss.shape, bool)
        return jnp.where(low, 0, -1), low & certain

    def check(self, problem: AbstractProblem, starts: Any) -> None:
        if not float(self.step) > 0:
            raise ValueError(f"the step must be positive, got {float(self.step)}")

    def check_step(self, step: float | None, name: str) -> None:
        if step is None or not np.isclose(float(step), float(self.step), rtol=1e-6):
            raise ValueError(
                f"this verdict is about gradient descent with a step of {float(self.step):g}, and the method is {name}: leave "
                "the verdict out"
            )


class Converged(AbstractVerdict):
    """For limits that are not known beforehand: they are found in the run, told apart and counted.

    A start has converged once the norm of its gradient has stayed below a tolerance (`gdflow.basins.Limits`). Then the critical
    point nearby is found (`gdflow.polish`). It is taken for the limit if its Hessian has no negative eigenvalue, all zero ones
    but those of symmetries being reported (there the gradient must vanish to round-off: on a slow tail it does not), and the loss
    rises all along the straight line back to the state. A critical point whose Hessian is singular may still be no minimum: of
    its kind the table says how many directions are flat. Where the state
    lies in a ball from which the flow certainly ends at that minimum (`gdflow.attraction`) the limit is *certified*; else it is
    *located*. Limits are the same if their losses and their canonical forms are (`Objective.canonical`); those that are not
    isolated, if their outputs are. What converges to a saddle, or to nothing, stays undecided.

    Losses without a minimum: once all samples are classified with a loss below `log 2` the flow of a homogeneous network with
    the logistic or the softmax loss certainly runs to infinity, and its loss to 0 (`gdflow.separation`). That is a limit, too. Of
    descents it is not known: long steps lead back up.

    Descents come to rest at limits that are stable for their steps only; others are *reached* (see `DescentLevel`).

    **Arguments:** `same`: limits whose losses, and canonical forms, differ by less than this, relative to their size, are one;
    `separates`: whether a loss below `log 2` decides; of descents it never does.
    """

    same: float = 1e-5
    separates: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if isinstance(self.same, float) and not 0 < self.same < 0.1:
            raise ValueError(f"same must lie between 0 and 0.1, got {self.same}")

    @property
    def discovers(self) -> bool:
        return True

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    def begin(self, objective: Objective, now: Moment) -> tuple[None, Bool[Array, " lanes"]]:
        return None, self._separated(objective, now)

    def check_step(self, step: float | None, name: str) -> None:
        if step is not None and self.separates:
            raise ValueError(
                f"{name} is no flow, of which a loss below log 2 decides nothing: Converged(separates=False)"
            )

    def look(self, objective, state, now, kept):
        return None, kept & self._separated(objective, now)

    def settle(self, objective, state, now, decided):
        return jnp.where(decided, 0, -1), jnp.zeros(decided.shape, int)

    def _separated(self, objective: Objective, now: Moment) -> Bool[Array, " lanes"]:
        if not self.separates:
            return jnp.zeros(now.loss.shape, bool)
        # The sum of all losses is below log 2, by more than round-off: so is every one of them.
        return objective.vanishes_at_infinity() & (now.loss < 0.99 * jnp.log(2.0))


def default_verdict(problem: AbstractProblem, starts: Any, step: float | None = None) -> AbstractVerdict:
    """`Converged` where limits are not known beforehand; else `Balanced` for starts that say that they are, or `LevelVerdict`.

    **Arguments:** `step`: of algorithms that are no integration of the flow the step (`AbstractMethod.descent_step`), for which
    `DescentLevel` takes the place of these two.
    """
    if not isinstance(problem, Problem) or problem.why_no_levels:
        return Converged(separates=step is None)
    if step is not None:
        return DescentLevel(problem, starts.widths, step)
    balanced = starts.invariant_set is Support.BALANCED and problem.has_full_row_rank
    return (Balanced if balanced else LevelVerdict)(problem, starts.widths)
