"""How far exactly balanced networks are, and proofs of balanced starts on both sides of det W = 0."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from random_cases import random_net

import gdflow as gf
from gdflow.basins.nearly_balanced import distance_to_balanced, least_singular_value
from gdflow.initialization import Balanced

KEY = jax.random.key(4)


def root(S):
    values, vectors = mpmath.eigsy(S)
    return vectors * mpmath.diag([mpmath.sqrt(v) for v in values]) * vectors.T


def nearest(weights):
    """The network of the docstring, to fifty digits."""
    result = [mpmath.matrix(weights[0].tolist())]
    for w in weights[1:]:
        w = mpmath.matrix(w.tolist())
        Q = w * mpmath.inverse(root(w.T * w))
        result.append(Q * root(result[-1] * result[-1].T))
    return result


@pytest.mark.parametrize("widths", [(2, 2, 2), (3, 3, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("off", [0.0, 1e-9, 1e-3])
def test_the_bound_holds_and_is_close(widths, off, rng):
    for i in range(3):
        net = Balanced(widths, singular_values=np.linspace(1.5, 0.7, widths[0])).sample(KEY, i)
        moved = [np.asarray(w) + off * np.asarray(v) for w, v in
                 zip(net.weights, random_net(rng, widths).weights, strict=True)]  # fmt: skip
        bound = float(distance_to_balanced(gf.LayerTuple(moved)))
        with mpmath.workdps(50):
            found = nearest(moved)
            for before, after in zip(found[:-1], found[1:], strict=True):
                assert mpmath.norm(after.T * after - before * before.T) < 1e-45
            apart = mpmath.sqrt(
                sum(mpmath.norm(f - mpmath.matrix(w.tolist())) ** 2 for f, w in zip(found, moved, strict=True))
            )
            assert all(
                mpmath.det(f) * mpmath.det(mpmath.matrix(w.tolist())) > 0 for f, w in zip(found, moved, strict=True)
            )
        assert apart <= bound
        assert bound <= 20 * float(apart) + 1e-12  # round-off is bounded, not computed


@pytest.mark.parametrize("size", [1e-200, 1e-8, 1.0, 1e8])
def test_least_singular_values_from_below(size, rng):
    for d in (1, 2, 5):
        A = size * rng.standard_normal((d, d))
        least = float(np.linalg.svd(A, compute_uv=False)[-1])
        found = float(least_singular_value(jnp.asarray(A)))
        assert found <= least * (1 + 1e-12)
        assert found >= least * (1 - 1e-7) - 1e-12 * size or size < 1e-100


def test_singular_layers_have_none():
    singular = np.diag([1.0, 0.0])
    assert np.isinf(distance_to_balanced(gf.LayerTuple([singular, singular])))
    with pytest.raises(ValueError, match="square layers only"):
        distance_to_balanced(gf.LayerTuple([np.ones((3, 2)), np.ones((2, 3))]))


@pytest.mark.slow
def test_balanced_starts_are_proved_on_both_sides():
    problem, law = gf.Problem.from_singular_values([2.0, 1.0]), Balanced((2, 2, 2))
    table = gf.basin_sizes(problem, law, 300, key=KEY, proof=True, progress=False).outcomes
    label = np.asarray(table["limit"].to_pylist())
    proved = table["proved"].to_numpy() == 1
    nets = law.sample_batch(KEY, np.arange(300))
    right = np.array([np.linalg.det(np.asarray(w1) @ np.asarray(w0)) > 0 for w0, w1 in zip(*nets.weights, strict=True)])
    assert proved.mean() > 0.9
    assert 0.3 < right.mean() < 0.7
    assert np.all((label[proved] == 0) == right[proved])


@pytest.mark.slow
def test_the_distance_opens_the_tube():
    """Also where it is more than round-off; a tube of that radius is not closed at once."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    nets = Balanced((2, 2, 2)).sample_batch(KEY, np.arange(6))
    off = jax.tree.map(lambda w: w.at[:, 0, 1].add(1e-13), nets)
    starts = gf.basins.Listed(off, gf.initialization.Support.BALANCED)
    process = gf.basins.make_plan(problem, starts, proof=True).processes[0]
    drawn = process.draw(jnp.zeros(6, jnp.uint32), jnp.arange(6, dtype=jnp.uint32))
    tube = process.init(drawn).riders[-1]
    opened = np.asarray(tube.tube.radius)
    np.testing.assert_allclose(opened, jax.vmap(distance_to_balanced)(off))
    assert np.all(opened > 1e-14)
    assert not np.any(tube.proved)


def test_widths_that_are_not_known_are_refused():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    with pytest.raises(ValueError, match="square layers only"):
        gf.basin_sizes(problem, Balanced((2, 3, 2)), 5, key=KEY, proof=True, progress=False)


@pytest.mark.parametrize("size", [1e-60, 3e-78, 1e-100, 1e-150, 1e100])
def test_imbalance_of_tiny_layers_is_seen(size):
    """Its square underflows: once the bound was 1e13 times too small, and such starts passed for balanced."""
    net = gf.LayerTuple([jnp.eye(2) * size, jnp.diag(jnp.array([-0.9, 1.0])) * size])
    assert float(distance_to_balanced(net)) >= 0.05 * size
    assert size < 1e-100 or not gf.invariants.is_balanced(net)
