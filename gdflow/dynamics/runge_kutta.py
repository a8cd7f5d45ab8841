"""Runge–Kutta methods that Diffrax lacks: the classical one of the papers, stabilised ones, and ones that keep invariants."""

import functools
from collections.abc import Callable
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.polynomial import Chebyshev

from gdflow.network import matmul

#: Most fixed-point iterations for the stages of a Gauss–Legendre step.
_ITERATIONS = 100

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


def _chebyshev_tableau(stages: int) -> diffrax.ButcherTableau:
    """Equations (2.1)–(2.6) and (2.14) of Sommeijer, Shampine and Verwer (1998), their recursion written out as a tableau."""
    w0 = 1 + (2 / 13) / stages**2  # damping ε = 2/13
    T = [Chebyshev.basis(j) for j in range(stages + 1)]
    value, first, second = ([p.deriv(m)(w0) if m else p(w0) for p in T] for m in range(3))
    w1 = first[stages] / second[stages]
    b = np.array([second[max(j, 2)] / first[max(j, 2)] ** 2 for j in range(stages + 1)])
    a = 1 - b * np.array(value)
    unit = np.eye(stages + 1)
    # (Y_j − y)/h in terms of the fields at y, Y_1, …, Y_s, the last of which is the next state.
    rows = [np.zeros(stages + 1), b[1] * w1 * unit[0]]
    for j in range(2, stages + 1):
        mu, nu, mu_tilde = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        rows.append(mu * rows[j - 1] + nu * rows[j - 2] + mu_tilde * (unit[j - 1] - a[j - 1] * unit[0]))
    return diffrax.ButcherTableau(
        a_lower=tuple(rows[j][:j] for j in range(1, stages + 1)),
        b_sol=rows[stages],
        b_error=0.4 * (unit[0] + unit[stages]) - 0.8 * rows[stages],
        c=np.array([row.sum() for row in rows[1:]]),
    )


@functools.cache
def RKC(stages: int = 10) -> diffrax.AbstractERK:
    """A stabilised explicit method of order 2 for stiff flows: Runge–Kutta–Chebyshev (Sommeijer, Shampine, Verwer 1998).

    A step may be as long as `⅔(s² − 1)/λ` for the largest eigenvalue `λ` of the Hessian, against `3.3/λ` for Tsit5: with
    `s` stages that is about `s/5` times further per field evaluation. It pays where small singular values make the way long
    and stability, not accuracy, limits the step, at tolerances of 1e-4 or looser.

    **Arguments:** `stages`: 3 to 30; more reach further and cost more where accuracy limits the step.

    ```python
    >>> gf.basin_sizes(problem, law, 1000, key=key, method=gf.integrator(gf.RKC(20), rtol=1e-4, atol=1e-7))
    ```
    """
    if not 3 <= stages <= 30:
        raise ValueError(f"RKC takes 3 to 30 stages, got {stages}")

    class _RKC(diffrax.AbstractERK):
        tableau: ClassVar[diffrax.ButcherTableau] = _chebyshev_tableau(stages)
        num_stages: ClassVar[int] = stages
        interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
            diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
        )

        def order(self, terms):
            return 2

        def error_order(self, terms):
            return 3  # the estimate is of the local error itself

        def __reduce__(self):  # the class has no name to be found by: it is made by this function
            return RKC, (stages,)

    _RKC.__name__ = _RKC.__qualname__ = f"RKC{stages}"
    return _RKC()


class GaussLegendre(diffrax.AbstractSolver):
    """Gauss–Legendre collocation, order `2s` with `s` stages, for fixed steps: keeps all quadratic invariants.

    So it keeps every `C_j` of a linear network, balanced or not, up to round-off and the tolerance to which its stages are
    solved (Hairer, Lubich, Wanner, *Geometric Numerical Integration*, Theorem IV.2.1). Stages by fixed-point iteration, which
    converges for steps up to about `1/λ` with the largest eigenvalue `λ` of the Hessian: longer ones are reported as failed.
    Cubic Hermite interpolation between steps.

    **Arguments:** `stages`: 1 to 5.

    ```python
    >>> gf.simulate(problem, net, 10.0, solver=gf.GaussLegendre(3), step=0.05).drift[-1]
    ```
    """

    stages: int = eqx.field(static=True, default=3)

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
    )

    def __check_init__(self):
        if not 1 <= self.stages <= 5:
            raise ValueError(f"GaussLegendre takes 1 to 5 stages, got {self.stages}")

    def order(self, terms):
        return 2 * self.stages

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        nodes, weights = np.polynomial.legendre.leggauss(self.stages)
        c, b = 0.5 * (1 + nodes), 0.5 * weights
        # a_ij = ∫_0^{c_i} ℓ_j, and quadratures of order s hold for the powers below s.
        powers = np.arange(1, self.stages + 1)
        a = (c[:, None] ** powers / powers) @ np.linalg.inv(c[:, None] ** (powers - 1))
        h = t1 - t0
        flat, unravel = ravel_pytree(y0)

        def field(t, x):
            return ravel_pytree(terms.vf(t, unravel(x), args))[0]

        def iterate(carry):
            k, change, _, count = carry
            new = jax.vmap(field)(t0 + c * h, flat[None, :] + h * matmul(jnp.asarray(a), k))
            return new, jnp.max(jnp.abs(new - k)), change, count + 1

        eps = float(jnp.finfo(flat.dtype).eps)

        def unfinished(carry):
            k, change, previous, count = carry
            shrinking = (change < previous) | (count < 3)
            return (change > 4 * eps * jnp.max(jnp.abs(k))) & shrinking & (count < _ITERATIONS)

        first = field(t0, flat)
        infinite = jnp.asarray(jnp.inf, flat.dtype)
        carry = (jnp.broadcast_to(first, (self.stages, flat.size)), infinite, infinite, 0)
        k, change, *_ = jax.lax.while_loop(unfinished, iterate, carry)
        y1 = flat + h * matmul(jnp.asarray(b), k)
        settled = h * change <= 100 * eps * jnp.max(jnp.abs(flat))  # what is left is round-off
        ends = jax.vmap(unravel)(h * jnp.stack([first, field(t1, y1)]))
        result = diffrax.RESULTS.where(settled, diffrax.RESULTS.successful, diffrax.RESULTS.nonlinear_divergence)
        return unravel(y1), None, dict(y0=y0, y1=unravel(y1), k=ends), None, result


def has_error_estimate(solver: diffrax.AbstractSolver) -> bool:
    """Whether a solver can choose its own steps."""
    # HalfSolver, which estimates errors by halving steps, passes for an instance of the class of the solver inside.
    halved = type(solver) is diffrax.HalfSolver
    return halved or (isinstance(solver, diffrax.AbstractAdaptiveSolver) and not isinstance(solver, RK4))


def check_solver(solver: object, *, adaptive: bool = True) -> None:
    """Whether a solver can integrate the gradient flow, an ordinary differential equation of one term.

    **Arguments:** `adaptive`: whether it is to choose its own steps.

    **Raises:** `TypeError` for what is no solver, a class of solvers included; `ValueError`, with what to take instead, for
    solvers of split and of stochastic equations, for implicit ones where Diffrax lacks their tolerances, and for those without
    an error estimate that are to choose their steps.
    """
    if isinstance(solver, type) and issubclass(solver, diffrax.AbstractSolver):
        raise TypeError(
            f"the solver must be an instance, not a class: {solver.__name__}() in place of {solver.__name__}"
        )
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"the solver must be one of Diffrax's or gdflow's, such as diffrax.Tsit5(); got {solver!r}")
    name = type(solver).__name__
    structure = solver.term_structure
    if not (isinstance(structure, type) and issubclass(diffrax.ODETerm, structure)):
        raise ValueError(
            f"{name} is made for equations split into several terms (implicit-explicit, symplectic and stochastic methods); the "
            "gradient flow has one. For stiff flows take diffrax.Kvaerno5(), Kvaerno4(), Kvaerno3() or gdflow.RKC(), otherwise "
            "diffrax.Tsit5() or Dopri8()"
        )
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        if type(solver) is diffrax.HalfSolver:
            raise ValueError(
                "Diffrax does not hand on tolerances to an implicit solver inside HalfSolver: take the solver itself, "
                "which estimates its errors, e.g. diffrax.Kvaerno5()"
            )
        finder = solver.root_finder
        given = all(eqx.is_array_like(getattr(finder, tolerance, 0.0)) for tolerance in ("rtol", "atol"))
        if not adaptive and not given:
            raise ValueError(
                f"{name} solves its equations to the tolerances of the step control, which a fixed step has none of: leave "
                "step out, or take gdflow.GaussLegendre(), an implicit method for fixed steps"
            )
    if adaptive and not has_error_estimate(solver):
        raise ValueError(f"{name} has no error estimate: give a fixed step=…, or take an adaptive solver")
