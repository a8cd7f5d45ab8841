"""What others can write without touching the package: a method, a verdict and a rider, twenty lines each.

These are the examples that the protocols' docstrings point to.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.basins.methods import AbstractMethod, Step
from gdflow.basins.riders import AbstractRider
from gdflow.initialization import Gaussian
from gdflow.verdicts import AbstractVerdict

KEY = jax.random.key(5)


# -- a method ----------------------------------------------------------------------------------------------------------


class GradientDescent(AbstractMethod):
    """`W ← W − η∇L(W)`; time is the number of steps times η."""

    step_size: float

    def begin(self, objective, y):
        return None, jnp.full(y.weights[0].shape[0], self.step_size), None

    def attempt(self, objective, place):
        gradients = jax.vmap(objective.gradient)(place.y)
        y = jax.tree.map(lambda w, g: w - self.step_size * g, place.y, gradients)
        return Step(y, None, self.loss(objective, y))


@pytest.mark.slow
def test_gradient_descent_as_a_method():
    """Iterates by NumPy: the same number of steps, the same loss, and the time inside the step on the straight line."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    method = GradientDescent(0.05)
    estimate = gf.basin_sizes(problem, Gaussian((2, 3, 2)), 20, key=KEY, method=method, riders=(), progress=False)
    assert estimate.certified == 20
    assert estimate.audit is None  # it knows no tighter method
    target, level = np.diag([2.0, 1.0]), 0.5
    starts = estimate.plan.starts.networks(range(20))
    for i, row in enumerate(estimate.outcomes.to_pylist()):
        W1, W2 = (np.asarray(w[i]) for w in starts.weights)
        steps = 0
        while (loss := 0.5 * np.sum((target - W2 @ W1) ** 2)) >= level:
            M = target - W2 @ W1
            W1, W2 = W1 + 0.05 * W2.T @ M, W2 + 0.05 * M @ W1.T
            steps += 1
        assert row["steps"] == steps
        np.testing.assert_allclose(row["loss"], loss, rtol=1e-12)
        assert row["time"] == 0 if steps == 0 else 0.05 * (steps - 1) <= row["time"] <= 0.05 * steps * (1 + 1e-12)


@pytest.mark.slow
def test_a_step_size_that_is_too_long_diverges():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    estimate = gf.basin_sizes(
        problem, Gaussian((2, 3, 2)), 20, key=KEY, method=GradientDescent(3.0), riders=(), progress=False
    )
    ended = {status.label for status, count in estimate.statuses.items() if count}
    assert estimate.certified < 20
    assert ended <= {"certified", "diverging", "non finite"}


# -- a verdict ---------------------------------------------------------------------------------------------------------


class NearestMatrix(AbstractVerdict):
    """A start is decided once its end-to-end matrix is within a distance of one of several matrices."""

    matrices: jax.Array
    distance: float = 1e-3

    @property
    def labels(self):
        return tuple(f"matrix {k}" for k in range(self.matrices.shape[0]))

    def distances(self, now):
        products = jax.vmap(lambda net: net.end_to_end)(now.networks)
        return jnp.linalg.norm(products[:, None] - self.matrices[None], axis=(2, 3))

    def begin(self, objective, now):
        return jnp.zeros_like(now.loss), jnp.min(self.distances(now), axis=1) < self.distance

    def look(self, objective, state, now, kept):
        return state, kept & (jnp.min(self.distances(now), axis=1) < self.distance)

    def settle(self, objective, state, now, decided):
        last = self.matrices.shape[0] - 1
        limit = jnp.where(decided, jnp.argmin(self.distances(now), axis=1), -1)
        return limit, jnp.where(decided, limit, last)


@pytest.mark.slow
def test_the_nearest_matrix_as_a_verdict():
    """Symmetric minima of `½‖Σ − W_2W_1‖²` behind a bottleneck with ties, told apart by a verdict of one's own.

    The target is diag(1, 1) and the rank 1: the minima are all `vvᵀ`, `|v| = 1`. Starts `W_2 = W_1ᵀ` aligned with an axis stay
    there, exactly, so the limit is the projection onto that axis.
    """
    problem = gf.Problem.from_singular_values([1.0, 1.0])
    rows = np.array([[0.3, 0.0], [0.0, 0.2], [0.0, -1.5], [2.0, 0.0]])
    nets = gf.LayerTuple([rows[:, None, :], rows[:, :, None]])
    verdict = NearestMatrix(jnp.stack([jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([0.0, 1.0]))]))
    estimate = gf.basin_sizes(problem, nets, verdict=verdict, audit=0, progress=False)
    assert estimate.outcomes["verdict"].to_pylist() == ["matrix 0", "matrix 1", "matrix 1", "matrix 0"]
    assert [row.certified for row in estimate.rows] == [2, 2]
    assert "matrix 1" in str(estimate)
    early = gf.basin_sizes(problem, nets, verdict=verdict, limits=gf.basins.Limits(t1=1e-3), audit=0, progress=False)
    assert early.undecided == 4
    assert [row.possible for row in early.rows] == [4, 4]


# -- a rider -----------------------------------------------------------------------------------------------------------


class LargestNorm(AbstractRider):
    """The largest Frobenius norm of all layers together, over the steps."""

    @property
    def columns(self):
        return {"largest_norm": "largest Frobenius norm of the network at the ends of steps"}

    def begin(self, objective, now, place):
        return jax.vmap(lambda net: net.norm())(now.networks)

    def after(self, objective, state, stride):
        return jnp.where(stride.kept, jnp.maximum(state, jax.vmap(lambda net: net.norm())(stride.end.networks)), state)

    def rows(self, objective, state, now, times):
        return {"largest_norm": state}


@pytest.mark.slow
def test_the_largest_norm_as_a_rider(tmp_path):
    """Against a trajectory by Diffrax at tight tolerances: norms grow towards the minimum, or fall from a large start."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    law, riders = Gaussian((2, 3, 2), 1.5), (gf.basins.Drift(), LargestNorm())
    estimate = gf.basin_sizes(
        problem, law, 6, key=KEY, method=gf.integrator(rtol=1e-8, atol=1e-10), riders=riders, audit=0, folder=tmp_path,
        progress=False,
    )  # fmt: skip
    starts = law.sample_batch(KEY, range(6))
    for i, row in enumerate(estimate.outcomes.to_pylist()):
        net = jax.tree.map(lambda w, i=i: w[i], starts)
        times = np.linspace(0, max(row["time"], 1e-9), 400)
        path = gf.simulate(problem, net, float(times[-1]), ts=times, rtol=1e-10, atol=1e-12)
        largest = np.max([np.sqrt(sum(np.sum(np.square(w[k])) for w in path.networks.weights)) for k in range(400)])
        # Between the ends of steps of at most a tenth of the time scale the norm moves by little.
        np.testing.assert_allclose(row["largest_norm"], largest, rtol=2e-2)
    assert gf.load(tmp_path).outcomes.equals(estimate.outcomes)  # the column is read back, and the rider from its name
    assert eqx.tree_equal(gf.load(tmp_path).plan.riders[1], LargestNorm())
    assert isinstance(estimate.plan.method.solver, diffrax.Tsit5)


# -- mistakes ----------------------------------------------------------------------------------------------------------


class Named(LargestNorm):
    """With a field whose name records use themselves, and a column of one's choice."""

    name: str = "norm"

    @property
    def columns(self):
        return {self.name: "a norm"}

    def rows(self, objective, state, now, times):
        return {"norm": state}


class Outside(NearestMatrix):
    """A verdict that settles on a limit that it has no label for."""

    def settle(self, objective, state, now, decided):
        return jnp.where(decided, 7, -1), jnp.zeros_like(now.loss, int)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(riders=(Named("loss"),)), "Named reports a column 'loss', which there is already"),
        (dict(riders=(gf.basins.Drift(), gf.basins.Drift())), "Drift reports a column 'drift', which there is already"),
        (dict(riders=(Named("other"),)), r"announces the columns \['other'\] but reports \['norm'\]"),
        (dict(riders=(LargestNorm,)), "riders are instances of AbstractRider|parameter"),
        (dict(verdict=Outside(jnp.zeros((2, 1, 1)), 1e9)), "settles on a limit from 7 to 7, but has 2 labels"),
        (dict(verdict=NearestMatrix(jnp.zeros((0, 1, 1)))), "a verdict needs at least one label"),
    ],
)
def test_mistakes_are_said(options, message):
    problem = gf.Problem.from_singular_values([1.0])
    with pytest.raises((ValueError, TypeError), match=message):
        gf.basin_sizes(problem, Gaussian((1, 1, 1)), 2, key=KEY, audit=0, progress=False, **options)


@pytest.mark.slow
def test_code_of_ones_own_is_run_again(tmp_path):
    """It is recorded by name: what it did when the results were made is not known, and a folder is not silently opened."""
    problem = gf.Problem.from_singular_values([1.0])
    options = dict(key=KEY, audit=0, progress=False, riders=(Named(),), folder=tmp_path)
    first = gf.basin_sizes(problem, Gaussian((1, 1, 1)), 3, **options)
    with pytest.raises(FileExistsError, match="overwrite"):
        gf.basin_sizes(problem, Gaussian((1, 1, 1)), 3, **options)
    opened = gf.load(tmp_path)  # asked for, they are opened
    assert opened.outcomes.equals(first.outcomes)
    assert opened.plan.riders == (Named(),)
