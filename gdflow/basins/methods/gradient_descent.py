"""Gradient descent with a fixed step, in lanes."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdflow.basins.methods.method import AbstractMethod, Decision, Place, Step
from gdflow.checks import check_positive
from gdflow.layouts import AbstractLayout, LanesFirst, suitable_layout
from gdflow.objective import Objective
from gdflow.problem import AbstractProblem

#: A step is cut short, at the end of the time allowed, if it is shorter than the fixed one by more than this part of it.
_CUT = 1e-6


class AbstractDescent(AbstractMethod):
    """What descents have in common: steps that are all alike, of which `control` counts those that were made."""

    step: eqx.AbstractVar[Any]
    chosen_layout: eqx.AbstractVar[AbstractLayout | None]

    @property
    def layout(self) -> AbstractLayout:
        return LanesFirst() if self.chosen_layout is None else self.chosen_layout

    def accept(self, objective: Objective, place: Place, step: Step, control: Any) -> Decision:
        decision = super().accept(objective, place, step, control)
        count = jnp.where(decision.keep, control + 1, control)
        # Of the number of steps, so that rounding does not add up.
        t_next = jnp.where(decision.keep, (count + 1) * self.step_time, decision.t)
        return Decision(decision.keep, decision.t, t_next, count, decision.finite)


class GradientDescent(AbstractDescent):
    """`y ← y − η∇L(y)`, explicit Euler with a fixed step; `memory` is the gradient at the point, `control` counts steps.

    Time advances by `η` a step, so that it compares with that of the flow. A step that would pass the end of the time allowed
    stops on the straight line there. Of linear networks with the squared error it works in the isometric coordinates, in which
    the iterates are the same. With another step it would be another algorithm, so an audit knows no tighter method.

    **Arguments:** `step`: `η`; `chosen_layout`: by default the one that suits the widths.

    **Raises:** `ValueError` or `TypeError` for a step that is not a positive finite number.

    ```python
    >>> gf.basin_sizes(problem, law, 1000, key=key, method=gf.basins.GradientDescent(0.1))
    ```
    """

    step: float = eqx.field(converter=functools.partial(check_positive, "step"))
    chosen_layout: AbstractLayout | None = None

    @property
    def name(self) -> str:
        return f"gradient descent, step={self.step:g}"

    @property
    def descent_step(self) -> Any:
        return self.step

    @property
    def stable_below(self) -> Any:
        return 2 / self.step

    @property
    def step_time(self) -> Any:
        return self.step

    def suited(self, widths: tuple[int, ...]) -> "GradientDescent":
        layout = suitable_layout(widths) if self.chosen_layout is None else self.chosen_layout
        return GradientDescent(self.step, layout)

    def traced(self) -> "GradientDescent":
        return eqx.tree_at(lambda method: method.step, self, jnp.asarray(self.step, float))

    def problem(self, problem: AbstractProblem) -> AbstractProblem:
        return problem.isometric()

    def begin(self, objective: Objective, y: Any) -> tuple[Any, Float[Array, " lanes"], Any]:
        gradient, loss = objective.lane_gradients(self.layout, y)
        return gradient, jnp.full_like(loss, self.step), jnp.zeros(loss.shape, int)

    def attempt(self, objective: Objective, place: Place) -> Step:
        left = place.t_next - place.t
        # The length is exact but where time ends: differences of times are rounded.
        h = jnp.where(left < (1 - _CUT) * self.step, left, self.step)
        y = jax.tree.map(lambda w, g: w - self.layout.spread(h, w) * g, place.y, place.memory)
        gradient, loss = objective.lane_gradients(self.layout, y)
        return Step(y, gradient, loss)

    def gradient_norm(self, objective: Objective, y: Any, memory: Any) -> Float[Array, " lanes"]:
        return self.layout.norm(memory)

    def forget(self, place: Place) -> Place:
        return Place(place.y, None, place.t, place.t_next, place.loss)

    def recall(self, objective: Objective, place: Place) -> Place:
        return Place(place.y, objective.lane_gradients(self.layout, place.y)[0], place.t, place.t_next, place.loss)
