"""The flow on the matrices of rank k against the flow of balanced factors, its limits, its rank, its derivatives."""

import inspect
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow import manifold
from gdflow.dynamics import Graded, LowRank
from gdflow.dynamics.riemannian_flow import _as_matrix
from gdflow.initialization import Balanced

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(9)
    return gf.Problem(rng.normal(size=(4, 12)), rng.normal(size=(3, 12)))


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "rank"), [(3, 2), (2, 3), (20, 2)])
def test_product_of_balanced_factors_follows_the_flow(problem, depth, rank):
    net = Balanced((4,) + (rank,) * (depth - 1) + (3,), singular_values=0.5).sample(KEY, 0)
    factors = gf.simulate(problem, net, 2.0, ts=6, rtol=1e-10, atol=1e-13)
    products = jax.vmap(lambda n: n.end_to_end)(factors.networks)
    flow = gf.riemannian_flow(problem, net, depth, 2.0, ts=6, rtol=1e-10, atol=1e-13)
    # Both at local tolerance 1e-10.
    np.testing.assert_allclose(flow.matrices, products, atol=1e-8)
    np.testing.assert_allclose(flow.losses, factors.losses, rtol=1e-8)
    assert flow.rank == rank


@pytest.mark.parametrize(("depth", "rank"), [(2, 1), (2.5, 2), *(pytest.param(n, 2, marks=SLOW) for n in (2, 3))])
@pytest.mark.slow
def test_limit_is_the_best_fit_of_the_rank(problem, depth, rank):
    W0 = Balanced((4, rank, 3), singular_values=0.5).sample(KEY, 1).end_to_end
    flow = gf.riemannian_flow(problem, W0, depth, 30.0, ts=3)
    np.testing.assert_allclose(flow.final, manifold.best_fit(problem, rank), atol=1e-6)
    values = np.linalg.svd(np.asarray(flow.final), compute_uv=False)
    assert values[rank - 1] > 0.1
    np.testing.assert_allclose(values[rank:], 0.0, atol=1e-13)  # round-off: the rank is kept by construction


@pytest.mark.slow
def test_autoencoder_learns_the_principal_components():
    rng = np.random.default_rng(10)
    X = rng.normal(size=(5, 20)) * np.array([3.0, 2.0, 1.5, 1.0, 0.5])[:, None]
    problem = gf.Problem(X, X)
    W0 = Balanced((5, 2, 5)).sample(KEY, 2).end_to_end
    flow = gf.riemannian_flow(problem, W0, 3, 30.0, ts=3)
    U, s, _ = np.linalg.svd(X)
    np.testing.assert_allclose(flow.final, U[:, :2] @ U[:, :2].T, atol=1e-6)
    # L¹ → half the squared tail (Theorem 5 of Terstiege et al., whose appendix prints its square root).
    np.testing.assert_allclose(flow.losses[-1] + problem.offset, 0.5 * np.sum(s[2:] ** 2), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(X - flow.final @ X), np.sqrt(np.sum(s[2:] ** 2)), rtol=1e-6)


@pytest.mark.slow
def test_square_starts_keep_the_sign_of_the_determinant_where_factors_lose_it():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    rng = np.random.default_rng(11)
    U, V, R = (np.linalg.qr(rng.normal(size=(2, 2)))[0] for _ in range(3))
    V[0] *= -np.linalg.det(U) * np.linalg.det(V)  # det W < 0
    net = gf.LayerTuple([(R * [0.7, 0.6]) @ V.T, (U * [0.7, 0.6]) @ R.T])
    W0 = net.end_to_end
    assert np.linalg.det(W0) < 0
    flow = gf.riemannian_flow(problem, W0, 2, 60.0)
    # The exact limit has rank 1. The flow ends where the sign could no longer be told, near that limit, and says so.
    assert flow.at_boundary
    assert flow.final_time < 20
    assert np.linalg.det(np.asarray(flow.final)) < 0
    np.testing.assert_allclose(flow.final, np.diag([2.0, 0.0]), atol=1e-2)  # after six units of time
    assert "STOPPED at the boundary" in str(flow)
    reached = np.asarray(flow.ts) <= float(flow.final_time)
    assert np.all(np.isfinite(flow.losses[reached]))
    assert np.all(np.isnan(flow.losses[~reached]))
    # Gone on regardless, it crosses sooner or later.
    on = gf.riemannian_flow(problem, W0, 2, 60.0, form=LowRank(boundary=0.0))
    np.testing.assert_allclose(np.linalg.det(np.asarray(on.final)), 2.0, rtol=1e-3)
    # The same start as factors: round-off grows like e^t along the unstable direction of the saddle and takes over.
    np.testing.assert_allclose(gf.simulate(problem, net, 20.0, ts=3).losses[-1], 0.5, atol=1e-2)
    np.testing.assert_allclose(gf.simulate(problem, net, 100.0, ts=3).losses[-1], 0.0, atol=1e-6)  # the wrong limit


@pytest.mark.slow
def test_infinite_depth_keeps_row_and_column_spaces(problem):
    W0 = Balanced((4, 2, 3), singular_values=0.5).sample(KEY, 3).end_to_end
    flow = gf.riemannian_flow(problem, W0, math.inf, 5.0, ts=3)
    slow = gf.riemannian_flow(problem, W0, 4000.0, 5.0 / 4000, ts=3)
    np.testing.assert_allclose(flow.final, slow.final, atol=1e-2)  # O(1/N) apart, times the growth of five time units
    U, _, _ = np.linalg.svd(np.asarray(W0))
    np.testing.assert_allclose(U[:, 2:].T @ flow.final, 0.0, atol=1e-12)
    assert flow.losses[-1] < flow.losses[0]


@pytest.mark.slow
def test_rank_above_the_targets_tends_to_lower_rank():
    problem = gf.Problem.from_singular_values([2.0, 1.0, 0.0])
    W0 = Balanced((3, 3, 3), singular_values=0.5).sample(KEY, 4).end_to_end
    flow = gf.riemannian_flow(problem, W0, 2, 400.0, ts=3)
    assert flow.rank == 3
    assert "of lower rank: the target has rank 2, no minimum of rank 3" in " ".join(str(flow).split())
    assert flow.singular_values[-1, -1] < 1e-2  # algebraic decay: σ̇ = −2σ², σ ≈ 1/(2t)
    np.testing.assert_allclose(flow.singular_values[-1, -1], 1 / 800, rtol=0.5)


@pytest.mark.parametrize("depth", [pytest.param(3, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_derivatives_of_the_flow(depth):
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0], d_x=4)
    rng = np.random.default_rng(12)
    W0 = jnp.asarray(0.5 * rng.normal(size=(3, 2)) @ rng.normal(size=(2, 4)))
    K, L = rng.normal(size=(3, 3)), rng.normal(size=(4, 4))
    D = jnp.asarray(K @ np.asarray(W0) + np.asarray(W0) @ L)

    def f(W, problem=problem):
        options = dict(rank=2, ts=3, rtol=1e-10, atol=1e-13)
        return jnp.sum(jnp.sin(gf.riemannian_flow(problem, W, depth, 0.7, **options).final))

    def curve(e):
        return jnp.asarray((np.eye(3) + e * K) @ np.asarray(W0) @ (np.eye(4) + e * L))

    e = 1e-4
    expected = (f(curve(e)) - f(curve(-e))) / (2 * e)
    # Central differences: e² relative to the third derivative.
    np.testing.assert_allclose(jnp.sum(jax.grad(f)(W0) * D), expected, rtol=1e-5)
    # In the target, reverse mode, without a derivative in the start.
    S = jnp.asarray(rng.normal(size=problem.target.shape))

    def g(A):
        return f(W0, eqx.tree_at(lambda p: p.objective.target, problem, A))

    expected = (g(problem.target + e * S) - g(problem.target - e * S)) / (2 * e)
    np.testing.assert_allclose(jnp.sum(jax.grad(g)(problem.target) * S), expected, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_at_repeated_singular_values_are_finite_and_right():
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0])
    W0 = 0.5 * jnp.eye(3)
    rng = np.random.default_rng(13)
    D = jnp.asarray(rng.normal(size=(3, 3)))

    def f(W):
        return jnp.sum(jnp.sin(gf.riemannian_flow(problem, W, 3, 0.7, rank=3, ts=3, rtol=1e-10, atol=1e-13).final))

    e = 1e-4
    expected = (f(W0 + e * D) - f(W0 - e * D)) / (2 * e)
    # Central differences: e² times the third derivative, which is of order 10.
    np.testing.assert_allclose(jnp.sum(jax.grad(f)(W0) * D), expected, atol=1e-6)


def test_errors(problem):
    W = jnp.ones((3, 4))
    with pytest.raises(ValueError, match="rank 0 and never moves"):
        gf.riemannian_flow(problem, 0 * W, 2, 1.0)
    with pytest.raises(ValueError, match=r"must have shape \(3, 4\)"):
        gf.riemannian_flow(problem, W.T, 2, 1.0)
    with pytest.raises(ValueError, match="not finite"):
        gf.riemannian_flow(problem, W.at[0, 0].set(jnp.nan), 2, 1.0)
    with pytest.raises(ValueError, match="depth N must be"):
        gf.riemannian_flow(problem, W, 1.5, 1.0)
    with pytest.raises(ValueError, match="use simulate"):
        gf.riemannian_flow(problem, W, 1, 1.0)
    with pytest.raises(ValueError, match="t1 must be positive"):
        gf.riemannian_flow(problem, W, 2, -1.0)
    for options, message in (
        (dict(ts=jnp.array([0.5, 0.2])), "save times must increase"),
        (dict(ts=jnp.array([0.5, 1.2])), r"lie in \[0.0, 1.0\], got 0.5 … 1.2"),
        (dict(ts=1), "1 equidistant times .* at least 2"),
        (dict(ts=2.5), "save times ts must be an integer, got 2.5"),
        (dict(rtol=0.0), "0 < rtol < 1, got rtol=0.0"),
        (dict(rtol=1e300), "0 < rtol < 1"),
        (dict(rtol=np.nan), "rtol must be a finite number, got nan"),
        (dict(max_steps=0), "max_steps must be at least 1, got 0"),
        (dict(max_steps=2.5), "max_steps must be an integer, got 2.5"),
        (dict(rank=1.5), "rank must be an integer, got 1.5"),
        (dict(solver=diffrax.KenCarp4()), "KenCarp4 is made for equations split into several terms"),
        (dict(solver=diffrax.Euler()), "Euler has no error estimate"),
    ):
        with pytest.raises(ValueError, match=message):
            gf.riemannian_flow(problem, W, 2, 1.0, **options)
    for boundary, message in ((np.nan, "boundary must be a finite number, got nan"), (1.0, "between 0 and 1, got 1.0")):
        with pytest.raises(ValueError, match=message):
            LowRank(boundary=boundary)
    for form in ("graded", "low rank", Graded):  # as a user calls it, without the type checks of the tests
        with pytest.raises(
            TypeError, match=r"form must be gdflow.dynamics.LowRank\(\) or gdflow.dynamics.Graded\(\), got"
        ):
            inspect.unwrap(gf.riemannian_flow)(problem, W, 2, 1.0, form=form)
    with pytest.raises(ValueError, match="t1 must be a finite number, got nan"):
        gf.riemannian_flow(problem, W, 2, np.nan)
    for start in (W * 1j, np.ones((3, 4)) * 1j):  # as a user calls it, without the type checks of the tests
        with pytest.raises(TypeError, match="real"):
            inspect.unwrap(_as_matrix)(start)
    with pytest.raises(TypeError, match=r"must be a matrix of real numbers, or a gdflow\.LayerTuple; got list"):
        inspect.unwrap(_as_matrix)([W])
    with pytest.raises(ValueError, match="rank must lie between 1 and 3"):
        gf.riemannian_flow(problem, W, 2, 1.0, rank=4)
    unbalanced = gf.LayerTuple([jnp.ones((2, 4)), 2 * jnp.ones((3, 2))])
    with pytest.raises(ValueError, match="not balanced"):
        gf.riemannian_flow(problem, unbalanced, 2, 1.0)
    with pytest.raises(ValueError, match="2 factors were given for N = 3"):
        gf.riemannian_flow(problem, unbalanced, 3, 1.0)


@pytest.mark.parametrize("form", [LowRank(), Graded()], ids=["low rank", "graded"])
@pytest.mark.slow
def test_a_start_of_lower_rank_than_asked_for_is_refused(form):
    problem, W = gf.Problem.from_singular_values([2.0, 1.0]), np.diag([1.0, 1e-18])
    with pytest.raises(
        ValueError, match=r"W\(0\) has numerical rank 1, not the 2 asked for: singular value 2 is 1e-18 beside 1"
    ):
        gf.riemannian_flow(problem, W, 2, 1.0, rank=2, form=form)
    # Traced, the values cannot be looked at: then it is not solved.
    run = jax.jit(lambda W: gf.riemannian_flow(problem, W, 2, 1.0, rank=2, ts=3, form=form, max_steps=1000))(
        np.diag([1.0, 0.0])
    )
    assert not run.solved
    assert np.all(np.isfinite(run.losses)) <= bool(run.solved)


@pytest.mark.slow
def test_a_trajectory_keeps_its_problem(problem):
    net = Balanced((4, 2, 3)).sample(KEY, 5)
    for flow in (
        gf.riemannian_flow(problem, net, 2, 1.0, ts=2),
        gf.riemannian_flow(problem, net, 2, 1.0, ts=2, form=Graded()),
        gf.simulate(problem, net, 1.0, ts=2, dense=False),
    ):
        assert eqx.tree_equal(flow.problem, problem)
        assert flow.problem.info is problem.info
        assert "m=12 samples" in str(flow.problem.report())


@pytest.mark.parametrize(("form", "size"), [(LowRank(), 1e4), (LowRank(), 1e-4), (Graded(), 1e-4)], ids=str)
@pytest.mark.slow
def test_the_first_step_knows_how_fast_the_flow_is(form, size):
    """With `N = 2` and data times `size` the flow of `W` is so many times as fast: 0.01 is no step for both."""
    problem = gf.Problem.from_singular_values(size * np.array([2.0, 1.0]))
    W, ts = size * np.array([[0.5, 0.1], [-0.2, 0.4]]), [1 / size]
    run = gf.riemannian_flow(problem, W, 2, 1 / size, ts=ts, form=form, max_steps=1)
    assert int(run.num_steps) == 1
    assert not run.solved
    assert (0 < float(run.final_time) < 1e-6) if size > 1 else (0.02 < float(run.final_time) < 100)


@pytest.mark.slow
def test_it_prints(problem):
    flow = gf.riemannian_flow(problem, Balanced((4, 2, 3)).sample(KEY, 5).end_to_end, 2.5, 1.0, ts=3)
    text = str(flow)
    assert repr(flow) == text
    assert "RiemannianTrajectory(" in repr(jax.tree.map(lambda _: None, flow))
    assert "Riemannian gradient flow" in text
    assert "singular values" in text
