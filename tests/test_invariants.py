"""Conserved quantities: constant along the field for every loss, counted by the rank of their Jacobian, and their drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import labelled_problem, random_net

from gdflow.dynamics import gradient_flow_field
from gdflow.invariants import conserved, drift, norm_differences, num_independent_laws
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.network import LayerTuple

LOSSES = (SquaredError(), Logistic(), SoftmaxCrossEntropy(), Huber(0.5))
POOL = ((3, 2, 2), (3, 4, 1, 2), (3, 2, 3, 5, 2))
# Rates of C_j are compared with ‖W‖·‖Ẇ‖; a few dozen operations leave rounding far below this.
ROUNDING = 1e-13


def relative_rate(net: LayerTuple, velocity: LayerTuple) -> float:
    """`max_j ‖dC_j/dt‖` along a velocity, relative to `‖W‖·‖Ẇ‖`."""
    _, rates = jax.jvp(conserved, (net,), (velocity,))
    return max(float(jnp.linalg.norm(r)) for r in rates) / float(net.norm() * velocity.norm())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("widths", POOL)
def test_conserved_along_the_field_of_every_loss(widths, loss, rng):
    problem = labelled_problem(rng, loss, 7)
    for _ in range(3):
        net = random_net(rng, widths)
        assert relative_rate(net, gradient_flow_field(jnp.zeros(()), net, problem)) < ROUNDING


@pytest.mark.parametrize("widths", POOL)
def test_a_wrong_sign_or_rate_in_any_layer_breaks_conservation(widths, rng):
    # The counterpart of the test above: had the field one wrong layer, the rate would be of order one, not rounding.
    problem, net = labelled_problem(rng, SquaredError(), 7), random_net(rng, widths)
    velocity = gradient_flow_field(jnp.zeros(()), net, problem)
    for j in range(net.depth):
        for factor in (-1.0, 1.01):
            layers = list(velocity.weights)
            layers[j] = factor * layers[j]
            assert relative_rate(net, LayerTuple(layers)) > 1e6 * ROUNDING


@pytest.mark.parametrize("widths", [(3, 2), *POOL])
def test_values_of_the_conserved_quantities(widths, rng):
    net = random_net(rng, widths)
    w = [np.asarray(a) for a in net.weights]
    expected = [b.T @ b - a @ a.T for a, b in zip(w[:-1], w[1:], strict=True)]
    found = conserved(net)
    assert len(found) == len(expected) == len(widths) - 2
    for a, b, d in zip(found, expected, widths[1:-1], strict=True):
        assert a.shape == (d, d)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)  # sums of at most eight products of order one
    np.testing.assert_allclose(norm_differences(net), [np.trace(c) for c in expected], rtol=0, atol=1e-12)


def test_a_gradient_step_changes_them_by_its_square(rng):
    # C_j(W − ηG) − C_j(W) = η²(G_{j+1}ᵀG_{j+1} − G_jG_jᵀ) exactly: the terms of first order cancel.
    problem, net = labelled_problem(rng, SquaredError(), 7), random_net(rng, (3, 2, 4, 2))
    gradient, step = problem.gradient(net), 0.05
    for after, before, square in zip(
        conserved(net - step * gradient), conserved(net), conserved(gradient), strict=True
    ):
        change = step**2 * np.asarray(square)
        np.testing.assert_allclose(after - before, change, rtol=0, atol=1e-12 * np.linalg.norm(change))


# How many laws.


def law_gradients(w: list[np.ndarray]) -> np.ndarray:
    """Jacobian of the upper triangles of all `C_j`, one column for each entry of the weights, formed by hand."""
    columns = []
    for layer in range(len(w)):
        for index in np.ndindex(w[layer].shape):
            unit = np.zeros_like(w[layer])
            unit[index] = 1.0
            parts = []
            for j in range(len(w) - 1):
                rate = np.zeros((w[j].shape[0],) * 2)
                if layer == j:
                    rate = -(unit @ w[j].T + w[j] @ unit.T)
                elif layer == j + 1:
                    rate = unit.T @ w[layer] + w[layer].T @ unit
                parts.append(rate[np.triu_indices(rate.shape[0])])
            columns.append(np.concatenate(parts))
    return np.stack(columns, axis=1)


def numerical_rank(matrix: np.ndarray) -> int:
    s = np.linalg.svd(matrix, compute_uv=False)
    rank = int(np.sum(s > 1e-9 * s[0]))
    # A decision that could be doubted is no evidence: the smallest kept value is far above, the others are rounding.
    assert s[rank - 1] > 1e-6 * s[0]
    assert np.all(s[rank:] < 1e-12 * s[0])
    return rank


@pytest.mark.parametrize(
    "widths",
    [
        (2, 2, 2),
        (1, 1, 1, 1),
        (3, 2, 4, 3),
        (1, 2, 1),
        (1, 5, 1),
        (2, 9, 1),
        (2, 3, 2),
        (2, 4, 2),
        (2, 5, 2),
        (1, 7, 1, 7, 1),
        (1, 6, 2, 5, 1),
        (2, 8, 8, 2),
        (1, 3, 9, 2),
        (4, 1, 4),
    ],
)
def test_number_of_laws_is_the_rank_of_their_jacobian(widths, rng):
    w = [rng.standard_normal((a, b)) for a, b in zip(widths[1:], widths[:-1], strict=True)]
    assert num_independent_laws(widths) == numerical_rank(law_gradients(w))


@given(st.lists(st.integers(1, 6), min_size=3, max_size=5), st.integers(0, 2**32 - 1))
def test_number_of_laws_for_arbitrary_widths(widths, seed):
    rng = np.random.default_rng(seed)
    # Entries away from zero keep the smallest singular values well above the threshold.
    w = [
        rng.choice([-1.0, 1.0], (a, b)) * rng.uniform(0.5, 1.5, (a, b))
        for a, b in zip(widths[1:], widths[:-1], strict=True)
    ]
    assert num_independent_laws(widths) == numerical_rank(law_gradients(w))


def test_a_single_layer_has_no_laws():
    assert num_independent_laws((5, 4)) == 0


# Drift.


def test_no_drift(rng):
    net = random_net(rng, (3, 2, 4, 2))
    assert float(drift(net, net)) == 0.0
    assert float(drift(0.0 * net, 0.0 * net)) == 0.0  # and not 0/0
    single = random_net(rng, (3, 2))
    assert float(drift(single, 2.0 * single)) == 0.0  # nothing is conserved


def test_drift_of_a_known_change():
    # C_1 = 4I − I = 3I, then 9I − I = 8I: the change 5I has norm 5√2, the largest squared norm of a layer is 9·2.
    start = LayerTuple([jnp.eye(2), 2.0 * jnp.eye(2)])
    moved = LayerTuple([jnp.eye(2), 3.0 * jnp.eye(2)])
    np.testing.assert_allclose(drift(moved, start), 5 * np.sqrt(2) / 18, rtol=1e-14)
    np.testing.assert_allclose(drift(start, moved), 5 * np.sqrt(2) / 18, rtol=1e-14)


def test_drift_takes_the_worst_layer():
    start = LayerTuple([jnp.eye(2)] * 3)
    moved = LayerTuple([jnp.eye(2), jnp.eye(2), jnp.sqrt(1.5) * jnp.eye(2)])  # C_1 as before, C_2 = I/2
    np.testing.assert_allclose(drift(moved, start), 0.5 * np.sqrt(2) / 3, rtol=1e-14)


def test_drift_is_free_of_units(rng):
    start, moved = random_net(rng, (3, 2, 4, 2)), random_net(rng, (3, 2, 4, 2))
    expected = float(drift(moved, start))
    assert expected > 1e-3
    for factor in (1e-6, 3.0, 1e5):
        np.testing.assert_allclose(drift(factor * moved, factor * start), expected, rtol=1e-12)


def test_conserved_and_drift_of_a_batch_by_vmap(rng):
    nets = [random_net(rng, (3, 2, 2)) for _ in range(3)]
    batch = jax.tree.map(lambda *w: jnp.stack(w), *nets)
    (c,) = jax.vmap(conserved)(batch)
    drifts = jax.vmap(drift, in_axes=(0, None))(batch, nets[0])
    for i, net in enumerate(nets):
        np.testing.assert_allclose(c[i], conserved(net)[0], rtol=0, atol=1e-13)
        np.testing.assert_allclose(drifts[i], drift(net, nets[0]), rtol=1e-12)
