"""Proofs in batches and one by one: the exact flow is in the tube, and nothing false is ever proved."""

import functools
import json

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.basins import Drift, make_plan
from gdflow.basins.methods import RungeKutta
from gdflow.basins.tube import default_methods, proves_by_default
from gdflow.binomial import clopper_pearson_lower
from gdflow.initialization import Balanced, Gaussian, UniformBall

KEY = jax.random.key(11)
SLOW = pytest.mark.slow
#: Widths, singular values, coordinates, standard deviations of the starts.
CASES = [
    ((3, 2, 2), (2.0, 1.0), "whitened", 0.7),
    pytest.param((4, 3, 4, 3), (3.0, 2.0, 1.0), "data", 0.5, marks=SLOW),
    pytest.param((3, 1, 3), (3.0, 2.0, 1.0), "whitened", 0.7, marks=SLOW),  # a bottleneck
    pytest.param((2, 2, 2, 2, 2), (2.0, 1.0), "data", 0.6, marks=SLOW),
    pytest.param((3, 3, 3, 3, 3, 2), (2.0, 1.0), "whitened", 0.6, marks=SLOW),
    pytest.param((5, 4, 3), (3.0, 2.0, 1.0), "data", 0.2, marks=SLOW),
]
#: The reference has fifty digits, and is rounded to float64.
REFERENCE_ERROR = 1e-15


@functools.cache
def problem_of(widths, s, coordinates):
    if coordinates == "whitened":
        return gf.Problem.from_singular_values(list(s), d_x=widths[0])
    rng = np.random.default_rng(sum(widths))
    X = rng.standard_normal((widths[0], 2 * widths[0]))
    W = rng.standard_normal((widths[-1], widths[0]))
    return gf.Problem(X, W @ X + 0.1 * rng.standard_normal((widths[-1], X.shape[1])))


def exact_flow(proof):
    """The flow from the start of a proof at its joints to fifty digits, and the computed path."""
    from taylor_flow import taylor_flow  # needs python-flint

    A, D, shapes = proof.A, proof.D, [w.shape for w in proof.start.weights]
    cuts = np.cumsum([0, *(a * b for a, b in shapes)])

    def layers(x):
        return [x[i:j].reshape(shape) for i, j, shape in zip(cuts[:-1], cuts[1:], shapes, strict=True)]

    start = [np.asarray(w) for w in proof.start.weights]
    computed = [np.concatenate([w.ravel() for w in start])]
    for k in range(len(proof.durations)):
        computed.append(np.concatenate([c[k].sum(axis=0).ravel() for c in proof.path]))
    return taylor_flow(start, A, D, proof.times), np.array(computed), layers


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "s", "coordinates", "scale"), CASES)
def test_the_exact_flow_is_in_the_tube(widths, s, coordinates, scale, request):
    """A dozen starts a case in the slow tests, a few otherwise; fifty a case have been run."""
    problem = problem_of(widths, s, coordinates)
    num = 12 if "slow" in request.config.option.markexpr.replace("not slow", "") else 5
    proved = 0
    for i in range(num):
        proof = gf.prove(problem, Gaussian(widths, scale).sample(KEY, i), sharp=False)
        if not len(proof.durations):
            continue
        exact, computed, layers = exact_flow(proof)
        distance = np.linalg.norm(exact - computed, axis=1)
        assert np.all(distance <= proof.radius + REFERENCE_ERROR * (1 + np.linalg.norm(exact, axis=1)))
        A, D = proof.A, proof.D
        losses = [0.5 * np.sum((A - functools.reduce(lambda W, w: w @ W, layers(x)) @ D) ** 2) for x in exact]
        low, high = proof.band()
        assert np.all(losses <= high + 10 * REFERENCE_ERROR)
        assert np.all(losses >= low - 10 * REFERENCE_ERROR)
        if proof.proved:
            assert losses[-1] < proof.threshold
            proved += 1
    assert proved >= 0.5 * num  # of four narrow layers two thirds, of the others nine tenths and more


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, pytest.param(1e-9, marks=SLOW), 1e-6, 1e-3])
def test_starts_near_the_stable_set_of_a_saddle(size):
    """`W_1 = a·diag(1, 0)`, `W_2` alike, flow to the saddle {1} of s = (2, 1), others past it later."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    for a in (0.3, 1.0, 1.7):
        net = gf.LayerTuple([jnp.diag(jnp.array([a, size])), jnp.diag(jnp.array([a, size]))])
        proof = gf.prove(problem, net, max_steps=600, sharp=size > 0)
        if size == 0.0:
            assert not proof.proved
            assert proof.reason
        else:
            # The second mode grows like e^{2t}, the tube not faster than e^{∫μ}: from 1e-9 the proof needs ε below that.
            assert proof.proved or size < 1e-5
            if proof.proved:
                exact, *_ = exact_flow(proof)
                assert exact[-1][3] * exact[-1][7] > 0  # the mode of the saddle is learnt by then


@pytest.mark.slow
def test_what_is_not_the_flow_is_not_proved():
    """A stage that is off by 1e-4 adds a defect: fewer proofs, and in those the exact flow is in the tube still."""
    problem = problem_of((3, 2, 2), (2.0, 1.0), "whitened")

    class Broken(RungeKutta):
        def attempt(self, objective, place):
            step = super().attempt(objective, place)
            return eqx.tree_at(lambda s: s.dense[3], step, jax.tree.map(lambda k: k + 1e-4, step.dense[3]))

    class Wrong(RungeKutta):
        def attempt(self, objective, place):
            step = super().attempt(objective, place)
            y = jax.tree.map(lambda w: w * 1.001, step.y)
            return eqx.tree_at(lambda s: s.y, step, y)

    for kind in (Broken, Wrong):
        for i in range(4):
            proof = gf.prove(problem, Gaussian((3, 2, 2)).sample(KEY, i), methods=kind(), sharp=False)
            sound = gf.prove(problem, Gaussian((3, 2, 2)).sample(KEY, i), sharp=False)
            assert not proof.proved or proof.radius[-1] > 3 * sound.radius[-1]
            exact, computed, _ = exact_flow(proof)
            assert np.all(np.linalg.norm(exact - computed, axis=1) <= proof.radius + REFERENCE_ERROR)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proofs")
    problem = gf.Problem.from_singular_values([2.0, 1.0], d_x=3)
    estimate = gf.basin_sizes(
        problem, Gaussian((3, 2, 2)), 300, key=KEY, proof=True, progress=False, folder=folder / "run", riders=(Drift(),)
    )
    return problem, estimate, folder


@pytest.mark.slow
def test_proofs_in_batches(run, monkeypatch):
    problem, estimate, _ = run
    table = estimate.outcomes
    assert estimate.proved == estimate.num == 300
    assert set(table["proved"].to_numpy()) == {1.0}
    # What is open is sampling alone: one-sided bounds at α/2 each.
    assert estimate.interval == (pytest.approx(clopper_pearson_lower(300, 300, 0.025)), 1.0)
    assert estimate.audit is None
    assert np.all(table["radius"].to_numpy() < np.inf)
    assert "every start" in str(estimate)
    # Attempts that failed were made again, by the plan's next method; rows in lanes and one by one agree. The fused program
    # bounds the ends of the path beforehand, by up to a thousandth of these radii.
    monkeypatch.setenv("GDFLOW_ENGINE", "xla")
    lanes = make_plan(problem, Gaussian((3, 2, 2)), key=KEY, proof=True).collect(range(6))
    for i in range(6):
        proof = gf.prove(problem, Gaussian((3, 2, 2)).sample(KEY, i))
        for rows, of_radius, of_exponent in ((lanes, 1e-6, 1e-8), (table, 1e-3, 1e-6)):
            np.testing.assert_allclose(rows["radius"][i].as_py(), proof.radius[-1], rtol=of_radius)
            np.testing.assert_allclose(rows["exponent"][i].as_py(), proof.exponents[-1], rtol=of_exponent, atol=1e-12)
            assert rows["attempt"][i].as_py() == len(proof.attempts) - 1
    monkeypatch.delenv("GDFLOW_ENGINE")
    # Times and labels are those of runs without proofs, up to the tolerance of later attempts.
    plain = gf.basin_sizes(problem, Gaussian((3, 2, 2)), 300, key=KEY, audit=0, progress=False, riders=(Drift(),))
    assert plain.outcomes["verdict"].equals(table["verdict"])
    np.testing.assert_allclose(plain.outcomes["time"].to_numpy(), table["time"].to_numpy(), rtol=1e-4, atol=1e-9)


def test_runs_with_proofs_are_opened_and_repeated(run):
    _, estimate, folder = run
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["proved"] == 300
    assert sum(summary["proved_by"].values()) == 300
    opened = gf.load(folder / "run")
    assert opened.proved == 300
    assert opened.interval == estimate.interval
    again = gf.repeat(folder / "run" / "summary.json", progress=False)
    assert again.plan.digest == estimate.plan.digest
    assert again.outcomes["radius"].equals(estimate.outcomes["radius"])


@pytest.mark.slow
def test_hard_starts_are_tried_again(run):
    problem, *_ = run
    loose = gf.integrator(rtol=1e-3, atol=1e-6)
    plan = make_plan(problem, Gaussian((3, 2, 2)), key=KEY, method=loose, proof=True, riders=(Drift(),))
    assert [m.rtol for m in plan.methods] == [1e-3, 1e-9, 1e-12]
    table = plan.collect(range(100))
    assert set(table["attempt"].to_numpy()) >= {0.0, 1.0}
    assert np.all(table["proved"].to_numpy() == 1)
    np.testing.assert_array_equal(table["id"].to_numpy(), np.arange(100))


@pytest.mark.slow
def test_unproved_starts_are_not_known(run):
    """With a single loose attempt many proofs fail: they count on both sides of the interval."""
    problem, *_ = run
    loose = gf.integrator(rtol=1e-2, atol=1e-2)
    plan = make_plan(problem, Gaussian((3, 2, 2)), key=KEY, method=loose, proof=True, again=(loose,), riders=(Drift(),))
    table = plan.collect(range(100))
    proved = table["proved"].to_numpy() == 1
    assert 0 < proved.sum() < 100
    assert np.all(np.isfinite(table["radius"].to_numpy()[proved]))


def test_refusals(run):
    problem, *_ = run
    law = Gaussian((3, 2, 2))
    options = dict(key=KEY, progress=False)
    with pytest.raises(ValueError, match="no polynomial that is known"):
        gf.basin_sizes(problem, law, 5, proof=True, method=gf.integrator(diffrax.Kvaerno5()), **options)
    with pytest.raises(ValueError, match="audit is for labels that are not proved"):
        gf.basin_sizes(problem, law, 100, proof=True, audit=50, **options)
    square = gf.Problem.from_singular_values([2.0, 1.0])
    with pytest.raises(ValueError, match="balanced up to round-off only"):
        gf.basin_sizes(square, Balanced((2, 3, 2)), 5, proof=True, **options)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), problem)
    with pytest.raises(ValueError, match="float64"):
        make_plan(single, law, key=KEY, proof=True, verdict=gf.verdicts.LevelVerdict(problem, law.widths))


def test_where_proofs_are_the_default():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    law, method = Gaussian((2, 2, 2)), gf.integrator()
    assert proves_by_default(problem, law, method, None)
    assert proves_by_default(problem, law, None, None)
    assert not proves_by_default(problem, law, gf.integrator(gf.RKC(10)), None)
    assert not proves_by_default(problem, Gaussian((2, 60, 60, 2)), method, None)
    assert not proves_by_default(problem, Balanced((2, 2, 2)), method, None)
    assert not proves_by_default(problem, law, method, gf.verdicts.AlmostSure(problem, (2, 2, 2)))
    assert proves_by_default(problem, UniformBall((2, 2, 2)), gf.integrator(diffrax.Dopri8()), None)


def test_later_attempts_are_tighter():
    first, again = default_methods(gf.integrator(rtol=1e-9, atol=1e-12))
    assert [m.rtol for m in (first, *again)] == [1e-9, 1e-12]
    first, again = default_methods(None)
    assert [m.rtol for m in (first, *again)] == [1e-7, 1e-9, 1e-12]
