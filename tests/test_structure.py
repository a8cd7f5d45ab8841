"""Structure-preserving integration: graded decompositions, the flow along the boundary of M_k, Gauss–Legendre collocation."""

import math

import diffrax
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import gdflow as gf
from gdflow.dynamics import exact
from gdflow.dynamics.graded import decompose
from gdflow.initialization import Balanced, Gaussian
from gdflow.manifold import balanced_factors
from gdflow.perturbation import with_singular_values

KEY = jax.random.key(51)
SLOW = pytest.mark.slow


def random_orthogonal(rng, n, k=None):
    return np.linalg.qr(rng.normal(size=(n, n)))[0][:, :k]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_decompositions_hold_singular_values_to_relative_accuracy(k):
    """Against an SVD in 400 digits: `PΣQᵀ` with singular values down to 1e-120, `P` and `Q` well conditioned."""
    rng = np.random.default_rng(k)
    P = random_orthogonal(rng, 5, k) + 0.2 * rng.normal(size=(5, k))
    Q = random_orthogonal(rng, 4, k) + 0.2 * rng.normal(size=(4, k))
    sigma = np.array([1e-7, 2.0, 1e-120, 0.3])[:k]
    found = decompose(jnp.asarray(P), jnp.asarray(sigma), jnp.asarray(Q))
    with mpmath.workdps(400):
        product = (
            mpmath.matrix(P.tolist()) * mpmath.diag([mpmath.mpf(float(x)) for x in sigma]) * mpmath.matrix(Q.T.tolist())
        )
        expected = sorted((float(x) for x in mpmath.svd_r(product, compute_uv=False)), reverse=True)[:k]
    order = np.argsort(-np.asarray(found.sigma))
    np.testing.assert_allclose(np.asarray(found.sigma)[order], expected, rtol=1e-13)  # a few eps per rotation
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(k), atol=1e-14)
    np.testing.assert_allclose(found.V.T @ found.V, np.eye(k), atol=1e-14)
    np.testing.assert_allclose(found.matrix, P * sigma @ Q.T, atol=1e-14)
    # The orientation is that of the factors, however small the determinant.
    if k == 4:
        side = np.linalg.slogdet(P[:4])[0]  # not of the product: any 4×4 part of P will do to compare with that of U
        U4 = np.asarray(found.U)[:4]
        assert side * np.linalg.slogdet(Q)[0] == np.linalg.slogdet(U4)[0] * np.linalg.slogdet(np.asarray(found.V))[0]


def test_equal_and_orthogonal_columns():
    found = decompose(jnp.eye(3, 2), jnp.ones(2), jnp.eye(2))
    np.testing.assert_array_equal(found.matrix, np.eye(3, 2))
    twice = decompose(jnp.array([[1.0, 1.0], [1.0, -1.0]]), jnp.array([1.0, 1e-200]), jnp.eye(2))
    np.testing.assert_allclose(twice.sigma[0], math.sqrt(2.0), rtol=1e-14)


@pytest.mark.parametrize(
    ("depth", "rank"),
    [(3, 2), *(pytest.param(*p, marks=SLOW) for p in ((2, 3), (2.5, 2), (20, 2), (5, 1), (math.inf, 2)))],
)
@pytest.mark.slow
def test_graded_and_low_rank_form_are_the_same_flow(depth, rank):
    rng = np.random.default_rng(9)
    problem = gf.Problem(rng.normal(size=(4, 12)), rng.normal(size=(3, 12)))
    W0 = Balanced((4, rank, 3), singular_values=0.5).sample(KEY, 0).end_to_end
    options = dict(ts=4, rtol=1e-10, atol=1e-13)
    graded = gf.riemannian_flow(problem, W0, depth, 2.0, form=gf.dynamics.Graded(), **options)
    plain = gf.riemannian_flow(problem, W0, depth, 2.0, **options)
    assert graded.solved
    np.testing.assert_allclose(graded.matrices, plain.matrices, atol=1e-8)  # both at local tolerance 1e-10
    np.testing.assert_allclose(graded.losses, plain.losses, rtol=1e-8)
    np.testing.assert_allclose(graded.final, plain.final, atol=1e-8)


@pytest.mark.slow
def test_the_graded_form_stays_on_its_side_for_good():
    """`det W(0) < 0`: to rank 1, with the smaller singular value falling like the exact mode down to 1e-53 and beyond."""
    rng = np.random.default_rng(52)
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    U, V = random_orthogonal(rng, 2), random_orthogonal(rng, 2)
    V[:, 1] *= -np.linalg.det(U) * np.linalg.det(V)
    flow = gf.riemannian_flow(
        problem,
        jnp.asarray(U * [0.5, 0.4] @ V.T),
        2,
        400.0,
        ts=jnp.array([0.0, 20.0, 60.0, 400.0]),
        form=gf.dynamics.Graded(),
    )
    assert flow.solved
    assert not flow.at_boundary
    np.testing.assert_allclose(flow.final, np.diag([2.0, 0.0]), atol=1e-9)
    np.testing.assert_allclose(flow.losses[-1], 0.5, rtol=1e-12)
    signs = np.linalg.det(np.asarray(flow.factors.U)) * np.linalg.det(np.asarray(flow.factors.V))
    np.testing.assert_allclose(signs, -1.0, rtol=1e-12)
    # Near the limit σ̇ = −2σ(1 + σ): from t = 20 to 60 a factor e^{−80}.
    sigma = np.min(np.asarray(flow.singular_values), axis=1)
    np.testing.assert_allclose(np.log(sigma[2] / sigma[1]), -80.0, atol=1e-5)


@pytest.mark.slow
def test_aligned_modes_of_the_graded_form_are_exact():
    problem = gf.Problem.from_singular_values([2.0, 1.0, 0.5])
    modes = [0.3, -0.4, 0.2]
    flow = gf.riemannian_flow(
        problem, jnp.diag(jnp.array(modes)), 3, 4.0, ts=3, form=gf.dynamics.Graded(), rtol=1e-10, atol=1e-13
    )
    for k, (s, u) in enumerate(zip([2.0, 1.0, 0.5], modes, strict=True)):
        expected = [exact.balanced_chain(s, u, 3, t) for t in (0.0, 2.0, 4.0)]
        np.testing.assert_allclose(flow.matrices[:, k, k], expected, rtol=1e-8)


@pytest.mark.slow
def test_options_of_the_graded_form():
    problem, W0 = gf.Problem.from_singular_values([2.0, 1.0]), 0.3 * jnp.eye(2)
    for options, message in (
        (dict(adjoint=diffrax.ForwardMode()), "no derivatives"),
        (dict(solver=diffrax.Kvaerno5()), "explicit Runge–Kutta methods, not by Kvaerno5"),
    ):
        with pytest.raises(ValueError, match=message):
            gf.riemannian_flow(problem, W0, 2, 1.0, form=gf.dynamics.Graded(), **options)

    def loss(W, s):
        other = with_singular_values(problem, s)
        return gf.riemannian_flow(other, W, 2, 1.0, rank=2, ts=2, form=gf.dynamics.Graded()).losses[-1]

    s = problem.singular_values
    for differentiate in (
        lambda: jax.grad(loss)(W0, s),
        lambda: jax.jvp(lambda W: loss(W, s), (W0,), (W0,)),
        lambda: jax.jvp(lambda s: loss(W0, s), (s,), (s,)),
        lambda: jax.grad(loss, argnums=1)(W0, s),
    ):
        with pytest.raises(NotImplementedError, match="graded form of the Riemannian flow has no derivatives"):
            differentiate()
    assert not gf.riemannian_flow(problem, W0, 2, 9.0, ts=2, form=gf.dynamics.Graded(), max_steps=3).solved


@pytest.mark.parametrize("depth", [2, 5])
def test_balanced_factors(depth):
    W = Gaussian((4, 3)).sample(KEY, 0).end_to_end
    for rank in (1, 2, 3):
        net = balanced_factors(W, depth, rank)
        assert net.widths == (4, *[rank] * (depth - 1), 3)
        for C in gf.conserved(net):
            np.testing.assert_allclose(C, 0.0, atol=1e-14)
        U, s, Vt = np.linalg.svd(np.asarray(W))
        np.testing.assert_allclose(net.end_to_end, U[:, :rank] * s[:rank] @ Vt[:rank], atol=1e-14)
    for bad in ((1, 2), (2, 4), (2, 0)):
        with pytest.raises(ValueError, match="need depth ≥ 2 and a rank between 1 and 3"):
            balanced_factors(W, *bad)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_gauss_legendre_is_of_order_twice_its_stages(stages):
    """Logistic growth, solved exactly: halving the step divides the error at t = 2 by `2^{2s}`."""

    def exact_solution(t):
        return 0.25 * np.exp(t) / (1 + 0.25 * (np.exp(t) - 1))

    errors = []
    for h in (0.5, 0.25):
        term = diffrax.ODETerm(lambda t, y, args: y * (1 - y))
        y = diffrax.diffeqsolve(term, gf.GaussLegendre(stages), 0.0, 2.0, h, jnp.array([0.25])).ys[0, 0]
        errors.append(abs(float(y) - exact_solution(2.0)))
    assert errors[0] / errors[1] == pytest.approx(4**stages, rel=0.2)


@pytest.mark.slow
def test_gauss_legendre_keeps_the_conserved_quantities():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    net = Gaussian((2, 3, 2, 2)).sample(KEY, 1)
    kept = gf.simulate(problem, net, 10.0, ts=5, solver=gf.GaussLegendre(2), step=0.05, dense=False)
    assert kept.status == "reached t1"
    # Two hundred steps of round-off; an explicit method of the same order and step drifts.
    assert float(np.max(kept.drift)) < 1e-13
    assert float(np.max(gf.simulate(problem, net, 10.0, ts=5, step=0.05, dense=False).drift)) > 1e-9
    other = gf.simulate(problem, net, 10.0, ts=5, rtol=1e-10, atol=1e-13, dense=False)
    np.testing.assert_allclose(kept.losses, other.losses, atol=2e-6)  # order 4 at step 0.05


@pytest.mark.slow
def test_gauss_legendre_says_when_its_stages_are_not_found():
    problem = gf.Problem.from_singular_values([20.0, 1.0])
    net = 3.0 * Gaussian((2, 2, 2)).sample(KEY, 1)
    assert (
        gf.simulate(problem, net, 4.0, ts=[4.0], solver=gf.GaussLegendre(2), step=1.0, dense=False).status
        != "reached t1"
    )
    with pytest.raises(ValueError, match="no error estimate: give a fixed step"):
        gf.simulate(problem, net, 4.0, solver=gf.GaussLegendre(2))
    with pytest.raises(ValueError, match="1 to 5 stages, got 0"):
        gf.GaussLegendre(0)
