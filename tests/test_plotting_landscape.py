"""The landscape's pictures show what they claim: every stratum, every eigenvalue, trajectories from their starts."""

import jax
import numpy as np
import pytest

import gdflow as gf
from gdflow import plotting

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([3, 2, 1], d_x=4)


def test_strata_show_every_level_once(problem):
    strata = gf.strata(problem, problem.widths([2]))
    (axes,) = plotting.plot_strata(strata).axes
    drawn = sorted((x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True))
    assert drawn == sorted((row.rank, row.value) for row in strata)
    assert "rank" in axes.get_xlabel()
    assert "critical value" in axes.get_ylabel()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["global minima", "strict saddles"]
    assert any(t.get_text().startswith("{1,3}  index") for t in axes.texts)


def test_spectra_show_all_eigenvalues_and_counts(problem):
    widths = problem.widths([2])
    point = gf.sample_critical_point(problem, widths, (1, 3), key=KEY)
    (axes,) = plotting.plot_spectra(problem, {"saddle": point}).axes
    shown = axes.lines[0].get_ydata()
    np.testing.assert_allclose(shown, np.linalg.eigvalsh(np.asarray(gf.hessian(problem, point))), atol=1e-12)
    signs = gf.inertia(problem, point)
    label = axes.get_legend().get_texts()[0].get_text()
    assert label == f"saddle: {signs.negative}/{signs.zero}/{signs.positive}"


@pytest.mark.slow
def test_saddle_slice_shows_descent_from_every_start(problem):
    saddle = gf.sample_critical_point(problem, problem.widths([2]), (1, 3), key=KEY)
    figure = plotting.plot_saddle(problem, saddle, num_trajectories=2)
    left, right = (axes for axes in figure.axes if axes.get_xlabel())
    assert left.get_xlabel().startswith("unstable direction")
    assert left.get_ylabel().startswith("stable direction")
    assert right.get_ylabel().startswith("tangent direction")
    for axes in (left, right):
        starts = next(line.get_xydata() for line in axes.lines if line.get_label() == "starts")
        paths = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 2]
        assert len(paths) == 4  # every trajectory with its white rim
        np.testing.assert_allclose(sorted(p[0][0] for p in paths[::2]), sorted(starts[:, 0]), atol=1e-12)
        # They leave along the unstable direction.
        assert all(abs(p[-1][0]) > abs(p[0][0]) for p in paths)
