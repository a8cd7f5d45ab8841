"""Any adaptive Diffrax solver, implicit ones included, stepped in lanes by its own `step`."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.basins.methods.adaptive import AbstractIntegrator, check_integration
from gdflow.basins.methods.method import Place, Step
from gdflow.dynamics import gradient_flow_field
from gdflow.objective import Objective


def _with_tolerances(solver: diffrax.AbstractSolver, controller: diffrax.PIDController) -> diffrax.AbstractSolver:
    """Hands the controller's tolerances to the root finder of an implicit solver, as `diffeqsolve` does."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver

    def unset(finder):
        given: dict[str, Callable[[Any], bool]] = {"rtol": np.isscalar, "atol": np.isscalar, "norm": callable}
        return [
            name for name, is_given in given.items() if hasattr(finder, name) and not is_given(getattr(finder, name))
        ]

    names = unset(solver.root_finder)
    values = [getattr(controller, name) for name in names]
    return eqx.tree_at(lambda s: [getattr(s.root_finder, name) for name in names], solver, values)


class DiffraxSolver(AbstractIntegrator):
    """Integration by a solver's own `step`; `memory` is the solver's state.

    **Arguments:** `solver` with an error estimate; `rtol` and `atol` of the step-size control; `shortest`: steps of this length
    are kept whatever their error.
    """

    solver: diffrax.AbstractSolver
    rtol: float = 1e-6
    atol: float = 1e-9
    shortest: float = 0.0

    def __check_init__(self):
        check_integration(self.solver, self.rtol, self.atol)

    @property
    def _solver(self) -> diffrax.AbstractSolver:
        return _with_tolerances(self.solver, self.controller)

    def begin(self, objective: Objective, y: Any) -> tuple[Any, Float[Array, " lanes"], Any]:
        solver, terms, controller = self._solver, diffrax.ODETerm(gradient_flow_field), self.controller

        def first(net):
            zero = jnp.zeros(())
            t_next, control = controller.init(terms, zero, zero, net, None, objective, solver.func, self.order)
            memory = solver.init(terms, zero, t_next, net, objective)
            return memory, t_next, jax.tree.map(jnp.asarray, control)

        return jax.vmap(first)(y)

    def attempt(self, objective: Objective, place: Place) -> Step:
        solver, terms = self._solver, diffrax.ODETerm(gradient_flow_field)

        def one(net, t, t_next, memory):
            return solver.step(terms, t, t_next, net, objective, memory, made_jump=False)[:4]

        y, error, dense, memory = jax.vmap(one)(place.y, place.t, place.t_next, place.memory)
        return Step(y, memory, self.loss(objective, y), error, dense)

    def interpolate(self, objective: Objective, place: Place, step: Step, t: Float[Array, " lanes"]) -> Any:
        def evaluate(t0, t1, dense, t):
            return self.solver.interpolation_cls(t0=t0, t1=t1, **dense).evaluate(t)

        return jax.vmap(evaluate)(place.t, place.t_next, step.dense, t)
