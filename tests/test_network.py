"""Layer tuples: products, variations, adjoint and vector space, against NumPy, exact polynomials and autodiff."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import random_net

import gdflow as gf
from gdflow.losses import SoftmaxCrossEntropy, SquaredError
from gdflow.network import LayerTuple, check_layer_tuple, check_widths

# Depth 1 to 4; a bottleneck of width 1 in the last two.
POOL = ((3, 2), (2, 4, 3), (4, 1, 3, 2), (2, 3, 1, 4, 2))
# Entries of order one and at most four factors: a few hundred operations, so rounding stays far below this.
ROUNDING = 1e-12


def chain(factors, size: int) -> np.ndarray:
    """`factors[-1] @ … @ factors[0]` in NumPy; the identity of the given size if there are none."""
    result = np.eye(size)
    for w in factors:
        result = np.asarray(w) @ result
    return result


def replace(net: LayerTuple, layers: dict) -> LayerTuple:
    return LayerTuple([layers.get(j, w) for j, w in enumerate(net.weights, 1)])


@pytest.mark.parametrize("widths", POOL)
def test_every_product_is_the_numpy_product(widths, rng):
    net = random_net(rng, widths)
    assert (net.widths, net.depth, net.batch_shape) == (widths, len(widths) - 1, ())
    assert net.num_parameters == sum(w.size for w in net.weights)
    for j in range(1, net.depth + 2):
        for k in range(j - 1, net.depth + 1):
            expected = chain(net.weights[j - 1 : k], widths[j - 1])
            np.testing.assert_allclose(net.product(j, k), expected, rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(net.end_to_end, chain(net.weights, widths[0]), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("widths", POOL)
def test_empty_products_are_identities_of_the_layer_between(widths, rng):
    net = random_net(rng, widths)
    for j, d in enumerate(widths, 1):
        empty = net.product(j, j - 1)
        assert empty.dtype == net.weights[0].dtype
        np.testing.assert_array_equal(empty, np.eye(d))


@pytest.mark.parametrize(("j", "k"), [(0, 1), (1, 3), (3, 1), (4, 2), (4, 3), (-1, 0)])
def test_products_outside_the_network_are_refused(j, k, rng):
    with pytest.raises(ValueError, match=rf"\(ΠW\)_{j}\^{k} in a network of depth 2"):
        random_net(rng, (2, 3, 2)).product(j, k)


@pytest.mark.parametrize("widths", POOL)
def test_call_applies_the_product_to_columns(widths, rng):
    net = random_net(rng, widths)
    x = rng.standard_normal((widths[0], 5))
    np.testing.assert_allclose(net(jnp.asarray(x)), chain(net.weights, widths[0]) @ x, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("widths", POOL)
def test_each_variation_replaces_its_layers(widths, rng):
    # The product is linear in every layer: P_j(w) is the product with w_j in the place of W_j, P_jk with both replaced.
    net, w = random_net(rng, widths), random_net(rng, widths)
    for j in range(1, net.depth + 1):
        swapped = replace(net, {j: w.weights[j - 1]})
        expected = chain(swapped.weights, widths[0])
        np.testing.assert_allclose(net.variation(w, j), expected, rtol=ROUNDING, atol=ROUNDING)
        for k in range(j + 1, net.depth + 1):
            twice = replace(swapped, {k: w.weights[k - 1]})
            expected = chain(twice.weights, widths[0])
            np.testing.assert_allclose(net.mixed_variation(w, j, k), expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("widths", POOL)
def test_variations_are_the_taylor_coefficients_of_the_product(widths, rng):
    # The product at W + εw is a polynomial of degree N in ε: N + 1 values determine its coefficients.
    net, w = random_net(rng, widths), random_net(rng, widths)
    steps = np.cos(np.pi * (np.arange(net.depth + 1) + 0.5) / (net.depth + 1))
    values = np.stack(
        [chain([a + e * b for a, b in zip(net.weights, w.weights, strict=True)], widths[0]) for e in steps]
    )
    coefficients = np.linalg.solve(np.vander(steps, increasing=True), values.reshape(len(steps), -1))
    coefficients = coefficients.reshape(values.shape)
    layers = range(1, net.depth + 1)
    first = sum(net.variation(w, j) for j in layers)
    # The Vandermonde matrix of five Chebyshev nodes has a condition number below 100: two digits more are lost.
    np.testing.assert_allclose(first, coefficients[1], rtol=0, atol=100 * ROUNDING)
    if net.depth > 1:
        second = sum(net.mixed_variation(w, j, k) for j in layers for k in layers if j < k)
        np.testing.assert_allclose(second, coefficients[2], rtol=0, atol=100 * ROUNDING)
    _, tangent = jax.jvp(lambda n: n.end_to_end, (net,), (w,))
    np.testing.assert_allclose(first, tangent, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("widths", [*POOL, (2, 1, 3, 2, 4, 2), (3, 4, 2, 1, 3, 4, 2)])
def test_the_expansion_sums_the_variations(widths, rng):
    net, w = random_net(rng, widths), random_net(rng, widths)
    layers = range(1, net.depth + 1)
    first, second = net.expansion(w)
    assert first.shape == second.shape == (widths[-1], widths[0])
    # Up to fifteen products of six factors with entries of order one.
    np.testing.assert_allclose(first, sum(net.variation(w, j) for j in layers), rtol=0, atol=ROUNDING)
    pairs = [net.mixed_variation(w, j, k) for j in layers for k in layers if j < k]
    np.testing.assert_allclose(second, sum(pairs, start=np.zeros(second.shape)), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("j", "k"), [(1, 1), (2, 1), (3, 1)])
def test_mixed_variation_needs_increasing_layers(j, k, rng):
    net = random_net(rng, (2, 2, 2, 2))
    with pytest.raises(ValueError, match=f"j < k, got j={j}, k={k}"):
        net.mixed_variation(net, j, k)


@pytest.mark.parametrize("widths", POOL)
def test_pullback_is_the_adjoint_of_the_first_variation(widths, rng):
    net, w = random_net(rng, widths), random_net(rng, widths)
    gradient = jnp.asarray(rng.standard_normal((widths[-1], widths[0])))
    layers = net.pullback(gradient)
    assert layers.widths == widths
    for j in range(1, net.depth + 1):
        left = np.sum(np.asarray(layers.weights[j - 1]) * np.asarray(w.weights[j - 1]))
        right = np.sum(np.asarray(gradient) * np.asarray(net.variation(w, j)))
        np.testing.assert_allclose(left, right, rtol=0, atol=100 * ROUNDING)  # sums of up to 12 products
    automatic = jax.grad(lambda n: jnp.sum(gradient * n.end_to_end))(net)
    for a, b in zip(layers.weights, automatic.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING)


def test_a_bottleneck_bounds_the_rank_of_the_product(rng):
    net = random_net(rng, (4, 5, 2, 6, 4))
    s = np.linalg.svd(np.asarray(net.end_to_end), compute_uv=False)
    assert s[1] > 1e-3 * s[0]  # a random product has rank 2 …
    assert s[2] < ROUNDING * s[0]  # … and no more than 2


@pytest.mark.parametrize("widths", POOL)
def test_vector_space_operations_act_on_all_entries(widths, rng):
    def flat(n: LayerTuple) -> np.ndarray:
        return np.concatenate([np.ravel(a) for a in n.weights])

    v, w = random_net(rng, widths), random_net(rng, widths)
    for found, expected in (
        (v + w, flat(v) + flat(w)),
        (v - w, flat(v) - flat(w)),
        (-v, -flat(v)),
        (2.5 * v, 2.5 * flat(v)),
        (v * 2.5, 2.5 * flat(v)),
        (jnp.asarray(2.5) * v, 2.5 * flat(v)),
        (v / 2.5, flat(v) / 2.5),
    ):
        assert found.widths == widths
        np.testing.assert_allclose(flat(found), expected, rtol=1e-15)  # one operation per entry
    np.testing.assert_allclose(v.inner(w), flat(v) @ flat(w), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(v.norm(), np.linalg.norm(flat(v)), rtol=ROUNDING)
    np.testing.assert_allclose(v.layer_norms(), [np.linalg.norm(a) for a in v.weights], rtol=ROUNDING)


@pytest.mark.parametrize(
    ("one", "other", "batch", "message"),
    [
        ((2, 2), (2, 2, 2), (), r"widths \(2, 2\) and widths \(2, 2, 2\)"),
        ((2, 3, 2), (2, 1, 2), (), r"widths \(2, 3, 2\) and widths \(2, 1, 2\)"),  # would broadcast
        ((1, 1), (3, 2), (), r"widths \(1, 1\) and widths \(3, 2\)"),
        ((2, 2), (2, 2), (4,), r"widths \(2, 2\) and widths \(2, 2\) in a batch \(4,\)"),
    ],
)
def test_networks_of_different_shapes_do_not_combine(one, other, batch, message, rng):
    v, w = random_net(rng, one), random_net(rng, other, batch=batch)
    for combine in (lambda: v + w, lambda: v - w, lambda: v.inner(w)):
        with pytest.raises(ValueError, match=f"different shapes do not combine: {message}"):
            combine()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_gradient_of_the_norm(transform, rng):
    gradient = transform(jax.grad(lambda n: n.norm()))
    net = random_net(rng, (3, 2, 4))
    for a, b in zip(gradient(net).weights, (net / net.norm()).weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=ROUNDING)
    at_zero = gradient(0.0 * net)
    for a in at_zero.weights:
        np.testing.assert_array_equal(a, np.zeros(a.shape))  # and not NaN
    assert float((0.0 * net).norm()) == 0.0


@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_batches_are_networks_side_by_side(batch, rng):
    widths = (3, 2, 4)
    nets = random_net(rng, widths, batch=batch)
    assert nets.batch_shape == batch
    assert nets.widths == widths
    assert nets.num_parameters == 3 * 2 + 2 * 4

    def end_to_end(n):
        return n.end_to_end

    for _ in batch:
        end_to_end = jax.vmap(end_to_end)
    expected = np.asarray(nets.weights[1]) @ np.asarray(nets.weights[0])
    np.testing.assert_allclose(end_to_end(nets), expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_network_is_a_pytree_of_its_weights(rng):
    net = random_net(rng, (3, 2, 4))
    leaves, structure = jax.tree.flatten(net)
    assert [a is b for a, b in zip(leaves, net.weights, strict=True)] == [True, True]
    assert eqx.tree_equal(jax.tree.unflatten(structure, leaves), net)
    doubled = jax.jit(lambda n: 2.0 * n)(net)
    assert isinstance(doubled, LayerTuple)
    np.testing.assert_array_equal(doubled.weights[1], 2 * np.asarray(net.weights[1]))


def test_numbers_from_lists_and_integer_arrays_become_floats():
    net = LayerTuple([[[1, 2], [3, 4]], np.array([[5, 6]])])
    assert all(w.dtype == jnp.float64 for w in net.weights)
    np.testing.assert_array_equal(net.end_to_end, [[23.0, 34.0]])


def test_single_precision_stays_single(rng):
    net = LayerTuple([jnp.asarray(w, dtype=jnp.float32) for w in random_net(rng, (3, 2, 4)).weights])
    assert net.product(2, 1).dtype == jnp.float32
    assert net.end_to_end.dtype == jnp.float32
    assert all(w.dtype == jnp.float32 for w in (net + 2.0 * net.pullback(net.end_to_end)).weights)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "at least one weight matrix"),
        ([(3,)], r"W_1 must be a matrix, got shape \(3,\)"),
        ([(2, 3), ()], r"W_2 must be a matrix, got shape \(\)"),
        ([(2, 3), (4, 3)], r"W_2 of shape \(4, 3\) does not follow W_1 of shape \(2, 3\): it needs 2 columns, not 3"),
        ([(2, 3), (2, 2), (1, 3)], r"W_3 of shape \(1, 3\) does not follow W_2 of shape \(2, 2\)"),
        ([(0, 3), (2, 0)], r"W_1 has a width of zero: shape \(0, 3\)"),
        ([(5, 2, 3), (4, 1, 2)], r"W_1 and W_2 have different batch shapes: \(5,\) and \(4,\)"),
        ([(5, 2, 3), (1, 2)], r"W_1 and W_2 have different batch shapes: \(5,\) and \(\)"),
    ],
)
def test_shapes_that_make_no_network_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        LayerTuple([jnp.ones(shape) for shape in shapes])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex128, jnp.bool_])
def test_weights_that_are_not_real_floating_point_are_refused(dtype):
    with pytest.raises(TypeError, match=f"W_2 must be real floating point, got dtype {jnp.dtype(dtype)}"):
        LayerTuple([jnp.ones((2, 3)), jnp.ones((2, 2), dtype=dtype)])


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (np.ones((2, 2)) * 1j, TypeError, "W_2 must be real floating point, got dtype complex128"),
        ([[1j, 0.0], [0.0, 1.0]], TypeError, "W_2 must be real floating point, got dtype complex128"),
        ([["1", "2"], ["3", "4"]], TypeError, "W_2 must be real floating point, got dtype <U1"),
        (np.ma.masked_less(np.eye(2), 0.5), ValueError, "W_2 has masked entries"),
        ([[1.0, 2.0], [3.0]], ValueError, "W_2 is no matrix"),
    ],
)
def test_numbers_of_another_kind_are_refused_rather_than_cast(weight, error, message):
    with pytest.raises(error, match=message):
        LayerTuple([np.ones((2, 3)), weight])


def test_masked_arrays_without_masked_entries_are_arrays():
    net = LayerTuple([np.ma.masked_less(np.eye(2), -1.0)])
    np.testing.assert_array_equal(net.weights[0], np.eye(2))


def test_what_is_no_network_is_said_to_be_none():
    net = LayerTuple([np.eye(2)])
    assert check_layer_tuple(net) is net
    with pytest.raises(TypeError, match=r"must be a gdflow.LayerTuple, got list: gf.LayerTuple\(weights\) makes one"):
        check_layer_tuple([np.eye(2)])


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((3,), r"at least an input and an output, got \(3,\)"),
        ((), "at least an input and an output"),
        ((3, 0, 2), r"positive integers, got 0 in \(3, 0, 2\)"),
        ((3, -1), "positive integers, got -1"),
    ],
)
def test_impossible_widths_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        check_widths(widths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "waist"),
    [
        ((5, 2, 3, 5), 1),
        ((5, 4, 2, 3, 4), 2),
        ((4, 3, 2, 2, 5), 2),
        ((4, 1, 4), 1),
        ((6, 5, 5, 3), None),
        ((3, 5), None),
    ],
)
def test_products_at_the_waist(widths, waist):
    """The gradient through the narrowest layer is that of the plain product, by autodiff and for any loss of the output."""
    rng = np.random.default_rng(0)
    net = LayerTuple([rng.normal(size=pair) for pair in zip(widths[1:], widths[:-1], strict=True)])
    X, Y = (rng.normal(size=(width, 12)) for width in (widths[0], widths[-1]))
    plain = functools.reduce(lambda right, left: left @ right, net.weights)
    np.testing.assert_allclose(net.end_to_end, plain, rtol=1e-12, atol=1e-12)
    assert net.waist == waist
    if waist is None:
        with pytest.raises(ValueError, match="no hidden layer is narrower"):
            _ = net.halves
    else:
        assert [half.shape for half in net.halves] == [(widths[-1], widths[waist]), (widths[waist], widths[0])]
    for loss in (SquaredError(), SoftmaxCrossEntropy()):
        target = Y if isinstance(loss, SquaredError) else np.eye(widths[-1])[rng.integers(0, widths[-1], 12)].T
        objective = gf.Problem(X, target, loss=loss).objective

        def value(net, objective=objective):
            return objective.end_to_end_loss(functools.reduce(lambda right, left: left @ right, net.weights))

        expected = jax.grad(value)(net)
        for gradient in (objective.gradient(net), net.pullback(objective.end_to_end_gradient(plain))):
            assert float((gradient - expected).norm()) < 1e-12 * float(expected.norm())
