"""Explicit Runge–Kutta methods in lanes, from Diffrax's public tableaus.

Two layouts of the same arithmetic: with the lanes along the *last* axis, products written as a sum over the inner index, which
the compiler vectorises over lanes (narrow layers); and with the lanes along the *first* axis, products by batched matrix
multiplication (wide layers).
"""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gdflow.basins.flows import AbstractFlow, LaneSettings, Place, SolverFlow, Step
from gdflow.certificates import LevelCertificate
from gdflow.initialization import AbstractInitialization
from gdflow.network import LayerTuple, count_parameters
from gdflow.problem import Problem

#: Layers at most this wide are stepped with the lanes along the last axis: up to there it is the faster layout
#: (benchmarks/layout.py measures both).
NARROW = 12


def default_lanes(widths: tuple[int, ...]) -> int:
    """How many lanes suit a network of given widths on the default backend; benchmarks/layout.py measures it.

    On a CPU as many as fit into the cache: 96 small networks, fewer of larger ones; products of wide layers need only a few
    for company. On an accelerator, where launching a step costs more than computing it, as many as fill it.
    """
    parameters = count_parameters(widths)
    if jax.default_backend() != "cpu":
        return int(np.clip(2**27 // parameters, 8, 2**16))
    if max(widths) <= NARROW:
        return int(np.clip(2**13 // parameters, 16, 96)) // 16 * 16  # whole vectors
    return int(np.clip(2**16 // parameters, 8, 64))


class ExplicitFlow(AbstractFlow):
    """Explicit Runge–Kutta methods by their tableau; states are lists of layers, lanes along the last axis or the first.

    Runs in coordinates in which the design is diagonal: whitened ones as they are, data coordinates as reduced ones, which is
    an isometry. `memory` is the field at the state.
    """

    problem: Problem
    law: AbstractInitialization
    key: Key[Array, ""]
    certificate: LevelCertificate
    crossings: Float[Array, " K"]
    settings: LaneSettings
    lane_axis: int = eqx.field(static=True)
    source: str = eqx.field(static=True)

    def __init__(self, problem, law, key, certificate, crossings, settings, lane_axis: int | None = None):
        self.source = problem.coordinates
        diagonal = "whitened" if problem.coordinates == "whitened" else "reduced"
        self.problem = problem.in_coordinates(diagonal).without_info()
        self.law, self.key, self.settings = law, key, settings
        self.certificate, self.crossings = certificate, crossings
        self.lane_axis = (-1 if max(law.widths) <= NARROW else 0) if lane_axis is None else lane_axis

    def layers(self, net: LayerTuple) -> list[Array]:
        """A batch of networks (leading axis) as a state."""
        return [jnp.moveaxis(w, 0, -1) if self.lane_axis == -1 else w for w in net.weights]

    def networks(self, y: list[Array]) -> LayerTuple:
        return LayerTuple([jnp.moveaxis(w, -1, 0) if self.lane_axis == -1 else w for w in y])

    def draw(self, high: Array, low: Array) -> list[Array]:
        nets = self.law.draw_batch(self.key, high, low)
        return self.layers(self.problem.convert(nets, self.source, self.problem.coordinates))

    def residual(self, W: Array) -> tuple[Array, Array, Array]:
        """`M = A − WD`, the diagonal of `D` and the losses."""
        d = jnp.diagonal(self.problem.design)
        if self.lane_axis == -1:
            d, M = d[None, :, None], self.problem.target[:, :, None]
            M = M - W * d
            return M, d, 0.5 * jnp.sum(M * M, axis=(0, 1))
        d = d[None, None, :]
        M = self.problem.target[None] - W * d
        return M, d, 0.5 * jnp.sum(M * M, axis=(1, 2))

    def product(self, a: Array, b: Array) -> Array:
        """`ab` in every lane."""
        if self.lane_axis == 0:
            return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        # The compiler never fuses a sum over an axis into several users of it, so it is evaluated once; the same product
        # written out term by term would be evaluated again inside every product that uses it.
        return jnp.sum(a[:, :, None, :] * b[None, :, :, :], axis=1)

    def transpose(self, a: Array) -> Array:
        return jnp.swapaxes(a, 0, 1) if self.lane_axis == -1 else jnp.swapaxes(a, 1, 2)

    def field(self, y: list[Array]) -> tuple[list[Array], Float[Array, " lanes"]]:
        """`−∇L` and `L`."""
        right = [y[0]]
        for w in y[1:]:
            right.append(self.product(w, right[-1]))
        M, d, loss = self.residual(right[-1])
        left, parts = M * d, []
        for w, r in zip(y[:0:-1], right[-2::-1], strict=True):
            parts.append(self.product(left, self.transpose(r)))
            left = self.product(self.transpose(w), left)
        return [left, *parts[::-1]], loss

    def loss(self, y: list[Array]) -> Float[Array, " lanes"]:
        return self.residual(functools.reduce(lambda W, w: self.product(w, W), y))[2]

    def gradient_norm(self, y: list[Array], memory: list[Array]) -> Float[Array, " lanes"]:
        return self.norm(memory)

    def begin(self, y: list[Array], controller: diffrax.PIDController) -> tuple[Any, Array, Any]:
        # One network at a time for Diffrax, all lanes at once for the machine.
        arrays, rest = eqx.partition(self, eqx.is_array)

        def fields(arrays, weights):
            flow = eqx.combine(arrays, rest)
            return list(flow.networks(flow.field(flow.layers(LayerTuple(weights)))[0]).weights)

        @jax.custom_batching.custom_vmap
        def lane_field(arrays, weights):
            return [w[0] for w in fields(arrays, [w[None] for w in weights])]

        @lane_field.def_vmap
        def _(axis_size, in_batched, arrays, weights):
            return fields(arrays, weights), [True] * len(weights)

        terms = diffrax.ODETerm(lambda t, x, args: lane_field(arrays, x))
        solver = self.settings.solver

        def first(x):
            zero = jnp.zeros(())
            return controller.init(terms, zero, zero, x, None, None, solver.func, solver.error_order(terms))

        t_next, state = jax.vmap(first)(list(self.networks(y).weights))
        state = tuple(jnp.broadcast_to(jnp.asarray(x), t_next.shape) for x in state)
        return self.field(y)[0], t_next, state

    def forget(self, place: Place) -> Place:
        return Place(place.y, None, place.t, place.t_next, place.loss)

    def recall(self, place: Place) -> Place:
        return Place(place.y, self.field(place.y)[0], place.t, place.t_next, place.loss)

    def combine(self, factors: list[Float[Array, " lanes"]], states: list[list[Array]]) -> list[Array]:
        """`Σ factor·state`, as one sum over a stacked axis, so that it is evaluated once (see `product`)."""
        stacked = jnp.stack(factors)

        def one(*layer):
            shape = (-1,) + ((1, 1) + stacked.shape[1:] if self.lane_axis == -1 else stacked.shape[1:] + (1, 1))
            return jnp.sum(jnp.stack(layer) * stacked.reshape(shape), axis=0)

        return [one(*layer) for layer in zip(*states, strict=True)]

    def advance(self, y: list[Array], h: Array, row: np.ndarray, ks: list[list[Array]]) -> list[Array]:
        """`y + hΣ a_i k_i`."""
        used = [(float(a), k) for a, k in zip(row, ks, strict=True) if a != 0]
        return self.combine([jnp.ones_like(h), *[a * h for a, _ in used]], [y, *[k for _, k in used]])

    def attempt(self, place: Place) -> tuple[Step, list[Array]]:
        solver: Any = self.settings.solver
        tableau = solver.tableau
        h = place.t_next - place.t
        ks, y, loss = [place.memory], place.y, place.loss
        for row in tableau.a_lower:
            y = self.advance(place.y, h, row, ks)
            k, loss = self.field(y)
            ks.append(k)
        error = self.combine([float(b) * h for b in tableau.b_error], ks)
        if not (tableau.fsal and tableau.ssal):
            y = self.advance(place.y, h, tableau.b_sol, ks)
            k, loss = self.field(y)
        return Step(y, k, loss, (y, ks)), error

    def interpolate(self, place: Place, dense: Any, t: Float[Array, " lanes"]) -> list[Array]:
        # The interpolant is linear in the two ends and the stages: asked for unit vectors it tells their weights.
        y1, ks = dense
        unit = jnp.eye(2 + len(ks))

        def weights(t0, t1, t):
            return self.settings.solver.interpolation_cls(t0=t0, t1=t1, y0=unit[0], y1=unit[1], k=unit[2:]).evaluate(t)

        w = jax.vmap(weights, out_axes=-1)(place.t, place.t_next, t)
        h = place.t_next - place.t
        return self.combine([w[0], w[1], *(h[None] * w[2:])], [place.y, y1, *ks])


def gradient_flow_process(
    problem: Problem,
    law: AbstractInitialization,
    key: Key[Array, ""],
    certificate: LevelCertificate,
    crossings: Float[Array, " K"],
    settings: LaneSettings,
) -> AbstractFlow:
    """The process that integrates the gradient flow with the given solver, in the layout that suits the widths."""
    if isinstance(settings.solver, diffrax.AbstractERK):
        return ExplicitFlow(problem, law, key, certificate, crossings, settings)
    return SolverFlow(problem, law, key, certificate, crossings, settings)
