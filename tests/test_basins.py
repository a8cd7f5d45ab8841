"""Basin estimates: known laws, independence of chunks, honest statuses, bad input."""

import math
import subprocess
import sys
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
import scipy.stats
import systems

import gdflow as gf
from gdflow import verdicts
from gdflow.basins import Limits, Status, audit
from gdflow.basins.storage import prepare_folder
from gdflow.initialization import (
    AbstractInitialization,
    Balanced,
    BalancedGaussian,
    Gaussian,
    LambdaBalanced,
    Orthogonal,
    check_law,
)
from gdflow.verdicts import AlmostSure, LevelVerdict

KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([3, 2, 1], d_x=4)


@pytest.fixture(scope="module")
def law(problem):
    return Gaussian(problem.widths([5, 4]))


@pytest.fixture(scope="module")
def estimate(problem, law):
    return gf.basin_sizes(problem, law, 200, key=KEY, lanes=64, audit=40, progress=False)


class Fixed(AbstractInitialization):
    """A law that always draws one network."""

    net: gf.LayerTuple
    widths: tuple[int, ...] = eqx.field(static=True)

    def draw(self, key):
        return self.net


class Chains(AbstractInitialization):
    """Scalar chains of two layers, certified as they stand or so small that they take a time of 27 to leave the origin."""

    widths: tuple[int, ...] = eqx.field(static=True, default=(1, 1, 1))

    def draw(self, key):
        size = jnp.where(jax.random.bernoulli(key), 1.0, 1e-12)
        return gf.LayerTuple([size * jnp.ones((1, 1)), 0.5 * size * jnp.ones((1, 1))])


def fixed(problem, weights):
    net = gf.LayerTuple(weights)
    return Fixed(net, net.widths)


def test_every_start_is_accounted_for(estimate):
    assert estimate.outcomes.num_rows == 200
    assert estimate.outcomes["id"].to_pylist() == list(range(200))
    assert sum(estimate.statuses.values()) == 200
    assert estimate.certified + estimate.undecided == 200
    # Two hidden layers at least as wide as the target: no start has ever been seen to end elsewhere.
    assert estimate.certified == 200


def test_interval_is_clopper_pearson_with_audit(estimate):
    """By hand: all of 200 certified, no flips in 40, error alpha/4 in each tail and alpha/2 in the flip rate."""
    assert estimate.audit.num == 40
    assert estimate.audit.flips == 0
    low = 0.0125 ** (1 / 200) - (1 - 0.025 ** (1 / 40))
    np.testing.assert_allclose(estimate.interval, (low, 1.0), rtol=1e-10)
    row = estimate.rows[0]
    assert row.simultaneous[0] < row.interval[0]
    assert [r.possible for r in estimate.rows[1:]] == [0] * (len(estimate.rows) - 1)


def test_certified_losses_lie_below_the_second_level(estimate, problem):
    ell = gf.critical_values(problem, 3)[1].value
    assert ell == 0.5  # s_3² / 2
    assert estimate.outcomes["loss"].to_numpy().max() < ell


@pytest.mark.slow
def test_crossing_times_equal_those_of_a_tight_trajectory(estimate, problem, law):
    """The time is where the loss crosses the level, not the end of the step: against rtol 1e-10, stopped at the level."""
    starts = law.sample_batch(KEY, np.arange(6))
    reference = gf.simulate(problem, starts, math.inf, stop=gf.AtCertificate(), rtol=1e-10, atol=1e-12, dense=False)
    # Global error at rtol 1e-6 is about 1e-6 times the length of the integration; step ends lag by 3 %.
    np.testing.assert_allclose(estimate.outcomes["time"].to_numpy()[:6], reference.final_time, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 7, 50])
def test_results_do_not_depend_on_the_number_of_lanes(problem, law, estimate, lanes):
    num = 20 if lanes == 1 else 50
    other = gf.basin_sizes(problem, law, num, key=KEY, lanes=lanes, progress=False, audit=0).outcomes
    for name in ("id", "status", "verdict", "limit", "highest"):
        assert other[name].to_pylist() == estimate.outcomes[name].to_pylist()[:num]
    assert np.mean(other["steps"].to_numpy() == estimate.outcomes["steps"].to_numpy()[:num]) >= 0.95
    # Interpolated crossing times move only by the round-off of differently fused arithmetic.
    np.testing.assert_allclose(other["time"].to_numpy(), estimate.outcomes["time"].to_numpy()[:num], rtol=1e-9)


@pytest.mark.slow
def test_ids_beyond_32_bits_are_fresh_starts(problem, law):
    low = gf.basin_sizes(problem, law, 5, key=KEY, progress=False, audit=0).outcomes["time"].to_numpy()
    high = gf.basin_sizes(problem, law, range(2**32, 2**32 + 5), key=KEY, progress=False, audit=0)
    assert high.outcomes["id"].to_pylist() == [2**32 + i for i in range(5)]
    assert not np.any(np.isclose(high.outcomes["time"].to_numpy(), low, rtol=1e-6))


@pytest.mark.slow
def test_sojourn_law_of_the_scalar_network():
    """P(τ ≤ T) of the width-2 scalar network against its exact law (by exact hitting times of fresh random starts).

    `W = W_2W_1` has critical values 0 and s²/2; the certificate is at product 0 or 2s from below or above. The exact
    hitting times of 20000 other starts give the law; Kolmogorov–Smirnov at p = 1e-4 is the false-alarm probability.
    """
    s = 1.5
    problem = gf.Problem.from_singular_values([s])
    law = Gaussian((1, 2, 1), 1.0)
    times = gf.basin_sizes(problem, law, 2000, key=KEY, progress=False, lanes=256, audit=0).outcomes["time"].to_numpy()
    rng = np.random.default_rng(0)
    exact = []
    for a, b in rng.normal(size=(20000, 2, 2)):
        u = float(a @ b)
        inside = 0 < u < 2 * s
        exact.append(0.0 if inside else systems.hitting_time_width_h(a, b, s, 0.0 if u <= 0 else 2 * s))
    assert abs(np.mean(times == 0) - np.mean(np.array(exact) == 0)) < 0.045  # 4 standard errors
    positive, reference = times[times > 0], np.array(exact)[np.array(exact) > 0]
    assert scipy.stats.ks_2samp(positive, reference).pvalue > 1e-4


@pytest.mark.slow
def test_fraction_between_zero_and_one():
    """A law under which every second start, by an independent coin, is decided in time."""
    problem = gf.Problem.from_singular_values([1.0])
    estimate = gf.basin_sizes(problem, Chains(), 400, key=KEY, audit=0, progress=False, limits=Limits(t1=8.0))
    # Large ones start below the level ℓ = s²/2; small ones grow like e^t and have not passed it by more than round-off.
    assert estimate.statuses[Status.TIME_LIMIT] == estimate.undecided
    assert abs(estimate.fraction - 0.5) < 0.1  # 4 standard deviations: false alarm 6e-5
    low, high = estimate.interval
    assert high == 1.0  # undecided starts are not excluded …
    assert low < estimate.fraction  # … and the lower bound rests on certified ones alone
    times = estimate.outcomes["time"].to_numpy()
    assert np.all(times[estimate.outcomes["highest"].to_numpy() > 0] == 8.0)


@pytest.mark.slow
def test_statuses(problem):
    d = problem.widths([5, 4])
    zeros = [np.zeros((b, a)) for a, b in zip(d[:-1], d[1:], strict=True)]

    def run(weights, **options):
        return gf.basin_sizes(problem, fixed(problem, weights), 2, key=KEY, progress=False, limits=Limits(**options))

    stationary = run(zeros)
    assert stationary.statuses[Status.STATIONARY] == 2
    assert stationary.outcomes["highest"].to_pylist() == [7, 7]
    assert stationary.outcomes["limit"].to_pylist() == [None, None]
    assert stationary.interval == (0.0, 1.0)

    nan = [w.copy() for w in zeros]
    nan[0][0, 0] = np.nan
    assert run(nan).statuses[Status.NON_FINITE] == 2
    huge = [w + 1e200 for w in zeros]
    assert run(huge).statuses[Status.NON_FINITE] == 2

    generic = [w + 0.1 * np.random.default_rng(0).normal(size=w.shape) for w in zeros]
    assert run(generic, max_steps=3).statuses[Status.STEP_LIMIT] == 2
    limited = run(generic, t1=1e-3)
    assert limited.statuses[Status.TIME_LIMIT] == 2
    assert limited.outcomes["time"].to_pylist() == [1e-3, 1e-3]
    for estimate in (stationary, limited):
        assert "undecided" in estimate.outcomes["verdict"].to_pylist()

    done = [np.eye(5, 4), np.eye(4, 5), np.diag([3.0, 2, 1, 0])[:3]]
    certified = run(done)
    assert certified.statuses[Status.CERTIFIED] == 2
    assert certified.outcomes["steps"].to_pylist() == [0, 0]
    assert certified.outcomes["time"].to_pylist() == [0.0, 0.0]


@pytest.mark.slow
def test_problem_with_one_critical_value():
    """Where the target vanishes, zero is the only critical value, and every start is certified as it stands."""
    problem = gf.Problem.from_target(np.zeros((2, 3)))
    estimate = gf.basin_sizes(problem, Gaussian((3, 2, 2)), 10, key=KEY, progress=False, audit=0)
    assert estimate.certified == 10
    assert estimate.outcomes["time"].to_pylist() == [0.0] * 10


@pytest.mark.slow
def test_bottleneck_kinds(problem):
    """Behind a bottleneck the almost-sure certificate is at ℓ({1..k-1}), the exact one lower: it comes earlier, and says so."""
    law = Gaussian(problem.widths([2, 3]))
    exact = gf.basin_sizes(problem, law, 40, key=KEY, progress=False, audit=0)
    almost = gf.basin_sizes(
        problem, law, 40, key=KEY, progress=False, audit=0, verdict=gf.verdicts.AlmostSure(problem, law.widths)
    )
    assert exact.certified == almost.certified == 40
    assert np.all(almost.outcomes["time"].to_numpy() <= exact.outcomes["time"].to_numpy())
    assert set(almost.outcomes["verdict"].to_pylist()) == {"global minimum (almost surely)"}
    # s = (3,2,1), rank 2: exact levels 1/2 < (2²)/2, nested levels 1/2 < (2²+1)/2.
    assert [row.level.value for row in exact.rows][:2] == [0.5, 2.0]
    assert [row.level.value for row in almost.rows][:2] == [0.5, 2.5]


@pytest.mark.slow
def test_ties_and_zeros():
    problem = gf.Problem.from_singular_values([2, 2, 1, 0])
    estimate = gf.basin_sizes(problem, Gaussian(problem.widths([2, 3])), 30, key=KEY, progress=False, audit=0)
    assert estimate.certified == 30
    assert estimate.rows[0].level.value == 0.5
    np.testing.assert_allclose(estimate.rows[1].level.value, 2.0)  # {1,3} and {2,3} are one level


def test_an_audit_counts_what_contradicts_and_nothing_else():
    """A made-up new run: one certificate confirmed, one not, one start newly decided, one level not passed after all."""
    first, again = audit.Watch([3, 5, 7, 9]), audit.Watch([3, 5, 7, 9])
    first.labels = {3: (0, 0), 5: (0, 0), 7: (-1, 2), 9: (-1, 1)}
    codes = [Status.CERTIFIED, Status.TIME_LIMIT, Status.CERTIFIED, Status.STEP_LIMIT, Status.CERTIFIED]
    columns = {"status": codes, "limit": [0, -1, 0, -1, 0], "highest": [0, 2, 0, 2, 0]}
    again.add(np.array([3, 5, 7, 9, 11], np.uint64), {name: np.array(column) for name, column in columns.items()})
    found = audit.compare(first, again, "another method")
    assert (found.num, found.flips, found.flipped_ids, found.newly_decided) == (4, 2, (5, 9), 1)


def test_an_audit_is_by_another_method_with_more_of_everything(problem, law):
    """Tolerances tighter by 100, ten times the steps and the time."""
    limits = Limits(t1=5.0, max_steps=70)
    tighter = gf.basins.make_plan(
        problem, law, key=KEY, method=gf.integrator(rtol=1e-4, atol=1e-6), limits=limits
    ).audited()
    assert (type(tighter.method.solver), tighter.limits.t1, tighter.limits.max_steps) == (diffrax.Dopri8, 50.0, 700)
    np.testing.assert_allclose([tighter.method.rtol, tighter.method.atol], [1e-6, 1e-8])
    assert type(tighter.audited().method.solver) is diffrax.Tsit5
    # Where the gradient jumps the path chatters: shorter steps tell, no tolerance does.
    kinks = gf.Problem(np.eye(2), np.eye(2), activations="relu")
    plan = gf.basins.make_plan(kinks, Gaussian((2, 2, 2)), key=KEY)
    again = plan.audited()
    assert again.method.shortest == plan.method.shortest / 10
    assert (again.limits.gradient_tolerance, again.limits.dwell) == (plan.limits.gradient_tolerance, plan.limits.dwell)
    assert again.limits.max_steps == 10 * plan.limits.max_steps


@pytest.mark.slow
def test_other_solvers_give_the_same_labels(problem, law, estimate):
    for solver in (diffrax.Dopri8(), diffrax.Kvaerno3()):
        other = gf.basin_sizes(
            problem, law, 4, key=KEY, progress=False, audit=0, method=gf.integrator(solver, rtol=1e-5)
        )
        assert other.outcomes["limit"].to_pylist() == estimate.outcomes["limit"].to_pylist()[:4]
        # Local errors of 1e-5 a step, fewer than 200 steps, most of them contracting.
        np.testing.assert_allclose(
            other.outcomes["time"].to_numpy(), estimate.outcomes["time"].to_numpy()[:4], rtol=1e-3
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num=0), "num must be at least 1, got 0"),
        (dict(num=5, lanes=0), "lanes must be at least 1"),
        (dict(num=5, audit=6), "cannot audit 6 of 5"),
        (dict(num=5, audit=-1), "audit must be at least 0"),
        (dict(num=5, confidence=1.0), "confidence must lie between 0 and 1"),
        (dict(num=5, lanes=2.5), "lanes must be an integer, got 2.5"),
        (dict(num=5.5), "num must be an integer, got 5.5"),
        (dict(num=5, audit=3), "an audit of 3 starts says nothing"),
        (dict(num=range(2**64 - 2, 2**64 + 1)), "do not lie between"),
        (dict(num=range(-1, 3)), "do not lie between"),
        (dict(num=range(0, 6, 2)), "with step 1"),
        (dict(num=range(3, 3)), "at least one"),
        (dict(num=10**6, lanes=10**9), "GiB"),
    ],
)
def test_bad_options_are_refused_before_running(problem, law, options, message):
    with pytest.raises(ValueError, match=message):
        gf.basin_sizes(problem, law, key=KEY, progress=False, **options)


@pytest.mark.parametrize(
    ("law", "verdict", "message"),
    [
        (
            BalancedGaussian((3, 3, 3)),
            LevelVerdict,
            "would mislead for the exactly balanced starts",
        ),
        (Orthogonal((3, 3, 3)), LevelVerdict, "keeps the sign of det W"),
        (Orthogonal((3, 3, 3)), AlmostSure, "Lebesgue-almost every start"),
        (LambdaBalanced((3, 3, 3), 0.1), AlmostSure, "Lebesgue-almost every start"),
        (LambdaBalanced((3, 3, 3), 1e-10), verdicts.Balanced, "does not say that its starts are"),
        (Gaussian((3, 3, 3)), verdicts.Balanced, "does not say that its starts are"),
        (Balanced((3, 3, 3), rank=2), LevelVerdict, "keeps the sign of det W|rank 2 in widths"),
        (Balanced((3, 3, 3), rank=2), None, r"rank 2 in widths \(3, 3, 3\)"),
    ],
)
def test_verdicts_that_could_only_mislead_are_refused(law, verdict, message):
    square = gf.Problem.from_singular_values([3, 2, 1])
    given = None if verdict is None else verdict(square, law.widths)
    with pytest.raises(ValueError, match=message):
        gf.basin_sizes(square, law, 10, key=KEY, progress=False, audit=0, verdict=given)


@pytest.mark.parametrize("law", [gf.LayerTuple([np.ones((5, 4)), np.ones((3, 5))]), "gaussian", None, Gaussian])
def test_what_is_no_law_is_refused(law):
    with pytest.raises(TypeError, match=r"a law of starts is needed, got .*initialization"):
        check_law(law)


@pytest.mark.slow
def test_ids_up_to_the_last_one():
    """The last ids there are, of a law whose first starts are looked at before the run."""
    chain = gf.Problem.from_singular_values([1.0])
    law = Balanced((1, 2, 1), singular_values=0.5)
    estimate = gf.basin_sizes(chain, law, range(2**64 - 3, 2**64), key=KEY, audit=0, progress=False)
    assert estimate.outcomes["id"].to_pylist() == [2**64 - 3, 2**64 - 2, 2**64 - 1]
    assert estimate.certified == 3


@pytest.mark.slow
def test_a_problem_without_its_description_runs(problem, law):
    estimate = gf.basin_sizes(problem.without_info(), law, 2, key=KEY, audit=0, progress=False)
    assert "source" not in estimate.summary()["data"]


@pytest.mark.slow
def test_integral_numbers_are_taken(problem, law):
    estimate = gf.basin_sizes(problem, law, 2e0, key=KEY, audit=0.0, progress=False, limits=Limits(max_steps=1e4))
    assert estimate.num == 2
    assert estimate.plan.limits.max_steps == 10_000


@pytest.mark.slow
def test_undecided_starts_that_the_audit_decides_are_no_flips(problem, law):
    """Too few steps for the slow starts; the audit has ten times as many and certifies them: nothing is contradicted."""
    estimate = gf.basin_sizes(problem, law, 60, key=KEY, audit=60, progress=False, limits=Limits(max_steps=24))
    assert estimate.undecided > 5
    assert estimate.audit.flips == 0
    assert estimate.audit.newly_decided == estimate.undecided
    assert estimate.rows[0].interval[0] > 0
    assert estimate.rows[0].unaudited[0] > estimate.rows[0].interval[0]
    assert f"{estimate.undecided} undecided ones it certified" in " ".join(str(estimate).split())
    assert "without audit" in str(estimate)


def test_misfits_are_refused(problem):
    with pytest.raises(ValueError, match="do not fit the problem"):
        gf.basin_sizes(problem, Gaussian((3, 5, 3)), 5, key=KEY, audit=0)
    logistic = gf.Problem(np.ones((2, 3)), np.ones((1, 3)), gf.losses.Logistic())
    with pytest.raises(ValueError, match="linear networks only: this problem has loss Logistic"):
        gf.basin_sizes(logistic, Gaussian((2, 2, 1)), 5, key=KEY, verdict=gf.verdicts.LevelVerdict(logistic, (2, 2, 1)))
    with pytest.raises(ValueError, match="proofs are of verdicts by levels"):
        gf.basin_sizes(logistic, Gaussian((2, 2, 1)), 5, key=KEY, proof=True)


def test_saving_and_reading_back(problem, law, estimate, tmp_path):
    folder = tmp_path / "a" / "b"
    saved = gf.basin_sizes(problem, law, 200, key=KEY, lanes=64, progress=False, folder=folder, audit=0)
    table = pyarrow.parquet.read_table(folder / "outcomes")
    assert table.column_names == [
        "id", "status", "verdict", "limit", "highest", "time", "steps", "loss", "gradient_norm", "drift", "crossing_0",
        "crossing_1",
    ]  # fmt: skip
    assert table.equals(saved.outcomes)
    assert table["limit"].to_pylist() == estimate.outcomes["limit"].to_pylist()
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "campaign.json", "outcomes", "summary.json"]
    with pytest.raises(FileExistsError, match="already holds"):
        prepare_folder(folder, ("outcomes",))
    prepare_folder(folder, ("outcomes",), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        prepare_folder(tmp_path / "file" / "x", ())


def test_printing(estimate):
    text = str(estimate)
    for part in ("Basin estimate", "200 certified", "global minimum", "contradicts 0 of 40 labels", "level 7"):
        assert part in text
    assert "Basin estimate" in estimate._repr_html_()


@pytest.mark.slow
def test_float32_is_refused_without_consent():
    with jax.enable_x64(False):
        problem = gf.Problem.from_singular_values([3, 2, 1])
        law = Gaussian(problem.widths([4]))
        assert problem.target.dtype == jnp.float32
        with pytest.raises(ValueError, match="jax_enable_x64"):
            gf.basin_sizes(problem, law, 5, key=KEY, audit=0)
        estimate = gf.basin_sizes(
            problem, law, range(2**33, 2**33 + 5), key=KEY, audit=0, method=gf.integrator(rtol=1e-4, atol=1e-6),
            verdict=LevelVerdict(problem, law.widths, allow_float32=True),
        )  # fmt: skip
        assert estimate.certified == 5
        assert estimate.outcomes["id"].to_pylist()[0] == 2**33


MILLION = r"""
import re

import jax

jax.config.update("jax_enable_x64", True)
import gdflow as gf

problem = gf.Problem.from_singular_values([1.5])
law = gf.initialization.Gaussian((1, 2, 1))
options = dict(key=jax.random.key(11), lanes=4096, progress=False)


def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s*(\d+)", status.read())[1])


gf.basin_sizes(problem, law, 4096, **options)
before = peak()
estimate = gf.basin_sizes(problem, law, 10**6, **options)
print(estimate.certified, before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak memory of a process is read from Linux's /proc"
)
def test_a_million_starts_stay_in_memory():
    """Peak resident memory, in a process of its own: less than 2 GB, less than 1 GB of it for the starts.

    `VmHWM`, not `ru_maxrss`: Linux hands the latter on from parent to child, and the parent here is the whole test run.
    """
    run = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True)
    certified, before, after = map(int, run.stdout.split())
    assert certified == 10**6
    assert after < 2e6  # kB
    assert after - before < 1e6
