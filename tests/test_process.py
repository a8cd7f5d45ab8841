"""Starts in lanes: Diffrax's own integration, and how every lane ends."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import systems
from lane_runs import KEY, columns, listed, multiples, process, run

import gdflow as gf
from gdflow.basins import Drift, Limits, Status
from gdflow.initialization import Gaussian

# -- against Diffrax ---------------------------------------------------------------------------------------------------

NUM = 256  # starts


@pytest.fixture(scope="module")
def deep():
    problem = gf.Problem.from_singular_values([3, 2, 1], d_x=6)
    return problem, Gaussian(problem.widths([5, 5]))


@pytest.fixture(scope="module")
def undecidable(deep):
    """A process that no loss certifies, so that every lane flies until t = 2."""
    made = process(*deep, t1=2.0)
    return eqx.tree_at(lambda p: p.verdict.thresholds.values, made, replace_fn=lambda values: -jnp.ones_like(values))


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
        return first.here.t_next, last, process.method.layout.unpack(last.here.y), accepted, rejected

    return fly(undecidable)


@pytest.mark.slow
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


@pytest.mark.slow
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


# -- how lanes end -----------------------------------------------------------------------------------------------------
#
# Three layers r·I of width 2 towards the target I: both modes obey r' = r²(1 − r³), the loss is (1 − r³)², the critical
# values are 0, 1/2 and 1, and the gradient has the norm √6 r²(1 − r³).


@pytest.fixture(scope="module")
def twin():
    return gf.Problem.from_singular_values([1.0, 1.0])


def passage(start, end):
    """Time from r = `start` to `end`: the integral of 1/(r²(1 − r³)) = 1/r² + r/(1 − r³)."""
    return 1 / start - 1 / end + scipy.integrate.quad(lambda r: r / (1 - r**3), start, end)[0]


CERTIFIED_AT = (1 - np.sqrt(0.5)) ** (1 / 3)  # (1 − r³)² = 1/2


@pytest.mark.slow
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
    monkeypatch.setattr("gdflow.basins.plan.sign_decides", lambda *_: False)
    quiet_until = np.sqrt(tolerance / np.sqrt(6))
    assert passage(2.5e-4, quiet_until) < dwell < passage(1e-6, quiet_until)
    # Steps at the saddles are limited by stability; at rtol 1e-8 what they stir up there is far below the tolerance.
    estimate = gf.basin_sizes(
        twin, law, progress=False, audit=0, method=gf.integrator(rtol=1e-8, atol=1e-10),
        limits=Limits(gradient_tolerance=tolerance, dwell=dwell), riders=(Drift(),),
    )  # fmt: skip
    rows = columns(estimate)
    assert rows["status"].tolist() == ["converged", "certified", "certified", "converged"]
    assert rows["verdict"].tolist() == ["undecided", "global minimum", "global minimum", "undecided"]
    assert rows["highest"].tolist() == [2, 0, 0, 1]
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
    made = process(twin, listed([*good, *bad.values()]), (0.9,), largest=np.inf, max_steps=4000)
    rows = run(made, range(16 + len(bad)), lanes=32, pool=32)
    return made, rows, {name: {k: v[16 + i] for k, v in rows.items()} for i, name in enumerate(bad)}


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
    assert [ends[name]["highest"] for name in ("nan", "zero", "saddle", "solved")] == [2, 2, 1, 0]
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
    made, rows, _ = mixed
    alone = run(made, range(16), lanes=32, pool=32)
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


@pytest.mark.slow
def test_weights_that_outgrow_their_bound(twin):
    """By the closed form: from r = 0.3 the norm √6 r passes 1.2 before the loss passes 1/2; r = 1 is certified."""
    bound = 1.2
    assert bound / np.sqrt(6) < CERTIFIED_AT
    large = (HUGE * np.eye(2), np.eye(2), np.eye(2))
    law = listed([*multiples(0.3, -1.0, 1.0), large])
    rows = run(process(twin, law, largest=bound), range(4), lanes=4, pool=4)
    assert [Status(s).label for s in rows["status"]] == ["diverging", "diverging", "certified", "diverging"]
    np.testing.assert_array_equal(rows["steps"][1:], 0)
    np.testing.assert_array_equal(rows["time"][1:], 0.0)
    # The step that passes the bound is the last.
    t = float(rows["time"][0])
    assert passage(0.3, bound / np.sqrt(6)) < t < passage(0.3, CERTIFIED_AT)
    r = systems.balanced_weight(3, 1.0, 0.3, t)
    np.testing.assert_allclose(rows["loss"][0], (1 - r**3) ** 2, rtol=2e-5)
    np.testing.assert_allclose(rows["gradient_norm"][0], np.sqrt(6) * r**2 * (1 - r**3), rtol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(solver=diffrax.Euler()), "Euler has no error estimate"),
        (dict(solver=gf.RK4()), "RK4 has no error estimate"),
        (dict(solver=diffrax.Sil3()), "Sil3 is made for equations split"),
        (dict(solver=diffrax.KenCarp4()), "KenCarp4 is made for equations split into several terms"),
        (dict(rtol=0.0), "need 0 < rtol < 1"),
        (dict(rtol=np.inf), "rtol must be a finite number"),
        (dict(rtol=np.nan), "rtol must be a finite number"),
        (dict(rtol=1e300), "need 0 < rtol < 1"),
        (dict(atol=-1e-9), "need atol ≥ 0"),
        (dict(atol=np.nan), "atol must be a finite number, got nan"),
    ],
)
def test_bad_integrations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gf.integrator(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(t1=0.0), "t1 must be positive, got 0.0"),
        (dict(t1=-1.0), "t1 must be positive"),
        (dict(t1=np.nan), "t1 must be a finite number"),
        (dict(largest=0.0), "largest must be positive"),
        (dict(largest=np.nan), "largest must be a finite number"),
        (dict(gradient_tolerance=-1.0), "gradient_tolerance must not be negative, got -1.0"),
        (dict(gradient_tolerance=np.nan), "gradient_tolerance must be a finite number"),
        (dict(dwell=np.inf), "dwell must be a finite number, got inf"),
        (dict(dwell=-1.0), "dwell must not be negative"),
        (dict(max_steps=0), "max_steps must be at least 1, got 0"),
        (dict(max_steps=np.nan), "max_steps must be an integer, got nan"),
    ],
)
def test_bad_limits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Limits(**options)
