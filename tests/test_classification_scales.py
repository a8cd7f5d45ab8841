"""The verdict of a classification does not depend on the units of the data, nor on how size is shared among the layers."""

import jax
import numpy as np
import pytest
from landscape_points import KIND, derivatives, whitened

import gdflow as gf
from gdflow.network import LayerTuple
from gdflow.problem import Problem


def test_scales_do_not_matter():
    """`W_1 → cW_1`, `W_2 → W_2/c` keeps the stratum and the verdict, as do singular values of any size."""
    for scale in (1e-6, 1.0, 1e6):
        problem = whitened(np.array([3.0, 2.0, 1.0]) * scale, 4, 3)
        for kind in ("strict", "non-strict"):
            for factor in (1.0, 30.0):
                net = gf.sample_critical_point(problem, (4, 4, 4, 3), (1,), key=jax.random.key(4), kind=kind)
                W1, W2, W3 = net.weights
                c = gf.classify(problem, LayerTuple([W1 * factor, W2 / factor, W3]))
                assert (c.kind, c.subset) == (KIND[kind], (1,)), (scale, kind, factor, c.uncertain)


def verdict(c: gf.landscape.Classification):
    """What must not depend on units."""
    if not c.critical:
        return c.kind
    ranks = {jk: d.rank for jk, d in c.pivots.products.items()}
    signs = (c.inertia.negative, c.inertia.zero, c.inertia.positive)
    return c.kind, c.subset, c.nearest_level, ranks, signs, [q.tightened for q in c.pivots.pivots], c.escape_source


SCALED = {2: (4, 3, 3), 3: (4, 4, 4, 3), 4: (4, 4, 3, 4, 3)}


@pytest.mark.parametrize("N", SCALED)
@pytest.mark.parametrize("size", [1e-70, 1e-8, 1e8, 1e30])
def test_singular_values_of_any_size_give_the_same_verdict(size, N):
    """`W_j → cW_j`, `s → c^N s`: samples and verdicts are those of `s` of order one."""
    s, widths, compared = np.array([3.0, 2.0, 1.0]), SCALED[N], 0
    rng = np.random.default_rng(N)
    for subset, kind in [((), "any"), ((1,), "strict"), ((2,), "any"), ((1, 2, 3), "minimum"), ((1,), "non-strict")]:
        if kind == "non-strict" and N == 2:
            continue
        one, other = whitened(s, 4, 3), whitened(s * size, 4, 3)
        net = gf.sample_critical_point(one, widths, subset, key=jax.random.key(7), kind=kind)
        expected = gf.classify(one, net)
        c = size ** (1 / N)
        assert verdict(gf.classify(other, c * net)) == verdict(expected), (subset, kind)
        sampled = gf.sample_critical_point(other, widths, subset, key=jax.random.key(7), kind=kind)
        found = gf.classify(other, sampled)
        assert found.critical
        assert found.subset == subset
        assert found.kind == KIND.get(kind, found.kind)
        assert found.uncertain == ()
        # What is reported is that of the network as given.
        np.testing.assert_allclose(found.level_value, size**2 * expected.level_value, rtol=1e-9, atol=0)
        moved = c * (net + 1e-4 * LayerTuple([rng.normal(size=w.shape) for w in net.weights]))
        assert gf.classify(other, moved).kind == "not critical"
        nearly = gf.classify(other, c * net, tolerance=1e-6)
        e, threshold = nearly.smallest_eigenvalue, nearly.eigenvalue_threshold
        factor = size ** (2 - 2 / N)
        if set(nearly.factors) == set(expected.factors) == {1.0}:
            np.testing.assert_allclose(e, factor * expected.smallest_eigenvalue, rtol=1e-6, atol=1e-2 * threshold)
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("N", SCALED)
@pytest.mark.slow
def test_norms_of_layers_may_be_far_apart(N):
    """`W_j → t_jW_j`, `∏t_j = 1`: a change of basis in the hidden layers."""
    problem, widths = whitened([3.0, 2.0, 1.0], 4, 3), SCALED[N]
    rng = np.random.default_rng(N)
    for subset, kind in [((), "any"), ((1,), "strict"), ((1, 2, 3), "minimum"), ((2,), "any"), ((1,), "non-strict")]:
        if kind == "non-strict" and N == 2:
            continue
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(8), kind=kind)
        expected = gf.classify(problem, net)
        H = derivatives(problem, [net], "hessian")[0]
        moved = net + 1e-5 * LayerTuple([rng.normal(size=w.shape) for w in net.weights])
        for exponents in ([8, -8, 0, 0], [-6, 9, 1, -3], [0, 12, -3, -8]):
            t = 10.0 ** np.array(exponents[:N])
            t[-1] /= np.prod(t)

            def apart(net, t=t):
                return LayerTuple([a * w for a, w in zip(t, net.weights, strict=True)])

            c = gf.classify(problem, apart(net))
            assert verdict(c) == verdict(expected), (subset, kind, exponents)
            assert gf.classify(problem, apart(moved)).kind == "not critical"
            if c.kind == "strict saddle":
                # The direction is one of the network with norms alike, carried over.
                v = np.concatenate([np.ravel(w) / a for a, w in zip(t, c.escape.weights, strict=True)])
                # Far beyond round-off of the terms, whatever the norms of the layers.
                assert v @ H @ v < -1e-9 * abs(v) @ abs(H) @ abs(v)
                assert c.escape_value < 0


def test_a_small_layer_that_others_cannot_make_up_for_stays_small():
    """Near the origin, and near a point with one layer zero: known to twelve digits, these count as critical."""
    problem = whitened([2.0, 1.0], 2, 2)
    rng = np.random.default_rng(0)
    W1, W2, W3 = (rng.normal(size=(2, 2)) for _ in range(3))
    for layers in ([1e-12 * W1, 1e-12 * W2], [1e-12 * W1, 1e-12 * W2, 1e-11 * W3]):
        c = gf.classify(problem, LayerTuple(layers))
        assert (c.critical, c.subset) == (True, ())
        assert not gf.classify(problem, LayerTuple([1e10 * w for w in layers])).critical
    # W_1 = 0 and W_2 annihilates W_3ᵀΣ…: all gradients vanish but for the small layer's.
    for small in (0.0, 1e-12):
        c = gf.classify(problem, LayerTuple([small * W1, small * W2, W3]))
        assert (c.critical, c.subset) == (True, ())


def test_units_of_the_data_do_not_matter():
    """`X → cX` in data coordinates takes `W_1/c`: the Hessian's blocks are then of very different sizes."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(4, 12)), rng.normal(size=(3, 12))
    one = Problem(X, Y)
    for kind, subset in [("strict", (1,)), ("non-strict", (1,)), ("minimum", (1, 2, 3)), ("any", (2,))]:
        net = gf.sample_critical_point(one, (4, 4, 4, 3), subset, key=jax.random.key(2), kind=kind)
        expected = verdict(gf.classify(one, net))
        for c in (1e-9, 1e9):
            W1, *others = net.weights
            found = gf.classify(Problem(c * X, Y), LayerTuple([W1 / c, *others]))
            assert verdict(found) == expected
            sampled = gf.sample_critical_point(
                Problem(c * X, Y), (4, 4, 4, 3), subset, key=jax.random.key(2), kind=kind
            )
            assert gf.classify(Problem(c * X, Y), sampled).kind == KIND.get(kind, found.kind)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_a_single_layer_is_at_its_minimum_or_not_critical(size):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(4, 12)), size * rng.normal(size=(3, 12))
    tied = Problem.from_singular_values([2 * size, 2 * size, 0.0], d_x=4)
    for problem, subset in ((Problem(X, Y), (1, 2, 3)), (tied, (1, 2))):
        net = LayerTuple([problem.least_squares()])
        c = gf.classify(problem, net)
        assert (c.kind, c.subset, c.nearest_level, c.level_value) == ("global minimum", subset, 0, 0.0)
        assert (c.inertia.negative, c.inertia.zero, c.inertia.positive) == (0, 0, 12)
        assert c.pivots is c.rank is c.rank_Z is c.escape is None
        assert "global minimum" in str(c)
        moved = gf.classify(problem, net + 1e-6 * size * LayerTuple([rng.normal(size=(3, 4))]))
        assert (moved.kind, moved.critical, moved.nearest_level) == ("not critical", False, 0)
        assert not gf.classify(problem, 0.0 * net).critical
