"""The experiments: their data are the paper's, verdicts follow from numbers, files are written, errors are clear."""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import scipy.linalg
from test_cli import run

from gdflow import experiments
from gdflow.experiments import riemannian
from gdflow.experiments.results import Panel, draw_panels, file_names
from gdflow.experiments.riemannian import runs as riemannian_runs
from gdflow.experiments.riemannian import supervised
from gdflow.experiments.riemannian.claims import (
    ALPHA,
    by_law,
    converges,
    in_order,
    is_alike,
    order_of,
    order_of_samples,
    ratio_interval,
    ratios,
    slight_order_of,
    slower_with_depth,
    twice,
)
from gdflow.experiments.riemannian.figures import bundle, by_depth
from gdflow.experiments.riemannian.runs import (
    LAWS,
    Case,
    Group,
    Run,
    Runs,
    Times,
    compute,
    layer_widths,
    saved_times,
    slowest_rate,
)
from gdflow.invariants import conserved
from gdflow.manifold import apply_operator, riemannian_hessian_form


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
def test_balanced_starts_are_those_of_section_B1(depth):
    case = Case("autoencoder", 8, 4, depth, "balanced", 1.0, "nearest")
    start = case.begin(0, 0)
    assert start.widths == (8, *[4] * (depth - 1), 8)
    for C in conserved(start):
        np.testing.assert_allclose(C, 0, atol=1e-13)
    values = np.linalg.svd(np.asarray(start.end_to_end), compute_uv=False)
    np.testing.assert_allclose(values, [1] * 4 + [0] * 4, atol=1e-13)
    # The same product for all depths and, but for its rank, for all ranks.
    other = dataclasses.replace(case, depth=3).begin(0, 0)
    np.testing.assert_allclose(other.end_to_end, start.end_to_end, atol=1e-14)


def test_data_and_teacher():
    case = Case("supervised", 20, 2, 5, "fan-out", 1.0)
    problem = case.problem(0, 0)
    assert (problem.info.d_x, problem.info.m, problem.info.d_y) == (20, 60, 20)
    assert np.linalg.matrix_rank(case.teacher(0, 0)) == 2
    np.testing.assert_allclose(problem.least_squares(), case.teacher(0, 0), atol=1e-12)
    # Variance 1/d of the entries of X: ‖X‖² is about m, with standard deviation √(2m/d).
    assert abs(float((problem.decomposition.S_X**2).sum()) - 60) < 4 * np.sqrt(2 * 60 / 20)
    # Another seed or draw, other data, teachers and starts.
    for seed, draw in ((1, 0), (0, 1)):
        assert np.abs(case.problem(seed, draw).design - problem.design).max() > 0.1
        assert np.abs(case.teacher(seed, draw) - case.teacher(0, 0)).max() > 0.1
        assert np.abs(case.begin(seed, draw).weights[0] - case.begin(0, 0).weights[0]).max() > 0.1
    # The same data for all depths, other ones for other sizes.
    other = dataclasses.replace(case, depth=2, task="autoencoder").problem(0, 0)
    np.testing.assert_array_equal(problem.decomposition.S_X, other.decomposition.S_X)


@pytest.mark.parametrize(
    ("law", "variance"),
    [("fan-out", lambda a, b: 1 / b), ("fan-in", lambda a, b: 1 / a), ("Glorot", lambda a, b: 2 / (a + b))],
)
def test_laws_of_starts(law, variance):
    """The mean square of the entries of each layer lies within 4 standard errors of its variance (false alarms: 2e-4)."""
    case = Case("supervised", 20, 2, 5, law, 1.0)
    widths = case.widths
    for d_in, d_out, W in zip(widths[:-1], widths[1:], case.begin(0, 0).weights, strict=True):
        assert abs(float((W**2).mean()) / variance(d_in, d_out) - 1) < 4 * np.sqrt(2 / W.size)


def full_start(case, seed, draw):
    """The start of section B.1 in the printed widths: `W_j = V_j I U_{j−1}ᵀ` with inner orthogonal matrices of any kind."""
    small = case.begin(seed, draw)
    if case.start != "balanced":
        return [np.asarray(W) for W in small.weights]
    rng, rank = np.random.default_rng(7), case.rank
    frames = [np.linalg.qr(rng.normal(size=(d, d)))[0][:, :rank] for d in case.widths]
    frames[0], frames[-1] = np.asarray(small.weights[0]).T, np.asarray(small.weights[-1])
    return [after @ before.T for before, after in zip(frames[:-1], frames[1:], strict=True)]


def independent(weights, X, Y, ts, step):
    """RK4 in NumPy on all layers, in data coordinates: the end-to-end matrices at the times."""

    def field(Ws):
        product = functools.reduce(lambda right, left: left @ right, Ws)
        G = (Y - product @ X) @ X.T
        out = []
        for j in range(len(Ws)):
            below = functools.reduce(lambda right, left: left @ right, Ws[:j], np.eye(Ws[0].shape[1]))
            above = functools.reduce(lambda left, right: left @ right, Ws[:j:-1], np.eye(Ws[-1].shape[0]))
            out.append(above.T @ G @ below.T)
        return out

    def add(Ws, h, Ks):
        return [W + h * K for W, K in zip(Ws, Ks, strict=True)]

    saved, t = [], 0.0
    for end in ts:
        count = max(1, int(np.ceil((end - t) / step))) if end > t else 0
        h = (end - t) / max(count, 1)
        for _ in range(count):
            one = field(weights)
            two = field(add(weights, h / 2, one))
            three = field(add(weights, h / 2, two))
            four = field(add(weights, h, three))
            slope = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(one, two, three, four, strict=True)]
            weights = add(weights, h, slope)
        t = end
        saved.append(functools.reduce(lambda right, left: left @ right, weights))
    return np.stack(saved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("supervised", 8, 2, 4, "balanced", 40.0),
        Case("autoencoder", 6, 3, 3, "balanced", 40.0, "nearest"),
        Case("autoencoder", 6, 2, 3, "Glorot", 40.0),
    ],
)
def test_an_independent_integration_agrees(case):
    """All layers of the printed widths, in data coordinates, by RK4 with `hλ ≈ 0.05`: its errors are far below those compared."""
    run = compute(case, 0, 0)
    problem = case.problem(0, 0)
    X, Y = np.asarray(problem.design), np.asarray(problem.target)
    matrices = independent(full_start(case, 0, 0), X, Y, run.ts, 0.01)
    losses = 0.5 * np.sum((Y - matrices @ X) ** 2, axis=(1, 2))
    U, s, Vt = np.linalg.svd(Y @ np.linalg.pinv(X) @ scipy.linalg.sqrtm(X @ X.T))
    best = (U[:, : case.rank] * s[: case.rank]) @ Vt[: case.rank] @ np.linalg.inv(scipy.linalg.sqrtm(X @ X.T))
    errors = np.linalg.norm(matrices - best, axis=(1, 2))
    # Local errors of 3e-5 of the state; where the error is small it is the relative accuracy of its decay that counts.
    np.testing.assert_allclose(run.errors, errors, rtol=1e-2, atol=1e-4 * errors[0])
    np.testing.assert_allclose(run.losses - run.least, losses - run.least, rtol=2e-2, atol=1e-4 * losses[0])
    for fraction in (0.1, 0.01):
        mine = Group(case, (run,)).times_of_fall(fraction).median
        dense = np.interp(-np.log(fraction), -np.log(np.minimum.accumulate(errors) / errors[0]), run.ts)
        if errors[-1] < fraction * errors[0]:
            assert mine == pytest.approx(dense, rel=0.01)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_slowest_rate_is_the_least_eigenvalue_of_the_hessian(rank):
    """The Riemannian Hessian at `U_rU_rᵀ` as a matrix on the whole tangent space, for depths 2 and 5."""
    case = Case("autoencoder", 6, rank, 2, "balanced", 1.0)
    problem = case.problem(0, 3)
    U = np.linalg.svd(np.asarray(problem.design))[0]
    W = U[:, :rank] @ U[:, :rank].T
    basis = [np.outer(U[:, i], U[:, j]) for i in range(6) for j in range(6) if i < rank or j < rank]

    def form(Z):
        return float(riemannian_hessian_form(problem, jnp.asarray(W), jnp.asarray(Z), rank=rank))

    matrix = np.array([[0.25 * (form(a + b) - form(a - b)) for a in basis] for b in basis])
    for depth in (2, 5):
        # 𝒜 in this basis, and rates as the eigenvalues of 𝒜 times the Hessian.
        images = [np.asarray(apply_operator(jnp.asarray(W), jnp.asarray(Z), depth, rank=rank)) for Z in basis]
        operator = np.array([[np.sum(a * b) for a in images] for b in basis])
        rates = np.sort(np.linalg.eigvals(operator @ matrix).real)
        assert slowest_rate(problem, case, None) == pytest.approx(rates[0], rel=1e-9)


@pytest.mark.parametrize(("depth", "draw"), [(2, 0), (3, 1), (3, 2)])
def test_the_slowest_rate_of_a_teacher_bounds_the_least_eigenvalue(depth, draw):
    """From above, and by less than a factor 2: other directions of the tangent space mix in."""
    case = Case("supervised", 6, 2, depth, "balanced", 1.0)
    problem, teacher = case.problem(0, draw), case.teacher(0, draw)
    U, _, Vt = np.linalg.svd(teacher)
    basis = [np.outer(U[:, i], Vt[j]) for i in range(6) for j in range(6) if i < 2 or j < 2]

    def form(Z):
        return float(riemannian_hessian_form(problem, jnp.asarray(teacher), jnp.asarray(Z), rank=2))

    matrix = np.array([[0.25 * (form(a + b) - form(a - b)) for a in basis] for b in basis])
    images = [np.asarray(apply_operator(jnp.asarray(teacher), jnp.asarray(Z), depth, rank=2)) for Z in basis]
    operator = np.array([[np.sum(a * b) for a in images] for b in basis])
    least = np.sort(np.linalg.eigvals(operator @ matrix).real)[0]
    assert least * (1 - 1e-9) <= slowest_rate(problem, case, teacher) < 2 * least


def times(values, end=np.inf):
    values = np.asarray(values, float)
    reached = values <= end
    return Times(np.stack([np.where(reached, values, end), np.where(reached, values, np.inf)]))


def test_orders_need_both_sets_of_draws():
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(size=40))
    noise = np.exp(0.3 * rng.normal(size=40))

    def decided(first, second, decide=order_of):
        return twice(decide, ratios(first, second))

    assert decided(times(base), times(3 * base * noise)) == 1
    assert decided(times(base), times(base * noise / 3)) == -1
    assert decided(times(base), times(base * (1 + 0.01 * (noise - 1)))) == 0
    assert decided(times(base), times(base * noise)) is None
    # One half says so, the other the contrary.
    mixed = np.where(np.arange(40) % 2 == 0, 3.0, 1 / 3)
    assert decided(times(base), times(base * mixed)) is None
    # Runs that end early are longer than those that arrive before, and of no order beside each other.
    late = times(np.full(40, 100.0), end=50.0)
    assert decided(times(base), late) == 1
    assert decided(late, times(base)) == -1
    assert decided(late, late) is None
    assert decided(times(base), times(1.2 * base), is_alike) is True
    assert decided(times(base), times(3 * base), is_alike) is False
    # However little longer, if it is so in every draw; not by more than a slight factor, and not less long.
    assert decided(times(base), times(1.01 * base), slight_order_of) == 1
    assert decided(times(base), times(0.99 * base), slight_order_of) == -1
    assert decided(times(base), times(3 * base), slight_order_of) == -1
    assert decided(times(base), times(base * mixed**0.3), slight_order_of) is None
    # Half as long in half of the draws, and nearly the same in the others: no sign, but not longer by a tenth.
    assert decided(times(base), times(base * np.where(np.arange(40) % 4 < 2, 0.5, 1.02))) == 0


@pytest.mark.parametrize(
    ("orders", "verdict"),
    [
        ((1, 1), True),
        ((1, 0), True),
        ((1, None), True),
        ((1, -1), False),
        ((0, 0), False),
        ((0, None), None),
        ((None, -1), False),
    ],
)  # fmt: skip
def test_a_claim_on_several_pairs(orders, verdict):
    assert in_order(orders) is verdict


def test_orders_of_draws_that_are_not_paired():
    rng = np.random.default_rng(4)
    a, b = np.exp(rng.normal(size=80)), np.exp(rng.normal(size=25))
    assert order_of_samples(times(a), times(5 * b)) == 1
    assert order_of_samples(times(5 * a), times(b)) == -1
    assert order_of_samples(times(a), times(b)) is None
    near = np.exp(0.01 * rng.normal(size=(2, 40)))
    assert order_of_samples(times(near[0]), times(1.02 * near[1])) == 0
    # What ends early counts at the end that is against the order.
    late = times(np.full(40, 100.0), end=50.0)
    assert order_of_samples(times(a), late) == 1
    assert order_of_samples(late, late) is None


def test_no_order_is_found_where_there_is_none():
    """Of 400 pairs of equal laws about 2·α² = 8e-4 are ordered in both sets: four or more with a probability below 5e-4."""
    rng = np.random.default_rng(1)
    found = [twice(order_of, ratios(times(np.exp(a)), times(np.exp(b)))) for a, b in rng.normal(size=(400, 2, 60))]
    assert sum(order is not None for order in found) < 4


def test_intervals_of_ratios_cover_the_median():
    """Lognormal ratios of median 1: 1000 intervals miss it in at most 2·α, here within 4 standard errors."""
    rng = np.random.default_rng(2)
    missed = 0
    for values in np.exp(rng.normal(size=(1000, 25))):
        low, high = ratio_interval(np.stack([values, values]))
        missed += not low <= 1 <= high
    assert missed / 1000 <= 2 * ALPHA + 4 * np.sqrt(2 * ALPHA / 1000)


def group(rates, case=None, span=1e4, fit=1.0):
    """Errors that decay exponentially, certified from 1e-2 on."""
    case = case or Case("autoencoder", 10, 5, 2, "balanced", span, "nearest")
    runs = []
    for draw, rate in enumerate(rates):
        ts = saved_times(span)
        errors = np.exp(-rate * ts)
        arrived = errors[-1] <= 1e-5
        if arrived:
            kept = errors > 1e-5
            ts = np.append(ts[kept], np.log(1e5) / rate)
            errors = np.exp(-rate * ts)
        certified = bool(errors[-1] < 1e-2)
        status = "converged" if arrived else "end of span"
        losses = 1.0 + errors**2
        runs.append(
            Run(
                case,
                draw,
                ts,
                errors,
                losses,
                ts[-1],
                certified,
                status,
                1.0,
                np.nan,
                fit * rate,
                1.0001,
                10,
                errors[0],
                losses[0],
            )
        )
    return Group(case, tuple(runs))


def test_times_are_interpolated_and_never_guessed():
    one = group([2.0, 1e-6])
    bounds = one.times(1e-2).bounds
    assert bounds[0, 0] == bounds[1, 0] == pytest.approx(np.log(100) / 2, rel=1e-3)
    assert (bounds[0, 1], bounds[1, 1]) == (1e4, np.inf)
    assert one.runs[0].converged
    assert not one.runs[1].converged


def test_times_are_those_of_relative_errors():
    """From starts at different distances: as long as they take from a distance of 0.01‖W*‖ is the same, its fractions are not."""
    ts = saved_times(100.0)
    case = Case("autoencoder", 6, 2, 3, "Glorot", 100.0)
    near, far = (
        Run(
            case,
            0,
            ts,
            first * np.exp(-ts),
            np.exp(-ts),
            ts[-1],
            True,
            "converged",
            0.0,
            np.nan,
            1.0,
            1.0,
            10,
            2.0,
            4.0,
        )
        for first in (3.0, 9.0)
    )
    for flow, first in ((near, 3.0), (far, 9.0)):
        group = Group(case, (flow,))
        assert group.times(0.01).median == pytest.approx(np.log(first / (0.01 * 2.0)), rel=1e-9)
        assert group.times_of_fall(0.01).median == pytest.approx(np.log(100), rel=1e-9)
        assert group.times(0.01, "relative_losses").median == pytest.approx(np.log(1 / 0.04), rel=1e-9)
        assert group.times(20.0).median == 0  # from the beginning


def test_verdicts_follow_the_numbers():
    rng = np.random.default_rng(3)
    fast, slow = np.exp(0.2 * rng.normal(size=(2, 24)))
    deep = Case("autoencoder", 10, 5, 20, "balanced", 1e4, "nearest")
    one, other = group(fast), group(0.1 * slow, deep)
    assert slower_with_depth([[one, other]], "").confirmed is True
    assert slower_with_depth([[other, one]], "").confirmed is False
    same = slower_with_depth([[one, group(slow, deep)]], "")
    assert (same.confirmed, bool(same.reason)) == (None, True)
    assert converges([one, other], "").confirmed is True
    left = converges([one, group(np.append(fast, 1e-6))], "")
    assert left.confirmed is None
    assert "1 of 25 runs of (d=10, r=5, N=2, balanced) end before, at t = 1e+04 (end of span)" in left.reason
    assert "N = 20: not run" in converges([one], "", shown={"N = 2", "N = 20"}).reason
    # A panel without the deepest networks decides nothing.
    split = slower_with_depth([[one, other], [other, group(slow, dataclasses.replace(deep, depth=5))]], "")
    assert split.confirmed is True
    assert "N = 20 was not run in 1 of 2 panels" in split.measured
    # What depends on a law that is not printed is not decided from the print.
    panels = dict(zip(LAWS, ([[one, other]], [[one, other]], [[other, one]]), strict=True))
    split = by_law(panels, lambda p: slower_with_depth(p, ""))
    assert split.verdict == "not decidable from the print"
    assert "standard deviation" in split.reason
    agreed = by_law(dict.fromkeys(LAWS, panels["fan-out"]), lambda p: slower_with_depth(p, ""))
    assert (agreed.confirmed, agreed.reason) == (True, "")


def test_bundles_show_what_is_known():
    arrived, unfinished = (
        bundle(group(rates), lambda run: run.errors, by_depth) for rates in ([1.0] * 12, [1e-5] * 12)
    )
    assert not arrived.unfinished
    assert 1e-5 <= arrived.smallest < 3e-5  # saved times are 25 a decade
    assert unfinished.unfinished
    assert unfinished.end == pytest.approx(1e4)
    figure = draw_panels([Panel("one", [arrived]), Panel("other", [unfinished])], "error", "seed 0")
    (left, right) = figure.axes
    assert left.get_ylim() == right.get_ylim()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["(a)", "(b)"]
    texts = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert texts == [["$N = 2$"], ["runs end here"]]
    # Until the first of the draws arrives no curve is drawn below what is known, and none after its end.
    assert np.nanmax(left.lines[0].get_xdata()) < 20
    assert right.lines[0].get_xdata()[-1] == pytest.approx(1e4)


@pytest.fixture
def small(monkeypatch):
    """Figures 1 to 4 of a size that takes seconds."""

    def panel(runs, task, panel, start):
        return [(Case(task, 4 + 2 * panel, 2, depth, start, 1e3), 12) for depth in ((2,) if panel else (2, 5))]

    monkeypatch.setattr(supervised, "panel_cases", panel)


@pytest.mark.slow
def test_a_figure_is_written_and_decided(small, tmp_path, monkeypatch):
    computed = []
    monkeypatch.setattr(riemannian_runs, "compute", lambda *args: computed.append(args) or compute(*args))
    told = []
    runs = Runs(fast=True, report=lambda *args: told.append(args))
    result = riemannian.figure_1(runs=runs)
    assert told == [("Figure 1", done, 36) for done in range(37)]
    for path in result.save(tmp_path):
        assert path.stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == set(file_names("riemannian-1"))
    picture = matplotlib.image.imread(tmp_path / "riemannian-1.png")
    assert picture.shape[1] > 1500
    assert np.std(picture) > 0.05

    with open(tmp_path / "riemannian-1.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["sizes", "seed", "version", "task", "d", "r", "N", "start", "panel", "draw", "t", "error"]
    assert {(row["panel"], row["N"], row["draw"]) for row in rows} == {
        (*run, str(draw)) for run in (("left", "2"), ("left", "5"), ("right", "2")) for draw in range(12)
    }
    assert {(row["sizes"], row["seed"]) for row in rows} == {("fast", "0")}

    text = (tmp_path / "riemannian-1.md").read_text(encoding="utf-8")
    for part in ("slower for larger N", "V_0", "Fast sizes; seed 0", "## Errata", "U_k ∈ R^{d_y×k}"):
        assert part in text
    for claim in result.claims:
        assert f"**{claim.verdict}**: {claim.text}" in text
        assert claim.measured in text
        assert bool(claim.reason) == (claim.confirmed is None)
        assert claim.reason in text
    assert [claim.confirmed for claim in result.claims[:2]] == [True, True]

    # What figures share is computed once.
    assert len(computed) == 36
    riemannian.figure_4(runs=runs)
    assert len(computed) == 36 + 24


def test_every_figure_has_an_experiment():
    figures = [f"riemannian-{n}" for n in range(1, 10)]
    drawn = ["landscape", "landscape-2", "landscape-3", "landscape-4"]
    assert list(experiments.EXPERIMENTS) == ["riemannian", *figures, *drawn, "spurious-minima"]
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
    assert "the loss, like the error" in out
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
    claims = [claim for result in results for claim in result.claims]
    verdicts = {result.name: [claim.confirmed for claim in result.claims] for result in results}
    assert verdicts["riemannian-3"] == [True]  # the critical point is the teacher
    assert verdicts["riemannian-6"] == [True]
    assert [claim.confirmed for claim in claims if claim.ours] == [True, True]  # late rates are eigenvalues
    assert all(bool(claim.reason) == (claim.confirmed is None) for claim in claims)
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert all(result.title in index for result in results)
    printed = [claim for claim in claims if not claim.ours]
    assert f"Of {len(printed)} claims of the paper {sum(c.confirmed is True for c in printed)} confirmed" in index
