"""Optimizers in lanes: the iterates of single runs, certificates that hold for descent itself, cycles, files, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lane_runs import columns

import gdflow as gf
from gdflow.basins import Descent, GradientDescent, Limits, Status, make_plan
from gdflow.basins.methods import AbstractMethod
from gdflow.basins.samples import sample_trajectories
from gdflow.network import LayerTuple
from gdflow.verdicts import Converged, DescentLevel, LevelVerdict

KEY = jax.random.key(8)
WIDTHS = (3, 4, 3, 2)


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([2.0, 1.0], 3, 2)


@pytest.fixture(scope="module")
def law():
    return gf.initialization.Gaussian(WIDTHS)


@pytest.fixture(scope="module")
def tanh():
    """A network with decay whose limits are isolated, on eight samples."""
    rng = np.random.default_rng(0)
    return gf.Problem(rng.normal(size=(2, 8)), rng.normal(size=(1, 8)), activations="tanh", weight_decay=0.3)


def sizes(problem, law, num, method, **options):
    return gf.basin_sizes(problem, law, num, key=KEY, method=method, audit=0, progress=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "single"),
    [
        (GradientDescent(0.1), 0.1),
        (Descent(optax.sgd, 0.1), 0.1),
        (Descent(optax.sgd, 0.02, momentum=0.9), optax.sgd(0.02, momentum=0.9)),
        (Descent(optax.adam, 0.02), optax.adam(0.02)),
        (Descent(optax.sgd, optax.exponential_decay(0.2, 100, 0.9)), optax.exponential_decay(0.2, 100, 0.9)),
    ],
    ids=lambda x: x.name if isinstance(x, AbstractMethod) else "",
)
def test_rows_are_those_of_single_runs(problem, law, method, single):
    rows = columns(sizes(problem, law, 6, method))
    assert set(rows["status"]) <= {Status.CERTIFIED.label, Status.LOCATED.label, Status.REACHED.label}
    assert (Status.REACHED.label in rows["status"]) == (method.stable_below is None)
    nets = law.sample_batch(KEY, range(6))
    run = gf.gradient_descent(problem, nets, single, int(rows["steps"].max()), every=1)
    for i in range(6):
        # Other products in another order; hundreds of steps spread round-off.
        k = int(rows["steps"][i])
        assert float(run.losses[i, k]) == pytest.approx(rows["loss"][i], rel=1e-6, abs=1e-16)
        assert float(run.gradient_norms[i, k]) == pytest.approx(rows["gradient_norm"][i], rel=1e-5, abs=1e-10)


@pytest.mark.slow
def test_minibatches_depend_on_the_start_alone(rng):
    X = rng.normal(size=(3, 12))
    Y = rng.normal(size=(2, 3)) @ X  # fitted exactly: there the estimates vanish with the gradient
    problem, law = gf.Problem(X, Y), gf.initialization.Gaussian((3, 4, 2))
    batches = gf.Minibatches(4, jax.random.key(2), (X, Y))
    method = Descent(optax.sgd, 0.02, batches=batches)
    some = columns(sizes(problem, law, 8, method, lanes=3))
    np.testing.assert_array_equal(some["loss"], columns(sizes(problem, law, 8, method, lanes=8))["loss"])
    assert set(some["status"]) == {Status.REACHED.label}
    nets = law.sample_batch(KEY, range(8))
    run = gf.gradient_descent(problem, nets, 0.02, int(some["steps"].max()), every=1, batches=batches)
    for i in range(8):
        assert float(run.losses[i, int(some["steps"][i])]) == pytest.approx(some["loss"][i], rel=1e-5, abs=1e-18)


@pytest.mark.slow
def test_certificates_are_of_the_descent_itself(problem, law):
    """By its own default verdict: whatever is certified, early or late, ends at loss zero if it goes on with the same step."""
    early = late = located = 0
    for step in (0.005, 0.1, 0.3, 0.42):
        estimate = sizes(problem, law, 64, GradientDescent(step))
        assert isinstance(estimate.plan.verdict, DescentLevel)
        rows = columns(estimate)
        certified = np.flatnonzero(rows["status"] == Status.CERTIFIED.label)
        early += int(np.sum(rows["gradient_norm"][certified] > 1e-3))
        late += int(np.sum(rows["gradient_norm"][certified] <= 1e-3))
        located += estimate.located
        if certified.size:
            nets = law.sample_batch(KEY, certified[:16])
            run = gf.gradient_descent(problem, nets, step, 20_000 if step < 0.01 else 3000, every=1000)
            assert float(jnp.max(run.losses[:, -1])) < 1e-12
    assert min(early, late, located) > 0


@pytest.mark.slow
def test_pictures_show_the_iterates(problem, law, rng, tmp_path):
    """Losses in the picture are those of the very run, minibatches included."""
    for method in (GradientDescent(0.1), Descent(optax.adam, 0.05)):
        estimate = sizes(problem, law, 12, method)
        samples = sample_trajectories(estimate, 4)
        rows = columns(estimate)
        for start, losses, time in zip(samples.ids, samples.losses, samples.times, strict=True):
            at = int(np.argmin(abs(samples.ts - time)))
            assert losses[at] == pytest.approx(rows["loss"][start], rel=1e-3, abs=1e-12)
        gf.plotting.plot_basins(estimate).savefig(tmp_path / "descent.png")
    X = rng.normal(size=(3, 12))
    Y = rng.normal(size=(2, 3)) @ X
    data, batches = gf.Problem(X, Y), gf.Minibatches(4, jax.random.key(2), (X, Y))
    estimate = sizes(data, gf.initialization.Gaussian((3, 4, 2)), 6, Descent(optax.sgd, 0.02, batches=batches))
    samples = sample_trajectories(estimate, 3)
    for start, losses, time in zip(samples.ids, samples.losses, samples.times, strict=True):
        at = int(np.argmin(abs(samples.ts - time)))
        assert losses[at] == pytest.approx(columns(estimate)["loss"][start], rel=1e-3, abs=1e-12)


@pytest.mark.slow
def test_starts_at_a_minimum_are_certified_at_once():
    """A step of 0.98 of the edge `2/‖∇²L‖ = 1/3` from starts at distance 10⁻⁹: no gradient tolerance could be met."""
    s = np.array([3.0, 2.0, 1.0])
    problem, rng = gf.Problem.from_singular_values(s), np.random.default_rng(0)
    nets = LayerTuple([np.diag(np.sqrt(s)) + 1e-9 * rng.normal(size=(6, 3, 3)) for _ in range(2)])
    for share, certified in ((0.9, 6), (1.02, 0)):
        estimate = gf.basin_sizes(problem, nets, method=GradientDescent(share / 3), audit=0, progress=False)
        assert estimate.certified == certified
    linear = gf.basin_sizes(
        problem, gf.initialization.Gaussian((3, 3)), 8, key=KEY, method=GradientDescent(1.8), audit=0, progress=False
    )
    assert linear.certified == 8  # the Hessian is the identity


def test_the_flow_is_certified_as_before(problem, law):
    assert isinstance(make_plan(problem, law, key=KEY).verdict, LevelVerdict)
    assert isinstance(make_plan(problem, law, key=KEY, method=Descent(optax.adam, 0.1)).verdict, DescentLevel)


@pytest.mark.slow
def test_cycles_are_found_and_not_called_limits():
    """`½(1 − w_2w_1)²` from `w_1 = w_2 = x`: `x ← (1 + η)x − ηx³`. Its cycle of period two, attracting for `1 < η < √5 − 1`, has
    `ab = 1/η`, `a² + b² = 1 + 1/η`; for smaller steps the minimum attracts."""
    problem = gf.Problem.from_singular_values([1.0])
    x = np.linspace(0.31, 1.17, 10)[:, None, None]
    nets = LayerTuple([x, x])
    estimate = gf.basin_sizes(problem, nets, method=GradientDescent(1.1), audit=0, progress=False)
    rows = columns(estimate)
    assert set(rows["status"]) == {Status.CYCLING.label}
    assert set(rows["period"]) == {2.0}
    assert estimate.rows[0].certified == estimate.rows[0].located == estimate.rows[0].possible == 0
    # Losses on the cycle, ½(1 − x²)², of either point.
    squares = np.roots([1.0, -(1 + 1 / 1.1), 1 / 1.1**2])
    for loss in rows["loss"]:
        assert min(abs(0.5 * (1 - squares) ** 2 - loss)) < 1e-9
    still = columns(gf.basin_sizes(problem, nets, method=GradientDescent(0.9), audit=0, progress=False))
    assert set(still["status"]) <= {Status.LOCATED.label, Status.CERTIFIED.label}
    assert np.isnan(still["period"]).all()
    # From √5 − 1 = 1.236 on it is the cycle of four points that attracts.
    four = columns(gf.basin_sizes(problem, nets, method=GradientDescent(1.28), audit=0, progress=False))
    assert set(four["period"]) == {4.0}


@pytest.mark.slow
def test_slow_oscillations_are_no_cycles():
    """`½λx²` with `ηλ = 2 − 10⁻⁴`: the iterates change their sign in every step, and shrink."""
    bowl = gf.Potential(lambda x: 0.5 * jnp.sum(x**2))
    estimate = gf.basin_sizes(
        bowl, lambda key: 1 + jax.random.uniform(key, (2,)), 4, key=KEY, method=GradientDescent(2 - 1e-4), audit=0,
        progress=False, limits=Limits(max_steps=200_000, gradient_tolerance=1e-6, dwell=10.0),
    )  # fmt: skip
    assert estimate.statuses[Status.CYCLING] == 0
    assert estimate.certified + estimate.located == 4


@pytest.mark.slow
def test_found_limits_are_certified_for_short_steps_only(tanh):
    """Within balls of attraction of the descent: for `η` below `1/λ_max`, not above it, and never of other optimizers."""
    law = gf.initialization.Gaussian(tanh.widths([2]))
    flow = gf.basin_sizes(tanh, law, 40, key=KEY, audit=0, progress=False)
    assert isinstance(flow.plan.verdict, Converged)
    assert flow.certified > 20
    largest = max(limit.largest for limit in flow.found)
    least = min(limit.largest for limit in flow.found)
    short = sizes(tanh, law, 40, GradientDescent(0.5 / largest))
    assert short.certified > 20
    long = sizes(tanh, law, 40, GradientDescent(1.2 / least))
    assert long.certified == 0
    assert long.located > 5  # at those that are still stable
    other = sizes(tanh, law, 40, Descent(optax.adam, 0.02))
    assert other.certified == other.located == 0  # what Adam reaches it leaves again
    assert other.statuses[Status.REACHED] > 20
    assert sum(row.reached for row in other.rows) == other.statuses[Status.REACHED]
    assert other.rows[0].possible == other.num
    losses = [limit.loss for limit in flow.found]
    for estimate in (short, long, other):
        for limit in estimate.found:
            assert min(abs(limit.loss - v) for v in losses) < 1e-6


@pytest.mark.slow
def test_nothing_is_certified_at_infinity_nor_excluded():
    """What is proved of separable data is about the flow; and steps may lead up again."""
    X = np.array([[1.0, -1.0, 0.5], [0.3, -0.2, 1.0]])
    problem = gf.Problem(X, np.array([[1.0, -1.0, 1.0]]), gf.losses.Logistic(), activations="relu")
    law = gf.initialization.Gaussian(problem.widths([4]))
    flow = gf.basin_sizes(problem, law, 16, key=KEY, audit=0, progress=False)
    descent = sizes(problem, law, 16, GradientDescent(0.1), limits=Limits(max_steps=2000))
    assert flow.certified > 0
    assert descent.certified == descent.located == 0
    assert not any(limit.at_infinity for limit in descent.found)
    assert np.all(columns(descent)["highest"] == max(len(descent.found) - 1, 0))


@pytest.mark.slow
def test_long_steps_on_separable_data_are_no_way_to_infinity():
    """Steps of 4 on logistic losses: the loss is below log 2 again and again, and half of these starts overflow later."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3, 12))
    problem = gf.Problem(X, np.sign(np.array([1.0, 0.5, -0.3]) @ X)[None], gf.losses.Logistic())
    law = gf.initialization.Gaussian(problem.widths([3]))
    estimate = gf.basin_sizes(
        problem, law, 60, key=jax.random.key(0), method=GradientDescent(4.0), audit=0, progress=False,
        limits=Limits(max_steps=3000),
    )  # fmt: skip
    assert estimate.certified == estimate.located == 0
    with pytest.raises(ValueError, match="is no flow"):
        Converged().check_step(0.1, "gradient descent")


@pytest.mark.slow
def test_what_adam_reaches_it_leaves_again():
    """The gradient is small for ten steps at the minimum, and later the loss is above the second-lowest critical value."""
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0], d_x=6)
    law = gf.initialization.Gaussian(problem.widths([5, 5]))
    estimate = sizes(problem, law, 8, Descent(optax.adam, 0.1))
    assert (estimate.located, estimate.fraction) == (0, 0.0)
    assert estimate.rows[0].reached == estimate.statuses[Status.REACHED] == 8
    assert estimate.interval[1] == 1.0
    run = gf.gradient_descent(problem, law.sample(KEY, 0), optax.adam(0.1), 20_000, every=7)
    after = run.steps > columns(estimate)["steps"][0]
    assert float(run.losses[after].max()) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("step", "stable"), [(0.95, True), (1.05, False), (1.2, False)])
def test_starts_beside_an_unstable_minimum_are_not_located_there(step, stable):
    """`½(1 − ab)²` near `a = b = 1`, where `2/λ_max = 1`: the distance grows by `|1 − 2η|` a step, from 10⁻⁸ on."""
    problem, others = gf.Problem.from_singular_values([1.0]), jax.random.normal(jax.random.key(1), (2, 21))
    a, b = (jnp.append(x, end)[:, None, None] for x, end in zip(others, (1 + 1e-8, 1.0), strict=True))
    estimate = gf.basin_sizes(problem, LayerTuple([a, b]), method=GradientDescent(step), audit=0, progress=False)
    last = columns(estimate)["status"][-1]
    assert last in ([Status.LOCATED.label, Status.CERTIFIED.label] if stable else [Status.REACHED.label])


@pytest.mark.slow
@pytest.mark.parametrize(("share", "stable"), [(0.95, True), (1.05, False), (1.5, False)])
def test_found_limits_that_are_unstable_are_reached_only(tanh, share, stable):
    law = gf.initialization.Gaussian(tanh.widths([2]))
    flow = gf.basin_sizes(tanh, law, 20, key=KEY, audit=0, progress=False)
    limit = flow.found[0]
    near = jax.tree.map(lambda w: w + 1e-10 * jax.random.normal(KEY, w.shape), limit.point)
    nets = jax.tree.map(lambda w, x: jnp.concatenate([w, x[None]]), law.sample_batch(KEY, range(12)), near)
    estimate = gf.basin_sizes(tanh, nets, method=GradientDescent(2 * share / limit.largest), audit=0, progress=False)
    last = columns(estimate)["status"][-1]
    assert last in ([Status.LOCATED.label, Status.CERTIFIED.label] if stable else [Status.REACHED.label])


@pytest.mark.slow
def test_files_and_repeats(problem, law, tmp_path):
    method = Descent(optax.sgd, 0.02, momentum=0.8, nesterov=True)
    first = sizes(problem, law, 20, method, folder=tmp_path / "run")
    again = gf.load(tmp_path / "run")
    assert again.plan.method.name == "sgd, step=0.02, momentum=0.8, nesterov=True"
    assert again.plan.digest == first.plan.digest
    repeated, rows = columns(gf.repeat(tmp_path / "run", progress=False)), columns(first)
    for name, column in rows.items():
        np.testing.assert_array_equal(repeated[name], column)


def test_bad_input(problem, law):
    for make, error, message in (
        (lambda: Descent(optax.adam(0.1), 0.1), TypeError, "the function that makes it"),
        (lambda: Descent(optax.adam, 0.0), ValueError, "step must be positive and finite"),
        (lambda: Descent(optax.adam, 0.1, momentum=0.9), TypeError, "adam does not take these arguments.*momentum"),
        (lambda: Descent(lambda step: 3, 0.1), TypeError, "makes no optimizer of Optax but 3"),
        (lambda: Descent(optax.sgd, lambda k: np.nan), ValueError, "schedule"),
        (lambda: Descent(optax.sgd, 0.1, batches=3), TypeError, "Minibatches"),
        (
            lambda: sizes(problem, law, 5, GradientDescent(0.1), verdict=DescentLevel(problem, WIDTHS, 0.01)),
            ValueError,
            "step of 0.01",
        ),
        (
            lambda: sizes(problem, law, 5, None, verdict=DescentLevel(problem, WIDTHS, 0.01)),
            ValueError,
            "the flow's integration",
        ),
        (
            lambda: sizes(problem, law, 5, Descent(optax.sgd, 0.1), verdict=LevelVerdict(problem, WIDTHS)),
            ValueError,
            "LevelVerdict says where the gradient flow goes",
        ),
        (
            lambda: gf.basin_sizes(problem, law, 9, key=KEY, method=GradientDescent(0.1), audit=5, progress=False),
            ValueError,
            "knows no tighter method",
        ),
        (lambda: DescentLevel(problem, WIDTHS, 0.0).check(problem, None), ValueError, "positive"),
        (
            lambda: sizes(problem, law, 5, GradientDescent(0.1), proof=True),
            ValueError,
            "proofs are of the gradient flow",
        ),
        (
            lambda: sizes(problem, law, 5, Descent(optax.sgd, 0.1, batches=gf.Minibatches(2, KEY))),
            ValueError,
            "coordinates",
        ),
    ):
        with pytest.raises(error, match=message):
            make()
