"""Pictures of flows show what they claim and can be read: curves, markers, counts, and labels that have room."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pictures import check_readable

import gdflow as gf
from gdflow import plotting
from gdflow.basins import BasinEstimate, Drift, Limits, Plan, Status
from gdflow.basins.samples import SampleTrajectories, sample_trajectories
from gdflow.basins.tally import Tally
from gdflow.plotting import basins, style
from gdflow.verdicts import AlmostSure, LevelVerdict

KEY = jax.random.key(0)


def plan_of(s, kind) -> Plan:
    problem = gf.Problem.from_singular_values(s)
    law = gf.initialization.Gaussian(problem.widths([5]))
    return gf.basins.make_plan(problem, law, key=KEY, verdict=kind(problem, law.widths), riders=(Drift(),))


PLAN = plan_of([3, 2, 1], LevelVerdict)
#: Where round-off cannot tell the lowest levels apart, and the claim is for almost every start: the longest words there are.
MERGED = plan_of([3, 1, 5e-7], AlmostSure)


def estimate_of(times, limits=0, statuses=Status.CERTIFIED, *, num=None, plan=PLAN, confidence=0.95) -> BasinEstimate:
    """An estimate with these rows, as if they had been run; `num`: so many times as many, of which these are kept."""
    times = np.asarray(times, float)
    rows = len(times)
    status, highest = (np.broadcast_to(np.asarray(x, int), rows) for x in (statuses, limits))
    columns = dict(
        status=status, limit=np.where(status == Status.CERTIFIED, highest, -1), highest=highest, time=times,
        steps=np.full(rows, 10), loss=np.full(rows, 0.1), gradient_norm=np.full(rows, 0.5), drift=np.zeros(rows),
    )  # fmt: skip
    tally = Tally(len(plan.verdict.labels))
    tally.add(columns)
    if num is not None:
        factor = num // rows
        tally.num *= factor
        for counts in (tally.statuses, tally.certified, tally.undecided, tally.times):
            counts *= factor
    table = plan.table(columns | {"id": np.arange(rows)})
    return BasinEstimate(plan, range(num or rows), tally, table, confidence, None, lanes=96, seconds=1.0)


def samples_of(times, limits, decided, end) -> SampleTrajectories:
    """Losses that fall from 7.5 through 0.5, or 2 for limits at lower rank, at given times."""
    ts = np.unique(np.concatenate([np.linspace(0, end, 50), times]))
    goals = np.where(np.asarray(limits) > 0, 2.0, 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(np.asarray(times)[:, None] > 0, ts / np.asarray(times)[:, None], 1.0)
    losses = 7.5 * (goals[:, None] / 7.5) ** shares
    decided = np.asarray(decided)
    losses[~decided[:, None] & (ts > np.asarray(times)[:, None])] = np.nan
    return SampleTrajectories(tuple(range(len(times))), ts, losses, decided, np.asarray(times), np.asarray(limits))


NO_SAMPLES = SampleTrajectories((), np.zeros(0), np.zeros((0, 0)), np.zeros(0, bool), np.zeros(0), np.zeros(0, int))


def legend(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.legends[0].get_texts()]


def ticks(axes) -> list[str]:
    FigureCanvasAgg(axes.figure).draw()
    return [t.get_text() for t in axes.get_xticklabels()]


@given(st.floats(-300, 290), st.floats(1.0, 30.0))
def test_logarithmic_axes_have_a_few_ticks_with_different_labels(exponent, decades):
    low, high = 10.0**exponent, 10.0 ** min(exponent + decades, 300)
    places = style.log_ticks(low, high)
    assert 2 <= len(places) <= 10
    assert len(set(style.tick_labels(places))) == len(places)
    assert all(low * (1 - 1e-6) <= place <= high * (1 + 1e-6) for place in places)


def test_tick_labels_read_as_numbers():
    assert style.tick_labels(style.log_ticks(0.02, 0.9)) == ["0.02", "0.05", "0.1", "0.2", "0.5"]
    assert style.tick_labels([1e-7, 1e-6]) == ["$10^{-7}$", "$10^{-6}$"]
    assert style.tick_labels([2e-7, 5e-7]) == [r"$2\cdot10^{-7}$", r"$5\cdot10^{-7}$"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=11).map(sorted))
def test_labels_are_spread_apart_and_stay_in_the_panel(places):
    moved = style.spread(np.array(places), 0.1)
    assert np.all(np.diff(moved) >= 0.1 - 1e-12)
    assert moved[0] >= 0
    assert moved[-1] <= 1 + 1e-12
    if np.all(np.diff(places) >= 0.1):
        np.testing.assert_allclose(moved, places, atol=1e-12)


def test_long_subsets_are_abbreviated():
    assert style.subset_label(()) == r"\emptyset"
    assert style.subset_label((1, 3)) == r"\{1,3\}"
    assert style.subset_label((1, 2, 3, 4, 5, 8)) == r"\{1,\ldots,5,8\}"


def test_only_steps_that_are_gone_down_count():
    ts, losses = np.arange(5.0), np.array([7.1, 7.0, 3.0, 1.0, 0.1])
    assert style.step_times(ts, losses, [4.0, 2.0, 0.01, 8.0]) == [2.0, 3.0]


RNG = np.random.default_rng(0)
SPREAD = RNG.lognormal(0, 0.7, 500)
ESTIMATES = {
    "plain": estimate_of(SPREAD),
    "small times": estimate_of(1e-7 * 100 ** RNG.uniform(size=300)),
    "middling times": estimate_of(0.13 * 15 ** RNG.uniform(size=300)),
    "narrow": estimate_of(1 + 5e-3 * RNG.uniform(size=300)),
    "very narrow": estimate_of(1 + 1e-9 * RNG.uniform(size=300)),
    "equal": estimate_of(np.full(50, 3.0)),
    "tiny and equal": estimate_of(np.full(50, 3e-7)),
    "decades": estimate_of(1e-9 * 1e15 ** RNG.uniform(size=300)),
    "one": estimate_of([2.0]),
    "both limits": estimate_of(SPREAD, RNG.integers(0, 2, 500)),
    "some at the start": estimate_of(np.where(RNG.uniform(size=500) < 0.3, 0.0, SPREAD)),
    "some at the start, narrow": estimate_of(np.where(RNG.uniform(size=500) < 0.3, 0.0, 3 + 0.1 * SPREAD)),
    "all at the start": estimate_of(np.zeros(300)),
    "none": estimate_of(np.full(300, 1e-3), 3, Status.TIME_LIMIT),
    "very many": estimate_of(
        np.where(SPREAD < 0.3, 0.0, SPREAD), RNG.integers(0, 2, 500), num=10**12, confidence=0.999,
        plan=MERGED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ESTIMATES)
def test_basins_can_be_read_whatever_the_times_and_counts(name):
    estimate = ESTIMATES[name]
    outcomes = estimate.outcomes
    times, limits = outcomes["time"].to_numpy()[:6], outcomes["highest"].to_numpy()[:6]
    decided = np.array([s == "certified" for s in outcomes["status"].to_pylist()[:6]])
    samples = samples_of(times, limits, decided, 1.25 * times.max() or 1.0)
    figure = basins.draw_basins(estimate, samples)
    check_readable(figure)
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.texts


def test_the_histogram_counts_every_certified_start():
    for name in ("both limits", "some at the start", "very many", "narrow", "equal", "all at the start"):
        estimate = ESTIMATES[name]
        histogram = basins.time_histogram(estimate)
        assert histogram.counts.sum() + histogram.at_start.sum() == estimate.certified, name
        if len(histogram.counts) == 2:
            assert (histogram.counts.sum(axis=1) + histogram.at_start)[0] == estimate.rows[0].certified


def test_starts_certified_at_once_have_a_bar_and_an_entry():
    figure = basins.draw_basins(ESTIMATES["some at the start"], NO_SAMPLES)
    axes = figure.axes[1]
    count = int(np.sum(ESTIMATES["some at the start"].certificate_times == 0))
    assert f"at t = 0: {count}" in legend(figure)
    assert ticks(axes)[0] == "0"
    bars = [patch for patch in axes.patches if patch.get_hatch()]
    assert [bar.get_data().values.tolist() for bar in bars] == [[count]]
    # It stands by itself, left of all others, and inside the panel.
    assert axes.get_xlim()[0] < bars[0].get_data().edges[0]
    assert bars[0].get_data().edges[1] < min(p.get_data().edges[0] for p in axes.patches if not p.get_hatch())


def test_empty_panels_say_why():
    def message(name):
        return basins.draw_basins(ESTIMATES[name], NO_SAMPLES).axes[1].texts[0].get_text()

    assert message("all at the start") == "all 300 certified starts\nwere certified at t = 0"
    assert message("none") == "no start is certified\ntime limit: 300"
    broken = estimate_of(np.zeros(5), 3, Status.NON_FINITE)
    assert basins.draw_basins(broken, NO_SAMPLES).axes[0].texts[0].get_text() == "no start is finite"


def test_ends_are_told_apart_by_colour_line_and_marker():
    statuses = [Status.CERTIFIED, Status.CERTIFIED, Status.TIME_LIMIT]
    estimate = estimate_of([1.0, 1.5, 3.0], [0, 1, 1], statuses)
    samples = samples_of([1.0, 1.5, 3.0], [0, 1, 1], [True, True, False], 4.0)
    figure = basins.draw_basins(estimate, samples)
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    markers = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert len({curve.get_color() for curve in curves}) == 3
    assert [curve.get_linestyle() for curve in curves] == ["-", "-", "--"]
    assert [marker.get_marker() for marker in markers] == ["o", "s", "x"]
    assert legend(figure)[:3] == ["global minimum certified: 1", "level 1 {1,2} certified: 1", "undecided: 1"]


def test_time_is_logarithmic_where_the_steps_are_far_apart():
    estimate = estimate_of([1.0, 500.0])
    near, far = (
        samples_of([400.0, 500.0], [0, 0], [True] * 2, 600.0),
        samples_of([1.0, 500.0], [0, 0], [True] * 2, 600.0),
    )
    assert basins.draw_basins(estimate, near).axes[0].get_xscale() == "linear"
    assert basins.draw_basins(estimate, far).axes[0].get_xscale() == "log"


def test_counts_have_whole_ticks():
    axes = basins.draw_basins(ESTIMATES["one"], NO_SAMPLES).axes[1]
    assert all(float(place).is_integer() for place in axes.get_yticks())


@pytest.fixture(scope="module")
def balanced():
    """Starts with limits at both levels, and some undecided ones."""
    problem = gf.Problem.from_singular_values([2, 1])
    law = gf.initialization.BalancedGaussian((2, 2, 2))
    return gf.basin_sizes(problem, law, 60, key=KEY, limits=Limits(t1=0.8), audit=0, progress=False)


@pytest.mark.slow
def test_markers_lie_on_the_curves_at_the_levels_that_were_passed(balanced):
    samples = sample_trajectories(balanced, 6)
    figure = basins.draw_basins(balanced, samples)
    check_readable(figure)
    axes = figure.axes[0]
    curves = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) > 2]
    markers = [line.get_xydata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(markers) == len(curves) == len(samples.ids) == 6
    kinds = {(bool(d), int(limit) if d else -1) for d, limit in zip(samples.decided, samples.limits, strict=True)}
    assert kinds == {(True, 0), (True, 1), (False, -1)}
    for k, (curve, marker) in enumerate(zip(curves, markers, strict=True)):
        assert np.any(np.all(curve == marker, axis=1))
        limit = samples.limits[k]
        if not samples.decided[k]:
            assert np.all(np.isnan(curve[curve[:, 0] > marker[0], 1]))
            continue
        passed = balanced.levels[limit + 1].value
        assert marker[1] == pytest.approx(passed, rel=1e-4) if samples.times[k] else marker[1] < passed
        assert np.nanmin(curve[:, 1]) >= balanced.levels[limit].value
    # Everywhere the times are close enough for a curve.
    assert np.max(np.diff(samples.ts)) <= samples.ts[-1] / 290


@pytest.mark.slow
def test_as_many_trajectories_as_asked_for_and_no_more(balanced):
    for num in (1, 3):
        assert len(sample_trajectories(balanced, num).ids) == num


@pytest.fixture(scope="module")
def trajectory():
    problem = gf.Problem.from_singular_values([3, 0.3, 0.03])
    net = gf.initialization.Gaussian(problem.widths([3]), 0.01).sample(KEY, 0)
    return gf.simulate(problem, net, 60.0, rtol=1e-6)


def test_trajectories_are_drawn_to_the_end_in_time_and_loss(trajectory):
    figure = plotting.plot_trajectory(trajectory)
    check_readable(figure)
    first, second, third = figure.axes
    low, high = first.get_ylim()
    assert low < float(trajectory.losses.min()) < float(trajectory.losses.max()) < high
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert axes.get_xlim()[1] == float(trajectory.ts[-1])
        assert axes.get_xlabel() == "flow time $t$"
    assert {t.get_text() for t in second.get_legend().get_texts()} >= {r"$\sigma_{1}(WD)$", "$s_i$ of the target"}
    assert third.get_legend().get_texts()[0].get_text() == r"$\|\nabla L\|$"


@pytest.mark.slow
def test_one_trajectory_at_a_time(trajectory):
    batch = jax.tree.map(lambda w: np.stack([w, w]), trajectory.start)
    with pytest.raises(ValueError, match="one trajectory"):
        plotting.plot_trajectory(gf.simulate(trajectory.problem, batch, 1.0, ts=5))
