"""Gradient flows in lanes: Diffrax's own integration, exact and independent crossing times, how every lane ends."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import systems

import gdflow as gf
from gdflow.basins import LaneSettings, Status
from gdflow.basins import estimate as estimate_module
from gdflow.basins.explicit import ExplicitFlow, gradient_flow_process
from gdflow.basins.lanes import run_lanes
from gdflow.certificates import LevelCertificate
from gdflow.initialization import AbstractInitialization, Gaussian

KEY = jax.random.key(17)
EPS = float(np.finfo(float).eps)


class Listed(AbstractInitialization):
    """Start `i` is network `i` of a list."""

    nets: gf.LayerTuple
    widths: tuple[int, ...] = eqx.field(static=True)

    def draw(self, key):
        raise NotImplementedError

    def draw_batch(self, key, high, low):
        return jax.tree.map(lambda w: jnp.take(w, low.astype(int), axis=0, mode="clip"), self.nets)


def listed(nets):
    stacked = gf.LayerTuple([np.stack(layers) for layers in zip(*nets, strict=True)])
    return Listed(stacked, stacked.widths)


def flow(problem, law, crossings=(), make=gradient_flow_process, **settings):
    levels = jnp.asarray(crossings, float)
    process = make(problem, law, KEY, LevelCertificate(problem, law.widths), levels, LaneSettings(**settings))
    assert isinstance(process, ExplicitFlow)
    return process


def run(process, ids, *, lanes, pool, threads=1):
    """All rows, in the order of the ids."""
    parts = []
    run_lanes(process, ids, lambda *part: parts.append(part), lanes=lanes, pool=pool, threads=threads)
    finished = np.concatenate([some for some, _ in parts])
    order = np.argsort(finished)
    np.testing.assert_array_equal(finished[order], np.sort(np.asarray(ids, np.uint64)))
    return {name: np.concatenate([columns[name] for _, columns in parts])[order] for name in parts[0][1]}


def columns(estimate):
    return {name: estimate.outcomes[name].to_numpy() for name in estimate.outcomes.column_names}


# -- against Diffrax ---------------------------------------------------------------------------------------------------

NUM = 256  # starts


@pytest.fixture(scope="module")
def deep():
    problem = gf.Problem.from_singular_values([3, 2, 1], d_x=6)
    return problem, Gaussian(problem.widths([5, 5]))


@pytest.fixture(scope="module")
def undecidable(deep):
    """A process that no loss certifies, so that every lane flies until t = 2."""
    process = flow(*deep, t1=2.0)
    return eqx.tree_at(lambda p: p.certificate.thresholds, process, -jnp.ones_like(process.certificate.thresholds))


@pytest.fixture(scope="module")
def flown(undecidable):
    """First step ends, final state, and how many steps each lane had accepted and rejected."""

    @eqx.filter_jit
    def fly(process):
        low = jnp.arange(NUM, dtype=jnp.uint32)
        first = process.init(process.draw(jnp.zeros_like(low), low))

        def body(carry):
            state, accepted, rejected = carry
            new = process.step(state)
            grew = new.here.t > state.here.t
            return new, accepted + (~state.done & grew), rejected + (~state.done & ~grew)

        zeros = jnp.zeros(NUM, int)
        last, accepted, rejected = jax.lax.while_loop(lambda c: ~jnp.all(c[0].done), body, (first, zeros, zeros))
        return first.here.t_next, last, process.networks(last.here.y), accepted, rejected

    return fly(undecidable)


def test_every_lane_is_an_integration_by_diffrax(deep, flown):
    """Every start, stepped in lanes and by `diffeqsolve` from the same first step: the same steps to the same end.

    Both evaluate the same formulas in other orders. Error estimates cancel to about 1e-9 of their terms, so step sizes
    agree to 1e-8 or so and a decision comes out differently once in that many. Final states agree to the error of a
    step, 1e-6, times that, plus round-off.
    """
    problem, law = deep
    first, last, nets, accepted, rejected = flown

    @eqx.filter_jit
    @jax.vmap
    def solve(net, dt0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -problem.gradient(y)), diffrax.Tsit5(), 0.0, 2.0, dt0, net,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9), saveat=diffrax.SaveAt(t1=True),
        )  # fmt: skip

    solution = solve(law.sample_batch(KEY, np.arange(NUM)), first)
    np.testing.assert_array_equal(accepted, solution.stats["num_accepted_steps"])
    # A rejected step may be repeated once more or less if its repetition is on the edge: not in 2 % of the lanes.
    assert np.mean(np.asarray(rejected) == np.asarray(solution.stats["num_rejected_steps"])) >= 0.98
    assert np.sum(rejected) > 0  # else that says nothing
    np.testing.assert_array_equal(last.steps, accepted + rejected)
    for ours, theirs in zip(nets.weights, solution.ys.weights, strict=True):
        error = np.linalg.norm(ours - theirs[:, 0], axis=(1, 2)) / np.linalg.norm(ours, axis=(1, 2))
        assert np.max(error) < 1e-9
    np.testing.assert_array_equal(last.status, Status.TIME_LIMIT)
    np.testing.assert_array_equal(last.here.t, 2.0)


def test_the_first_step_is_diffraxs(deep, flown):
    """`PIDController.init` on single networks, with Diffrax's own norm."""
    problem, law = deep
    solver, terms = diffrax.Tsit5(), diffrax.ODETerm(lambda t, y, args: -problem.gradient(y))
    controller = diffrax.PIDController(rtol=1e-6, atol=1e-9)

    @eqx.filter_jit
    def first(net):
        return controller.init(terms, 0.0, 2.0, net, None, None, solver.func, solver.error_order(terms))[0]

    # Norms of some seventy numbers and their fifth roots, to round-off.
    expected = [first(law.sample(KEY, i)) for i in range(6)]
    np.testing.assert_allclose(flown[0][:6], expected, rtol=1e-12)


# -- crossing times ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([3, 2, 1], d_x=4)


@pytest.fixture(scope="module")
def law(problem):
    # Wide enough a law that some starts are above all levels, and some below the highest.
    return Gaussian(problem.widths([4]), 0.6)


@pytest.fixture(scope="module")
def estimate(problem, law):
    return gf.basin_sizes(problem, law, 2000, key=KEY, crossings="staircase", progress=False, audit=0)


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


def test_the_staircase_leaves_out_the_certificates_level(monkeypatch):
    """Of distinct singular values all but the certificate's level are timed, `rank − 1`, whichever way round-off goes.

    The levels of both are sums of squares, in different orders. Nothing needs to be run.
    """
    monkeypatch.setattr(estimate_module, "run_lanes", lambda *args, **options: None)
    rng = np.random.default_rng(3)
    for _ in range(20):
        s = np.sort(rng.uniform(0.5, 3, 3))[::-1]
        problem = gf.Problem.from_singular_values(s)
        estimate = gf.basin_sizes(
            problem, Gaussian((3, 3, 3)), 1, key=KEY, crossings="staircase", progress=False, audit=0
        )
        crossings = estimate.crossings
        np.testing.assert_allclose(crossings, [0.5 * np.sum(s**2), 0.5 * np.sum(s[1:] ** 2)], rtol=1e-12)


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
        problem, law, 100, key=KEY, crossings=[2.0, 1.0, 0.7], rtol=1e-10, atol=1e-12, t1=0.6, progress=False, audit=0
    )


def test_given_levels_at_tight_tolerances(tight, problem, starts):
    """SciPy again: at rtol 1e-10 the interpolant, of order 4, is right to some 1e-9; the events of DOP853 are, too."""
    assert tight.crossings == (2.0, 1.0, 0.7)
    rows, target = columns(tight), np.asarray(problem.target)
    got = np.stack([rows["crossing_0"], rows["crossing_1"], rows["crossing_2"]], axis=1)
    expected = [integrated_crossings([w[i] for w in starts], target, (2.0, 1.0, 0.7), t1=0.6) for i in range(12)]
    np.testing.assert_allclose(got[:12], expected, rtol=1e-7)
    assert np.any(np.isnan(expected))


def test_a_level_is_without_time_only_if_it_was_never_crossed(tight):
    """The loss falls, so the last one tells which levels were crossed; the certified have crossed them all."""
    rows = columns(tight)
    last = np.where(rows["status"] == "certified", 0.0, rows["loss"])
    for k, level in enumerate(tight.crossings):
        crossing = rows[f"crossing_{k}"]
        np.testing.assert_array_equal(np.isnan(crossing), last >= level)
        assert 0 < np.sum(np.isnan(crossing)) < 100
        assert np.all(crossing[~np.isnan(crossing)] <= rows["time"][~np.isnan(crossing)])


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
            one, law, len(pairs), key=KEY, crossings=levels[:3], rtol=1e-9, atol=1e-12, progress=False, audit=0
        )
    )
    got = np.stack([rows[name] for name in ("crossing_0", "crossing_1", "crossing_2", "time")], axis=1)
    np.testing.assert_array_equal(got == 0, exact == 0)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-8)
    assert np.sum(exact > 0) > 50


# -- how lanes end -----------------------------------------------------------------------------------------------------
#
# Three layers r·I of width 2 towards the target I: both modes obey r' = r²(1 − r³), the loss is (1 − r³)², the critical
# values are 0, 1/2 and 1, and the gradient has the norm √6 r²(1 − r³).


@pytest.fixture(scope="module")
def twin():
    return gf.Problem.from_singular_values([1.0, 1.0])


def multiples(*sizes):
    return [(r * np.eye(2),) * 3 for r in sizes]


def passage(start, end):
    """Time from r = `start` to `end`: the integral of 1/(r²(1 − r³)) = 1/r² + r/(1 − r³)."""
    return 1 / start - 1 / end + scipy.integrate.quad(lambda r: r / (1 - r**3), start, end)[0]


CERTIFIED_AT = (1 - np.sqrt(0.5)) ** (1 / 3)  # (1 − r³)² = 1/2


def test_dwelling_at_a_saddle_counts_as_converged(twin, monkeypatch):
    """Quiet is a gradient of 1e-6 at most; dwelling, being quiet for a time of 3000 on end. By the closed form:

    - from r = 1e-6 it stays quiet for a time of nearly 1e6: converged, although it would be certified in the end;
    - from r = 2.5e-4 for 2400 only: it goes on and is certified, as is r = 0.3, at the time that the closed form says;
    - of modes 2.5e-4 and −2e-4 the first ends its rest at 2700 and reaches its limit at 4000; the other creeps towards
      0, a saddle. The second rest lasts, and counts from its own beginning.
    """
    tolerance, dwell = 1e-6, 3000.0
    law = listed([*multiples(1e-6, 2.5e-4, 0.3), (np.diag([2.5e-4, -2e-4]),) * 3])
    # The last start is on the wrong side of det W = 0, for which such laws are refused: its modes are exact and stay there.
    monkeypatch.setattr("gdflow.basins.estimate._sign_decides", lambda *_: False)
    quiet_until = np.sqrt(tolerance / np.sqrt(6))
    assert passage(2.5e-4, quiet_until) < dwell < passage(1e-6, quiet_until)
    # Steps at the saddles are limited by stability; at rtol 1e-8 what they stir up there is far below the tolerance.
    estimate = gf.basin_sizes(
        twin, law, 4, key=KEY, rtol=1e-8, atol=1e-10, gradient_tolerance=tolerance, dwell=dwell, crossings=(),
        progress=False, audit=0,
    )  # fmt: skip
    rows = columns(estimate)
    assert rows["status"].tolist() == ["converged", "certified", "certified", "converged"]
    assert rows["verdict"].tolist() == ["undecided", "global minimum", "global minimum", "undecided"]
    assert rows["level"].tolist() == [2, 0, 0, 1]
    assert np.all(rows["gradient_norm"][[0, 3]] <= tolerance)
    assert dwell <= rows["time"][0] < passage(1e-6, quiet_until)
    # The second rest begins once 3(1 − r) < 1e-6/√3, and ends with a step; steps are about 1 long there.
    begin = passage(2.5e-4, 1 - tolerance / np.sqrt(27))
    assert 0 <= rows["time"][3] - (begin + dwell) < 5
    # A relative error of 1e-8 in r, made on the way, shifts the time by as much of the rest of the passage.
    expected = [passage(r, CERTIFIED_AT) for r in (2.5e-4, 0.3)]
    np.testing.assert_allclose(rows["time"][1:3], expected, rtol=1e-6)


HUGE = 1e90


@pytest.fixture(scope="module")
def mixed(twin):
    """All kinds of starts in one process, with nothing to stop large weights: its sixteen good ones come first."""
    rng = np.random.default_rng(2)
    good = [tuple(rng.normal(size=(3, 2, 2))) for _ in range(14)] + multiples(1e-6, 0.3)
    a, b, c = good[0]
    bad = {
        "nan": (a, np.array([[1.0, np.nan], [0.0, 1.0]]), c),
        "infinite": (a, b, np.array([[np.inf, 0.0], [0.0, 1.0]])),
        "overflow": (HUGE * a, HUGE * b, HUGE * c),
        # Losses of the size of 1, but a step changes the small layers by far more than the large one allows.
        "unequal": (HUGE * a, 1e-60 * b, c / HUGE),
        "very unequal": (1e140 * a, 1e-70 * b, 1e-70 * c),
        "zero": multiples(0.0)[0],
        # The origin is critical of third order: here the field underflows.
        "underflow": multiples(1e-160)[0],
        "saddle": (np.diag([1.0, 0.0]),) * 3,
        "solved": multiples(1.0)[0],
    }
    process = flow(twin, listed([*good, *bad.values()]), (0.9,), largest=np.inf, max_steps=4000)
    rows = run(process, range(16 + len(bad)), lanes=32, pool=32)
    return process, rows, {name: {k: v[16 + i] for k, v in rows.items()} for i, name in enumerate(bad)}


def test_starts_that_are_decided_at_once(mixed):
    """Statuses by definition: not a number, critical (all products in the gradient vanish exactly), below the level."""
    ends = mixed[2]
    for name in ("nan", "infinite", "overflow"):
        assert ends[name]["status"] == Status.NON_FINITE
    for name in ("zero", "underflow", "saddle"):
        assert ends[name]["status"] == Status.STATIONARY
    assert ends["solved"]["status"] == Status.CERTIFIED
    for name in ("nan", "infinite", "overflow", "zero", "underflow", "saddle", "solved"):
        assert ends[name]["steps"] == 0
        assert ends[name]["time"] == 0.0
    # Losses 1, 1/2 and 0 against the levels 1/2 and 1, and against the crossing at 0.9.
    assert [ends[name]["level"] for name in ("nan", "zero", "saddle", "solved")] == [2, 2, 1, 0]
    np.testing.assert_array_equal(
        [ends[name]["crossing_0"] for name in ("nan", "zero", "saddle", "solved")], [np.nan, np.nan, 0, 0]
    )


def test_a_step_that_overflows_is_shortened_until_it_cannot_be(mixed):
    """Every rejection without a finite error divides the step by 5 (Diffrax's `factormin`), and 1e308 is 5⁴⁴¹."""
    for name in ("unequal", "very unequal"):
        end = mixed[2][name]
        assert end["status"] == Status.NON_FINITE
        assert 0 < end["steps"] < 1000
        assert end["time"] < 1e-20


def test_lanes_do_not_disturb_each_other(mixed):
    """The same process on the good starts alone."""
    process, rows, _ = mixed
    alone = run(process, range(16), lanes=32, pool=32)
    assert np.all(alone["status"] == Status.CERTIFIED)
    for name, column in alone.items():
        if name.startswith(("time", "crossing", "loss", "gradient", "drift")):
            # Root finding goes on until the last lane has converged: last bits of the time depend on the company.
            np.testing.assert_allclose(rows[name][:16], column, rtol=1e-12, atol=1e-15)
        else:
            np.testing.assert_array_equal(rows[name][:16], column)


def test_a_start_near_a_saddle_is_certified_in_the_end(mixed):
    """Without a gradient tolerance: the same start that counts as converged above, at the time of the closed form."""
    rows = mixed[1]
    # As above, but a million times the time scale of the rest.
    np.testing.assert_allclose(rows["time"][14:16], [passage(r, CERTIFIED_AT) for r in (1e-6, 0.3)], rtol=2e-5)


def test_weights_that_outgrow_their_bound(twin):
    """By the closed form: from r = 0.3 the norm √6 r passes 1.2 before the loss passes 1/2; r = 1 is certified."""
    bound = 1.2
    assert bound / np.sqrt(6) < CERTIFIED_AT
    large = (HUGE * np.eye(2), np.eye(2), np.eye(2))
    law = listed([*multiples(0.3, -1.0, 1.0), large])
    rows = run(flow(twin, law, largest=bound), range(4), lanes=4, pool=4)
    assert [Status(s).label for s in rows["status"]] == ["diverging", "diverging", "certified", "diverging"]
    np.testing.assert_array_equal(rows["steps"][1:], 0)
    np.testing.assert_array_equal(rows["time"][1:], 0.0)
    # The step that passes the bound is the last.
    t = float(rows["time"][0])
    assert passage(0.3, bound / np.sqrt(6)) < t < passage(0.3, CERTIFIED_AT)
    r = systems.balanced_weight(3, 1.0, 0.3, t)
    np.testing.assert_allclose(rows["loss"][0], (1 - r**3) ** 2, rtol=2e-5)
    np.testing.assert_allclose(rows["gradient_norm"][0], np.sqrt(6) * r**2 * (1 - r**3), rtol=2e-5)


# -- bad options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(solver=diffrax.Euler()), "Euler has no error estimate"),
        (dict(rtol=0.0), "need 0 < rtol < 1"),
        (dict(rtol=np.inf), "rtol must be a finite number"),
        (dict(rtol=np.nan), "rtol must be a finite number"),
        (dict(rtol=1e300), "need 0 < rtol < 1"),
        (dict(atol=-1e-9), "need atol ≥ 0"),
        (dict(atol=np.nan), "atol must be a finite number, got nan"),
        (dict(t1=0.0), "t1 must be positive, got 0.0"),
        (dict(t1=np.nan), "t1 must be a finite number"),
        (dict(largest=0.0), "largest must be positive"),
        (dict(largest=np.nan), "largest must be a finite number"),
        (dict(gradient_tolerance=-1.0), "gradient_tolerance must not be negative, got -1.0"),
        (dict(gradient_tolerance=np.nan), "gradient_tolerance must be a finite number"),
        (dict(dwell=np.inf), "dwell must be a finite number, got inf"),
        (dict(dwell=-1.0), "dwell must not be negative"),
        (dict(max_steps=0), "max_steps must be at least 1, got 0"),
        (dict(max_steps=np.nan), "max_steps must be an integer, got nan"),
        (dict(solver=diffrax.KenCarp4()), "KenCarp4 is made for equations split into several terms"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LaneSettings(**options)


@pytest.mark.parametrize(
    ("crossings", "message"),
    [
        ("stairs", "crossings must be \"staircase\" or a sequence of losses, got 'stairs'"),
        ([1.0, 2.0], "in falling order"),
        ([2.0, 2.0], "in falling order"),
        ([np.inf, 1.0], "finite losses"),
        ([2.0, np.nan], "finite losses"),
        (list(range(17, 0, -1)), "at most 16 crossings can be timed, got 17"),
    ],
)
def test_bad_crossings_are_refused(problem, law, crossings, message):
    with pytest.raises(ValueError, match=message):
        gf.basin_sizes(problem, law, 5, key=KEY, crossings=crossings, progress=False, audit=0)


# -- independence ------------------------------------------------------------------------------------------------------


def assert_outcomes_are_those_of(estimate, rows, share):
    """Equal labels, steps in that share of the rows, and times up to round-off amplified over a few dozen steps."""
    num = rows["time"].size
    expected = {name: column[:num] for name, column in columns(estimate).items()}
    assert expected["status"].tolist() == [Status(s).label for s in rows["status"]]
    np.testing.assert_array_equal(rows["level"], expected["level"])
    assert np.mean(rows["steps"] == expected["steps"]) >= share
    for name in ("time", "crossing_0", "crossing_1"):
        np.testing.assert_allclose(rows[name], expected[name], rtol=1e-9)


@pytest.mark.slow
def test_lanes_first_and_lanes_last_cross_alike(estimate, problem, law):
    """The two layouts of the arithmetic: batched products against unrolled ones."""
    assert flow(problem, law).lane_axis == -1  # of `estimate`
    process = flow(problem, law, estimate.crossings, functools.partial(ExplicitFlow, lane_axis=0))
    rows = run(process, range(100), lanes=50, pool=100)
    assert_outcomes_are_those_of(estimate, rows, share=0.95)


def test_outcomes_do_not_depend_on_lanes_pools_and_threads(estimate, problem, law):
    """Two thousand starts once more, in another company: other lanes, other pools, three threads."""
    rows = run(flow(problem, law, estimate.crossings), range(2000), lanes=23, pool=300, threads=3)
    # A step on the edge of acceptance may go either way for another order of a sum: about once in 1e8.
    assert_outcomes_are_those_of(estimate, rows, share=0.999)
