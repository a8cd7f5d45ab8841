"""Spurious minima of ReLU students: patterns, paired intervals, verdicts from made-up numbers, and a small run."""

import csv
import dataclasses
import itertools

import jax
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from pictures import check_readable
from test_cli import run as run_command

import gdflow as gf
from gdflow import experiments
from gdflow.experiments import spurious_minima as sm
from gdflow.experiments.results import file_names
from gdflow.experiments.spurious_minima import claims, figures, minima, runs

# -- patterns ----------------------------------------------------------------------------------------------------------


def one_against(k):
    """A matrix with the pattern of the most frequent spurious minimum."""
    W = np.full((k, k), -0.03) + 1.03 * np.eye(k)
    W[:, -1] = 0.25
    W[-1] = 0.16
    W[-1, -1] = -0.65
    return W


def test_patterns(rng):
    cases = [
        (np.eye(5), (5, 0, 0), (5,)),
        (one_against(6), (5, 1, 0), (5, 1)),
        # Two teachers share three students, of whom two are parallel.
        (np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.4, 0.4]]), (4, 0, 2), (2, 2)),
        (np.diag([1.0, 2.0, 2.0, -3.0]), (3, 1, 0), (2, 1, 1)),
        (np.array([[1.0, 2], [3, 4]]), (2, 0, 0), (1, 1)),
    ]
    for W, directions, alike in cases:
        moved = W[rng.permutation(len(W))][:, rng.permutation(W.shape[1])]
        assert minima.directions(moved) == directions
        # Round-off tells nothing apart.
        assert minima.alike_teachers(moved + 1e-9 * rng.normal(size=W.shape)) == alike


# -- made-up runs ------------------------------------------------------------------------------------------------------


def minimum(k, loss, W=None, **changes):
    students = np.eye(k) if W is None else W
    found = minima.Minimum(
        k, loss, students, *minima.directions(students), minima.alike_teachers(students), 0, 0, 0.01, 2.0
    )
    return dataclasses.replace(found, **changes)


def sweep(k, spurious, num=2000, *, step=0.0, rtol=1e-8, first=0, W=None, **changes):
    """A run in which `spurious` starts, from the one with the id `first` on, end at a minimum that is not global."""
    labels = np.zeros(num, int)
    labels[first : first + spurious] = 1
    classes = [minimum(k, 0.0), minimum(k, 0.02, one_against(k) if W is None else W)]
    made = runs.Sweep(
        k, "descent" if step else "flow", step, 0.0 if step else rtol, classes, labels, np.full(num, 0.3),
        np.full(num, 200.0), np.full(num, 300),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def results(flows=None, descents=None, steps=None, loose=None):
    flows = flows or {5: 0, 6: 20, 7: 90, 8: 240}
    descents = descents or flows
    steps = steps or {0.05: 240, 0.1: 240, 0.4: 238}
    made = tuple(x if isinstance(x, runs.Sweep) else sweep(k, x) for k, x in flows.items())
    by_descent = tuple(x if isinstance(x, runs.Sweep) else sweep(k, x, step=0.1) for k, x in descents.items())
    here = [descent for descent in by_descent if descent.k == 8 and descents is flows]
    by_step = tuple(
        x if isinstance(x, runs.Sweep) else here[0] if here and step == 0.1 else sweep(8, x, step=step)
        for step, x in steps.items()
    )
    return sm.Results(made, by_descent, by_step, loose or sweep(8, 240, rtol=1e-6))


def labels(num, *marks):
    """Labels of a run: `(first, last, label)`."""
    made = np.zeros(num, int)
    for first, last, label in marks:
        made[first:last] = label
    return made


def test_intervals_are_exact():
    made = sweep(8, 240)
    low, high = made.interval()
    assert scipy.stats.binom.sf(239, 2000, low) == pytest.approx(0.025)
    assert scipy.stats.binom.cdf(240, 2000, high) == pytest.approx(0.025)
    assert made.fraction == 0.12
    assert made.share(0)[0] == 1760


def test_starts_without_a_limit_widen_intervals_on_both_sides():
    sure = sweep(8, 240)
    lost = sweep(8, 240, labels=labels(2000, (0, 230, 1), (230, 260, -1)))
    near = sweep(8, 240, smallest=np.where(np.arange(2000) < 10, 1e-3, 0.3))
    assert (lost.count, int(lost.unknown.sum())) == (230, 30)
    assert (near.count, int(near.unknown.sum())) == (230, 10)
    for made, most in ((lost, 260), (near, 240)):
        low, high = made.interval()
        assert low == pytest.approx(sweep(8, 230).interval()[0])
        assert high == pytest.approx(sweep(8, most).interval()[1])
        assert low < sure.interval()[0]


def test_differences_are_paired():
    """Two runs of equal fractions but other starts; 3 of 2000 labels differ; none does."""
    one, other = sweep(8, 240), sweep(8, 240, step=0.1, first=100)
    d = runs.difference(one, other)
    assert (d.value, d.differ, d.first_only, d.second_only) == (0, 200, 100, 100)
    d = runs.difference(one, sweep(8, 237, step=0.1))
    assert (d.value, d.differ, d.first_only, d.second_only) == (0.0015, 3, 3, 0)
    # P(A) ≥ its bound with 3 seen, P(B) ≤ that with none; and the other way round.
    low, high = d.interval
    lower, upper = scipy.stats.beta.ppf(0.0125, 3, 1998), scipy.stats.beta.ppf(1 - 0.0125, 4, 1997)
    assert low == pytest.approx(lower - (1 - 0.0125 ** (1 / 2000)))
    assert high == pytest.approx(upper)
    assert d.same
    assert runs.difference(one, one).interval == pytest.approx((-0.00219, 0.00219), abs=1e-5)
    # What is lost in one run may be anything.
    lost = sweep(8, 240, labels=labels(2000, (0, 237, 1), (237, 240, -1)))
    d = runs.difference(lost, one)
    assert (d.first_only, d.second_only, d.differ) == (0, 0, 3)
    assert d.interval[0] == pytest.approx(-scipy.stats.beta.ppf(1 - 0.0125, 4, 1997))
    assert d.interval[1] == pytest.approx(1 - 0.0125 ** (1 / 2000))


def test_paired_intervals_cover(rng):
    """P(A) = 0.06, P(B) = 0.02 in 100 starts: at least 95 % of 400 intervals contain 0.04."""
    hits = 0
    for a, b in rng.multinomial(100, [0.06, 0.02, 0.92], size=400)[:, :2]:
        first = sweep(8, 0, 100, labels=labels(100, (0, a, 1)))
        low, high = runs.difference(first, sweep(8, 0, 100, labels=labels(100, (a, a + b, 1)))).interval
        hits += low <= 0.04 <= high
    assert hits >= 0.95 * 400


def test_claims_are_decided_by_numbers():
    def verdicts(claim, *cases):
        return [claim(case).confirmed for case in cases]

    lost = labels(2000, (0, 20, 1), (20, 21, -1))
    assert verdicts(
        claims.none_for_few,
        results(),
        results({5: 1, 8: 240}),
        results({5: sweep(5, 0, labels=labels(2000, (0, 1, -1))), 8: 240}),
        results({6: 20, 8: 240}),
    ) == [True, False, None, None]

    flat = [minimum(6, 0.0), minimum(6, 0.02, one_against(6), zero=1)]
    assert verdicts(
        claims.positive_measure,
        results(),
        results({6: 0, 8: 240}),
        results({6: sweep(6, 20, classes=flat), 8: 240}),
        results({6: sweep(6, 20, labels=lost), 8: 240}),
        results({5: 3}, loose=sweep(5, 3)),
    ) == [True, None, None, True, None]

    assert verdicts(
        claims.grows,
        results(),
        results({6: 20, 7: 240, 8: 239}),  # not increasing, but not certainly
        results({6: 20, 7: 240, 8: 90}),
        results({6: 20, 8: 22}),
        results({8: 240}),
    ) == [True, None, False, None, None]

    assert verdicts(
        claims.same_fractions,
        results(),
        results(descents={5: 0, 6: 20, 7: 90, 8: 225}),  # 15 starts only by the flow
        results(descents={5: 0, 6: 20, 7: 90, 8: sweep(8, 240, step=0.1, first=100)}),
        results({5: 1}, loose=sweep(5, 1)),
    ) == [True, False, None, None]
    assert "k=8: +0.75 % [0.065, 1.4]" in claims.same_fractions(results(descents={5: 0, 6: 20, 7: 90, 8: 225})).measured

    assert verdicts(
        claims.same_for_all_steps,
        results(),
        results(steps={0.1: 240, 0.4: 200}),
        results(steps={0.1: sweep(8, 240, first=200)}),
    ) == [True, False, None]

    assert verdicts(
        claims.more_differ,
        results(steps={0.05: 238, 0.2: 230, 0.4: 210}),
        results(steps={0.05: 210, 0.2: 230, 0.4: 238}),
        results(steps={0.05: 238, 0.2: 236, 0.4: 235}),
        results(steps={0.05: 238, 0.2: 210, 0.4: 211}),
    ) == [True, False, None, None]

    other = results({8: sweep(8, 240, W=-np.eye(8))})
    assert verdicts(claims.one_against, results(), other, results({6: 0, 8: 240})) == [True, False, None]

    assert verdicts(
        claims.all_strict,
        results(),
        results({6: sweep(6, 20, classes=flat), 8: 240}),
        results({6: sweep(6, 20, labels=lost), 8: 240}),
    ) == [True, False, None]

    near = sweep(8, 240, smallest=np.where(np.arange(2000) < 3, 1e-3, 0.3))
    assert verdicts(claims.away_from_zero, results(), results({8: near})) == [True, False]
    assert claims.away_from_zero(results({8: near})).measured.startswith("6 of 10000 runs")

    assert verdicts(
        claims.tolerances_suffice,
        results(),
        results(loose=sweep(8, 241, rtol=1e-6)),
        results({8: sweep(8, 240, audited=100, flips=1)}),
    ) == [True, False, False]
    assert (
        "contradict 1 of 100" in claims.tolerances_suffice(results({8: sweep(8, 240, audited=100, flips=1)})).measured
    )


def test_every_claim_has_numbers():
    for made in (results(), results({8: 0}, steps={0.1: 0}, loose=sweep(8, 0, rtol=1e-6)), results({4: 0, 8: 2000})):
        for claim in claims.CLAIMS:
            assert claim(made).measured


@pytest.mark.parametrize(
    "made",
    [
        results(),
        results(
            {k: int(2000 * (1 - 5 / k) ** 2) if k > 5 else 0 for k in range(4, 21)},
            steps=dict.fromkeys(runs.STEPS, 240),
        ),
        results({7: 0, 8: 0}, steps={0.1: 0, 0.4: 0}, loose=sweep(8, 0, rtol=1e-6)),
        results({7: 2000, 8: 2000}, steps={0.1: 2000, 0.4: 2000}, loose=sweep(8, 2000, rtol=1e-6)),
    ],
    ids=["four", "many", "none", "all"],
)
def test_pictures_can_be_read(made):
    figure = figures.draw(made)
    check_readable(figure)
    assert len(figure.axes) == 3


def test_tables():
    made = results()
    classes, runs = figures.class_table(made).to_pylist(), figures.run_table(made).to_pylist()
    # Four flows and descents, two other steps, one with looser tolerances: descent with 0.1 stands once, in its place.
    assert [row["method"] for row in runs[:2]] == ["flow", "descent, step 0.1"]
    assert runs[-1]["method"] == "flow, rtol 1e-06"
    assert len(classes) == 2 * len(runs)
    for row in classes:
        assert row["low"] <= row["fraction"] == row["ended there"] / 2000 <= row["high"]
        assert row["global"] == (row["class"] == 0)
    assert sum(row["ended there"] for row in classes) == 2000 * len(runs)


def test_command(capsys, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sm, "compute", lambda study, report, seed: asked.append((study, seed)) or results())
    folder = tmp_path / "out"
    arguments = ("spurious-minima", "--out", str(folder), "--no-progress", "--seed", "3")
    code, out, err = run_command(capsys, monkeypatch, "experiment", *arguments, "--fast")
    assert (code, err) == (0, "")
    assert asked == [(sm.FAST, 3)]
    assert "spurious-minima.md" in out
    assert {path.name for path in folder.iterdir()} == set(file_names(sm.NAME))
    assert matplotlib.image.imread(folder / "spurious-minima.png").shape[1] > 2000
    with open(folder / "spurious-minima-runs.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 11
    text = (folder / "spurious-minima.md").read_text(encoding="utf-8")
    pattern = "6 along, 1 against; teachers 6+1; λ_min 0.01"
    assert f"- k = 7, of 2000 starts: 0.02 ({pattern}): 90 by the flow, 90 by descent." in text
    for claim in claims.CLAIMS:
        assert claim(results()).statement in text
    # Without `fast`, the whole study.
    run_command(capsys, monkeypatch, "experiment", *arguments, "--overwrite")
    assert asked[1:] == [(sm.FULL, 3)]


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="seed lies between 0 and"):
        sm.spurious_minima(fast=True, seed=-1)
    with jax.enable_x64(False), pytest.raises(ValueError, match="double precision"):
        sm.spurious_minima(fast=True)


# -- a small run -------------------------------------------------------------------------------------------------------


def numpy_gradient(W):
    """`∂_{w_i}L` for teachers `e_j`, from the printed formula."""

    def pairs(W, V):
        a, b = np.linalg.norm(W, axis=1), np.linalg.norm(V, axis=1)
        angle = np.arccos(np.clip(W @ V.T / np.outer(a, b), -1, 1))
        return ((np.sin(angle) @ b / a)[:, None] * W + (np.pi - angle) @ V) / (2 * np.pi)

    return pairs(W, W) - pairs(W, np.eye(len(W)))


@pytest.fixture(scope="module")
def small():
    told = []
    study = sm.Study((7,), 16, 7, (0.1, 0.4), 0)
    return sm.compute(study, lambda *args: told.append(args), seed=0), told


@pytest.mark.slow
def test_a_small_run(small, tmp_path):
    made, told = small
    assert [done for _, done, _ in told] == list(range(5))
    assert {total for *_, total in told} == {4}
    assert [run.name for run in made.runs] == ["flow", "descent, step 0.1", "descent, step 0.4", "flow, rtol 1e-06"]
    assert made.reference.count > 0
    for run in made.runs:
        assert run.num == 16
        assert not run.unknown.any()
        assert run.smallest.min() > 0.05
        # Where there is a loss, it is the one measured by others.
        assert {round(m.loss, 7) for m in run.classes} <= {0.0, 0.0232027}
    # Few labels differ between methods from the same starts.
    assert runs.difference(*made.pairs[0]).differ <= 2
    # Minima are critical points with a positive definite Hessian.
    for found in made.reference.classes:
        assert (found.index, found.zero) == (0, 0)
        W = found.students
        np.testing.assert_allclose(numpy_gradient(W), 0, atol=1e-6 if found.is_global else 1e-12)
        if found.is_global:  # where arccos loses half of the digits
            continue
        assert (found.along, found.against, found.shared, found.alike) == (6, 1, 0, (6, 1))
        steps = 1e-5 * np.eye(49).reshape(49, 7, 7)
        H = np.array([(numpy_gradient(W + s) - numpy_gradient(W - s)).ravel() / 2e-5 for s in steps])
        values = np.linalg.eigvalsh(0.5 * (H + H.T))
        assert values[0] == pytest.approx(found.smallest, abs=1e-7)
        assert values[-1] == pytest.approx(found.largest, abs=1e-7)

    result = sm.result(made)
    assert len(result.save(tmp_path)) == 4
    said = dict(zip(claims.CLAIMS, result.claims, strict=True))
    assert said[claims.all_strict].confirmed
    assert said[claims.away_from_zero].confirmed
    assert said[claims.none_for_few].confirmed is None  # there are no controls
    assert result.runs.num_rows == 4


@pytest.mark.slow
def test_descent_is_that_of_numpy(small):
    """The start is the law's, the limit and the smallest norm on the way are those of a loop."""
    made, _ = small
    descent = made.descents[0]
    law = gf.initialization.Gaussian((7, 7))
    key = jax.random.fold_in(jax.random.key(0), 7)
    chosen = [int(np.flatnonzero(descent.spurious == bad)[0]) for bad in (False, True)]
    for start in chosen:
        W = np.asarray(law.sample(key, start).weights[0])
        smallest = np.linalg.norm(W, axis=1).min()
        for _ in range(int(descent.steps[start])):
            W = W - runs.STEP * numpy_gradient(W)
            smallest = min(smallest, np.linalg.norm(W, axis=1).min())
        assert np.linalg.norm(numpy_gradient(W)) < 1e-5
        assert descent.smallest[start] == pytest.approx(smallest, rel=1e-9)
        limit = descent.classes[descent.labels[start]].students
        # Equal up to an order of students and coordinates: all components, sorted.
        np.testing.assert_allclose(np.sort(W.ravel()), np.sort(limit.ravel()), atol=1e-2)


@pytest.mark.slow
def test_fractions_of_six():
    """A fraction that a colleague measured with another key and a loop of gradient descent of his own: 0.26 %."""
    classes = minima.Minima(6)
    made = runs.classified(classes, runs.run_starts(6, 2000, gf.basins.GradientDescent(0.1)))
    low, high = made.interval(0.01)
    assert low < 0.0026 < high
    assert sorted(found.pattern for found in classes.classes) == ["5 along, 1 against; teachers 5+1", "global"]


@pytest.mark.slow
def test_the_whole_experiment_fast(tmp_path):
    (result,) = experiments.run_experiment("spurious-minima", tmp_path, fast=True)
    assert {path.name for path in tmp_path.iterdir()} == set(experiments.EXPERIMENTS["spurious-minima"].files)
    said = dict(zip(claims.CLAIMS, result.claims, strict=True))
    for claim in (claims.none_for_few, claims.all_strict, claims.away_from_zero):
        assert said[claim].confirmed
    rows = [row for row in result.runs.to_pylist() if row["method"] == "flow"]
    fractions = [row["fraction"] for row in rows if row["k"] >= 7]
    assert all(a < b for a, b in itertools.pairwise(fractions))
