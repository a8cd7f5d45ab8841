"""The classical fixed-step Runge–Kutta method that the papers integrate with; Diffrax has no fourth-order one."""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import numpy as np

_TABLEAU = diffrax.ButcherTableau(
    a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    b_error=np.zeros(4),  # no embedded method: use with a fixed step
    c=np.array([0.5, 0.5, 1.0]),
)


class RK4(diffrax.AbstractERK):
    """The classical Runge–Kutta method of order 4, for fixed steps; cubic Hermite interpolation between them."""

    tableau: ClassVar[diffrax.ButcherTableau] = _TABLEAU
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
    )

    def order(self, terms):
        return 4


def has_error_estimate(solver: diffrax.AbstractSolver) -> bool:
    """Whether a solver can choose its own steps."""
    return isinstance(solver, diffrax.AbstractAdaptiveSolver) and not isinstance(solver, RK4)
