"""Integration of the gradient flow with step sizes chosen by the error: what adaptive Diffrax solvers have in common."""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.basins.methods.method import AbstractMethod, Decision, Place, Step
from gdflow.dynamics import RKC, gradient_flow_field
from gdflow.dynamics.options import check_tolerances
from gdflow.dynamics.runge_kutta import check_solver
from gdflow.objective import Objective


def _rms(x: Any) -> Array:
    """Diffrax's `rms_norm` as plain sums, which fuse in batches."""
    leaves = jax.tree.leaves(x)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) / sum(leaf.size for leaf in leaves))


def check_integration(solver: diffrax.AbstractSolver, rtol: float, atol: float) -> None:
    """`ValueError` for solvers that cannot choose their steps, and for tolerances out of range."""
    check_solver(solver)
    check_tolerances(rtol, atol, 1)


class AbstractIntegrator(AbstractMethod):
    """A Diffrax solver with an embedded error estimate; steps are accepted, and the next ones chosen, by `PIDController`."""

    solver: eqx.AbstractVar[diffrax.AbstractSolver]
    rtol: eqx.AbstractVar[float]
    atol: eqx.AbstractVar[float]
    shortest: eqx.AbstractVar[float]

    @property
    def name(self) -> str:
        tolerances = f"{type(self.solver).__name__}, rtol={self.rtol:.0e}, atol={self.atol:.0e}"
        return tolerances + (f", steps ≥ {self.shortest:.1e}" if self.shortest else "")

    @property
    def controller(self) -> diffrax.PIDController:
        """The controller of a single lane."""
        return diffrax.PIDController(rtol=self.rtol, atol=self.atol, norm=_rms)

    @property
    def order(self) -> Any:
        """Of the error estimate."""
        return self.solver.error_order(diffrax.ODETerm(gradient_flow_field))

    def error_norm(self, place: Place, step: Step) -> Float[Array, " lanes"]:
        """Diffrax's `rms_norm(error / (atol + rtol·max(|y|, |y1|)))`, in every lane."""

        def scaled(a, b, e):
            return e / (self.atol + self.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)))

        entries = sum(x.size for x in jax.tree.leaves(place.y)) // place.t.size
        return self.layout.norm(jax.tree.map(scaled, place.y, step.y, step.error)) / np.sqrt(entries)

    def accept(self, objective: Objective, place: Place, step: Step, control: Any) -> Decision:
        norm = self.error_norm(place, step)
        # A step that leaves the floating-point range counts as an infinite error: it is rejected and shortened.
        finite = jnp.isfinite(norm) & jnp.isfinite(step.loss)
        norm = jnp.where(finite, norm, jnp.inf)
        order = self.order

        def adapt(t, t_next, norm, c):
            # The norm of the error is known: what is left to Diffrax is the decision and the next step size.
            decide = diffrax.PIDController(rtol=0.0, atol=1.0, norm=jnp.abs)
            return decide.adapt_step_size(t, t_next, 0.0, 0.0, None, norm, order, c)[:5]

        keep, t, t_next, _, control = jax.vmap(adapt)(place.t, place.t_next, norm, control)
        if isinstance(self.shortest, float) and not self.shortest:
            return Decision(keep & finite, t, t_next, control, finite)
        # Where the gradient jumps no step is short enough: those of the shortest length are kept whatever their error.
        forced = finite & ~keep & (place.t_next - place.t <= (1 + 1e-9) * self.shortest)
        keep, t = keep | forced, jnp.where(forced, place.t_next, t)
        t_next = jnp.where(forced, t, t_next)
        t_next = jnp.where(finite, jnp.maximum(t_next, t + self.shortest), t_next)
        return Decision(keep & finite, t, t_next, control, finite)

    def tighter(self, factor: float) -> "AbstractIntegrator":
        other: diffrax.AbstractSolver = diffrax.Tsit5() if isinstance(self.solver, diffrax.Dopri8) else diffrax.Dopri8()
        if stages := getattr(self.solver, "num_stages", 0):  # what is stiff is stiff for others, too
            other = RKC(stages + 8 if stages <= 22 else stages - 8)
        return dataclasses.replace(
            self, solver=other, rtol=max(self.rtol / factor, 1e-13), atol=self.atol / factor,
            shortest=self.shortest / 10,
        )  # fmt: skip
