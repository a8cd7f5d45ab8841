"""What Terstiege, Rauhut, Bah, Westdickenberg (2022) prove, seen in runs.

Theorems 1, 5 and 6; Theorem 3 is in test_manifold, Theorem 4 in test_riemannian_flow.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow import manifold
from gdflow.certificates import radius_bounds
from gdflow.initialization import BalancedGaussian, Gaussian

KEY = jax.random.key(61)
SLOW = pytest.mark.slow


def data(seed, d_x, d_y, m=20):
    rng = np.random.default_rng(seed)
    return gf.Problem(rng.normal(size=(d_x, m)), rng.normal(size=(d_y, m)))


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(3, 4, 2), (4, 2, 3), (3, 3, 2, 3)])
def test_theorems_1_and_5_almost_all_starts_converge_to_a_best_fit_of_their_limits_rank(widths):
    """Bounded for all times, converging to a critical point, whose product is the best fit of rank k, k ≤ r̄.

    For two layers k = r̄ (part b). For three that is the paper's conjecture, and so it is here.
    """
    problem = data(7, widths[0], widths[-1])
    starts = Gaussian(widths).sample_batch(KEY, np.arange(6))
    # Rates of order one with two layers, of the size of a layer's smallest singular value squared with three.
    t1 = 60.0 if len(widths) == 3 else 300.0
    end = gf.simulate(problem, starts, t1, ts=31, rtol=1e-9, atol=1e-12, dense=False, max_steps=100_000)
    assert set(end.status) == {"reached t1"}
    assert float(np.max(end.gradient_norms[:, -1])) < 1e-6
    rank = min(problem.max_rank(widths), int(np.sum(np.asarray(problem.singular_values) > 0)))
    best = np.asarray(manifold.best_fit(problem, rank))
    for i in range(6):
        start, row = (jax.tree.map(lambda x, i=i: x[i], t) for t in (starts, end.networks))
        bounds = radius_bounds(problem, start)
        for bound, w in zip(bounds, row.weights, strict=True):
            assert np.all(np.linalg.norm(np.asarray(w), axis=(1, 2)) <= bound)
        W = np.linalg.multi_dot([np.asarray(w[-1]) for w in reversed(row.weights)])
        np.testing.assert_allclose(W, best, atol=1e-6)


@pytest.mark.parametrize(("shape", "rank"), [pytest.param((3, 4), 1, marks=SLOW), ((3, 4), 2), ((3, 3), 3)])
@pytest.mark.slow
def test_critical_points_on_the_manifold_are_strict_saddles_but_for_the_best_fit(shape, rank):
    """What Theorem 6 rests on: the Riemannian Hessian of `L¹` is positive definite at the best fit, indefinite elsewhere."""
    problem = data(8, shape[1], shape[0])
    for subset in itertools.combinations(range(1, min(shape) + 1), rank):
        W = manifold.fit(problem, subset)
        assert np.linalg.matrix_rank(np.asarray(W), tol=1e-9) == rank
        for depth in (2, 5):
            np.testing.assert_allclose(manifold.riemannian_gradient(problem, W, depth, rank=rank), 0.0, atol=1e-10)
        # The form on a basis of the tangent space, by polarisation.
        units = jnp.eye(shape[0] * shape[1]).reshape(-1, *shape)
        tangent = jax.vmap(lambda Z, W=W: manifold.project_tangent(W, Z, rank=rank))(units)
        flat = np.linalg.svd(np.asarray(tangent).reshape(len(units), -1), full_matrices=False)[2]
        basis = jnp.asarray(flat[: rank * (sum(shape) - rank)]).reshape(-1, *shape)

        def form(Z, W=W):
            return manifold.riemannian_hessian_form(problem, W, Z, rank=rank)

        sums = jax.vmap(lambda Y: jax.vmap(lambda Z: form(Y + Z))(basis))(basis)  # noqa: B023
        single = np.asarray(jax.vmap(form)(basis))
        H = 0.5 * (np.asarray(sums) - single[:, None] - single[None, :])
        values = np.linalg.eigvalsh(H)
        if subset == tuple(range(1, rank + 1)):
            assert values[0] > 1e-6 * values[-1]
        else:
            assert values[0] < -1e-6 * values[-1]


@pytest.mark.parametrize(("depth", "rank"), [(2, 2), pytest.param(3, 2, marks=SLOW), pytest.param(2, 1, marks=SLOW)])
@pytest.mark.slow
def test_theorem_6_the_flow_on_the_manifold_tends_to_the_best_fit_or_to_lower_rank(depth, rank):
    problem = data(9, 2, 2)
    law = BalancedGaussian((2, *[rank] * (depth - 1), 2))
    best = np.asarray(manifold.best_fit(problem, rank))
    lower = np.asarray(manifold.best_fit(problem, rank - 1)) if rank > 1 else None
    ends = set()
    for i in range(6):
        net = law.sample(KEY, i)
        flow = gf.riemannian_flow(problem, net, depth, 60.0, ts=2, form=gf.dynamics.Graded())
        side = np.linalg.det(np.asarray(net.end_to_end)) * np.linalg.det(best)
        if rank == 2 and side < 0:
            # Rates of the order of the data's eigenvalues, but like 1/t^{N/(N−2)} into zero for N > 2.
            np.testing.assert_allclose(flow.final, lower, atol=1e-6 if depth == 2 else 1e-2)
            ends.add("lower")
        else:
            np.testing.assert_allclose(flow.final, best, atol=1e-6)
            ends.add("best")
    assert ends == ({"best", "lower"} if rank == 2 else {"best"})
