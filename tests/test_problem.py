"""The problem: what data and networks it accepts, its constructors, its critical values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_data import DATA, draw_weights, duplicated_features, product, raw_loss, relative_error

from gdflow.data import linnerud_path
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.perturbation import with_singular_values
from gdflow.problem import Problem, critical_values, iterate_critical_values
from gdflow.spectrum import COORDINATES

EPS = 2.0**-52


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
    with pytest.raises(TypeError, match=r"problem\.max_rank\(widths\) for these widths, \(3, 2, 3\)"):
        critical_values(problem, (3, 2, 3))
    # Ten times the slack of a certificate, 100 eps ‖Ȳ‖².
    assert problem.level_tolerance == pytest.approx(1000 * EPS * 50, rel=1e-12)


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


def test_other_losses_have_neither_whitened_coordinates_nor_levels(rng):
    X, Y = rng.normal(size=(3, 10)), rng.normal(size=(2, 10))
    for coordinates in ("reduced", "whitened"):
        with pytest.raises(ValueError, match="this problem has loss Huber, which has data coordinates only"):
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
    ):
        with pytest.raises(ValueError, match=r"squared error of linear networks only: this problem has loss Huber"):
            refused()
    assert "loss Huber" in str(problem.report())


def test_targets_are_checked_against_the_loss(rng):
    with pytest.raises(ValueError, match="labels -1 or 1"):
        Problem(rng.normal(size=(2, 3)), [[0, 1, 1]], Logistic())
    with pytest.raises(ValueError, match="column 1 of Y sums to 2"):
        Problem(rng.normal(size=(2, 2)), [[0, 1], [1, 1]], SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match="labels -1 or 1"):  # centring destroys labels
        Problem(rng.normal(size=(2, 3)), [[-1, 1, 1]], Logistic(), center=True)


def test_a_problem_is_shown_in_a_line(rng):
    problem = Problem.from_singular_values([3, 2, 1], d_x=6)
    shown = "Problem(m=6, d_in=6, d_out=3, coordinates='whitened', loss=SquaredError(), singular_values=[3, 2, 1])"
    assert str(problem) == repr(problem) == shown
    many = Problem.from_singular_values(np.arange(20, 0, -1))
    assert repr(many).endswith("singular_values=[20, 19, 18, 17, 16, 15, 14, 13, …])")
    assert "singular_values" not in repr(Problem(rng.normal(size=(2, 9)), rng.normal(size=(1, 9)), Huber()))
    seen = []
    jax.jit(lambda s: seen.append(repr(with_singular_values(problem, s))))(problem.singular_values)
    assert seen[0].endswith("singular_values=[…])")


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


def test_from_csv_is_standardised_by_default():
    problem = Problem.from_csv(linnerud_path(), ["Weight", "Waist", "Pulse"], coordinates="whitened")
    table = np.loadtxt(linnerud_path(), delimiter=",", skiprows=1).T
    table = (table - table.mean(axis=1, keepdims=True)) / table.std(axis=1, keepdims=True)
    direct = Problem(table[:3], table[3:])
    # The same numbers, standardised in another place.
    np.testing.assert_allclose(problem.singular_values, direct.singular_values, rtol=1e-13)
    assert (problem.info.m, problem.info.d_x, problem.info.d_y) == (20, 3, 3)
