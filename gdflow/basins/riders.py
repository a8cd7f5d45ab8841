"""Riders: what is carried along with every lane and reported in columns of its own."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gdflow.basins.methods import AbstractMethod, Place, Step
from gdflow.checks import check_number
from gdflow.invariants import drift, imbalance
from gdflow.network import LayerTuple
from gdflow.objective import Objective
from gdflow.problem import AbstractProblem
from gdflow.verdicts import AbstractVerdict, Moment

#: Crossing times of at most this many levels: each keeps a copy of the state per lane.
MAX_CROSSINGS = 16


class Stride(eqx.Module):
    """One step of every lane, as riders see it.

    - `method`, `place`, `step`: what it takes to interpolate.
    - `kept`: which lanes made the step; in the others nothing may change.
    - `end`: the moment at its end; of lanes that are not kept it means nothing.
    """

    method: AbstractMethod
    place: Place
    step: Step
    kept: Bool[Array, " lanes"]
    end: Moment


class Event(eqx.Module):
    """A step inside which the loss falls to a level at a time that is wanted (in the lanes where it is)."""

    place: Place
    level: Float[Array, " lanes"]
    wanted: Bool[Array, " lanes"]


class AbstractRider(eqx.Module):
    """What is carried along; traced, for all lanes at once.

    A state is any pytree of arrays whose first axis counts the lanes; a `Place` in it stays packed as the method has it.
    Example: the largest norm on the way, in `tests/test_third_party.py`.
    """

    @property
    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Names of the columns, which no other column has, each with what it means; values are numbers, one a start."""

    @property
    def wants_dense(self) -> bool:
        """Whether `after` interpolates (`Stride.step.dense`); without that no interpolant is stored."""
        return False

    def check(
        self, problem: AbstractProblem, verdict: AbstractVerdict, widths: tuple[int, ...], method: AbstractMethod
    ) -> None:
        """`ValueError` where the rider cannot ride along in a run of these parts; by default it always can."""

    @abstractmethod
    def begin(self, objective: Objective, now: Moment, place: Place) -> Any:
        """The state at the starts."""

    def after(self, objective: Objective, state: Any, stride: Stride) -> Any:
        """The state after a step; it must not change in lanes that are not kept."""
        return state

    def holds(self, objective: Objective, state: Any) -> Bool[Array, " lanes"] | None:
        """Which lanes are to go on although their limit is decided; by default (`None`) no lane ever is."""
        return None

    def failed(self, columns: dict[str, np.ndarray]) -> Bool[np.ndarray, " num"] | None:
        """Which rows are to be run again by the plan's next method, if there is one; on the host. By default (`None`) none is."""
        return None

    def events(self, state: Any) -> Sequence[Event]:
        """Times that the rider asks for, in the end."""
        return ()

    @abstractmethod
    def rows(
        self, objective: Objective, state: Any, now: Moment, times: Sequence[Float[Array, " lanes"]]
    ) -> dict[str, Array]:
        """The columns, in the end: for every name an array of shape `(lanes,)`. `times`: of the events."""


class Drift(AbstractRider):
    """The relative drift of the conserved quantities, `gdflow.drift`: zero for the exact flow."""

    @property
    def columns(self) -> dict[str, str]:
        return {"drift": "relative drift of the conserved quantities"}

    def begin(self, objective: Objective, now: Moment, place: Place) -> LayerTuple:
        return now.networks

    def rows(self, objective, state, now, times):
        return {"drift": jax.vmap(drift)(now.networks, state)}


class Imbalance(AbstractRider):
    """How far networks are from balanced, `max_j ‖C_j‖_F` (`gdflow.invariants.imbalance`), at the start and at the end."""

    @property
    def columns(self) -> dict[str, str]:
        doc = "largest Frobenius norm of the conserved quantities C_j"
        return {"imbalance_first": f"{doc} at the start", "imbalance": f"{doc} at the end"}

    def begin(self, objective: Objective, now: Moment, place: Place) -> Float[Array, " lanes"]:
        return jax.vmap(imbalance)(now.networks)[0]

    def rows(self, objective, state, now, times):
        return {"imbalance_first": state, "imbalance": jax.vmap(imbalance)(now.networks)[0]}


def only_if(condition: Array, change: Callable[[Any, Any], Any], new: Any, old: Any) -> Any:
    """`change(new, old)`, or `old` where nothing changes: on CPU that saves going through it."""
    if jax.default_backend() != "cpu":
        return change(new, old)
    return jax.lax.cond(condition, change, lambda _, old: old, new, old)


class Crossings(AbstractRider):
    """The times at which the loss first falls below given levels, inside the step as well.

    For every level that is crossed there is a mark where the step began: repeated, the step gives its interpolant again, so
    that no interpolant is stored. A mark not yet set has `t_next` NaN; of a start below the level from the first it is 0.

    **Arguments:** `levels`: at most 16 finite losses in falling order.

    **Raises:** `ValueError` for others.
    """

    levels: Float[Array, " K"]

    def __init__(self, levels: Sequence[float]):
        if isinstance(levels, str):
            raise TypeError(f"crossings are losses in falling order, got {levels!r}; the staircase is timed by default")
        values = [check_number("crossings", v) for v in levels]
        if len(values) > MAX_CROSSINGS:
            raise ValueError(f"at most {MAX_CROSSINGS} crossings can be timed, got {len(values)}")
        if values != sorted(set(values), reverse=True):
            raise ValueError(f"crossings must be losses in falling order, got {values}")
        self.levels = jnp.asarray(values, float)

    @property
    def columns(self) -> dict[str, str]:
        doc = "flow time at which the loss fell below this level; 0 if it started there, NaN if it never did"
        return {f"crossing_{k}": doc for k in range(self.levels.shape[0])}

    def begin(self, objective: Objective, now: Moment, place: Place) -> tuple[Place, ...]:
        return tuple(
            eqx.tree_at(lambda p: p.t_next, place, jnp.where(now.loss < level, 0.0, jnp.nan)) for level in self.levels
        )

    def after(self, objective: Objective, state: tuple[Place, ...], stride: Stride) -> tuple[Place, ...]:
        marks, begin = [], stride.method.forget(stride.place)
        for level, mark in zip(self.levels, state, strict=True):
            crossed = stride.kept & jnp.isnan(mark.t_next) & (stride.step.loss < level)

            def set_mark(new, old, crossed=crossed):
                return stride.method.layout.select(crossed, new, old)

            marks.append(only_if(jnp.any(crossed), set_mark, begin, mark))
        return tuple(marks)

    def events(self, state: tuple[Place, ...]) -> Sequence[Event]:
        return [
            Event(mark, jnp.broadcast_to(level, mark.t.shape), mark.t_next > mark.t)
            for level, mark in zip(self.levels, state, strict=True)
        ]

    def rows(self, objective, state, now, times):
        return {
            f"crossing_{k}": jnp.where(mark.t_next > mark.t, time, mark.t_next)
            for k, (mark, time) in enumerate(zip(state, times, strict=True))
        }
