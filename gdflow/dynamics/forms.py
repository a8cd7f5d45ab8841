"""In which form the Riemannian flow holds its matrix while it is integrated: what all forms have in common."""

from abc import abstractmethod
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gdflow.network import matmul
from gdflow.problem import Problem


class Factored(eqx.Module):
    """A matrix `USVᵀ` of rank `k`: `U`, `V` with orthonormal columns, `S` invertible."""

    U: Float[Array, "*n d_y k"]
    S: Float[Array, "*n k k"]
    V: Float[Array, "*n d_x k"]

    @property
    def matrix(self) -> Float[Array, "*n d_y d_x"]:
        """`USVᵀ`."""
        return matmul(matmul(self.U, self.S), jnp.swapaxes(self.V, -1, -2))


class Integrator(eqx.Module):
    """By what, and how accurately, the flow is integrated. `adjoint` is `None` for the default one."""

    solver: diffrax.AbstractSolver
    rtol: float
    atol: float
    max_steps: int
    adjoint: diffrax.AbstractAdjoint | None


class AbstractForm(eqx.Module):
    """A form of the matrix, and how the flow is integrated in it: `gdflow.dynamics.LowRank`, `gdflow.dynamics.Graded`."""

    @abstractmethod
    def check(self, integrator: Integrator) -> None:
        """`ValueError` for solvers and adjoints that are not for this form."""

    @abstractmethod
    def solve(
        self,
        problem: Problem,
        start: Float[Array, "d_y d_x"],
        rank: int,
        depth: float,
        t1: Float[Array, ""],
        ts: Float[Array, " T"],
        integrator: Integrator,
    ) -> dict[str, Any]:
        """The fields of a `RiemannianTrajectory` that the solver determines, `factors` to `solved`. Traceable."""


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Whether all numbers of a state are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
