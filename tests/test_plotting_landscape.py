"""The landscape's pictures show what they claim: every stratum, every eigenvalue, trajectories from their starts."""

import jax
import numpy as np
import pytest
from pictures import check_readable

import gdflow as gf
from gdflow import plotting

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([3, 2, 1], d_x=4)


def texts(legend):
    return [t.get_text() for t in legend.get_texts()]


def test_strata_show_every_level_once(problem):
    strata = gf.strata(problem, problem.widths([2]))
    figure = plotting.plot_strata(strata)
    check_readable(figure)
    (axes,) = figure.axes
    drawn = sorted((x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True))
    assert drawn == sorted((row.rank, row.value) for row in strata)
    assert "rank" in axes.get_xlabel()
    assert "critical value" in axes.get_ylabel()
    assert texts(figure.legends[0]) == ["global minima", "strict saddles"]
    row = next(row for row in strata if row.subset == (1, 3))
    assert f"{{1,3}} ({row.index}, {row.dimension})" in texts_of(axes)


def texts_of(axes):
    return [t.get_text() for t in axes.texts]


@pytest.mark.parametrize("values", [[1.03, 1.02, 1.01, 1.0], [3, 0.3, 0.03], [6, 5, 4, 3, 2, 1]])
def test_labels_of_strata_that_are_close_do_not_overlap(values):
    problem = gf.Problem.from_singular_values(values)
    strata = gf.strata(problem, problem.widths([len(values)]))
    figure = plotting.plot_strata(strata)
    check_readable(figure)
    assert len(figure.axes[0].texts) == len(strata)


def test_strata_with_non_strict_saddles_have_a_look_of_their_own(problem):
    figure = plotting.plot_strata(gf.strata(problem, problem.widths([4, 4])))
    assert texts(figure.legends[0]) == ["global minima", "strict saddles", "saddles, some non-strict"]
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 3


def test_spectra_show_all_eigenvalues_and_counts(problem):
    widths = problem.widths([2])
    point = gf.sample_critical_point(problem, widths, (1, 3), key=KEY)
    figure = plotting.plot_spectra(problem, {"saddle": point})
    check_readable(figure)
    shown = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(shown, np.linalg.eigvalsh(np.asarray(gf.hessian(problem, point))), atol=1e-12)
    signs = gf.inertia(problem, point)
    assert f"saddle: {signs.negative}/{signs.zero}/{signs.positive}" in texts(figure.legends[0])


def test_round_off_of_zero_eigenvalues_is_not_drawn_as_anything_else(problem):
    deep = problem.widths([4, 4])
    kinds = {"non-strict": (1,), "zero-hessian": ()}
    points = {k: gf.sample_critical_point(problem, deep, S, key=KEY, kind=k) for k, S in kinds.items()}
    both, alone = (plotting.plot_spectra(problem, p) for p in (points, {"flat": points["zero-hessian"]}))
    for figure in (both, alone):
        check_readable(figure)
        assert all(line.get_linestyle() == "None" for line in figure.axes[0].lines if len(line.get_xdata()) > 2)
    (axes,) = both.axes
    for point, line in zip(points.values(), axes.lines, strict=True):
        signs = gf.inertia(problem, point)
        band = axes.transData.transform([(0, 0.4 * gf.inertia(problem, points["non-strict"]).smallest_kept)])[0, 1]
        middle = axes.transData.transform([(0, 0.0)])[0, 1]
        heights = axes.transData.transform(line.get_xydata())[:, 1]
        assert np.sum(abs(heights - middle) < 0.01 * (band - middle)) == signs.zero
    low, high = alone.axes[0].get_ylim()
    assert low < -0.1 < 0.1 < high


def test_spectra_need_points(problem):
    with pytest.raises(ValueError, match="no points"):
        plotting.plot_spectra(problem, {})


def ends(path):
    """The first and the last point of a path that may end before the others."""
    there = path[np.isfinite(path[:, 0])]
    return there[0], there[-1]


@pytest.mark.slow
def test_saddle_slice_shows_descent_from_every_start(problem):
    saddle = gf.sample_critical_point(problem, problem.widths([2]), (1, 3), key=KEY)
    figure = plotting.plot_saddle(problem, saddle, num_trajectories=2)
    check_readable(figure)
    left, right = (axes for axes in figure.axes if axes.get_xlabel())
    assert left.get_xlabel().startswith("unstable direction")
    assert left.get_ylabel().startswith("stable direction")
    assert right.get_ylabel().startswith("tangent direction")
    for axes in (left, right):
        starts = next(line.get_xydata() for line in axes.lines if line.get_label() == "starts")
        paths = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 2]
        assert len(paths) == 4  # every trajectory with its white rim
        first, last = zip(*map(ends, paths[::2]), strict=True)
        np.testing.assert_allclose(sorted(p[0] for p in first), sorted(starts[:, 0]), atol=1e-12)
        # They leave along the unstable direction.
        assert all(abs(b[0]) > abs(a[0]) for a, b in zip(first, last, strict=True))


def test_a_slice_in_which_nothing_changes_says_so(problem):
    flat = gf.sample_critical_point(problem, problem.widths([4, 4]), (), key=KEY, kind="zero-hessian")
    figure = plotting.plot_saddle(problem, flat, num_trajectories=0)
    check_readable(figure)
    assert [axes.get_title() for axes in figure.axes] == ["the loss is 7 in all of this slice"] * 2
    assert figure.axes[0].get_xlabel() == r"lowest, not unstable direction, $\lambda$ = 0"


def test_networks_of_two_weights_have_one_slice():
    problem = gf.Problem.from_singular_values([1.0])
    origin = gf.LayerTuple([np.zeros((1, 1)), np.zeros((1, 1))])
    figure = plotting.plot_saddle(problem, origin, num_trajectories=0)
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_xlabel()] == [r"stable direction, $\lambda$ = 1"]
