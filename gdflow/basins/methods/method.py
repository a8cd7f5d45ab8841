"""The protocol of a method: how every lane makes a step."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gdflow.layouts import AbstractLayout, LanesFirst
from gdflow.objective import Objective
from gdflow.points import point_norm
from gdflow.problem import AbstractProblem


class Place(eqx.Module):
    """Where a step begins and how long it is: all that it takes to make the step, and to make it again.

    - `y`: the points, networks for instance, packed as the method's layout says.
    - `memory`: what the method keeps from step to step, packed.
    - `t`, `t_next`: where the step begins and where it is to end.
    - `loss`: effective losses at `y`.
    """

    y: Any
    memory: Any
    t: Float[Array, " lanes"]
    t_next: Float[Array, " lanes"]
    loss: Float[Array, " lanes"]


class Step(eqx.Module):
    """A step that was tried: where it led.

    - `y`, `memory`, `loss`: there.
    - `error`: the estimate of its error, of the structure of `y`; `None` if the method has none.
    - `dense`: whatever the method needs to interpolate.
    """

    y: Any
    memory: Any
    loss: Float[Array, " lanes"]
    error: Any = None
    dense: Any = None


class Decision(eqx.Module):
    """What became of a step that was tried.

    - `keep`: whether it is kept.
    - `t`, `t_next`: where the next one begins and ends.
    - `control`: whatever controls the steps, from then on (packed).
    - `finite`: whether the step stayed in the floating-point range.
    """

    keep: Bool[Array, " lanes"]
    t: Float[Array, " lanes"]
    t_next: Float[Array, " lanes"]
    control: Any
    finite: Bool[Array, " lanes"]


class AbstractMethod(eqx.Module):
    """One step of every lane, traced for all lanes at once.

    A method with fixed steps needs `begin` and `attempt` only: every step is then accepted, the next one is as long, and losses
    in between are those on the straight line. `layout` says how its networks are packed; by default the lanes are the first axis.
    Example: gradient descent, in `tests/test_third_party.py`.
    """

    @property
    def layout(self) -> AbstractLayout:
        """How lanes lie in `Place.y`."""
        return LanesFirst()

    @property
    def name(self) -> str:
        """For tables."""
        return type(self).__name__

    @property
    def descent_step(self) -> Any:
        """What the steps make: `None` (the default) for the gradient flow, `η` for gradient descent with this fixed step,
        infinite for other algorithms.

        A certificate says where the flow goes from a state, or where gradient descent does. Of other algorithms none is known.
        """
        return None

    @property
    def stable_below(self) -> Any:
        """Minima are stable whose largest curvature is below this, where steps are all alike; `None` (the default) where nothing
        of the kind is known."""
        return None

    @property
    def step_time(self) -> Any:
        """How much time passes in a step where steps are all alike (`descent_step`)."""
        return 1.0

    def check(self, problem: AbstractProblem, widths: tuple[int, ...]) -> None:
        """`ValueError` or `TypeError` where the method cannot step this problem; by default it always can."""

    @property
    def shortest(self) -> float:
        """The length of steps that are kept whatever their error; 0 if there are none."""
        return 0.0

    @abstractmethod
    def begin(self, objective: Objective, y: Any) -> tuple[Any, Float[Array, " lanes"], Any]:
        """At starts `y`: the memory, the end of the first step (from time 0), and what controls the steps (packed trees)."""

    def begin_with(
        self, objective: Objective, y: Any, ids: tuple[Array, Array]
    ) -> tuple[Any, Float[Array, " lanes"], Any]:
        """`begin` of a method that draws numbers: `ids` are the high and low 32 bits of the starts' ids, of which these are to
        depend, and of nothing else."""
        return self.begin(objective, y)

    @abstractmethod
    def attempt(self, objective: Objective, place: Place) -> Step:
        """Tries one step in every lane."""

    def accept(self, objective: Objective, place: Place, step: Step, control: Any) -> Decision:
        """Whether the step is kept, and the next one. One that leaves the floating-point range leads nowhere: its length is 0."""
        finite = jnp.isfinite(step.loss) & jnp.isfinite(self.layout.norm(step.y))
        t = jnp.where(finite, place.t_next, place.t)
        return Decision(finite, t, jnp.where(finite, 2 * place.t_next - place.t, t), control, finite)

    def interpolate(self, objective: Objective, place: Place, step: Step, t: Float[Array, " lanes"]) -> Any:
        """States inside a step."""
        share = (t - place.t) / (place.t_next - place.t)
        return jax.tree.map(lambda a, b: a + self.layout.spread(share, a) * (b - a), place.y, step.y)

    @property
    def path_degree(self) -> int | None:
        """The degree of the interpolant as a polynomial, in coordinates with a diagonal design; `None` if there is no `path`."""
        return None

    def path(self, objective: Objective, place: Place, step: Step) -> tuple[list[Array], Float[Array, " lanes"]]:
        """The interpolant of a step as `Σ_i c_i s^i`, `s` from −1 to 1.

        **Returns:** for every layer its coefficients, packed and stacked along a new first axis; and `Σ_i(i + 1)‖·‖` over
        the terms that they are sums of, for their round-off.
        """
        raise NotImplementedError

    def loss(self, objective: Objective, y: Any) -> Float[Array, " lanes"]:
        """Effective losses."""
        return objective.lane_losses(self.layout, y)

    def gradient_norm(self, objective: Objective, y: Any, memory: Any) -> Float[Array, " lanes"]:
        """`‖∇L‖`."""
        return jax.vmap(lambda net: point_norm(objective.gradient(net)))(self.layout.unpack(y))

    def forget(self, place: Place) -> Place:
        """The place without what `recall` can find again: this is what is kept of a place to come back to."""
        return place

    def recall(self, objective: Objective, place: Place) -> Place:
        """The whole place again."""
        return place

    def problem(self, problem: AbstractProblem) -> AbstractProblem:
        """The problem in the coordinates that the method works in."""
        return problem

    def traced(self) -> "AbstractMethod":
        """The method with arrays for the numbers that its programs are not to depend on; by default as it is."""
        return self

    def suited(self, widths: tuple[int, ...]) -> "AbstractMethod":
        """The method in the layout that suits networks of these widths."""
        return self

    def tighter(self, factor: float) -> "AbstractMethod | None":
        """Another method whose error is smaller by about this factor, for audits; `None` if there is none."""
        return None
