"""Margins of networks that separate their samples: monotone along the flow, and at most the largest there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import gdflow as gf
from gdflow.initialization import Gaussian
from gdflow.separation import normalized_margin

KEY = jax.random.key(77)


def separable(rng, m=14):
    X = rng.normal(size=(2, m))
    labels = np.sign(X[:1] + 0.3 * X[1:])
    return X + 0.2 * labels * np.array([[1.0], [0.3]]), labels


def largest_margin(X, labels):
    """`max min_k y_k wᵀx_k` over `‖w‖ = 1`, by SciPy: the quadratic program of the support-vector machine."""
    result = scipy.optimize.minimize(
        lambda w: 0.5 * w @ w, np.array([5.0, 1.0]), jac=lambda w: w, method="SLSQP", tol=1e-12,
        constraints=dict(type="ineq", fun=lambda w: labels[0] * (w @ X) - 1, jac=lambda w: labels[0][:, None] * X.T),
    )  # fmt: skip
    return 1 / np.linalg.norm(result.x)


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "activation"), [((2, 1), None), ((2, 3, 1), None), ((2, 4, 1), "relu")])
def test_the_smoothed_margin_rises_to_the_margin(rng, widths, activation):
    X, labels = separable(rng)
    problem = gf.Problem(X, labels, gf.losses.Logistic(), activations=activation)
    net = Gaussian(widths).sample(KEY, 2)
    run = gf.simulate(problem, net, 1e4, ts=np.geomspace(0.1, 1e4, 30), rtol=1e-9, atol=1e-11, shortest=1e-6)
    margins, bounds = jax.jit(jax.vmap(lambda n: jnp.stack(normalized_margin(problem, n))))(run.networks).T
    sure = np.isfinite(bounds)
    assert sure.sum() > 15
    assert np.all(np.asarray(run.losses)[sure] < np.log(2))
    assert np.all(np.diff(np.asarray(bounds)[sure]) > -1e-8)  # the integration's error
    assert np.all(bounds[sure] <= margins[sure] + 1e-12)
    assert margins[-1] > 0
    if activation is None:
        # A linear network of depth N reaches at most (γ/N^{N/2}) with the largest margin γ of a vector (balanced, rank 1).
        N = len(widths) - 1
        best = largest_margin(X, labels) / N ** (N / 2)
        assert margins[-1] <= best * (1 + 1e-9)
        assert margins[-1] > 0.9 * best


def test_three_classes(rng):
    X = np.array([[1.0, -0.5, -0.5], [0.0, 0.9, -0.9]])
    problem = gf.Problem(X, np.eye(3), gf.losses.SoftmaxCrossEntropy())
    W = np.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    margin, bound = normalized_margin(problem, gf.LayerTuple([W]))
    F = W @ X
    expected = min(F[k, k] - max(F[j, k] for j in range(3) if j != k) for k in range(3)) / np.linalg.norm(W)
    assert float(margin) == pytest.approx(expected)
    assert float(bound) <= float(margin)
    assert float(normalized_margin(problem, gf.LayerTuple([-W]))[1]) == -np.inf


def test_margins_are_of_homogeneous_networks():
    X, labels = np.ones((2, 3)), np.ones((1, 3))
    net = gf.LayerTuple([jnp.ones((1, 2))])
    with pytest.raises(ValueError, match=r"homogeneous networks.*weight decay 0\.1"):
        normalized_margin(gf.Problem(X, labels, gf.losses.Logistic(), weight_decay=0.1), net)
    # Soft labels: no loss is below their entropy.
    soft = gf.Problem(X, [[0.9] * 3, [0.1] * 3], gf.losses.SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match="homogeneous networks"):
        normalized_margin(soft, gf.LayerTuple([jnp.ones((2, 2))]))
    with pytest.raises(ValueError, match="squared error"):
        normalized_margin(gf.Problem(X, labels), net)
