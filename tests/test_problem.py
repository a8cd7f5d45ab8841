"""The problem: its reduction and coordinates against the raw data, its gradients against differentiation and eq. (15)."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdflow.data import linnerud_path
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.problem import COORDINATES, Problem, critical_values, iterate_critical_values

EPS = 2.0**-52


# Everything below is computed from the raw data in NumPy, without the library. ------------------------------------------


def product(weights, size):
    return functools.reduce(lambda right, left: left @ right, weights, np.eye(size))


def raw_loss(weights, X, Y):
    """`½‖Y − W_N…W_1X‖²`."""
    return 0.5 * np.sum((Y - product(weights, len(X)) @ X) ** 2)


def raw_gradient(weights, X, Y):
    """`−[(ΠW)_{j+1}^N]ᵀ (Y − WX) Xᵀ [(ΠW)_1^{j-1}]ᵀ` (Chitour, Liao, Couillet 2022, eq. (6))."""
    G = -(Y - product(weights, len(X)) @ X) @ X.T
    return [product(weights[j + 1 :], w.shape[0]).T @ G @ product(weights[:j], len(X)).T for j, w in enumerate(weights)]


def inverse_root(square):
    values, vectors = np.linalg.eigh(square)
    return vectors / np.sqrt(values) @ vectors.T


def draw_weights(widths, rng):
    """Fan-in Gaussian: products of any depth stay of size one."""
    return [rng.normal(size=(b, a)) / math.sqrt(a) for a, b in zip(widths[:-1], widths[1:], strict=True)]


def relative_error(found, expected):
    """Of matrices or of tuples of matrices, in the Frobenius norm."""
    found, expected = (a if isinstance(a, list | tuple) else [a] for a in (found, expected))
    difference = sum(np.sum((np.asarray(a) - np.asarray(b)) ** 2) for a, b in zip(found, expected, strict=True))
    return math.sqrt(difference / sum(np.sum(np.asarray(b) ** 2) for b in expected))


def duplicated_features(rng):
    Z = rng.normal(size=(3, 12))
    return np.concatenate([Z, Z[:1], Z[1:2] - Z[2:]]), rng.normal(size=(2, 12))


def centred_classes(rng):
    """One-hot targets of four classes, centred: the rows sum to zero."""
    labels = np.arange(40) % 4
    Y = np.eye(4)[:, labels]
    return rng.normal(size=(5, 40)) + 2 * rng.normal(size=(5, 4))[:, labels], Y - Y.mean(axis=1, keepdims=True)


DATA = {
    "tall": lambda rng: (rng.normal(size=(4, 30)), rng.normal(size=(2, 30))),
    "few samples": lambda rng: (rng.normal(size=(4, 5)), rng.normal(size=(2, 5))),
    "wide": lambda rng: (rng.normal(size=(5, 3)), rng.normal(size=(2, 3))),
    "more outputs": lambda rng: (rng.normal(size=(2, 20)), rng.normal(size=(4, 20))),
    "one sample": lambda rng: (rng.normal(size=(3, 1)), rng.normal(size=(2, 1))),
    "one of each": lambda rng: (rng.normal(size=(1, 1)), rng.normal(size=(1, 1))),
    "duplicated features": duplicated_features,
    "centred classes": centred_classes,
}
WELL_POSED = ["tall", "few samples", "more outputs", "one of each"]  # X of full row rank


@pytest.fixture(params=DATA)
def data(request, rng):
    return DATA[request.param](rng)


# -- reduction -----------------------------------------------------------------------------------------------------------


def test_effective_loss_and_offset_make_the_loss_on_the_data(data, rng):
    X, Y = data
    problem = Problem(X, Y)
    for hidden in ((), (3,), (4, 2)):
        weights = draw_weights(problem.widths(hidden), rng)
        net = LayerTuple(weights)
        expected = raw_loss(weights, X, Y)
        # Both sides sum at most 160 squares after one orthogonal transformation of the samples.
        assert float(problem.effective_loss(net) + problem.offset) == pytest.approx(expected, rel=1e-12)
        assert float(problem.total_loss(net)) == pytest.approx(expected, rel=1e-12)
        assert float(problem.end_to_end_loss(net.end_to_end)) == float(problem.effective_loss(net))


def test_offset_is_the_residual_of_least_squares(data):
    X, Y = data
    W = np.linalg.lstsq(X.T, Y.T, rcond=1e-12)[0].T
    # Beside ½‖Y‖²: where the data can be fitted exactly the residual is round-off.
    assert float(Problem(X, Y).offset) == pytest.approx(0.5 * np.sum((Y - W @ X) ** 2), abs=1e-13 * np.sum(Y**2))


def test_gradient_is_that_of_the_loss_on_the_data(data, rng):
    X, Y = data
    problem = Problem(X, Y)
    for hidden in ((), (3,), (4, 2)):
        weights = draw_weights(problem.widths(hidden), rng)
        # A few products of matrices of size at most five, and sums over at most 40 samples.
        assert relative_error(problem.gradient(LayerTuple(weights)).weights, raw_gradient(weights, X, Y)) < 1e-12


def test_reduction_keeps_the_second_moments(data):
    X, Y = data
    problem = Problem(X, Y)
    A, D = np.asarray(problem.target), np.asarray(problem.design)
    assert D.shape[1] <= min(X.shape)
    # The same sums of at most 40 products after an orthogonal transformation.
    assert relative_error(D @ D.T, X @ X.T) < 1e-13
    assert relative_error(A @ D.T, Y @ X.T) < 1e-13


def test_null_directions_of_the_features_never_move(rng):
    X, Y = duplicated_features(rng)
    problem = Problem(X, Y)
    null = np.array([[1, 0, 0, -1, 0], [0, 1, -1, 0, -1]]).T
    assert np.abs(null.T @ X).max() < 1e-15  # the second by one rounded subtraction
    gradient = problem.gradient(LayerTuple(draw_weights(problem.widths([4]), rng)))
    first = np.asarray(gradient.weights[0])
    # Round-off of a projection beside the gradient itself.
    assert np.abs(first @ null).max() < 1e-14 * np.linalg.norm(first)
    assert problem.info.rank_x.rank == 3
    assert problem.in_coordinates("whitened").d_in == problem.in_coordinates("reduced").d_in == 3
    assert problem.d_in == 5
    assert any("rank 3 < d_x = 5" in note for note in problem.info.notes)


def test_more_features_than_samples_are_reduced_to_the_samples(rng):
    X, Y = DATA["wide"](rng)
    problem = Problem(X, Y, coordinates="whitened")
    assert (problem.d_in, problem.d_out) == (3, 2)
    assert any("rank 3 < d_x = 5" in note for note in problem.info.notes)
    assert not Problem(*DATA["tall"](rng)).info.notes[1:]  # nothing but the reduction of the samples


@pytest.mark.parametrize("case", WELL_POSED)
def test_singular_values_are_those_of_the_whitened_target(case, rng):
    """Of `Q = YXᵀ(XXᵀ)^{-1/2}`, by eigenvectors of `XXᵀ`."""
    X, Y = DATA[case](rng)
    expected = np.linalg.svd(Y @ X.T @ inverse_root(X @ X.T), compute_uv=False)
    # The Gram matrix squares a condition number below 20, so a few hundred eps of the largest.
    np.testing.assert_allclose(Problem(X, Y).singular_values, expected, rtol=0, atol=1e-12 * expected[0])


def test_centred_classes_have_exactly_one_zero_singular_value(rng):
    X, Y = centred_classes(rng)
    problem = Problem(X, Y)
    s = np.asarray(problem.singular_values)
    assert s.shape == (4,)
    assert s[3] == 0.0
    assert np.all(s[:3] > 0.1)
    assert problem.info.rank_y.rank == 3
    assert any("rank 3 of 4" in note for note in problem.info.notes)
    assert len(critical_values(problem, 4)) == 8  # subsets of three
    # Centring by the library does the same as centring by hand, up to its rounding.
    labels = np.arange(40) % 4
    by_library = Problem(X, np.eye(4)[:, labels], center=True)
    by_hand = Problem(X - X.mean(axis=1, keepdims=True), Y)
    np.testing.assert_allclose(by_library.singular_values, by_hand.singular_values, rtol=0, atol=1e-14 * s[0])
    assert by_library.singular_values[3] == 0.0


@pytest.mark.parametrize("r", [0, 1, 2])
def test_rank_of_the_effective_target(r, rng):
    """Targets `Y = BX + E` with `B` of rank r and `E` orthogonal to the rows of `X`: the noise must not raise the rank."""
    X = rng.normal(size=(4, 25))
    E = rng.normal(size=(3, 25))
    E -= E @ np.linalg.pinv(X) @ X
    problem = Problem(X, rng.normal(size=(3, r)) @ rng.normal(size=(r, 4)) @ X + E)
    s = np.asarray(problem.singular_values)
    assert np.count_nonzero(s) == r
    assert np.all(s[r:] == 0.0)
    assert problem.info.rank_y.rank == r
    # The part of E in the range of X is round-off.
    assert float(problem.offset) == pytest.approx(0.5 * np.sum(E**2), rel=1e-13)


def test_zero_targets(rng):
    problem = Problem(rng.normal(size=(3, 8)), np.zeros((2, 8)))
    assert problem.singular_values.tolist() == [0.0, 0.0]
    assert float(problem.offset) == 0.0
    assert critical_values(problem, 2).values.tolist() == [0.0]
    assert {a.name[:2]: a.holds for a in problem.report().assumptions}["A3"] is False


# -- accuracy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_singular_values_of_ill_conditioned_data(condition, rng):
    """Against 60 digits. The route by the Gram matrix loses what lies below √eps of the largest; this one must not."""
    d_x, d_y, m = 4, 2, 50
    frame, _ = np.linalg.qr(rng.normal(size=(m, d_x)))
    rotation, _ = np.linalg.qr(rng.normal(size=(d_x, d_x)))
    X, Y = (rotation * np.geomspace(1, 1 / condition, d_x)) @ frame.T, rng.normal(size=(d_y, m))
    with mpmath.workdps(60):
        x, y = mpmath.matrix(X.tolist()), mpmath.matrix(Y.tolist())
        square = x * x.T
        exact_x = sorted((float(mpmath.sqrt(v)) for v in mpmath.eigsy(square, eigvals_only=True)), reverse=True)
        cross = y * x.T
        squares = mpmath.eigsy(cross * square**-1 * cross.T, eigvals_only=True)
        exact_s = sorted((float(mpmath.sqrt(v)) for v in squares), reverse=True)
    problem = Problem(X, Y)
    assert problem.info.rank_x.rank == d_x
    # Backward error of Householder QR and of the decomposition: a small multiple of eps times the largest.
    tolerance = 30 * EPS * exact_x[0]
    np.testing.assert_allclose(problem.spectrum.S_X, exact_x, rtol=0, atol=tolerance)
    # That perturbation turns the row space of X, on which Y is projected, by eps times the condition number.
    np.testing.assert_allclose(problem.singular_values, exact_s, rtol=0, atol=30 * EPS * condition * np.linalg.norm(Y))
    if condition == 1e10:  # the bound above tells the two routes apart
        by_gram = np.sqrt(np.abs(np.linalg.eigvalsh(X @ X.T)[0]))
        assert abs(by_gram - exact_x[-1]) > 1e3 * tolerance


def test_a_million_samples(rng):
    m = 10**6
    X, Y = rng.normal(size=(3, m)), rng.normal(size=(2, m))
    Y += 0.1 * X[:2]
    problem = Problem(X, Y, coordinates="whitened")
    assert problem.design.shape == (3, 3)
    assert problem.info.m == m
    _, S_X, V_Xt = np.linalg.svd(X, full_matrices=False)
    # Sums over 10⁶ samples in another order: the error of a sum grows like √m eps, 1e-13 of the largest.
    np.testing.assert_allclose(problem.spectrum.S_X, S_X, rtol=1e-12)
    expected = np.linalg.svd(Y @ V_Xt.T, compute_uv=False)
    np.testing.assert_allclose(problem.singular_values, expected, rtol=0, atol=1e-12 * np.linalg.norm(Y))
    weights = draw_weights((3, 2), rng)
    net = problem.convert(LayerTuple(weights), "data", "whitened")
    assert float(problem.total_loss(net)) == pytest.approx(raw_loss(weights, X, Y), rel=1e-12)


@pytest.mark.parametrize("m", [65535, 65536, 65537, 131073])
def test_numbers_of_samples_around_the_block_size(m, rng):
    X, Y = rng.normal(size=(2, m)), rng.normal(size=(1, m))
    problem = Problem(X, Y)
    # As above, with fewer samples.
    assert relative_error(problem.design @ problem.design.T, X @ X.T) < 1e-12
    assert relative_error(problem.target @ problem.design.T, Y @ X.T) < 1e-12 * math.sqrt(m)  # beside ‖X‖‖Y‖ ~ m


# -- coordinates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_all_coordinates_give_the_same_loss(data, hidden, rng):
    X, Y = data
    problem = Problem(X, Y)
    weights = draw_weights(problem.widths(hidden), rng)
    net = LayerTuple(weights)
    expected = raw_loss(weights, X, Y)
    for coordinates in COORDINATES:
        other = problem.in_coordinates(coordinates)
        assert other.coordinates == coordinates
        moved = other.convert(net, "data", coordinates)
        other.check_network(moved)
        # Orthogonal factors and one scaling by S_X: a few dozen roundings.
        assert float(other.total_loss(moved)) == pytest.approx(expected, rel=1e-12)
        assert float(other.offset) == float(problem.offset)


@pytest.mark.parametrize("coordinates", ["reduced", "whitened"])
def test_networks_drawn_in_other_coordinates_have_that_loss_on_the_data(data, coordinates, rng):
    X, Y = data
    problem = Problem(X, Y, coordinates=coordinates)
    net = LayerTuple(draw_weights(problem.widths([3]), rng))
    weights = [np.asarray(w) for w in problem.convert(net, coordinates, "data").weights]
    # Dividing by S_X costs the condition number of X, below 20 (centred classes) in these data.
    assert raw_loss(weights, X, Y) == pytest.approx(float(problem.total_loss(net)), rel=1e-11)


def test_the_standard_forms(data):
    """The design is the identity (whitened) or diagonal (reduced), the whitened target is diagonal."""
    X, Y = data
    whitened, reduced = Problem(X, Y, coordinates="whitened"), Problem(X, Y, coordinates="reduced")
    np.testing.assert_array_equal(whitened.design, np.eye(whitened.d_in))
    s = np.asarray(whitened.singular_values)
    sigma = np.zeros(whitened.target.shape)
    np.fill_diagonal(sigma, s)
    # The target is formed as U_YᵀȲV_Y: a few roundings of the largest singular value.
    np.testing.assert_allclose(whitened.target, sigma, rtol=0, atol=1e-14 * s[0])
    rank = np.linalg.matrix_rank(X)
    S_X = np.linalg.svd(X, compute_uv=False)[:rank]
    np.testing.assert_allclose(reduced.design, np.diag(S_X), rtol=0, atol=1e-14 * S_X[0])
    # U_YᵀȲ has orthogonal rows of norms s: beside s_1² the Gram matrix is exact to a few eps.
    gram = np.zeros((len(Y), len(Y)))
    gram[np.arange(len(s)), np.arange(len(s))] = s**2
    np.testing.assert_allclose(reduced.target @ reduced.target.T, gram, rtol=0, atol=1e-14 * s[0] ** 2)


@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_conversions_are_undone_by_their_inverses(data, hidden, rng):
    X, Y = data
    problem = Problem(X, Y, coordinates="whitened")
    rank = problem.d_in
    for source, destination in (
        ("whitened", "data"),
        ("whitened", "reduced"),
        ("reduced", "data"),
        ("reduced", "whitened"),
    ):
        net = LayerTuple(draw_weights(problem.widths(hidden), rng))
        back = problem.convert(problem.convert(net, source, destination), destination, source)
        # Scaling by S_X and back, orthogonal factors: condition number below 20.
        assert relative_error(back.weights, net.weights) < 1e-13
    # From the data and back the first layer is projected on the range of X.
    weights = draw_weights((len(X), *hidden, len(Y)), rng)
    projection = X @ np.linalg.pinv(X, rcond=1e-12)
    assert np.linalg.matrix_rank(projection) == rank
    for destination in ("reduced", "whitened"):
        back = problem.convert(problem.convert(LayerTuple(weights), "data", destination), destination, "data")
        assert relative_error(back.weights, [weights[0] @ projection, *weights[1:]]) < 1e-12  # the pseudo-inverse too


def test_conversions_compose(rng):
    X, Y = DATA["tall"](rng)
    problem = Problem(X, Y)
    net = LayerTuple(draw_weights(problem.widths([3]), rng))
    direct = problem.convert(net, "data", "whitened")
    by_steps = problem.convert(problem.convert(net, "data", "reduced"), "reduced", "whitened")
    assert relative_error(by_steps.weights, direct.weights) < 1e-14  # the same three factors
    assert problem.convert(net, "data", "data") is net


def test_batches_are_converted_network_by_network(rng):
    X, Y = duplicated_features(rng)
    problem = Problem(X, Y)
    weights = [rng.normal(size=(6, 3, 5)), rng.normal(size=(6, 2, 3))]
    batch = problem.convert(LayerTuple(weights), "data", "whitened")
    assert batch.batch_shape == (6,)
    for k in range(6):
        one = problem.convert(LayerTuple([w[k] for w in weights]), "data", "whitened")
        # Batched and single products may sum in another order.
        assert relative_error([w[k] for w in batch.weights], one.weights) < 1e-14


def test_in_coordinates(rng):
    X, Y = duplicated_features(rng)
    problem = Problem(X, Y)
    assert problem.in_coordinates("data") is problem
    whitened, direct = problem.in_coordinates("whitened"), Problem(X, Y, coordinates="whitened")
    assert problem.coordinates == "data"  # the original is left alone
    assert whitened.coordinates == "whitened"
    # The same decomposition on the same machine.
    np.testing.assert_array_equal(whitened.target, direct.target)
    np.testing.assert_array_equal(whitened.in_coordinates("data").design, problem.design)
    assert whitened.widths([7]) == (3, 7, 2)
    with pytest.raises(ValueError, match="data, reduced, whitened; got 'white'"):
        problem.in_coordinates("white")
    with pytest.raises(ValueError, match="data, reduced, whitened; got 'white'"):
        Problem(X, Y, coordinates="white")


# -- two flows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_the_reduced_flow_is_the_data_flow_up_to_an_isometry(data, hidden, rng):
    """The isometry maps gradient to gradient: reduction and flow commute."""
    X, Y = data
    problem, reduced = Problem(X, Y), Problem(X, Y, coordinates="reduced")
    net = LayerTuple(draw_weights(problem.widths(hidden), rng))
    gradient = problem.gradient(net)
    moved = problem.convert(gradient, "data", "reduced")
    expected = reduced.gradient(reduced.convert(net, "data", "reduced"))
    # Orthogonal changes of basis: a few dozen roundings.
    assert relative_error(moved.weights, expected.weights) < 1e-13
    assert float(moved.norm()) == pytest.approx(float(gradient.norm()), rel=1e-13)  # an isometry on gradients


@pytest.mark.parametrize("hidden", [(3,), (4, 2)])
def test_the_whitened_flow_is_another_one_unless_the_inputs_are_orthonormal(hidden, rng):
    X, Y = DATA["tall"](rng)
    orthonormal = np.linalg.qr(X.T)[0].T
    errors = []
    for inputs in (X, orthonormal):
        problem, whitened = Problem(inputs, Y), Problem(inputs, Y, coordinates="whitened")
        net = LayerTuple(draw_weights(problem.widths(hidden), rng))
        moved = problem.convert(problem.gradient(net), "data", "whitened")
        errors.append(
            relative_error(moved.weights, whitened.gradient(whitened.convert(net, "data", "whitened")).weights)
        )
    assert errors[0] > 0.1  # XXᵀ is about 30 times the identity here
    assert errors[1] < 1e-13  # XXᵀ = I up to eps: the conversion is an isometry


# -- gradients -------------------------------------------------------------------------------------------------------------

# A few depths 1–6 and widths 1–8, since every new shape has to be compiled.
WIDTHS = [(3, 2), (1, 1), (4, 3, 2), (3, 1, 8, 3), (2, 5, 4, 4), (8, 7, 2, 6, 5, 4), (4, 2, 3, 1, 5, 2, 3)]


@given(st.sampled_from(WIDTHS), st.sampled_from(["data", "whitened"]), st.integers(0, 2**31))
def test_gradient_in_closed_form_is_the_derivative(widths, coordinates, seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(widths[0], 12)), rng.normal(size=(widths[-1], 12))
    problem = Problem(X, Y, coordinates=coordinates)
    net = LayerTuple(draw_weights(widths, rng))
    derivative = jax.grad(lambda weights: problem.effective_loss(LayerTuple(weights)))(net.weights)
    # The same products in another order: a handful of roundings for each of at most six layers.
    assert relative_error(problem.gradient(net).weights, derivative) < 1e-12


@given(st.sampled_from([w for w in WIDTHS if w[0] >= w[-1]]), st.integers(0, 2**31))
def test_gradient_is_the_block_form(widths, seed):
    """Whitened, `d_x ≥ d_y`: eq. (15) of Chitour, Liao, Couillet (2022) with `W_1 = [W_{1,1} W_{1,2}]`."""
    rng = np.random.default_rng(seed)
    d_x, d_y = widths[0], widths[-1]
    problem = Problem(rng.normal(size=(d_x, 12)), rng.normal(size=(d_y, 12)), coordinates="whitened")
    weights = draw_weights(widths, rng)
    S_Y = np.diag(np.asarray(problem.singular_values))
    W11, W12 = weights[0][:, :d_y], weights[0][:, d_y:]
    R = product(weights[1:], widths[1])
    M = S_Y - R @ W11
    velocity = [np.hstack([R.T @ M, -R.T @ R @ W12])]
    for j in range(1, len(weights)):
        left, right = product(weights[j + 1 :], widths[j + 1]), product(weights[1:j], widths[1])
        velocity.append(left.T @ (M @ W11.T - R @ W12 @ W12.T) @ right.T)
    # As above; the whitened target differs from [S_Y 0] by eps.
    assert relative_error((-problem.gradient(LayerTuple(weights))).weights, velocity) < 1e-12


def test_gradient_vanishes_at_every_critical_point_of_the_two_layer_network(rng):
    """`W_S = U_SU_Sᵀ W_LS`, factored through the hidden layer, is critical with loss `offset + ½Σ_{i∉S}s_i²`."""
    X, Y = rng.normal(size=(4, 30)), rng.normal(size=(3, 30))
    problem = Problem(X, Y)
    W_LS = Y @ X.T @ np.linalg.inv(X @ X.T)
    U, _, _ = np.linalg.svd(W_LS @ X)
    residual = 0.5 * np.sum((Y - W_LS @ X) ** 2)
    levels = critical_values(problem, problem.max_rank((4, 2, 3)))
    assert sorted(level.num_subsets for level in levels) == [1] * 7  # 1 + 3 + 3 subsets
    for level in levels:
        (subset,) = level.subsets
        second = np.zeros((3, 2))
        second[:, : len(subset)] = U[:, [i - 1 for i in subset]]
        first = second.T @ W_LS
        # Condition number of XXᵀ below 20; losses are of size 50.
        assert raw_loss([first, second], X, Y) == pytest.approx(residual + level.value, rel=1e-13)
        assert float(problem.gradient(LayerTuple([first, second])).norm()) < 1e-11 * np.sum(X**2)


def test_lowest_level_is_the_best_fit_of_bounded_rank(rng):
    """Reduced-rank regression: project `W_LS` on the leading eigenvectors of `ŶŶᵀ`."""
    X, Y = rng.normal(size=(5, 40)), rng.normal(size=(3, 40))
    fitted = np.linalg.lstsq(X.T, Y.T, rcond=None)[0].T @ X
    _, vectors = np.linalg.eigh(fitted @ fitted.T)
    problem = Problem(X, Y)
    for r in range(4):
        leading = vectors[:, 3 - r :]
        best = 0.5 * np.sum((Y - leading @ leading.T @ fitted) ** 2)
        # Sums of 120 squares.
        assert critical_values(problem, r)[0].value + float(problem.offset) == pytest.approx(best, rel=1e-13)


def labels(rng, shape):
    return rng.choice([-1.0, 1.0], size=shape)


def probabilities(rng, shape):
    Y = rng.uniform(size=shape)
    return Y / Y.sum(axis=0)


@pytest.mark.parametrize(
    ("loss", "draw"),
    [
        (Logistic(), labels),
        (SoftmaxCrossEntropy(), probabilities),
        (Huber(0.5), lambda rng, shape: rng.normal(size=shape)),
    ],
    ids=["logistic", "cross-entropy", "huber"],
)
@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_gradients_of_other_losses_are_derivatives_of_the_loss_on_the_data(loss, draw, hidden, rng):
    X, Y = rng.normal(size=(4, 20)), draw(rng, (3, 20))
    problem = Problem(X, Y, loss)
    net = LayerTuple(draw_weights(problem.widths(hidden), rng))

    def on_the_data(weights):
        W = functools.reduce(lambda right, left: left @ right, weights)
        return loss.value(W @ X, jnp.asarray(Y))

    value, derivative = jax.value_and_grad(on_the_data)(net.weights)
    # Sums of 60 terms, products of three matrices.
    assert float(problem.total_loss(net)) == pytest.approx(float(value), rel=1e-13)
    assert float(problem.effective_loss(net)) == float(problem.total_loss(net))
    assert relative_error(problem.gradient(net).weights, derivative) < 1e-12
    W = rng.normal(size=(3, 4))
    derivative = jax.grad(problem.end_to_end_loss)(jnp.asarray(W))
    assert relative_error(problem.end_to_end_gradient(jnp.asarray(W)), derivative) < 1e-12


def test_other_losses_have_neither_whitened_coordinates_nor_levels(rng):
    X, Y = rng.normal(size=(3, 10)), rng.normal(size=(2, 10))
    for coordinates in ("reduced", "whitened"):
        with pytest.raises(ValueError, match="need the squared error; Huber has data coordinates only"):
            Problem(X, Y, Huber(), coordinates=coordinates)
    problem = Problem(X, Y, Huber())
    assert problem.target.shape == (2, 10)  # all samples are kept
    for refused in (
        lambda: problem.in_coordinates("whitened"),
        lambda: problem.convert(LayerTuple([np.ones((2, 3))]), "data", "whitened"),
        lambda: critical_values(problem, 1),
        lambda: iterate_critical_values(problem, 1),
        lambda: problem.singular_values,
        lambda: problem.max_rank((3, 2)),
        lambda: problem.least_squares(),
        lambda: problem.report(),
    ):
        with pytest.raises(ValueError, match=r"Huber has no .* squared error"):
            refused()


def test_targets_are_checked_against_the_loss(rng):
    with pytest.raises(ValueError, match="labels -1 or 1"):
        Problem(rng.normal(size=(2, 3)), [[0, 1, 1]], Logistic())
    with pytest.raises(ValueError, match="column 1 of Y sums to 2"):
        Problem(rng.normal(size=(2, 2)), [[0, 1], [1, 1]], SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match="labels -1 or 1"):  # centring destroys labels
        Problem(rng.normal(size=(2, 3)), [[-1, 1, 1]], Logistic(), center=True)


# -- least squares, ranks and widths ---------------------------------------------------------------------------------------


def test_least_squares_is_the_solution_of_least_norm(data):
    X, Y = data
    problem = Problem(X, Y)
    W = np.linalg.lstsq(X.T, Y.T, rcond=1e-12)[0].T
    # Condition number below 20.
    assert relative_error(problem.least_squares(), W) < 1e-12
    for coordinates in ("reduced", "whitened"):
        other = problem.in_coordinates(coordinates)
        moved = problem.convert(LayerTuple([W]), "data", coordinates).weights[0]
        assert relative_error(other.least_squares(), moved) < 1e-12
        # It leaves nothing of the effective loss: squares of round-off.
        assert float(other.end_to_end_loss(other.least_squares())) < 1e-24 * np.sum(Y**2)


@pytest.mark.parametrize(
    ("case", "hidden", "expected"),
    [
        ("tall", (5, 5), 2),
        ("tall", (5, 1, 5), 1),
        ("tall", (), 2),
        ("wide", (5, 5), 2),
        ("more outputs", (7,), 2),  # ρ = 2 inputs
        ("one sample", (4,), 1),
        ("duplicated features", (2, 9), 2),
        ("centred classes", (9, 9), 4),
        ("centred classes", (3,), 3),
    ],
)
def test_max_rank(case, hidden, expected, rng):
    X, Y = DATA[case](rng)
    problem = Problem(X, Y)
    widths = problem.widths(hidden)
    assert widths == (len(X), *hidden, len(Y))
    assert problem.max_rank(widths) == expected
    # The rank of a generic product on the range of X.
    assert np.linalg.matrix_rank(product(draw_weights(widths, rng), len(X)) @ X) == expected


def test_widths_that_do_not_fit(rng):
    X, Y = duplicated_features(rng)
    problem, whitened = Problem(X, Y), Problem(X, Y, coordinates="whitened")
    assert problem.check_widths([5, 4, 2]) == (5, 4, 2)
    assert problem.widths(()) == (5, 2)
    for widths in ((3, 4, 2), (5, 4, 3), (2, 4, 5)):
        with pytest.raises(ValueError, match=r"data coordinates need d_0 = 5 and d_N = 2"):
            problem.check_widths(widths)
    with pytest.raises(ValueError, match=r"whitened coordinates need d_0 = 3 and d_N = 2"):
        whitened.check_widths((5, 4, 2))
    with pytest.raises(ValueError, match=r"data coordinates need d_0 = 5"):
        problem.max_rank((3, 4, 2))
    with pytest.raises(ValueError, match=r"data coordinates need d_0 = 5"):
        problem.report((3, 4, 2))
    with pytest.raises(ValueError, match=r"at least an input and an output, got \(5,\)"):
        problem.check_widths((5,))
    with pytest.raises(ValueError, match=r"positive integers, got 0"):
        problem.widths((4, 0))


def test_networks_that_do_not_fit(rng):
    problem = Problem(*DATA["tall"](rng))
    good = draw_weights((4, 3, 2), rng)
    problem.check_network(LayerTuple(good))
    batch = LayerTuple([np.stack([w, w]) for w in good])
    problem.check_network(batch, batch=True)
    with pytest.raises(ValueError, match=r"one network is needed .* batch of shape \(2,\)"):
        problem.check_network(batch)
    with pytest.raises(ValueError, match="need d_0 = 4 and d_N = 2"):
        problem.check_network(LayerTuple(draw_weights((3, 3, 2), rng)))
    good[1][1, 2] = np.nan
    with pytest.raises(ValueError, match=r"W_2 is nan at entry \(1, 2\)"):
        problem.check_network(LayerTuple(good))


# -- constructors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["none", "vector", "matrix", "wide"])
def test_from_target(inputs, rng):
    A = rng.normal(size=(2, 4))
    D = {
        "none": None,
        "vector": rng.uniform(0.5, 2, 4),
        "matrix": rng.normal(size=(4, 4)),
        "wide": rng.normal(size=(6, 4)),
    }[inputs]
    matrix = {"none": np.eye(4), "vector": np.diag(np.ravel(D) if inputs == "vector" else [1.0])}.get(inputs, D)
    for coordinates in COORDINATES:
        problem = Problem.from_target(A, D, coordinates=coordinates)
        weights = draw_weights((len(matrix), 3, 2), rng)
        net = problem.convert(LayerTuple(weights), "data", coordinates)
        # A handful of products of matrices of size at most six.
        assert float(problem.total_loss(net)) == pytest.approx(raw_loss(weights, matrix, A), rel=1e-12)


def test_from_target_alone_has_the_target_s_singular_values(rng):
    A = rng.normal(size=(3, 5))
    problem = Problem.from_target(A)
    np.testing.assert_allclose(problem.singular_values, np.linalg.svd(A, compute_uv=False), rtol=1e-14)  # two SVDs
    assert float(problem.offset) < 1e-28  # the square of round-off
    W = rng.normal(size=(3, 5))
    # ∇½‖A − W‖², a few roundings.
    assert relative_error(problem.end_to_end_gradient(jnp.asarray(W)), W - A) < 1e-14


def test_from_target_names_its_own_arguments(rng):
    A = rng.normal(size=(2, 3))
    with pytest.raises(ValueError, match=r"\bD\b.*\bA\b|\bA\b.*\bD\b"):
        Problem.from_target(A, np.ones(4))
    with pytest.raises(ValueError, match=r"^A is nan at row 1"):
        Problem.from_target(np.array([[1.0, 2.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"^D .*nan"):
        Problem.from_target(A, np.array([1.0, np.nan, 2.0]))
    with pytest.raises(ValueError, match=r"^A must be a matrix"):
        Problem.from_target(np.ones(3))


@pytest.mark.parametrize(
    ("s", "d_x", "d_y", "shape"),
    [
        ([3, 2, 1], 6, None, (3, 6)),
        ([3, 2], None, None, (2, 2)),
        ([1, 2], 3, 4, (4, 3)),
        ([2, 2, 0], 3, 5, (5, 3)),
        ([5], 1, 1, (1, 1)),
    ],
)
def test_from_singular_values(s, d_x, d_y, shape):
    ordered = sorted(s, reverse=True) + [0] * (min(shape) - len(s))
    sigma = np.zeros(shape)
    np.fill_diagonal(sigma, ordered)
    problem = Problem.from_singular_values(s, d_x, d_y)
    assert problem.coordinates == "whitened"
    # One decomposition of a diagonal matrix.
    np.testing.assert_allclose(problem.singular_values, ordered, rtol=1e-15, atol=0)
    np.testing.assert_allclose(problem.target, sigma, rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        Problem.from_singular_values(s, d_x, d_y, coordinates="data").target, sigma, rtol=0, atol=1e-14
    )


def test_singular_values_that_cannot_be():
    for bad in ([3.0, -1.0], [3.0, np.nan], [np.inf], []):
        with pytest.raises(ValueError, match="finite and not negative"):
            Problem.from_singular_values(np.array(bad))
    with pytest.raises(ValueError, match="3×2 target has at most 2 singular values, got 3"):
        Problem.from_singular_values([3, 2, 1], d_x=2)
    with pytest.raises(ValueError, match="singular values"):
        Problem.from_singular_values([[3, 2], [1, 1]])
    for d_x in (0, -1):
        with pytest.raises(ValueError, match="d_x"):
            Problem.from_singular_values([3, 2], d_x=d_x)


def test_standardisation(rng):
    X, Y = 5 + 3 * rng.normal(size=(3, 30)), rng.normal(size=(2, 30)) - 7
    for center, scale in ((True, False), (False, True), (True, True)):
        problem = Problem(X, Y, center=center, scale=scale)
        A, B = (
            (a - center * a.mean(axis=1, keepdims=True)) / (a.std(axis=1, keepdims=True) if scale else 1)
            for a in (X, Y)
        )
        # Sums of 30 products.
        assert relative_error(problem.design @ problem.design.T, A @ A.T) < 1e-13
        assert relative_error(problem.target @ problem.design.T, B @ A.T) < 1e-12  # centring cancels a digit
        assert problem.info.notes[0].startswith("rows of X and Y were")
    assert not Problem(X[:, :4], Y[:, :4]).info.notes


def test_integers_are_accepted():
    X, Y = np.array([[1, 2, 3, 5], [0, -1, 4, 2]]), np.array([[3, 1, 0, 1]], dtype=np.int8)
    problem, floats = Problem(X, Y), Problem(X.astype(float), Y.astype(float))
    assert problem.target.dtype == np.float64
    np.testing.assert_array_equal(problem.target, floats.target)
    np.testing.assert_array_equal(problem.design, floats.design)
    np.testing.assert_array_equal(Problem(X.tolist(), Y.tolist()).design, floats.design)
    np.testing.assert_array_equal(Problem(X > 1, Y > 1).design, Problem((X > 1) * 1.0, (Y > 1) * 1.0).design)


def test_from_csv_is_standardised_by_default():
    problem = Problem.from_csv(linnerud_path(), ["Weight", "Waist", "Pulse"], coordinates="whitened")
    table = np.loadtxt(linnerud_path(), delimiter=",", skiprows=1).T
    table = (table - table.mean(axis=1, keepdims=True)) / table.std(axis=1, keepdims=True)
    direct = Problem(table[:3], table[3:])
    # The same numbers, standardised in another place.
    np.testing.assert_allclose(problem.singular_values, direct.singular_values, rtol=1e-13)
    assert (problem.info.m, problem.info.d_x, problem.info.d_y) == (20, 3, 3)


# -- what is refused -------------------------------------------------------------------------------------------------------


def with_entry(value, row, column):
    array = np.ones((2, 5)) + np.arange(5)
    array[row, column] = value
    return array


GOOD = np.arange(10.0).reshape(2, 5)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (with_entry(np.nan, 1, 3), ValueError, "is nan at row 1, column .* 3; 1 such"),
        (with_entry(np.inf, 0, 4), ValueError, "is inf at row 0, column .* 4; 1 such"),
        (with_entry(-np.inf, 0, 0), ValueError, "is -inf at row 0, column .* 0; 1 such"),
        (GOOD * 1j, TypeError, "must hold real numbers, got dtype complex128"),
        (GOOD.astype(str), TypeError, "must hold real numbers"),
        (GOOD.astype(object), TypeError, "must hold real numbers"),
        (GOOD[0], ValueError, r"must be a matrix .* shape \(5,\)"),
        (GOOD[None], ValueError, r"must be a matrix .* shape \(1, 2, 5\)"),
        (np.array(1.0), ValueError, r"must be a matrix .* shape \(\)"),
        (np.zeros((0, 5)), ValueError, r"is empty: shape \(0, 5\)"),
        (np.zeros((2, 0)), ValueError, r"is empty: shape \(2, 0\)"),
    ],
)
def test_bad_arrays_are_named(bad, error, message):
    with pytest.raises(error, match=f"^X {message}"):
        Problem(bad, GOOD)
    with pytest.raises(error, match=f"^Y {message}"):
        Problem(GOOD, bad)


def test_lists_that_are_no_matrices_are_named():
    with pytest.raises(ValueError, match=r"\bX\b"):
        Problem([[1.0, 2.0], [3.0]], [[1.0, 2.0]])


def test_numbers_of_samples_must_agree():
    with pytest.raises(ValueError, match=r"X has 5 samples .* Y has 4; shapes \(2, 5\), \(2, 4\)"):
        Problem(GOOD, GOOD[:, :4])


def test_inputs_that_are_zero():
    with pytest.raises(ValueError, match=r"^X is zero$"):
        Problem(np.zeros((2, 5)), GOOD)
    with pytest.raises(ValueError, match="X is zero after centring"):
        Problem(GOOD[:, :1], GOOD[:, :1], center=True)


@pytest.mark.parametrize("m", [3, 7, 20])
def test_constant_inputs_are_zero_after_centring(m, rng):
    """The mean of several 0.1 is not 0.1: what is left is round-off, not data."""
    with pytest.raises(ValueError, match="X is zero after centring"):
        Problem(np.full((2, m), 0.1), rng.normal(size=(1, m)), center=True)


def test_constant_rows_cannot_be_scaled(rng):
    X, Y = rng.normal(size=(2, 7)), rng.normal(size=(1, 7))
    constant = np.vstack([X, np.full(7, 0.1)])
    for center in (True, False):
        with pytest.raises(ValueError, match="X: row 2 is constant"):
            Problem(constant, Y, center=center, scale=True)
        with pytest.raises(ValueError, match="X: 'third' is constant"):
            Problem(constant, Y, center=center, scale=True, features=["first", "second", "third"])
        with pytest.raises(ValueError, match="Y: 't' is constant"):
            Problem(X, constant[2:], center=center, scale=True, targets=["t"])
    Problem(constant, Y, center=True)  # a row of zeros: reduced to the others


def test_names_must_be_as_many_as_rows(rng):
    X, Y = rng.normal(size=(2, 7)), rng.normal(size=(1, 7))
    with pytest.raises(ValueError, match="features"):
        Problem(X, Y, features=["only one"])
    with pytest.raises(ValueError, match="targets"):
        Problem(X, Y, targets=["one", "two"])


# -- report ----------------------------------------------------------------------------------------------------------------


def holds(problem, widths=None):
    return {a.name[:2]: a.holds for a in problem.report(widths).assumptions}


def orthonormal_rows(rng, *sizes, m):
    """Blocks of rows, orthonormal among all of them."""
    frame = np.linalg.qr(rng.normal(size=(m, sum(sizes))))[0].T
    return np.split(frame, np.cumsum(sizes)[:-1])


def test_assumptions_hold_in_general_position(rng):
    problem = Problem(*DATA["tall"](rng))
    assert holds(problem) == holds(problem, (4, 3, 2)) == {"A1": True, "A2": True, "A3": True, "A4": True}


def test_dimensions_of_assumption_one(rng):
    tall = Problem(*DATA["tall"](rng))
    assert holds(tall, (4, 2, 2, 2))["A1"] is True
    assert holds(tall, (4, 5, 1, 2))["A1"] is False  # a hidden layer narrower than d_y
    assert holds(Problem(*DATA["more outputs"](rng)))["A1"] is False
    assert holds(Problem(*DATA["wide"](rng)))["A1"] is False


def test_ranks_of_assumption_two(rng):
    assert holds(Problem(*duplicated_features(rng)))["A2"] is False
    assert holds(Problem(*centred_classes(rng)))["A2"] is False
    X, Y = rng.normal(size=(4, 30)), rng.normal(size=(2, 30))
    assert holds(Problem(X, np.vstack([Y, Y[:1]])))["A2"] is False
    # The assumption is on Y, not on what X explains of it: here that is nothing, or less than Y's rank.
    X, Y = orthonormal_rows(rng, 3, 2, m=20)
    assert holds(Problem(X, Y))["A2"] is True
    assert holds(Problem(X, Y))["A3"] is False
    assert holds(Problem(*DATA["more outputs"](rng)))["A2"] is True


@pytest.mark.parametrize(
    ("s", "three", "four"),
    [
        ([3, 2, 1], True, True),
        ([3, 3, 1], False, False),
        ([3, 2, 0], False, False),
        ([5, 4, 3], True, False),  # 5² = 4² + 3²
        ([7, 5, 1], True, True),  # 7² + 1² = 5² + 5², but no two subsets agree
        ([3, 3 - 1e-15, 1], False, False),  # one rounding apart
        ([3, 3 - 1e-9, 1], True, True),
    ],
)
def test_spectra_of_assumptions_three_and_four(s, three, four, rng):
    """Targets with the given spectrum in general position, whatever the coordinates."""
    U, V = np.linalg.qr(rng.normal(size=(3, 3)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :3]
    for problem in (Problem.from_singular_values(s, d_x=4), Problem.from_target(U * s @ V.T)):
        found = holds(problem)
        assert (found["A3"], found["A4"]) == (three, four)


def test_assumption_four_looks_at_ranks_that_occur():
    """For s = (5, 4, 3) the subsets {1} and {2, 3} share a level; at rank one only {1} occurs."""
    problem = Problem.from_singular_values([5, 4, 3])
    assert holds(problem, (3, 2, 3))["A4"] is False
    assert holds(problem, (3, 1, 3))["A4"] is True


def test_fewer_singular_values_than_outputs_fail_assumption_three(rng):
    assert holds(Problem(*DATA["more outputs"](rng)))["A3"] is False  # two zero eigenvalues of a 4×4 matrix


def test_many_levels_are_not_all_listed(rng):
    report = Problem.from_singular_values(np.arange(1, 21)).report()
    assert len(report.levels) == 64
    assert not report.levels.complete
    assert {a.name[:2]: a.holds for a in report.assumptions}["A4"] is None
    assert "not checked" in str(report)
    assert len(Problem.from_singular_values(np.arange(1, 21)).report(lowest=5).levels) == 5


def test_printed_report_holds_the_facts(rng):
    problem = Problem(
        *centred_classes(rng),
        features=["Länge", "mass [kg]", "c", "d", "e"],
        targets=["t0", "t1", "t2", "[/t3]"],
        source="table.csv",
    )
    report = problem.report((5, 6, 3, 4))
    s = np.asarray(problem.singular_values)
    facts = [
        "table.csv", "m=40", "d_x=5", "d_y=4", "Länge", "mass [kg]", "[/t3]", "5-6-3-4", "data",
        *(f"{value:.6g}" for value in s), f"{float(problem.offset):.6g}", f"{0.5 * np.sum(s**2):.6g}", "{1,2,3}",
        "A1", "A2", "A3", "A4", "FAILS", "rank 3 of 4",
    ]  # fmt: skip
    text, html = str(report), report._repr_html_()
    assert repr(report) == text
    for fact in facts:
        assert fact in text
        assert fact in html
    assert html.lstrip().startswith("<pre")
    assert max(map(len, text.splitlines())) <= 120


def test_report_keeps_what_it_says(rng):
    X, Y = DATA["tall"](rng)
    problem = Problem(X, Y)
    report = problem.report((4, 1, 2))
    assert (report.max_rank, report.widths, report.coordinates) == (1, (4, 1, 2), "data")
    assert report.residual == float(problem.offset)
    assert len(report.levels) == 3  # subsets with at most one of two
    assert problem.report().max_rank == 2
    assert "holds" in str(report)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_report_of_no_levels_is_refused(bad, rng):
    with pytest.raises(ValueError, match="lowest must be at least 1"):
        Problem(*DATA["tall"](rng)).report(lowest=bad)


def test_critical_values_of_a_problem():
    problem = Problem.from_singular_values([5, 4, 3], d_x=6)
    levels = critical_values(problem, 2)
    # Integers, through one decomposition of a diagonal matrix.
    np.testing.assert_allclose(levels.values, [4.5, 8, 12.5, 17, 20.5, 25], rtol=1e-14)
    assert [level.num_subsets for level in levels] == [1, 1, 2, 1, 1, 1]
    np.testing.assert_allclose(
        [level.value for level in iterate_critical_values(problem, 2)], levels.values, rtol=1e-15
    )
    assert len(critical_values(problem, 3, lowest=2)) == 2
    # Ten times the slack of a certificate, 100 eps ‖Ȳ‖².
    assert problem.level_tolerance == pytest.approx(1000 * EPS * 50, rel=1e-12)
