"""The Hessian, its inertia and its extreme eigenpairs, against `jax.hessian`, dense decompositions and a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from random_cases import random_net

from gdflow.landscape import (
    balanced_minimum_spectrum,
    curvature,
    extreme_eigenpairs,
    hessian,
    hessian_vector_product,
    inertia,
    sample_critical_point,
    second_variation,
    sharpness,
)
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.network import LayerTuple
from gdflow.problem import Problem

LOSSES = (SquaredError(), Logistic(), SoftmaxCrossEntropy(), Huber(2.0))
EPS = 2.0**-52


def random_problem(rng: np.random.Generator, loss) -> Problem:
    """Three inputs, two outputs, six samples."""
    X = rng.normal(size=(3, 6))
    if isinstance(loss, Logistic):
        Y = rng.choice([-1.0, 1.0], (2, 6))
    elif isinstance(loss, SoftmaxCrossEntropy):
        Y = np.eye(2)[:, rng.integers(0, 2, 6)]
    else:
        Y = rng.normal(size=(2, 6))
    return Problem(X, Y, loss)


def jax_hessian(problem: Problem, net: LayerTuple) -> np.ndarray:
    flat, unravel = ravel_pytree(net)
    return np.asarray(jax.jit(jax.hessian(lambda x: problem.effective_loss(unravel(x))))(flat))


@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2), (3, 1, 3, 2)])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_hessian_is_that_of_the_loss(loss, widths, rng):
    """Random residuals lie off Huber's kinks."""
    problem, net = random_problem(rng, loss), random_net(rng, widths)
    expected = jax_hessian(problem, net)
    H = np.asarray(hessian(problem, net))
    scale = np.abs(expected).max()
    # A few dozen operations per entry.
    np.testing.assert_allclose(H, expected, atol=1e-13 * scale, rtol=0)
    np.testing.assert_array_equal(H, H.T)
    w = random_net(rng, widths)
    v = np.asarray(ravel_pytree(w)[0])
    product = hessian_vector_product(problem, net, w)
    assert product.widths == widths
    np.testing.assert_allclose(ravel_pytree(product)[0], expected @ v, atol=1e-12 * scale, rtol=0)  # sums of up to 20
    assert 0.5 * v @ H @ v == pytest.approx(float(second_variation(problem, net, w)), abs=1e-12 * scale * (v @ v))


def test_the_order_of_the_parameters():
    """`W_1` first, row by row: the second derivative in its entry (2, 1) and in entry (1, 2) of `W_2`."""
    problem = Problem.from_singular_values([5.0], d_x=3)
    net = LayerTuple([np.arange(6.0).reshape(2, 3), np.array([[7.0, 8.0]])])
    H = np.asarray(hessian(problem, net))
    assert H.shape == (8, 8)
    assert H[3, 3] == 8.0**2  # (W_2)_{12}²
    assert H[7, 7] == 3.0**2 + 4.0**2 + 5.0**2  # the squared norm of the second row of W_1
    # ∂²/∂(W_1)_{21}∂(W_2)_{12} = (W_2)_{12}(W_1)_{21} − M_{11}
    assert H[3, 7] == 8.0 * 3.0 - (5.0 - (7.0 * 0.0 + 8.0 * 3.0))


def test_more_columns_than_one_batch_of_them(rng):
    problem, net = random_problem(rng, SquaredError()), random_net(rng, (3, 60, 2))
    assert net.num_parameters > 256
    expected = jax_hessian(problem, net)
    np.testing.assert_allclose(hessian(problem, net), expected, rtol=0, atol=1e-13 * np.abs(expected).max())


# -- inertia ---------------------------------------------------------------------------------------------------------------


def diagonal_net(*diagonals) -> LayerTuple:
    return LayerTuple([np.diag(np.asarray(d, dtype=float)) for d in diagonals])


def test_inertia_at_the_origin_of_two_layers():
    """The Hessian is `−Σ_Y` between the layers: eigenvalues `±s_i`, each as often as there are hidden units, and zeros."""
    problem = Problem.from_singular_values([3, 1], d_x=4)
    found = inertia(problem, LayerTuple([np.zeros((5, 4)), np.zeros((2, 5))]))
    assert (found.negative, found.zero, found.positive) == (10, 10, 10)
    assert (found.index, found.nullity) == (10, 10)
    assert found.certain
    expected = np.sort([-3.0, -1.0, 1.0, 3.0, 0.0, 0.0] * 5)
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-14)  # a few eps of the largest
    assert found.smallest_kept == pytest.approx(1.0, rel=1e-13)
    assert found.threshold == pytest.approx(3e-9, rel=1e-13)


def test_inertia_of_a_hessian_that_vanishes():
    """It has no scale of its own: round-off is measured by the terms that cancel."""
    problem = Problem.from_singular_values([3, 1], d_x=4)
    origin = inertia(problem, LayerTuple([np.zeros(shape) for shape in ((3, 4), (3, 3), (2, 3))]))
    assert (origin.negative, origin.zero, origin.positive) == (0, 27, 0)
    assert origin.certain
    assert "nearest above none" in str(origin)
    # W_1 = W_4 = 0 leave w_4W_3W_2w_1, and W_3W_2 = 0 but for round-off.
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    inner = [U[:, :2] @ rng.normal(size=(2, 2)), rng.normal(size=(3, 1)) * U[:, 2]]
    net = LayerTuple([np.zeros((2, 4)), *inner, np.zeros((2, 3))])
    found = inertia(problem, net)
    assert found.zero == net.num_parameters
    assert found.certain
    assert 0 < found.largest_dropped < 1e-14  # there is round-off, of numbers of order one


@pytest.mark.parametrize(
    ("relative", "zeros", "certain"),
    [
        (1e2, 0, True),
        (3.0, 0, False),
        (1.001, 0, False),
        (0.999, 1, False),
        (0.3, 1, False),
        (1e-2, 1, True),
    ],
)
def test_eigenvalues_near_the_threshold_are_uncertain(relative, zeros, certain):
    """Eigenvalues `s_i + s_j` at `W_1 = W_2 = diag(√s)` and four zeros: `2s_2` against `10⁻⁹·2s_1`."""
    s = np.array([1.0, 1e-9 * relative])
    found = inertia(Problem.from_singular_values(s), diagonal_net(np.sqrt(s), np.sqrt(s)))
    assert found.threshold == pytest.approx(2e-9, rel=1e-12)
    assert (found.negative, found.zero, found.positive) == (0, 4 + zeros, 4 - zeros)
    assert found.certain == certain
    assert ("UNCERTAIN" in str(found)) == (not certain)
    near = found.largest_dropped if zeros else found.smallest_kept
    # Round-off of the eigendecomposition, beside a largest eigenvalue of 2.
    assert near == pytest.approx(2 * s[1], abs=1e-15)


def test_the_tolerance_moves_the_threshold():
    s = np.array([1.0, 1e-5])
    problem, net = Problem.from_singular_values(s), diagonal_net(np.sqrt(s), np.sqrt(s))
    assert inertia(problem, net).zero == 4
    assert inertia(problem, net, tolerance=1e-3).zero == 5
    assert inertia(problem, net, tolerance=1e-3).threshold == pytest.approx(2e-3, rel=1e-12)


def test_inertia_of_other_losses(rng):
    problem = random_problem(rng, Logistic())
    net = random_net(rng, (3, 2, 2))
    expected = np.linalg.eigvalsh(jax_hessian(problem, net))
    found = inertia(problem, net)
    assert found.certain
    assert found.negative == np.sum(expected < -1e-10)
    assert found.positive == np.sum(expected > 1e-10)
    text = str(found)
    assert "Inertia of the Hessian" in text
    assert ["negative", str(found.negative)] in [line.split() for line in text.split("\n")]


# -- balanced minima -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize(("d_x", "d_y"), [(4, 3), (2, 3)])
def test_spectrum_of_balanced_minima(depth, d_x, d_y):
    """All of it, with zeros for the rest, and the sharpness `Nσ_1^{2−2/N}`."""
    s = np.array([3.0, 1.5, 0.7])[: min(d_x, d_y)]
    problem = Problem.from_singular_values(s, d_x, d_y)
    widths = problem.widths((4, 3, 5, 3)[: depth - 1])
    net = sample_critical_point(
        problem, widths, tuple(range(1, s.size + 1)), key=jax.random.key(depth), kind="balanced"
    )
    expected = balanced_minimum_spectrum(s, depth, (d_y, d_x))
    found = inertia(problem, net)
    assert found.certain
    assert (found.negative, found.zero, found.positive) == (0, net.num_parameters - expected.size, expected.size)
    np.testing.assert_allclose(
        found.eigenvalues[found.zero :], expected, rtol=1e-12
    )  # smallest over largest above 1e-2
    largest = depth * s[0] ** (2 - 2 / depth)
    assert expected[-1] == pytest.approx(largest, rel=1e-14)
    assert sharpness(problem, net) == pytest.approx(largest, rel=1e-13)


def test_the_spectrum_in_the_smallest_cases():
    # Two layers: σ_i + σ_j; one: all ones, the quadratic itself; a scalar chain: N factors s^{2(N−1)/N}.
    np.testing.assert_allclose(balanced_minimum_spectrum(np.array([3.0, 1.0]), 2, (2, 2)), [2, 4, 4, 6], rtol=1e-15)
    np.testing.assert_array_equal(balanced_minimum_spectrum(np.array([3.0, 1.0]), 1, (2, 3)), np.ones(6))
    np.testing.assert_allclose(balanced_minimum_spectrum(np.array([8.0]), 3, (1, 1)), [3 * 8 ** (4 / 3)], rtol=1e-15)
    # Directions outside the target: inputs with σ_j = 0 keep the term of W_1 alone, which for three layers is σ_i^{4/3}.
    np.testing.assert_allclose(balanced_minimum_spectrum(np.array([8.0]), 3, (1, 2)), [16.0, 48.0], rtol=1e-15)
    np.testing.assert_allclose(balanced_minimum_spectrum(np.array([8.0]), 3, (2, 2)), [16.0, 16.0, 48.0], rtol=1e-15)


# -- extreme eigenpairs ----------------------------------------------------------------------------------------------------


def check_eigenpairs(problem, net, values, vectors, tolerance):
    for value, vector in zip(values, vectors, strict=True):
        assert vector.widths == net.widths
        assert float(vector.norm()) == pytest.approx(1.0, rel=1e-12)  # ARPACK normalises to round-off
        residual = hessian_vector_product(problem, net, vector) - float(value) * vector
        assert float(residual.norm()) < tolerance


@pytest.mark.parametrize("loss", [SquaredError(), SoftmaxCrossEntropy()], ids=lambda loss: type(loss).__name__)
def test_extreme_eigenpairs_are_those_of_the_dense_hessian(loss, rng):
    problem, net = random_problem(rng, loss), random_net(rng, (3, 4, 3, 2))
    dense = np.linalg.eigvalsh(jax_hessian(problem, net))
    for which, expected in (("smallest", dense[:3]), ("largest", dense[::-1][:3])):
        values, vectors = extreme_eigenpairs(problem, net, 3, which=which)
        # Machine precision is asked for, relative to the largest eigenvalue.
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * abs(dense).max())
        check_eigenpairs(problem, net, values, vectors, 1e-11 * abs(dense).max())
    again, _ = extreme_eigenpairs(problem, net, 3, which="largest")
    np.testing.assert_array_equal(again, values)


def test_one_pair_by_default_and_a_loose_tolerance(rng):
    problem, net = random_problem(rng, SquaredError()), random_net(rng, (3, 4, 2))
    dense = np.linalg.eigvalsh(jax_hessian(problem, net))
    values, vectors = extreme_eigenpairs(problem, net)
    assert (values.shape, len(vectors)) == ((1,), 1)
    assert values[0] == pytest.approx(dense[0], abs=1e-12 * abs(dense).max())
    values, _ = extreme_eigenpairs(problem, net, which="largest", tolerance=1e-3)
    assert values[0] == pytest.approx(dense[-1], rel=1e-3)


def test_extreme_eigenvalues_that_are_zero():
    """At a minimum the smallest ones are, and at the origin of three layers all."""
    problem = Problem.from_singular_values([3, 1], d_x=4)
    net = sample_critical_point(problem, (4, 3, 2), (1, 2), key=jax.random.key(0), kind="minimum")
    values, vectors = extreme_eigenpairs(problem, net, 2)
    # Machine precision beside a largest eigenvalue of some tens.
    np.testing.assert_allclose(values, 0.0, atol=1e-12)
    check_eigenpairs(problem, net, values, vectors, 1e-11)
    origin = LayerTuple([np.zeros(shape) for shape in ((3, 4), (3, 3), (2, 3))])
    for which in ("smallest", "largest"):
        values, vectors = extreme_eigenpairs(problem, origin, 2, which=which)
        np.testing.assert_array_equal(values, [0.0, 0.0])
        assert vectors[0].norm() == vectors[1].norm() == 1.0
        assert vectors[0].inner(vectors[1]) == 0.0


@pytest.mark.parametrize("dense", [True, False])
def test_extreme_eigenvalues_come_as_often_as_they_occur(dense, monkeypatch):
    """The origin of 2-12-2: eigenvalues `±s_i`, each `d_1 = 12` times, from the form `−2⟨Σ, w_2w_1⟩`."""
    if not dense:
        monkeypatch.setattr(curvature, "MAX_EIGH", 1)
    problem = Problem.from_singular_values([2, 1])
    net = LayerTuple([np.zeros((12, 2)), np.zeros((2, 12))])
    for num in (1, 8, 14):
        for which, sign in (("smallest", -1), ("largest", 1)):
            values, vectors = extreme_eigenpairs(problem, net, num, which=which)
            np.testing.assert_allclose(values, sign * np.repeat([2.0, 1.0], 12)[:num], atol=1e-12)
            check_eigenpairs(problem, net, values, vectors, 1e-11)
            check_orthonormal(vectors)


def check_orthonormal(vectors):
    V = np.stack([ravel_pytree(v)[0] for v in vectors])
    np.testing.assert_allclose(V @ V.T, np.eye(len(vectors)), atol=1e-12)


@pytest.mark.parametrize(("widths", "subset"), [((4, 3, 2), (2,)), ((4, 3, 2), (1, 2)), ((4, 5, 4, 2), (1,))], ids=str)
def test_lanczos_finds_the_multiplicities_of_the_dense_hessian(widths, subset, monkeypatch):
    """Critical points have kernels of many dimensions, and minima nothing below them."""
    problem = Problem.from_singular_values([3, 1], d_x=4)
    monkeypatch.setattr(curvature, "MAX_EIGH", 1)
    for seed in range(2):
        net = sample_critical_point(problem, widths, subset, key=jax.random.key(seed))
        dense = np.linalg.eigvalsh(jax_hessian(problem, net))
        for which, expected in (("smallest", dense[:7]), ("largest", dense[::-1][:7])):
            values, vectors = extreme_eigenpairs(problem, net, 7, which=which)
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * abs(dense).max())
            check_eigenpairs(problem, net, values, vectors, 1e-11 * abs(dense).max())
            check_orthonormal(vectors)


@pytest.mark.slow
def test_multiplicities_beyond_dense_hessians():
    """Closed forms above 1024 parameters: two layers at the origin, one layer (the identity), and nothing at all."""
    problem = Problem.from_singular_values([3, 2, 1], d_x=9)
    cases = [
        (problem, (9, 90, 3), [-3.0] * 6),
        (Problem.from_singular_values([5.0], d_x=40, d_y=30), (40, 30), [1.0] * 6),
        (problem, (9, 30, 30, 3), [0.0] * 6),
    ]
    for problem, widths, expected in cases:
        net = LayerTuple([np.zeros((b, a)) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        assert net.num_parameters > curvature.MAX_EIGH
        values, vectors = extreme_eigenpairs(problem, net, len(expected))
        np.testing.assert_allclose(values, expected, atol=1e-12)
        check_eigenpairs(problem, net, values, vectors, 1e-11)
        check_orthonormal(vectors)


def test_a_single_layer_has_a_definite_hessian_beside_any_target():
    """`∇²L = XXᵀ ⊗ I` has nothing to do with the size of the target, and no eigenvalue of it is round-off."""
    for scale in (1e-30, 1.0, 1e30):
        found = inertia(Problem.from_singular_values([2 * scale, scale]), LayerTuple([np.zeros((2, 2))]))
        assert (found.negative, found.zero, found.positive) == (0, 0, 4)


@pytest.mark.slow
def test_extreme_eigenpairs_of_a_large_network():
    """More than 10⁵ parameters: the dense Hessian would take 80 GiB."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(300, 5)) * [3.0, 2.0, 1.0, 1.0, 1.0] @ rng.normal(size=(5, 400)) / 20
    problem = Problem.from_target(target)
    widths = problem.widths((130, 130))
    net = LayerTuple([rng.normal(size=(a, b)) / np.sqrt(a + b) for a, b in zip(widths[1:], widths[:-1], strict=True)])
    assert net.num_parameters > 100_000
    with pytest.raises(ValueError, match=r"107900 parameters takes 86\.7 GiB"):
        hessian(problem, net)
    extreme = {}
    for which in ("smallest", "largest"):
        values, vectors = extreme_eigenpairs(problem, net, which=which)
        extreme[which] = values[0]
        # Products have 10⁵ entries and the largest eigenvalue is near 80.
        check_eigenpairs(problem, net, values, vectors, 1e-10)
    assert extreme["smallest"] < 0
    assert sharpness(problem, net) == pytest.approx(extreme["largest"], rel=1e-12)
    # Rayleigh quotients of other directions lie between them.
    for seed in range(3):
        w = random_net(np.random.default_rng(seed), widths)
        quotient = float(w.inner(hessian_vector_product(problem, net, w)) / w.inner(w))
        assert extreme["smallest"] < quotient < extreme["largest"]


# -- derivatives and errors --------------------------------------------------------------------------------------------


def test_hessians_are_differentiable(rng):
    """The Hessian along a line of networks: its derivative by differences."""
    problem, net, w = random_problem(rng, SquaredError()), random_net(rng, (3, 2, 2)), random_net(rng, (3, 2, 2))
    _, tangent = jax.jvp(lambda n: hessian(problem, n), (net,), (w,))
    h = 1e-4
    # The Hessian of two layers is a quadratic polynomial in the network: central differences are exact but for rounding.
    difference = (hessian(problem, net + h * w) - hessian(problem, net - h * w)) / (2 * h)
    np.testing.assert_allclose(tangent, difference, rtol=0, atol=100 * EPS / h * float(jnp.abs(difference).max()))


def test_networks_the_hessian_refuses(rng):
    problem = random_problem(rng, SquaredError())
    net = random_net(rng, (3, 2, 2))
    batch = jax.tree.map(lambda w: jnp.stack([w, w]), net)
    for function in (hessian, inertia, extreme_eigenpairs):
        with pytest.raises(ValueError, match=r"batch of shape \(2,\): use jax.vmap"):
            function(problem, batch)
        with pytest.raises(ValueError, match=r"\(4, 2, 2\) do not fit"):
            function(problem, random_net(rng, (4, 2, 2)))
    broken = LayerTuple([net.weights[0].at[1, 2].set(jnp.nan), net.weights[1]])
    for function in (inertia, extreme_eigenpairs):
        with pytest.raises(ValueError, match=r"W_1 is nan at entry \(1, 2\)"):
            function(problem, broken)


def test_hessians_that_are_too_large_are_refused_before_they_are_made():
    problem = Problem.from_singular_values([1.0], d_x=100, d_y=100)
    net = LayerTuple([np.zeros((100, 100)), np.zeros((100, 100))])
    for function in (hessian, inertia):
        with pytest.raises(ValueError, match=r"20000 parameters takes 3\.0 GiB: use extreme_eigenpairs"):
            function(problem, net)


@pytest.mark.parametrize("tolerance", [0.0, -1e-9, 1.0, float("nan")])
def test_tolerances_out_of_range_are_refused(tolerance, rng):
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
        inertia(random_problem(rng, SquaredError()), random_net(rng, (3, 2, 2)), tolerance=tolerance)


def test_options_of_extreme_eigenpairs_out_of_range_are_refused(rng):
    problem, net = random_problem(rng, SquaredError()), random_net(rng, (3, 2, 2))
    with pytest.raises(ValueError, match='which must be "smallest" or "largest", got \'LM\''):
        extreme_eigenpairs(problem, net, which="LM")
    for num in (0, 10, -1):
        with pytest.raises(ValueError, match=f"num must lie between 1 and 9, got {num}"):
            extreme_eigenpairs(problem, net, num)
