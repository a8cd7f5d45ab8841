"""Crossing times: exact and independent ones, in any company."""

import numpy as np
import pytest
import scipy.integrate
import systems
from lane_runs import KEY, columns, listed, process, run

import gdflow as gf
from gdflow.basins import Crossings, Drift, Limits, Status
from gdflow.basins.methods import RungeKutta
from gdflow.basins.plan import default_riders
from gdflow.initialization import Gaussian
from gdflow.layouts import LanesFirst, LanesLast
from gdflow.verdicts import LevelVerdict

EPS = float(np.finfo(float).eps)


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([3, 2, 1], d_x=4)


@pytest.fixture(scope="module")
def law(problem):
    # Wide enough a law that some starts are above all levels, and some below the highest.
    return Gaussian(problem.widths([4]), 0.6)


@pytest.fixture(scope="module")
def estimate(problem, law):
    return gf.basin_sizes(problem, law, 2000, key=KEY, progress=False, audit=0)


@pytest.fixture(scope="module")
def starts(law):
    """Weights, with the starts along the first axis."""
    return tuple(np.asarray(w) for w in law.sample_batch(KEY, np.arange(2000)).weights)


def loss(weights, target):
    """Of one network or of a batch."""
    product = weights[0]
    for w in weights[1:]:
        product = w @ product
    return 0.5 * np.sum((target - product) ** 2, axis=(-2, -1))


def integrated_crossings(weights, target, levels, t1=50.0):
    """First crossing of each level by SciPy's DOP853 at rtol 1e-11; 0 for a start below, NaN if not by `t1`."""
    sizes = np.cumsum([w.size for w in weights])[:-1]

    def unflatten(x):
        return tuple(part.reshape(w.shape) for part, w in zip(np.split(x, sizes), weights, strict=True))

    def field(t, x):
        return systems.flatten(systems.velocity(unflatten(x), target))

    events = [lambda t, x, level=level: loss(unflatten(x), target) - level for level in levels]
    events[-1].terminal = True
    solution = scipy.integrate.solve_ivp(
        field, (0.0, t1), systems.flatten(weights), "DOP853", events=events, rtol=1e-11, atol=1e-13
    )
    below = loss(weights, target) < np.asarray(levels)
    return np.where(below, 0.0, [times[0] if times.size else np.nan for times in solution.t_events])


@pytest.mark.slow
def test_the_staircase_is_timed(estimate, problem, starts):
    """Levels by hand: s = (3, 2, 1) has ℓ({}) = 7, ℓ({1}) = 5/2 and ℓ({1,2}) = 1/2, which is the certificate's.

    Losses fall, so crossings come in the order of the levels, and 0 says that the start was below.
    """
    slack = 100 * EPS * 14  # 14 = Σs²
    np.testing.assert_allclose(estimate.crossings, [7 - slack, 2.5 - slack], rtol=0, atol=2e-15)
    rows = columns(estimate)
    assert [name for name in rows if name.startswith("crossing")] == ["crossing_0", "crossing_1"]
    losses = loss(starts, np.asarray(problem.target))
    times = [rows["crossing_0"], rows["crossing_1"], rows["time"]]
    for level, crossing in zip((7, 2.5, 0.5), times, strict=True):
        np.testing.assert_array_equal(crossing == 0, losses < level)
    assert 100 < np.sum(losses < 7) < 1900
    assert np.all(rows["status"] == "certified")  # so no level remained uncrossed …
    assert np.all(np.isfinite(times))
    assert np.all(np.diff(times, axis=0)[:, losses > 7] > 0)  # … and one after the other
    assert np.all(np.diff(times, axis=0) >= 0)


def test_the_staircase_leaves_out_the_verdicts_level():
    """Of distinct singular values all but the certificate's level are timed, `rank − 1`, whichever way round-off goes.

    The levels of both are sums of squares, in different orders.
    """
    rng = np.random.default_rng(3)
    for _ in range(20):
        s = np.sort(rng.uniform(0.5, 3, 3))[::-1]
        problem = gf.Problem.from_singular_values(s)
        _, staircase = default_riders(problem, (3, 3, 3), LevelVerdict(problem, (3, 3, 3)))
        crossings = np.asarray(staircase.levels)
        np.testing.assert_allclose(crossings, [0.5 * np.sum(s**2), 0.5 * np.sum(s[1:] ** 2)], rtol=1e-12)


@pytest.mark.slow
def test_crossing_times_are_those_of_a_tight_integration(estimate, problem, starts):
    """SciPy's DOP853 with events. Global error at rtol 1e-6: a few 1e-6, as much of the interpolant; steps are 10 %."""
    rows, target = columns(estimate), np.asarray(problem.target)
    for i in range(8):
        expected = integrated_crossings([w[i] for w in starts], target, (*estimate.crossings, 0.5))
        got = [rows["crossing_0"][i], rows["crossing_1"][i], rows["time"][i]]
        np.testing.assert_allclose(got, expected, rtol=2e-5)


@pytest.fixture(scope="module")
def tight(problem, law):
    """Given levels, tight tolerances, and a time limit that leaves some levels uncrossed."""
    return gf.basin_sizes(
        problem,
        law,
        100,
        key=KEY,
        progress=False,
        audit=0,
        method=gf.integrator(rtol=1e-10, atol=1e-12),
        limits=Limits(t1=0.6),
        riders=(Drift(), Crossings([2.0, 1.0, 0.7])),
    )


@pytest.mark.slow
def test_given_levels_at_tight_tolerances(tight, problem, starts):
    """SciPy again: at rtol 1e-10 the interpolant, of order 4, is right to some 1e-9; the events of DOP853 are, too."""
    assert tight.crossings == (2.0, 1.0, 0.7)
    rows, target = columns(tight), np.asarray(problem.target)
    got = np.stack([rows["crossing_0"], rows["crossing_1"], rows["crossing_2"]], axis=1)
    expected = [integrated_crossings([w[i] for w in starts], target, (2.0, 1.0, 0.7), t1=0.6) for i in range(12)]
    np.testing.assert_allclose(got[:12], expected, rtol=1e-7)
    assert np.any(np.isnan(expected))


@pytest.mark.slow
def test_a_level_is_without_time_only_if_it_was_never_crossed(tight):
    """The loss falls, so the last one tells which levels were crossed; the certified have crossed them all."""
    rows = columns(tight)
    last = np.where(rows["status"] == "certified", 0.0, rows["loss"])
    for k, level in enumerate(tight.crossings):
        crossing = rows[f"crossing_{k}"]
        np.testing.assert_array_equal(np.isnan(crossing), last >= level)
        assert 0 < np.sum(np.isnan(crossing)) < 100
        assert np.all(crossing[~np.isnan(crossing)] <= rows["time"][~np.isnan(crossing)])


@pytest.mark.slow
def test_crossing_times_of_exact_systems():
    """The scalar network `W_2W_1 = a·b`, s = 1, where the time at which `u = a·b` has a given value is known.

    Balanced a = b: u' = 2u(1 − u), so t = ½ ln[(1 − 1/u_0)/(1 − 1/u)], from above; else `systems.hitting_time_width_h`,
    from above or below. The loss ½(1 − u)² falls to L at u = 1 ± √(2L). At rtol 1e-9 the global error is below 1e-8,
    but times near 0 are known to that absolutely only.
    """
    # The last is the certificate's, at u = 0 or 2; most starts cross the one before it in the same step.
    levels = (2.0, 1.0, 0.501, 0.5)
    balanced = np.array([2.2, 2.5, 3.0, 4.0])
    rng = np.random.default_rng(1)
    pairs = [(np.array([np.sqrt(u), 0]), np.array([np.sqrt(u), 0])) for u in balanced]
    pairs += [tuple(ab) for ab in rng.normal(scale=1.6, size=(60, 2, 2))]
    exact = np.zeros((len(pairs), 4))
    for i, (a, b) in enumerate(pairs):
        u = float(a @ b)
        for k, level in enumerate(levels):
            if 0.5 * (1 - u) ** 2 >= level:
                end = 1 + np.sign(u - 1) * np.sqrt(2 * level)
                exact[i, k] = systems.hitting_time_width_h(a, b, 1.0, end)
    for k, level in enumerate(levels):
        end = 1 + np.sqrt(2 * level)
        inside = balanced <= end
        by_hand = np.where(inside, 0.0, 0.5 * np.log((1 - 1 / balanced) / (1 - 1 / end)))
        np.testing.assert_allclose(exact[:4, k], by_hand, rtol=1e-12, atol=1e-15)
    law = listed([(a[:, None], b[None, :]) for a, b in pairs])
    one = gf.Problem.from_singular_values([1.0])
    rows = columns(
        gf.basin_sizes(
            one,
            law,
            len(pairs),
            progress=False,
            audit=0,
            method=gf.integrator(rtol=1e-9, atol=1e-12),
            riders=(Drift(), Crossings(levels[:3])),
        )
    )
    got = np.stack([rows[name] for name in ("crossing_0", "crossing_1", "crossing_2", "time")], axis=1)
    np.testing.assert_array_equal(got == 0, exact == 0)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-8)
    assert np.sum(exact > 0) > 50


@pytest.mark.parametrize(
    ("crossings", "message"),
    [
        ("staircase", "crossings are losses in falling order, got 'staircase'|parameter"),
        ([1.0, 2.0], "in falling order"),
        ([2.0, 2.0], "in falling order"),
        ([np.inf, 1.0], "must be a finite number"),
        ([2.0, np.nan], "must be a finite number"),
        (list(range(17, 0, -1)), "at most 16 crossings can be timed, got 17"),
    ],
)
def test_bad_crossings_are_refused(crossings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Crossings(crossings)


def assert_outcomes_are_those_of(estimate, rows, share):
    """Equal labels, steps in that share of the rows, and times up to round-off amplified over a few dozen steps."""
    num = rows["time"].size
    expected = {name: column[:num] for name, column in columns(estimate).items()}
    assert expected["status"].tolist() == [Status(s).label for s in rows["status"]]
    np.testing.assert_array_equal(rows["highest"], expected["highest"])
    assert np.mean(rows["steps"] == expected["steps"]) >= share
    for name in ("time", "crossing_0", "crossing_1"):
        np.testing.assert_allclose(rows[name], expected[name], rtol=1e-9)


@pytest.mark.slow
def test_lanes_first_and_lanes_last_cross_alike(estimate, problem, law):
    """The two layouts of the arithmetic: batched products against unrolled ones."""
    assert process(problem, law).layout == LanesLast()  # of `estimate`
    first = RungeKutta(chosen_layout=LanesFirst())
    rows = run(process(problem, law, estimate.crossings, method=first), range(100), lanes=50, pool=100)
    assert_outcomes_are_those_of(estimate, rows, share=0.95)


@pytest.mark.slow
def test_outcomes_do_not_depend_on_lanes_pools_and_threads(estimate, problem, law):
    """Two thousand starts once more, in another company: other lanes, other pools, three threads."""
    rows = run(process(problem, law, estimate.crossings), range(2000), lanes=23, pool=300, threads=3)
    # A step on the edge of acceptance may go either way for another order of a sum: about once in 1e8.
    assert_outcomes_are_those_of(estimate, rows, share=0.999)
