"""The experiment on Chitour, Liao, Couillet's figures: splittings and fibres against closed forms, connections, verdicts."""

import numpy as np
import pytest

from gdflow.experiments import run_experiment
from gdflow.experiments.landscape import hyperbolicity, vision
from gdflow.experiments.landscape.hyperbolicity import (
    conserved,
    distance_to,
    flat,
    network,
    path,
    saddle_at,
    saddle_of,
    stable_fibre,
    unstable_manifold,
)
from gdflow.experiments.results import file_names
from gdflow.problem import Problem


@pytest.fixture(scope="module")
def problem():
    return Problem.from_singular_values(list(hyperbolicity.TARGET))


@pytest.mark.parametrize("theta", [-0.6, 0.0, 0.4])
def test_rates_at_the_saddles_are_the_exact_ones(problem, theta):
    """The Hessian is `[[b², −2], [−2, a²]]` in `(a_1, b_1)`, and has the eigenvalues 0 and `a² + b²` in `(a_2, b_2)`."""
    saddle = saddle_at(problem, theta)
    np.testing.assert_allclose(flat(problem.gradient(network(saddle.point))), 0, atol=1e-14)
    a, b = np.exp(-theta), np.exp(theta)
    root = np.sqrt((b * b - a * a) ** 2 + 16)
    exact = [-(a * a + b * b), 0.0, -(a * a + b * b + root) / 2, (root - a * a - b * b) / 2]
    np.testing.assert_allclose(saddle.rates, np.sort(exact), atol=1e-12)
    assert saddle_of(problem, saddle.point).point == pytest.approx(saddle.point)


@pytest.mark.parametrize("theta", [-0.6, 0.0, 0.4])
def test_stable_fibres_lie_in_level_sets_and_lead_to_their_points(problem, theta):
    saddle = saddle_at(problem, theta)
    fibre = stable_fibre(saddle)
    np.testing.assert_allclose([conserved(x) for x in fibre], conserved(saddle.point), atol=1e-12)
    assert fibre[:, 1].min() < saddle.point[1] < fibre[:, 1].max()
    np.testing.assert_allclose(path(problem, fibre[0], 30.0, count=2)[1][-1], saddle.point, atol=1e-7)


@pytest.mark.slow
def test_the_unstable_fibre_of_the_balanced_saddle_is_the_exact_one(problem):
    """From `(0, 1, 0, 1)`: `a = b` stays, and `W = aaᵀ` goes to the projection on `e_1` times 2, so `a` to `(√2, 0)`."""
    curve = unstable_manifold(problem, saddle_at(problem, 0.0))
    np.testing.assert_allclose(curve[:, :2], curve[:, 2:], atol=1e-8)
    np.testing.assert_allclose(curve[-1], [np.sqrt(2), 0, np.sqrt(2), 0], atol=2e-2)
    # For balanced a = b: (a_1²)˙ = 2a_1²(2 − |a|²) and (a_2²)˙ = 2a_2²(1 − |a|²), so a_1²/a_2² grows as e^{2t}.
    ts, points = path(problem, curve[100], 3.0, count=20)
    ratio = np.log(points[:, 0] / points[:, 1])
    np.testing.assert_allclose(ratio - ratio[0], ts, atol=1e-7)


def test_distances_from_polygons():
    curve = np.array([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
    points = np.array([[0.5, 0.2, 0, 0], [2, 0.5, 0, 0], [-1, 0, 0, 0], [1, 1, 3, 4]])
    np.testing.assert_allclose(distance_to(points, curve), [0.2, 1.0, 1.0, 5.0])


@pytest.mark.parametrize(
    ("subset", "unit", "j", "end"), [((), 0, 2, (2,)), ((3,), 0, 1, (1,)), ((2, 3), 1, 1, (1, 2)), ((1,), 1, 3, (1, 3))]
)
def test_unstable_directions_lead_to_the_exchanged_subset(subset, unit, j, end):
    problem = Problem.from_singular_values(list(vision.TARGET), vision.ONE[0])
    np.testing.assert_allclose(float(problem.gradient(vision.stratum_point(subset)).norm()), 0, atol=1e-14)
    assert (unit, j) in vision.descents(subset)
    assert vision.follow(problem, subset, unit, j) == end


@pytest.mark.slow
def test_the_whole_experiment(tmp_path):
    results = run_experiment("landscape", tmp_path, fast=True)
    assert [result.name for result in results] == ["landscape-2", "landscape-3", "landscape-4"]
    assert all(claim.confirmed for result in results for claim in result.claims)
    names = {name for result in results for name in file_names(result.name)} | {"index.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "is to read “a global minimum”" in index
    assert len(results[0].runs) == 18  # twelve additions and six exchanges
