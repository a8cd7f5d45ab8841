"""The experiments: their data are the paper's, verdicts follow from numbers, files are written, errors are clear."""

import csv
import dataclasses

import jax
import matplotlib.image
import numpy as np
import pytest
from test_cli import run

from gdflow import experiments
from gdflow.experiments import riemannian
from gdflow.experiments.results import Curve, file_names
from gdflow.experiments.riemannian import runs as riemannian_runs
from gdflow.experiments.riemannian import supervised
from gdflow.experiments.riemannian.claims import converges, slower_with_depth
from gdflow.experiments.riemannian.figures import distance_to_best, measured_panels
from gdflow.experiments.riemannian.runs import Budget, Case, Runs, layer_widths
from gdflow.invariants import conserved


@pytest.mark.parametrize(
    ("d", "rank", "depth", "rounding", "widths"),
    [
        # By hand: r + (d − r)(j − 1)/(N − 1) = 2, 6.5, 11, 15.5, 20.
        (20, 2, 5, "ceiling", (20, 2, 7, 11, 16, 20)),
        (20, 2, 5, "nearest", (20, 2, 7, 11, 16, 20)),
        # 5, 6.25, 7.5, 8.75, 10: the two roundings differ.
        (10, 5, 5, "nearest", (10, 5, 6, 8, 9, 10)),
        (10, 5, 5, "ceiling", (10, 5, 7, 8, 9, 10)),
        (4, 2, 2, "nearest", (4, 2, 4)),
        # 1 + 19(j − 1)/19: integers, which round-off must not lift.
        (20, 1, 20, "ceiling", (20, *range(1, 21))),
    ],
)
def test_widths_are_the_printed_ones(d, rank, depth, rounding, widths):
    assert layer_widths(d, rank, depth, rounding) == widths


@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.slow
def test_balanced_starts_are_those_of_section_B1(depth):
    case = Case("autoencoder", 8, 4, depth, True, 1.0, "nearest")
    start = case.start()
    assert start.widths == case.widths
    for C in conserved(start):
        np.testing.assert_allclose(C, 0, atol=1e-13)
    for W in (*start.weights, start.end_to_end):  # d_1 singular values 1, the others 0
        np.testing.assert_allclose(
            np.linalg.svd(np.asarray(W), compute_uv=False), [1] * 4 + [0] * (min(W.shape) - 4), atol=1e-13
        )


@pytest.mark.slow
def test_data_and_teacher():
    case = Case("supervised", 20, 2, 5, False, 1.0)
    problem = case.problem()
    assert (problem.info.d_x, problem.info.m, problem.info.d_y) == (20, 60, 20)
    assert np.linalg.matrix_rank(case.teacher()) == 2
    np.testing.assert_allclose(problem.least_squares(), case.teacher(), atol=1e-12)
    # Variance 1/d of the entries of X: ‖X‖² is about m, with standard deviation √(2m/d).
    assert abs(float((problem.decomposition.S_X**2).sum()) - 60) < 4 * np.sqrt(2 * 60 / 20)
    # Standard deviation 1/√d_j of the non-balanced starts, within 4 standard errors of the scale of each layer.
    for d_j, W in zip(case.widths[1:], case.start().weights, strict=True):
        assert abs(float((W**2).mean()) * d_j - 1) < 4 * np.sqrt(2 / W.size)
    # Another seed, other data, teachers and starts.
    again = dataclasses.replace(case, seed=1)
    assert np.abs(again.problem().design - problem.design).max() > 0.1
    assert np.abs(again.teacher() - case.teacher()).max() > 0.1
    assert np.abs(again.start().weights[0] - case.start().weights[0]).max() > 0.1
    # The same data for all depths, other ones for other sizes.
    other = dataclasses.replace(case, depth=2, task="autoencoder").problem()
    np.testing.assert_array_equal(problem.decomposition.S_X, other.decomposition.S_X)


def exponential(rate, end=10.0):
    ts = np.linspace(0, end, 101)
    values = np.exp(-rate * ts)
    return Curve("", ts, values[:41], values)


def test_curves_measure_rates_and_times():
    curve = exponential(2.0)
    np.testing.assert_array_equal(curve.values, curve.second)
    assert curve.late_rate() == pytest.approx(2.0)
    assert curve.time_to(1e-2) == pytest.approx(np.log(100) / 2, abs=0.1)
    assert curve.time_to(1e-12) == np.inf
    # An error that rises again has not got there.
    back = dataclasses.replace(curve, first=curve.first[:0], second=np.append(curve.second[:-1], 1.0))
    assert back.time_to(1e-2) == np.inf


@pytest.fixture
def small(monkeypatch):
    """Figures 1 to 4 of a size that takes seconds."""

    def panel(runs, task, panel, balanced):
        return [Case(task, 4 + 2 * panel, 2, depth, balanced, 4.0) for depth in ((2,) if panel else (2, 3))]

    monkeypatch.setattr(supervised, "panel_cases", panel)
    monkeypatch.setattr(riemannian_runs, "FAST", Budget(steps=200, work=1e9))


@pytest.mark.slow
def test_a_figure_is_written_and_decided(small, tmp_path, monkeypatch):
    computed = []
    compute = riemannian_runs.compute
    monkeypatch.setattr(riemannian_runs, "compute", lambda case, budget: computed.append(case) or compute(case, budget))
    told = []
    runs = Runs(fast=True, report=lambda *args: told.append(args))
    result = riemannian.figure_1(runs=runs)
    assert told == [("Figure 1", done, 3) for done in range(4)]
    for path in result.save(tmp_path):
        assert path.stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == set(file_names("riemannian-1"))
    picture = matplotlib.image.imread(tmp_path / "riemannian-1.png")
    assert picture.shape[1] > 1500
    assert np.std(picture) > 0.05

    with open(tmp_path / "riemannian-1.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["panel", "d", "r", "N", "start", "solver", "t", "error"]
    assert {(row["panel"], row["N"], row["solver"]) for row in rows} == {
        (*run, solver) for run in (("left", "2"), ("left", "3"), ("right", "2")) for solver in ("RK4", "adaptive")
    }
    last = {row["solver"]: float(row["error"]) for row in rows if row["panel"] == "left" and row["N"] == "2"}
    assert last["RK4"] == pytest.approx(last["adaptive"], rel=1e-2)

    text = (tmp_path / "riemannian-1.md").read_text(encoding="utf-8")
    assert "slower for larger N" in text
    assert "V_0" in text
    for claim in result.claims:
        assert f"**{claim.verdict}**: {claim.text}" in text
        assert claim.measured in text
    assert result.claims[-1].confirmed  # the solvers agree
    assert "agree" in str(result)

    # In a time this short not everything converges, and the text must say so.
    claim = result.claims[0]
    assert claim.confirmed is not True
    assert f"**{claim.verdict}**" in text

    # What figures share is computed once.
    assert len(computed) == 3
    riemannian.figure_4(runs=runs)
    assert len(computed) == 3


@pytest.mark.slow
def test_verdicts_follow_the_numbers(small):
    runs = Runs(fast=True)
    panels = measured_panels(runs, 1, [supervised.panel_cases(runs, "supervised", 0, True)], distance_to_best)
    (one, _), (other, _) = panels[0]

    def slower(*rates):
        entries = [(run, exponential(rate)) for run, rate in zip((one, other), rates, strict=True)]
        return slower_with_depth([entries], ""), converges(entries, "")

    assert [claim.confirmed for claim in slower(4.0, 2.0)] == [True, True]
    assert [claim.confirmed for claim in slower(2.0, 4.0)] == [False, True]
    # Not there at the end but still falling; and standing still. A run that ends first has taken longer.
    assert [claim.confirmed for claim in slower(2.0, 0.1)] == [True, None]
    assert [claim.confirmed for claim in slower(0.0, 0.1)] == [None, False]
    assert slower(0.0, 2.0)[0].confirmed is False


def test_every_figure_has_an_experiment():
    figures = [f"riemannian-{n}" for n in range(1, 10)]
    assert list(experiments.EXPERIMENTS) == ["riemannian", *figures, "spurious-minima"]
    assert experiments.EXPERIMENTS["riemannian"].outputs == tuple(f"riemannian-{n}" for n in range(1, 10))
    for experiment in experiments.EXPERIMENTS.values():
        assert experiment.description
        assert "\n" not in experiment.description


@pytest.mark.slow
def test_finished_figures_stay_if_a_later_one_fails(small, tmp_path, monkeypatch):
    def fails(**options):
        raise RuntimeError("no")

    monkeypatch.setattr(riemannian, "FIGURES", {4: riemannian.figure_4, 5: fails})
    experiment = dataclasses.replace(
        experiments.EXPERIMENTS["riemannian"],
        outputs=("riemannian-4", "riemannian-5"),
        run=lambda fast, report, seed: riemannian.run_figures((4, 5), fast, report, seed),
    )
    monkeypatch.setitem(experiments.EXPERIMENTS, "both", experiment)
    with pytest.raises(RuntimeError):
        experiments.run_experiment("both", tmp_path, fast=True)
    assert {path.name for path in tmp_path.iterdir()} == set(file_names("riemannian-4"))


@pytest.mark.slow
def test_command(small, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def gdflow(*arguments):
        return run(capsys, monkeypatch, "experiment", *arguments)

    code, out, err = gdflow("riemannian-4", "--out", "results", "--fast", "--no-progress")
    assert (code, err) == (0, "")
    assert "the loss converges to 0" in out
    assert "riemannian-4.md" in out
    assert {path.name for path in (tmp_path / "results").iterdir()} == set(file_names("riemannian-4"))

    code, _, err = gdflow("riemannian-4", "--out", "results", "--fast")
    assert code == 2
    assert "already holds riemannian-4.png" in err

    code, _, err = gdflow("riemanian")
    assert code == 2
    assert "there is no experiment 'riemanian'" in err
    assert "riemannian-9: " in err

    (tmp_path / "file").write_text("")
    code, _, err = gdflow("riemannian-4", "--out", "file")
    assert code == 2
    assert "cannot be an output folder" in err


def test_seeds_that_are_none_are_refused():
    with pytest.raises(ValueError, match="seed lies between 0 and"):
        Runs(seed=-1)


def test_single_precision_is_refused():
    with jax.enable_x64(False), pytest.raises(ValueError, match="double precision"):
        Runs()


@pytest.mark.slow
def test_the_whole_experiment_fast(tmp_path):
    results = experiments.run_experiment("riemannian", tmp_path, fast=True)
    assert {path.name for path in tmp_path.iterdir()} == set(experiments.EXPERIMENTS["riemannian"].files)
    verdicts = {result.name: [claim.confirmed for claim in result.claims] for result in results}
    assert all(claims[-1] for claims in verdicts.values())  # the solvers agree everywhere
    assert verdicts["riemannian-3"][0]  # the critical point is the teacher
    assert not verdicts["riemannian-6"][1]  # L¹ does not converge to the square root of the tail
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert all(result.title in index for result in results)
    # What is ours is counted apart: the solvers in nine figures, late rates in two, W(T) in two.
    claims = [claim for result in results for claim in result.claims]
    printed = [claim for claim in claims if not claim.text.startswith("(not the paper's)")]
    assert len(claims) - len(printed) == 13
    assert f"Of {len(printed)} claims of the paper {sum(c.confirmed is True for c in printed)} confirmed" in index
