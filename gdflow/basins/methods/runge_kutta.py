"""Explicit Runge–Kutta methods in lanes, from Diffrax's public tableaus, in the layout that suits the widths."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.basins.methods.adaptive import AbstractIntegrator, check_integration
from gdflow.basins.methods.diffrax_solver import DiffraxSolver
from gdflow.basins.methods.method import Place, Step
from gdflow.checks import check_number
from gdflow.layouts import AbstractLayout, LanesFirst, suitable_layout
from gdflow.objective import Objective
from gdflow.problem import AbstractProblem
from gdflow.rounding import frobenius


class RungeKutta(AbstractIntegrator):
    """Explicit Runge–Kutta methods by their tableau; `memory` is the field at the state.

    Of linear networks with the squared error it works in the isometric coordinates in which the design is diagonal.

    **Arguments:** `solver`: one of Diffrax's explicit Runge–Kutta methods with an error estimate; `rtol` and `atol` of the
    step-size control; `shortest`: steps of this length are kept whatever their error; `layout`: by default the one that suits
    the widths.
    """

    solver: diffrax.AbstractERK = diffrax.Tsit5()
    rtol: float = 1e-6
    atol: float = 1e-9
    shortest: float = 0.0
    chosen_layout: AbstractLayout | None = None

    def __check_init__(self):
        check_integration(self.solver, self.rtol, self.atol)

    @property
    def layout(self) -> AbstractLayout:
        return LanesFirst() if self.chosen_layout is None else self.chosen_layout

    def suited(self, widths: tuple[int, ...]) -> "RungeKutta":
        layout = suitable_layout(widths) if self.chosen_layout is None else self.chosen_layout
        return RungeKutta(self.solver, self.rtol, self.atol, self.shortest, layout)

    def traced(self) -> "RungeKutta":
        # Without a shortest step its zero is left as it is: nothing is computed for it (`accept`).
        shortest = jnp.asarray(self.shortest, float) if self.shortest else 0.0
        numbers = [jnp.asarray(self.rtol, float), jnp.asarray(self.atol, float), shortest]
        return eqx.tree_at(lambda method: [method.rtol, method.atol, method.shortest], self, numbers)

    def problem(self, problem: AbstractProblem) -> AbstractProblem:
        return problem.isometric()

    def field(self, objective: Objective, y: Any) -> tuple[Any, Float[Array, " lanes"]]:
        """`−∇L` and `L`."""
        gradient, loss = objective.lane_gradients(self.layout, y)
        return jax.tree.map(jnp.negative, gradient), loss

    def loss(self, objective: Objective, y: Any) -> Float[Array, " lanes"]:
        return objective.lane_losses(self.layout, y)

    def gradient_norm(self, objective: Objective, y: Any, memory: Any) -> Float[Array, " lanes"]:
        return self.layout.norm(memory)

    def begin(self, objective: Objective, y: Any) -> tuple[Any, Float[Array, " lanes"], Any]:
        # One network at a time for Diffrax, all lanes at once for the machine.
        arrays, rest = eqx.partition((self, objective), eqx.is_array)

        def fields(arrays, nets):
            method, objective = eqx.combine(arrays, rest)
            return method.layout.unpack(method.field(objective, method.layout.pack(nets))[0])

        @jax.custom_batching.custom_vmap
        def lane_field(arrays, net):
            return jax.tree.map(lambda w: w[0], fields(arrays, jax.tree.map(lambda w: w[None], net)))

        @lane_field.def_vmap
        def _(axis_size, in_batched, arrays, nets):
            return fields(arrays, nets), jax.tree.map(lambda _: True, nets)

        terms = diffrax.ODETerm(lambda t, net, args: lane_field(arrays, net))

        def first(net):
            zero = jnp.zeros(())
            return self.controller.init(terms, zero, zero, net, None, None, self.solver.func, self.order)

        t_next, control = jax.vmap(first)(self.layout.unpack(y))
        control = tuple(jnp.broadcast_to(jnp.asarray(x), t_next.shape) for x in control)
        return self.field(objective, y)[0], t_next, control

    def forget(self, place: Place) -> Place:
        return Place(place.y, None, place.t, place.t_next, place.loss)

    def recall(self, objective: Objective, place: Place) -> Place:
        return Place(place.y, self.field(objective, place.y)[0], place.t, place.t_next, place.loss)

    def advance(self, y: Any, h: Array, row: np.ndarray, ks: list[Any]) -> Any:
        """`y + hΣ a_i k_i`."""
        used = [(float(a), k) for a, k in zip(row, ks, strict=True) if a != 0]
        return self.layout.combine([jnp.ones_like(h), *[a * h for a, _ in used]], [y, *[k for _, k in used]])

    def attempt(self, objective: Objective, place: Place) -> Step:
        tableau: Any = self.solver.tableau
        h = place.t_next - place.t
        ks, y, loss = [place.memory], place.y, place.loss
        for row in tableau.a_lower:
            y = self.advance(place.y, h, row, ks)
            k, loss = self.field(objective, y)
            ks.append(k)
        error = self.layout.combine([float(b) * h for b in tableau.b_error], ks)
        if not (tableau.fsal and tableau.ssal):
            y = self.advance(place.y, h, tableau.b_sol, ks)
            k, loss = self.field(objective, y)
        return Step(y, k, loss, error, ks)

    def interpolate(self, objective: Objective, place: Place, step: Step, t: Float[Array, " lanes"]) -> Any:
        # The interpolant is linear in the two ends and the stages: asked for unit vectors it tells their weights.
        unit = jnp.eye(2 + len(step.dense))

        def weights(t0, t1, t):
            return self.solver.interpolation_cls(t0=t0, t1=t1, y0=unit[0], y1=unit[1], k=unit[2:]).evaluate(t)

        w = jax.vmap(weights, out_axes=-1)(place.t, place.t_next, t)
        h = place.t_next - place.t
        return self.layout.combine([w[0], w[1], *(h[None] * w[2:])], [place.y, step.y, *step.dense])

    @property
    def path_degree(self) -> int | None:
        weights = path_weights(self.solver)
        return None if weights is None else len(weights) - 1

    def path(self, objective: Objective, place: Place, step: Step) -> tuple[list[Array], Float[Array, " lanes"]]:
        weights = path_weights(self.solver)
        assert weights is not None
        used = np.flatnonzero(np.any(weights != 0, axis=0))
        weights, h = weights[:, used], place.t_next - place.t
        shares = jnp.asarray(np.arange(1, len(weights) + 1) @ abs(weights), h.dtype)[:, None]
        result, squares = [], jnp.zeros((len(used), h.size), h.dtype)
        for y0, y1, *ks in zip(*map(jax.tree.leaves, (place.y, step.y, *step.dense)), strict=True):
            every = [y0, y1, *(self.layout.spread(h, k) * k for k in ks)]
            terms = jnp.stack([every[i] for i in used])
            result.append(jnp.tensordot(jnp.asarray(weights, h.dtype), terms, 1, precision=jax.lax.Precision.HIGHEST))
            squares = squares + jax.vmap(self.layout.squares)(terms)[0]
        return result, jnp.sum(shares * frobenius(squares, h.dtype), axis=0)


#: Interpolants up to this degree are recognised as polynomials.
_LARGEST_DEGREE = 10


@functools.cache
def path_weights(solver: diffrax.AbstractERK) -> np.ndarray | None:
    """How the coefficients of the interpolant depend on the two ends and on the stages times `h`; `None` if it is no polynomial.

    Row `i` belongs to `s^i`, `s` from −1 to 1; columns are the ends `y_0`, `y_1` and the stages. The interpolant is asked for
    unit vectors at Chebyshev nodes.
    """
    tableau: Any = solver.tableau
    stages = len(tableau.b_sol)
    count = _LARGEST_DEGREE + 2
    s = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    with jax.ensure_compile_time_eval():  # these are constants, whoever asks for them
        unit, one = jnp.eye(2 + stages), jnp.ones(())
        local = solver.interpolation_cls(t0=0 * one, t1=one, y0=unit[0], y1=unit[1], k=unit[2:])
        values = np.stack([np.asarray(local.evaluate((1 + x) / 2 * one), np.float64) for x in s])
        small = 1e3 * float(jnp.finfo(unit.dtype).eps)
    series = np.polynomial.chebyshev.chebfit(s, values, count - 1)
    small *= max(1.0, abs(series).max())  # what is below round-off is none
    degree = int(np.flatnonzero(abs(series).max(axis=1) > small)[-1])
    if degree > _LARGEST_DEGREE:
        return None
    powers = np.zeros((degree + 1, degree + 1))  # of the Chebyshev polynomials
    for k in range(degree + 1):
        powers[: k + 1, k] = np.polynomial.chebyshev.cheb2poly(np.eye(k + 1)[k])
    rows = powers @ series[: degree + 1]
    return np.where(abs(rows) > small, rows, 0.0)


def integrator(
    solver: diffrax.AbstractSolver | None = None, rtol: float = 1e-6, atol: float = 1e-9, *, shortest: float = 0.0
) -> AbstractIntegrator:
    """The method that integrates the gradient flow with a Diffrax solver.

    **Arguments:** `solver`: any adaptive one, Tsit5 by default, `gdflow.RKC` where the flow is stiff; `rtol` and `atol` of its
    step-size control. Labels survive rtol 1e-3; the default is tighter so that times do too (benchmarks/tolerance.py);
    `shortest`: steps of this length are kept whatever their error, for gradients that jump (see `gdflow.kinks`).

    **Raises:** `ValueError` or `TypeError` for solvers that cannot integrate the flow with steps of their own choice, and for
    tolerances out of range.

    ```python
    >>> gf.basin_sizes(problem, law, 1000, key=key, method=gf.integrator(gf.RKC(20), rtol=1e-4, atol=1e-7))
    ```
    """
    solver = diffrax.Tsit5() if solver is None else solver
    check_integration(solver, rtol, atol)
    if not check_number("shortest", shortest) >= 0:
        raise ValueError(f"the shortest step must not be negative, got {shortest}")
    if isinstance(solver, diffrax.AbstractERK):
        return RungeKutta(solver, rtol, atol, shortest)
    return DiffraxSolver(solver, rtol, atol, shortest)
