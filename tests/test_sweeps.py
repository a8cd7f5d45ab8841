"""Sweeps: every combination is run, the table is tidy, folders are gone on with, mistakes are told before any run."""

import jax
import numpy as np
import optax
import pandas
import pytest

import gdflow as gf
from gdflow.basins import Descent, GradientDescent, Limits
from gdflow.basins import plan as plan_module
from gdflow.plotting import plot_sweep

KEY = jax.random.key(41)


def make(width, scale):
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    law = gf.initialization.Gaussian(problem.widths([width]), scale)
    return dict(problem=problem, starts=law, limits=Limits(t1=1.0))


AXES = dict(width=[2, 3], scale=[0.2, 0.5, 1.0])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "x"
    return gf.sweep(make, AXES, 60, key=KEY, audit=0, folder=folder, progress=False), folder


def test_every_combination_is_run(swept):
    result, folder = swept
    assert [tuple(point.values()) for point in result.points] == [(w, s) for w in AXES["width"] for s in AXES["scale"]]
    for point, estimate in zip(result.points, result.estimates, strict=True):
        parts = make(**point)
        problem, law = parts.pop("problem"), parts.pop("starts")
        alone = gf.basin_sizes(problem, law, 60, key=KEY, audit=0, progress=False, **parts)
        assert alone.rows == estimate.rows
        assert gf.load(folder / f"width={point['width']},scale={point['scale']}").rows == estimate.rows


def test_the_table_is_tidy(swept):
    result, folder = swept
    frame = result.table.to_pandas()
    assert len(frame) == sum(len(estimate.rows) for estimate in result.estimates)
    assert frame["width"].dtype.kind == "i"
    lowest = frame[frame["limit"] == 0]
    for (_, row), estimate in zip(lowest.iterrows(), result.estimates, strict=True):
        assert (row["low"], row["high"]) == estimate.interval
        assert row["fraction"] == estimate.fraction
        assert row["undecided"] == estimate.undecided
    stored = pandas.read_csv(folder / "table.csv")
    pandas.testing.assert_frame_equal(stored, frame, check_dtype=False)
    text = str(result)
    assert "6 runs" in text
    assert "global minimum" in text


def test_the_same_sweep_is_opened_and_a_larger_one_goes_on(swept, tmp_path, monkeypatch):
    result, folder = swept
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "run_process", lambda *args, **options: pytest.fail("it was run"))
        again = gf.sweep(make, AXES, 60, key=KEY, audit=0, folder=folder, progress=False)
        assert again.table.drop(["seconds"]).equals(result.table.drop(["seconds"]))
        with pytest.raises(
            FileExistsError, match=r"width=2,scale=0\.2 already holds results of another run: starts.key"
        ):
            gf.sweep(make, AXES, 60, key=jax.random.key(0), audit=0, folder=folder, progress=False)


def bowl(x, tilt):
    return (x**2 - 1) ** 2 / 4 + tilt * x


def shallow(x):
    return bowl(x, 0.1)


def steep(x):
    return bowl(x, 0.2)


def normal(key):
    return 1.6 * jax.random.normal(key)


@pytest.mark.slow
def test_code_of_ones_own_is_gone_on_with_if_it_is_trusted(tmp_path):
    def of_bowl(tilt):
        return dict(problem=gf.Potential({0.1: shallow, 0.2: steep}[tilt]), starts=normal)

    options = dict(key=KEY, audit=0, folder=tmp_path / "x", progress=False)
    first = gf.sweep(of_bowl, {"tilt": [0.1]}, 40, **options)
    with pytest.raises(FileExistsError, match=r"code of your own.*the same call with trusted=True goes on"):
        gf.sweep(of_bowl, {"tilt": [0.1, 0.2]}, 40, **options)
    more = gf.sweep(of_bowl, {"tilt": [0.1, 0.2]}, 40, trusted=True, **options)
    assert more.estimates[0].rows == first.estimates[0].rows
    assert len(more.estimates) == 2
    with pytest.raises(ValueError, match=r"could not be: .*lambda> is needed"):
        gf.sweep(lambda tilt: dict(problem=gf.Potential(lambda x: x**2), starts=normal), {"tilt": [1]}, 9, **options)


@pytest.mark.slow
def test_settings_of_any_kind(tmp_path):
    """Optimizers, singular values and seeds; names of folders are safe whatever the values are."""

    def by_method(method, values, seed):
        problem = gf.Problem.from_singular_values(list(values))
        law = gf.initialization.Gaussian(problem.widths([2]))
        chosen = {"[red]gd/../": GradientDescent(0.05), "adam": Descent(optax.adam, 0.05)}[method]
        return dict(problem=problem, starts=law, method=chosen, key=jax.random.key(seed), limits=Limits(max_steps=300))

    axes = dict(method=["[red]gd/../", "adam"], values=[(2.0, 1.0), (2.0, 0.5)], seed=[0, 1])
    result = gf.sweep(by_method, axes, 8, audit=0, folder=tmp_path / "x", progress=False)
    frame = result.table.to_pandas()
    assert set(frame["values"]) == {"2.0-1.0", "2.0-0.5"}
    assert frame[frame["method"] == "adam"]["reached"].sum() > 0
    assert "reached only" in str(result)
    folders = [path for path in (tmp_path / "x").iterdir() if path.is_dir()]
    assert len(folders) == 8
    assert all("/" not in path.name and "[" not in path.name for path in folders)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
    figure = plot_sweep(result, "seed", color="method", panel="values")
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 2


def test_pictures_show_the_shares(swept):
    result, _ = swept
    figure = plot_sweep(result)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "scale"  # the axis with most numbers
    drawn = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    np.testing.assert_allclose(sorted(drawn), sorted(estimate.fraction for estimate in result.estimates))
    # Where nothing is decided there is an interval, but no share.
    undecided = gf.sweep(
        lambda width: make(width, 0.2) | dict(limits=Limits(t1=1e-3)),
        {"width": [2]},
        9,
        key=KEY,
        audit=0,
        progress=False,
    )
    (axes,) = plot_sweep(undecided).axes
    assert np.isnan(axes.get_lines()[0].get_ydata()).all()
    assert len(axes.collections) == 1
    for wrong, message in (({"x": "depth"}, "none of the axes"), ({"x": "scale", "color": "scale"}, "given twice")):
        with pytest.raises(ValueError, match=message):
            plot_sweep(result, **wrong)


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({}, TypeError, "at least one"),
        ({"width": []}, TypeError, "at least one"),
        ({"width": 3}, TypeError, "at least one"),
        ({"width": "abc"}, TypeError, "needs a sequence"),
        ({"loss": [1]}, ValueError, "the table has such a column"),
        ({"a b": [1]}, ValueError, "cannot be the name"),
        ({"width": range(200), "scale": range(200)}, ValueError, "40000 combinations"),
        ({"width": [2, 10**6], "scale": [0.1]}, ValueError, r"at width=1000000, scale=0\.1: .*would need"),
        ({"width": [2], "scale": [-1.0]}, ValueError, "scale|positive"),
    ],
)
def test_mistakes_are_told_before_any_run(axes, error, message, monkeypatch):
    monkeypatch.setattr(plan_module, "run_process", lambda *args, **options: pytest.fail("it was run"))
    with pytest.raises(error, match=message):
        gf.sweep(make, axes, 10, key=KEY, audit=0, progress=False)
    with pytest.raises(TypeError, match="make returns a dictionary"):
        gf.sweep(lambda width: {"problem": 1}, {"width": [1]}, 10, key=KEY, progress=False)
