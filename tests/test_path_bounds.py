"""Bounds of pieces of a path against dense sampling, eigenvalues and random points: each inequality by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from random_cases import random_net

import gdflow as gf
from gdflow.basins.path_bounds import (
    bound_piece,
    gradient_of_target,
    num_nodes,
    product_change,
    spectral_bound,
    tail_weights,
    widening,
)
from gdflow.layouts import LanesFirst, LanesLast

POOL = ((3, 2), (4, 3, 2), (3, 4, 1, 2), (3, 2, 3, 2, 3, 2))
#: Sampling integrates with an error far below this.
SAMPLED = 1e-9


def problem_of(widths, rng):
    k = min(widths[0], widths[-1])
    return gf.Problem.from_singular_values(np.sort(rng.uniform(0.5, 3, k))[::-1], d_x=widths[0]).isometric()


@functools.cache
def functions(widths):
    net = random_net(np.random.default_rng(0), widths)
    _, unravel = ravel_pytree(net)

    def loss(x, objective):
        return objective.effective_loss(unravel(x))

    least = jax.vmap(lambda x, objective: jnp.linalg.eigvalsh(jax.hessian(loss)(x, objective))[0], (0, None))
    return jax.jit(jax.vmap(jax.grad(loss), (0, None))), jax.jit(least), unravel


def flat(coefficients):
    return np.array([np.concatenate([np.ravel(w) for w in c]) for c in coefficients])


def piece_of(rng, widths, degree=4, step=0.3):
    """A start, and a polynomial of falling coefficients through it."""
    return [tuple(step**i * np.asarray(w) for w in random_net(rng, widths, 0.8).weights) for i in range(degree + 1)]


def bounded(objective, coefficients, h, layout=None, nodes=None):
    layout = LanesFirst() if layout is None else layout
    ends = [[sum((-1) ** (i * (1 - e)) * c[j] for i, c in enumerate(coefficients)) for j in range(len(coefficients[0]))]
            for e in (0, 1)]  # fmt: skip

    def packed(layers):
        return layout.pack([jnp.asarray(w)[None] for w in layers])

    return jax.jit(bound_piece, static_argnums=(0, 5))(
        layout,
        objective,
        jnp.full(1, h),
        list(map(jnp.stack, zip(*map(packed, coefficients), strict=True))),
        tuple(map(packed, ends)),
        nodes,
    )


@pytest.mark.parametrize("num", [3, 6, 9])
def test_what_quadratures_do_not_see_is_bounded(num):
    s = np.linspace(-1, 1, 2001)
    weights = tail_weights(40, num)
    for k in (num - 1, num, num + 1, 17, 40):
        series = np.polynomial.chebyshev.poly2cheb(np.eye(41)[k])[:num]
        rest = np.abs(s**k - np.polynomial.chebyshev.chebval(s, series)).max()
        assert rest <= weights[k] + 1e-15 or k < num
        assert k < num or rest > 0.5 * weights[k]  # nor is it far too large


@pytest.mark.parametrize("widths", POOL, ids=str)
def test_defect_and_expansion_hold_and_are_sharp(widths, rng):
    gradient, least, _ = functions(widths)
    points, weights = np.polynomial.legendre.leggauss(60)
    for step in (0.02, 0.3):
        objective, h = problem_of(widths, rng).objective, 0.7 * step
        coefficients = piece_of(rng, widths, step=step)
        x = flat(coefficients)
        states = np.polynomial.polynomial.polyval(points, x).T
        slopes = np.polynomial.polynomial.polyval(points, np.polynomial.polynomial.polyder(x)).T
        residual = slopes + 0.5 * h * np.asarray(gradient(states, objective))
        defect = float(weights @ np.linalg.norm(residual, axis=1))
        spread = 0.5 * h * float(weights @ -np.asarray(least(states, objective)))
        found = bounded(objective, coefficients, h)
        assert float(found.defect[0]) >= defect * (1 - SAMPLED)
        # Cauchy and Schwarz, and tails, which count for large steps: no more than that is given away.
        l2 = float(np.sqrt(2 * weights @ np.linalg.norm(residual, axis=1) ** 2))
        assert float(found.defect[0]) <= (1.01 if step < 0.1 else 1.7) * l2
        assert float(found.expansion[0]) >= spread - SAMPLED
        norms = [max(np.linalg.norm(c, 2) for c in layer) for layer in zip(*[
            [np.polynomial.polynomial.polyval(s, np.stack([c[j] for c in coefficients])) for j in range(len(widths) - 1)]
            for s in np.linspace(-1, 1, 21)], strict=True)]  # fmt: skip
        assert np.all(np.asarray(found.sizes[:, 0]) >= np.array(norms) * (1 - SAMPLED))
        assert float(found.gap[0]) < 1e-12


@pytest.mark.parametrize("widths", POOL[1:], ids=str)
def test_few_nodes_are_as_good_as_many(widths, rng):
    depth = len(widths) - 1
    objective, coefficients = problem_of(widths, rng).objective, piece_of(rng, widths, step=0.1)
    few = bounded(objective, coefficients, 0.1)
    exact = bounded(objective, coefficients, 0.1, nodes=4 * 4 * depth + 1)
    for name in ("defect", "expansion"):
        assert float(getattr(exact, name)[0]) * (1 - SAMPLED) <= float(getattr(few, name)[0])
        assert float(getattr(few, name)[0]) <= 1.05 * float(getattr(exact, name)[0])
    assert num_nodes(4, depth) < 4 * (2 * depth - 1) + 1


@pytest.mark.parametrize("widths", POOL[1:3], ids=str)
def test_layouts_agree(widths, rng):
    objective, coefficients = problem_of(widths, rng).objective, piece_of(rng, widths)
    first, last = (bounded(objective, coefficients, 0.2, layout) for layout in (LanesFirst(), LanesLast()))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("widths", POOL[1:], ids=str)
@pytest.mark.parametrize("radius", [1e-3, 0.3])
def test_the_expansion_holds_in_a_ball(widths, radius, rng):
    _, least, _ = functions(widths)
    for _ in range(3):
        objective = problem_of(widths, rng).objective
        still = [tuple(np.asarray(w) for w in random_net(rng, widths, 0.7).weights)]
        still += [tuple(0 * w for w in still[0])]  # a path that stays where it is
        piece = bounded(objective, still, 1.0)
        mu = float((piece.expansion + widening(objective, piece, jnp.full(1, radius)))[0])
        directions = rng.standard_normal((200, flat(still).shape[1]))
        points = flat(still)[0] + radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        assert np.all(-np.asarray(least(points, objective)) <= mu)


@pytest.mark.parametrize("widths", POOL, ids=str)
@pytest.mark.parametrize("radius", [1e-8, 1e-2, 3.0])
def test_products_change_by_no_more(widths, radius, rng):
    for _ in range(50):
        net, w = random_net(rng, widths), random_net(rng, widths)
        w = w * (radius / w.norm())
        sizes = jnp.asarray([[np.linalg.norm(x, 2)] for x in net.weights])
        bound = float(product_change(sizes, jnp.full(1, radius), jnp.asarray(2.0))[0])
        moved = 2 * np.linalg.norm(np.asarray((net + w).end_to_end - net.end_to_end))
        assert moved <= bound * (1 + 1e-12) + 1e-15
    # Of rank one, all along the same directions, it is attained to first order.
    aligned = [jnp.zeros((b, a)).at[0, 0].set(2.0) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    sizes = jnp.full((len(aligned), 1), 2.0)
    step = 1e-6 / np.sqrt(len(aligned))
    moved = (2.0 + step) ** len(aligned) - 2.0 ** len(aligned)
    assert moved >= float(product_change(sizes, jnp.full(1, 1e-6), jnp.asarray(1.0))[0]) * (1 - 1e-5)


def test_another_target_moves_the_gradient_by_no_more(rng):
    widths = (4, 3, 2)
    objective = problem_of(widths, rng).objective
    other = objective.target + 1e-3 * rng.standard_normal(objective.target.shape)
    objective = type(objective)(
        objective.target, objective.design, objective.loss, jnp.linalg.norm(other - objective.target)
    )
    for _ in range(50):
        net = random_net(rng, widths)
        sizes = jnp.asarray([[np.linalg.norm(w, 2)] for w in net.weights])
        moved = type(objective)(other, objective.design, objective.loss, jnp.zeros(())).gradient(
            net
        ) - objective.gradient(net)
        assert float(moved.norm()) <= float(gradient_of_target(objective, sizes)[0])


def test_spectral_norms_are_bounded(rng):
    matrices = rng.standard_normal((100, 4, 6))
    exact = np.linalg.norm(matrices, 2, axis=(1, 2))
    for layout in (LanesFirst(), LanesLast()):
        bound = np.asarray(spectral_bound(layout, layout.pack(jnp.asarray(matrices))))
        assert np.all(bound >= exact)
        assert np.all(bound <= 4 ** (1 / 8) * exact * (1 + 1e-7))


@pytest.mark.parametrize("scale", [1e-160, 1e-120, 1e60])
def test_norms_hold_where_squares_underflow(scale, rng):
    widths = (4, 3, 2)
    objective = problem_of(widths, rng).objective
    coefficients = [tuple(scale * w for w in c) for c in piece_of(rng, widths)]
    found = bounded(objective, coefficients, 0.1)
    for j in range(2):
        norms = [np.linalg.norm(c[j] / scale) for c in coefficients]
        assert float(found.sizes[j, 0]) >= scale * np.linalg.norm(coefficients[0][j] / scale, 2)
        assert float(found.defect[0]) >= scale * 1e-3 * norms[1]  # a path that has nothing to do with the flow
