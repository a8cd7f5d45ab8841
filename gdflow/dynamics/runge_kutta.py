"""Runge–Kutta methods that Diffrax lacks: the classical one of the papers, stabilised ones, and ones that keep invariants."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

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


@functools.cache
def _chebyshev_rows(stages: int) -> np.ndarray:
    """The recursion of Sommeijer, Shampine and Verwer (1998), equations (2.1)–(2.6), of `s` stages: `μ_j, ν_j, μ̃_j, γ̃_j, c_j`.

    `Y_1 = y + μ̃_1hf_0`, `Y_j = (1 − μ_j − ν_j)y + μ_jY_{j−1} + ν_jY_{j−2} + μ̃_jhf(t + c_{j−1}h, Y_{j−1}) + γ̃_jhf_0`; shape
    `(5, s + 1)`, column `j` for stage `j`.
    """
    w0 = 1 + (2 / 13) / stages**2  # damping ε = 2/13
    # T_j(w0), T_j'(w0), T_j''(w0) by the recursion of the Chebyshev polynomials.
    T = np.zeros((3, stages + 1))
    T[0, :2], T[1, 1] = (1, w0), 1
    for j in range(2, stages + 1):
        one, two = T[:, j - 1], T[:, j - 2]
        T[:, j] = 2 * w0 * one + [0, 2 * one[0], 4 * one[1]] - two
    w1 = T[1, stages] / T[2, stages]
    late = np.maximum(np.arange(stages + 1), 2)
    b = T[2, late] / T[1, late] ** 2
    a = 1 - b * T[0]
    rows = np.zeros((5, stages + 1))
    mu, nu, mu_tilde, gamma, c = rows
    mu[2:], nu[2:] = 2 * b[2:] * w0 / b[1:-1], -b[2:] / b[:-2]
    mu_tilde[1], mu_tilde[2:] = b[1] * w1, 2 * b[2:] * w1 / b[1:-1]
    gamma[2:] = -a[1:-1] * mu_tilde[2:]
    c[1] = mu_tilde[1]
    for j in range(2, stages + 1):
        c[j] = mu[j] * c[j - 1] + nu[j] * c[j - 2] + mu_tilde[j] + gamma[j]
    return rows


def _chebyshev_tableau(stages: int) -> diffrax.ButcherTableau:
    """The recursion written out as a tableau, and the error estimate, equation (2.14)."""
    unit = np.eye(stages + 1)
    # (Y_j − y)/h in terms of the fields at y, Y_1, …, Y_s, the last of which is the next state.
    rows = [np.zeros(stages + 1)]
    for j, (mu, nu, mu_tilde, gamma, _) in enumerate(_chebyshev_rows(stages).T[1:], 1):
        before = rows[j - 2] if j > 1 else 0.0
        rows.append(mu * rows[j - 1] + nu * before + mu_tilde * unit[j - 1] + gamma * unit[0])
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


#: A step of `s` stages is stable up to `hλ = _REACH·(s² − 1)`, equation (2.7) there.
_REACH = 2 / 3 * (1 - 2 / 15 * 2 / 13)
#: By how much the power method may underrate `λ`, from below and a step late.
_UNDERRATED = 1.1
#: Products of the power method before the first step.
_FIRST_PRODUCTS = 30


@functools.cache
def _automatic_rows(most: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of stages to choose from, at most 5 % apart, and `_chebyshev_rows` of each, padded by zeros."""
    counts = [3]
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, int(1.05 * counts[-1]))))
    rows = [np.pad(_chebyshev_rows(s), ((0, 0), (0, most - s))) for s in counts]
    return np.array(counts), np.stack(rows)


class AutomaticRKC(diffrax.AbstractAdaptiveSolver):
    """`gdflow.RKC` with as many stages as each step needs, so that accuracy alone chooses the steps.

    A step `h` takes about `√(1.5hλ)` stages for the largest eigenvalue `λ` of the Hessian, which the power method tracks by one
    product of it with a vector a step (Sommeijer, Shampine, Verwer 1998). One program serves fast transients and the slowest
    directions. Three states are kept, however many the stages are.

    The number of stages is found on the way, so that there are no derivatives backwards (`jax.grad`). In lanes all wait
    for the one with most stages: `RKC` serves there.

    **Arguments:** `most`: stages, from 3 on. Longer steps than these allow are refused by the error estimate and tried again.

    ```python
    >>> gf.simulate(problem, net, 1e4, solver=gf.AutomaticRKC(), rtol=1e-4, atol=1e-7)
    ```
    """

    most: Any = eqx.field(static=True, default=250)

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
    )

    def __check_init__(self):
        if not isinstance(self.most, int) or not 3 <= self.most <= 1000:
            raise ValueError(f"AutomaticRKC takes a number from 3 to 1000 for its most stages, got {self.most}")

    def order(self, terms):
        return 2

    def error_order(self, terms):
        return 3

    def init(self, terms, t0, t1, y0, args):
        field = terms.vf(t0, y0, args)

        def product(_, vector_and_value):
            return self._product(terms, t0, y0, args, vector_and_value[0])

        return field, jax.lax.fori_loop(0, _FIRST_PRODUCTS, product, _normalized(field))

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def _product(self, terms, t, y, args, vector):
        """One iteration of the power method: the next vector, of length 1, and the modulus of the eigenvalue."""
        _, image = jax.jvp(lambda y: terms.vf(t, y, args), (y,), (vector,))
        return _normalized(image)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        first, (vector, before) = solver_state
        h = jnp.asarray(t1 - t0)
        vector, value = self._product(terms, t0, y0, args, vector)
        needed = _UNDERRATED * h * jnp.maximum(value, before) / _REACH
        counts, table = _automatic_rows(self.most)
        place = jnp.searchsorted(counts, jnp.sqrt(1 + jnp.where(jnp.isfinite(needed), needed, 0.0)))
        place = jnp.minimum(place, len(counts) - 1)
        stages, rows = jnp.asarray(counts)[place], jnp.asarray(table, h.dtype)[place]

        def combine(weights, *states):
            return jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True)), *states)

        def stage(j, states):
            earlier, last = states
            mu, nu, mu_tilde, gamma, _ = rows[:, j]
            field = terms.vf(t0 + rows[4, j - 1] * h, last, args)
            weights = (1 - mu - nu, mu, nu, h * mu_tilde, h * gamma)
            return last, combine(weights, y0, last, earlier, field, first)

        start = combine((1.0, h * rows[2, 1]), y0, first)
        _, y1 = jax.lax.fori_loop(2, stages + 1, stage, (y0, start))
        last = terms.vf(t1, y1, args)
        error = combine((0.8, -0.8, 0.4 * h, 0.4 * h), y0, y1, first, last)
        ends = jax.tree.map(lambda a, b: h * jnp.stack([a, b]), first, last)
        dense = dict(y0=y0, y1=y1, k=ends)
        return y1, error, dense, (last, (vector, value)), diffrax.RESULTS.successful


def _normalized(vector):
    """A state divided by its length, and the length; zero stays zero."""
    square = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(vector))
    length = jnp.sqrt(square)
    return jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1.0), vector), length


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
