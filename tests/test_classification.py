"""Classification of critical points: ranks against Hessians by automatic differentiation, residuals, margins, invariance."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from landscape_points import (
    POOL,
    TWO_HIDDEN,
    Point,
    admissible_subsets,
    derivatives,
    flat,
    r_max,
    sample,
    whitened,
)

import gdflow as gf
from gdflow.landscape import NormalForm, classification, curvature, escape_direction, extreme_eigenpairs, find_pivots
from gdflow.losses import Logistic
from gdflow.network import LayerTuple
from gdflow.problem import Problem

# Over the pool negative eigenvalues of strict points are beyond 5e-3 of the largest, those that ought to be zero below 1e-14.
ZERO = 1e-10

# Every second point of the pool, all depths among them, by default.
HALF_OF_POOL = [pytest.param(name, marks=[pytest.mark.slow] if k % 2 else []) for k, name in enumerate(POOL)]


@functools.cache
def points(name: str) -> list[Point]:
    return sample(name, repeats=9, first_key=5000)


@functools.cache
def hessians(name: str) -> np.ndarray:
    return derivatives(POOL[name][0], [p.net for p in points(name)], "hessian")


@functools.cache
def spectra(name: str) -> np.ndarray:
    return np.linalg.eigvalsh(hessians(name))


@functools.cache
def pivots(name: str):
    problem, _ = POOL[name]
    form, target = NormalForm(problem), np.asarray(NormalForm(problem).target)
    return [
        find_pivots([np.asarray(w) for w in form.into(p.net).weights], target, p.subset, tolerance=1e-9)
        for p in points(name)
    ]


def negative(e: np.ndarray) -> int:
    # The floor tells a Hessian that vanishes (round-off, below 1e-13) from one that does not (above 1e-1).
    return int(np.sum(e < -ZERO * max(abs(e[0]), abs(e[-1]), 1e-2)))


def zero_net(*widths: int) -> LayerTuple:
    return LayerTuple([jnp.zeros((b, a)) for a, b in itertools.pairwise(widths)])


# Pivots.


@pytest.mark.slow
def test_pivots_and_hessians_agree_on_two_thousand_points():
    counts = collections.Counter()
    for name in POOL:
        for p, e, found in zip(points(name), spectra(name), pivots(name), strict=True):
            assert found.strict == (negative(e) > 0), (name, p.subset, p.kind)
            assert found.strict + found.minimum + found.non_strict == 1
            assert not found.uncertain
            if p.kind not in ("any", "balanced"):
                expected = {"strict": "strict", "minimum": "minimum", "non-strict": "non_strict"}
                assert getattr(found, expected.get(p.kind, "zero_hessian"))
            counts[len(p.net.weights), found.strict, found.minimum] += 1
    assert sum(counts.values()) >= 2000
    assert {depth for depth, *_ in counts} == {2, 3, 4, 5}
    for depth in (3, 4, 5):  # each of the three kinds often, non-strict saddles too
        assert min(counts[depth, True, False], counts[depth, False, True], counts[depth, False, False]) >= 25
    assert counts[2, False, False] == 0


@pytest.mark.parametrize("name", HALF_OF_POOL)
def test_zero_hessians_are_found_by_the_ranks(name):
    largest = np.max(abs(spectra(name)), axis=1)
    for found, size in zip(pivots(name), largest, strict=True):
        assert found.zero_hessian == (size < 1e-9)


@pytest.mark.slow
def test_a_larger_rank_of_the_hidden_product_is_sufficient_and_not_necessary():
    """Proposition 4 iii: `r_Z > r` makes a point strict; there are strict points, also with `S = {1..r}`, without it."""
    without = 0
    for name in POOL:
        _, widths = POOL[name]
        N = len(widths) - 1
        for p, e, found in zip(points(name), spectra(name), pivots(name), strict=True):
            r = len(p.subset)
            r_Z = found.rank(2, N - 1) if N > 2 else widths[1]
            if r_Z > r and not found.minimum:
                assert negative(e) > 0
            without += N > 2 and r_Z == r and found.nested and negative(e) > 0
    assert without >= 10


def test_pivots_of_a_path_by_hand():
    """Three layers, `S = {1}`; rank 1 everywhere but where a second path is laid."""
    target = np.diag([2.0, 1.0])
    path = [np.diag([2.0, 0.0]), np.diag([1.0, 0.0]), np.diag([1.0, 0.0])]
    second = np.array([[0.0, 0.0], [0.0, 1.0]])
    pairs = {(2, 1), (3, 1), (3, 2)}
    # A path in W_2 frees (3,1), in W_1 from the second input (3,2), in W_3 to the second output (2,1).
    for layer, freed in [(None, set()), (1, {(3, 1)}), (0, {(3, 2)}), (2, {(2, 1)})]:
        layers = [w + second if k == layer else w for k, w in enumerate(path)]
        found = find_pivots(layers, target, (1,), tolerance=1e-9)
        assert {(p.i, p.j) for p in found.pivots} == pairs
        assert {(p.i, p.j) for p in found.pivots if not p.tightened} == freed
        assert found.strict == bool(freed)
        assert found.non_strict == (not freed)
        assert (found.depth, found.max_rank, found.nested, found.minimum) == (3, 2, True, False)


# classify.


@functools.cache
def classified(name: str) -> list[tuple[Point, gf.landscape.Classification, np.ndarray]]:
    """Every thirteenth point: `classify` is slower than its parts."""
    problem, _ = POOL[name]
    return [(points(name)[k], gf.classify(problem, points(name)[k].net), spectra(name)[k]) for k in chosen(name)]


def chosen(name: str) -> range:
    return range(0, len(points(name)), 13)


KIND = {"strict": "strict saddle", "minimum": "global minimum"}
KIND |= {"non-strict": "non-strict saddle", "zero-hessian": "non-strict saddle"}


@pytest.mark.parametrize("name", HALF_OF_POOL)
def test_classification_of_sampled_points(name):
    problem, widths = POOL[name]
    s = np.asarray(problem.singular_values)
    levels = gf.critical_values(problem, r_max(problem, widths))
    gradients = np.linalg.norm(derivatives(problem, [p.net for p, _, _ in classified(name)], "gradient"), axis=1)
    for (p, c, e), gradient in zip(classified(name), gradients, strict=True):
        assert c.critical
        assert c.uncertain == ()
        assert c.kind == c.by_pivots == c.by_hessian
        assert c.kind == KIND.get(p.kind, c.kind)
        assert (c.kind == "strict saddle") == (negative(e) > 0)
        assert c.subset == p.subset
        assert c.rank.rank == len(p.subset)
        assert c.rank_Z.rank >= c.rank.rank
        assert c.relative_gradient < 1e-13
        np.testing.assert_allclose(c.gradient_norm, gradient, rtol=0, atol=1e-12)
        # Each residual is relative to the size of its terms: a few eps, times condition numbers below 100.
        assert max(c.residuals.values()) < 1e-13
        inside = [i - 1 for i in p.subset]
        value = 0.5 * (np.sum(s**2) - np.sum(s[inside] ** 2))
        np.testing.assert_allclose((c.loss, c.level_value), value, rtol=0, atol=1e-12)
        assert c.level_distance < 1e-12
        assert p.subset in levels[c.nearest_level].subsets
        np.testing.assert_allclose(c.smallest_eigenvalue, e[0], rtol=0, atol=1e-12 * max(1.0, e[-1]))
        assert c.inertia.negative == negative(e)


@pytest.mark.parametrize("name", POOL)
def test_escape_directions_descend(name):
    problem, _ = POOL[name]
    pairs, drops = [], []
    for (p, c, e), k in zip(classified(name), chosen(name), strict=True):
        if c.kind != "strict saddle":
            assert c.escape is c.escape_value is c.escape_source is None
            continue
        v = flat(c.escape)
        np.testing.assert_allclose(np.linalg.norm(v), 1.0, rtol=1e-12)
        assert c.escape_value < 0
        np.testing.assert_allclose(c.escape_value, 0.5 * v @ hessians(name)[k] @ v, rtol=0, atol=1e-13 * e[-1])
        assert c.escape_value < -1e-6 * e[-1]  # far beyond round-off
        step = 1e-3 * abs(c.escape_value) / e[-1]
        pairs += [p.net, p.net + step * c.escape]
        drops.append(step**2 * c.escape_value)
    # The loss itself falls along v: a short step, whose third-order term is a small part of the second.
    losses = derivatives(problem, pairs, "loss").reshape(-1, 2)
    for (here, there), drop in zip(losses, drops, strict=True):
        np.testing.assert_allclose(there - here, drop, rtol=0.2, atol=1e-14 * here)


def test_every_source_of_escape_directions_occurs():
    sources = collections.Counter(c.escape_source for name in POOL for _, c, _ in classified(name))
    assert set(sources) == {None, "swap", "Proposition 4 iii", "eigenvector"}
    for name in POOL:
        s = np.asarray(POOL[name][0].singular_values)
        for p, c, _ in classified(name):
            # An exchange where one lowers the loss, the kernel of W_N…W_2 where r_Z > r, else the eigenvector.
            swap = any(s[j - 1] > s[i - 1] for i in p.subset for j in range(1, len(s) + 1) if j not in p.subset)
            if c.kind == "strict saddle":
                expected = "swap" if swap else "Proposition 4 iii" if c.rank_Z.rank > c.rank.rank else "eigenvector"
                assert c.escape_source == expected


def test_nothing_descends_from_a_minimum():
    problem, widths = POOL["3 wide"]
    net = gf.sample_critical_point(problem, widths, (1, 2, 3), key=jax.random.key(0), kind="minimum", norm=9.0)
    assert escape_direction(problem, net, (1, 2, 3)) is None


# Points that are not critical.


@pytest.mark.parametrize("name", ["2 wide", "3 data, rank-deficient, fewer inputs", "5 fewer inputs"])
def test_a_perturbed_point_is_not_critical(name):
    problem, widths = POOL[name]
    rng = np.random.default_rng(1)
    values = gf.critical_values(problem, r_max(problem, widths)).values
    for p, before, _ in classified(name)[::3]:
        moved = p.net + 0.05 * LayerTuple([rng.normal(size=w.shape) for w in p.net.weights])
        c = gf.classify(problem, moved)
        assert (c.critical, c.kind) == (False, "not critical")
        assert c.relative_gradient > 1e6 * before.relative_gradient
        assert c.subset is c.pivots is c.inertia is c.escape is c.by_pivots is None
        assert dict(c.residuals) == {}
        loss = derivatives(problem, [moved], "loss")[0]
        np.testing.assert_allclose(c.loss, loss, rtol=1e-12)
        assert c.nearest_level == np.argmin(abs(values - loss))
        np.testing.assert_allclose(c.level_distance, np.min(abs(values - loss)), rtol=1e-9, atol=1e-13)
        assert c.level_value == values[c.nearest_level]
        text = str(c)
        assert "not critical" in text
        assert "nearest level" in text
        assert "by pivots" not in text


def test_conditions_of_the_lemmas_fail_at_other_points():
    """With so large a tolerance that the gradient passes, the residuals show what is wrong, in proportion."""
    problem, widths = POOL["3 wide"]
    rng = np.random.default_rng(2)
    net = gf.sample_critical_point(
        problem, widths, (1, 3), key=jax.random.key(0), ranks={(2, 2): 4, (1, 1): 3, (3, 3): 2}
    )
    exact = gf.classify(problem, net)
    assert len(exact.residuals) == 8
    direction = LayerTuple([rng.normal(size=w.shape) for w in net.weights])
    for size in (1e-6, 1e-4):
        c = gf.classify(problem, net + size * direction, tolerance=0.01)
        assert c.subset == (1, 3)
        for condition, value in c.residuals.items():
            # The condition's scale is a product of norms up to about 3³·4: four orders below the perturbation are enough.
            assert size * 1e-4 < value < size * 10, condition
            assert exact.residuals[condition] < 1e-14


def test_the_nearest_level_may_lie_above_the_lowest_4096():
    """Thirteen singular values have 8192 levels; the origin's is the highest."""
    s = np.sqrt(2.0 ** np.arange(13, 0, -1))
    problem = Problem.from_singular_values(s)
    origin = zero_net(13, 13, 13)
    c = gf.classify(problem, origin)
    assert (c.nearest_level, c.subset, c.kind) == (None, (), "strict saddle")
    np.testing.assert_allclose((c.level_value, c.level_distance), (0.5 * np.sum(s**2), 0.0), rtol=1e-14, atol=1e-11)
    assert "nearest level above the lowest 4096" in " ".join(str(c).split())
    moved = gf.classify(problem, origin + LayerTuple([1e-3 * jnp.eye(13)] * 2))
    assert (moved.critical, moved.nearest_level, moved.level_value, moved.level_distance) == (False, None, None, None)
    assert "nearest level above the lowest 4096" in " ".join(str(moved).split())
    # ½Σ_{i∉S}s_i² with s_i² = 2, 4, 8, …: level k is k itself. In the lower half all is as ever.
    inside = [1, *range(3, 14, 2)]
    net = gf.sample_critical_point(problem, (13, 13, 13), inside, key=jax.random.key(0), kind="balanced")
    assert gf.classify(problem, net).nearest_level == sum(2 ** (13 - i) for i in range(1, 14) if i not in inside)


# Invariance.


@pytest.mark.parametrize(
    "name", ["2 data, rank-deficient", "3 data, rank-deficient, fewer inputs", "4 data, fewer inputs"]
)
def test_the_verdict_does_not_depend_on_the_coordinates(name):
    data, _ = POOL[name]
    assert data.coordinates == "data"
    for p, c, _ in classified(name)[::2]:
        for coordinates in ("reduced", "whitened"):
            other = gf.classify(data.in_coordinates(coordinates), data.convert(p.net, "data", coordinates))
            assert (other.kind, other.subset, other.nearest_level) == (c.kind, c.subset, c.nearest_level)
            assert (other.rank.rank, other.rank_Z.rank) == (c.rank.rank, c.rank_Z.rank)
            assert (other.inertia.negative, other.inertia.positive) == (c.inertia.negative, c.inertia.positive)
            # Only the null directions of X are missing there.
            missing = (data.d_in - data.decomposition.S_X.shape[0]) * p.net.widths[1]
            assert other.inertia.zero == c.inertia.zero - missing
            assert [q.tightened for q in other.pivots.pivots] == [q.tightened for q in c.pivots.pivots]
            assert max(other.residuals.values()) < 1e-13


@pytest.mark.parametrize("name", ["2 bottleneck, fewer inputs", "3 bottleneck", "4 wide", "5 fewer inputs"])
def test_the_verdict_does_not_depend_on_transposition(name):
    problem, _ = POOL[name]
    flipped = Problem.from_target(np.asarray(problem.target).T, coordinates="whitened")
    for p, c, _ in classified(name)[::2]:
        other = gf.classify(flipped, LayerTuple([w.T for w in reversed(p.net.weights)]))
        assert (other.kind, other.subset, other.nearest_level) == (c.kind, c.subset, c.nearest_level)
        assert other.inertia.index == c.inertia.index
        assert other.inertia.nullity == c.inertia.nullity
        np.testing.assert_allclose(other.smallest_eigenvalue, c.smallest_eigenvalue, rtol=0, atol=1e-12)
        if problem.target.shape[0] != problem.target.shape[1]:
            # Both are classified in one normal form; signs of singular vectors aside these are the same numbers.
            assert [q.tightened for q in other.pivots.pivots] == [q.tightened for q in c.pivots.pivots]


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


# Decisions near the tolerance.


def decisive(layer: int, size: float, place: tuple[int, int] = (1, 1)) -> LayerTuple:
    """Non-strict of rank 1 but for a path of a given weight in one layer, exactly critical whatever its weight.

    Whitened, target `[diag(3, 2, 1) 0]`, widths 4-4-4-3, layers mixed by orthogonal matrices.
    """
    rng = np.random.default_rng(0)
    G = [np.eye(4), *(np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2)), np.eye(3)]
    layers = [np.diag([3.0, 0, 0, 0]), np.diag([1.0, 0, 0, 0]), np.diag([1.0, 0, 0, 0])[:3]]
    layers[layer][place] = size
    return LayerTuple([after @ w @ before.T for w, before, after in zip(layers, G[:-1], G[1:], strict=True)])


PATHS = [  # layer, pivot that it frees, weight at which its singular value is the tolerance times the threshold's scale
    (0, "(3,2)", 3.0 * 3.0 / 2.0),  # W_1Σᵀ: 2·weight beside ‖W_1‖‖Σ‖ = 3·3
    (1, "(3,1)", 1.0),  # W_2: weight beside ‖W_2‖ = 1
    (2, "(2,1)", 3.0 / 2.0),  # ΣᵀW_3: 2·weight beside ‖Σ‖‖W_3‖ = 3
]


@pytest.mark.parametrize("tolerance", [1e-9, 1e-6])
@pytest.mark.parametrize(("layer", "pivot", "unit"), PATHS)
def test_a_rank_near_its_threshold_is_not_guessed(layer, pivot, unit, tolerance):
    problem = POOL["3 wide"][0]

    def at(multiple):
        return gf.classify(problem, decisive(layer, multiple * unit * tolerance), tolerance=tolerance)

    for multiple in (0.0, 1e-3, 0.05):
        c = at(multiple)
        assert (c.kind, c.uncertain, c.escape) == ("non-strict saddle", (), None)
    for multiple in (0.15, 0.9, 1.0, 1.1, 8.0):
        c = at(multiple)
        assert c.kind == "uncertain"
        reasons = [reason for reason in c.uncertain if pivot in reason]
        assert len(reasons) == 1
        assert f"{multiple:.2g} times the threshold" in reasons[0]
        assert f"UNCERTAIN pivot {pivot}" in " ".join(str(c).split())
    for multiple in (1e3, 1e5):
        c = at(multiple)
        assert (c.kind, c.uncertain) == ("strict saddle", ())
        assert c.escape_value < 0
    # The eigenvalue is as small as the rank's margin. The same point under a stricter tolerance is decided.
    assert gf.classify(problem, decisive(layer, unit * tolerance), tolerance=1e-4 * tolerance).kind == "strict saddle"


def test_a_doubtful_rank_on_which_nothing_rests_does_not_matter():
    problem = POOL["3 wide"][0]
    # From another hidden unit, so that the two paths do not meet.
    doubtful, free = decisive(1, 1e-9), decisive(2, 1.0, (1, 2))
    W1, W2, _ = doubtful.weights
    c = gf.classify(problem, LayerTuple([W1, W2, free.weights[2]]))
    # Pivot (2,1) is free for certain, so the point is strict whatever (3,1) is.
    assert not all(p.certain for p in c.pivots.pivots)
    assert (c.kind, c.uncertain) == ("strict saddle", ())


def test_a_doubtful_rank_of_the_whole_is_uncertain():
    """A rank-1 point with `W_1` almost on the level of rank 2: `R` has a second singular value at the threshold."""
    problem = POOL["3 wide"][0]
    layers = [np.diag([3.0, 0, 0, 0]), np.diag([1.0, 1e-9, 0, 0]), np.diag([1.0, 1.0, 0, 0])[:3]]
    c = gf.classify(problem, LayerTuple(layers))
    assert c.critical
    assert c.kind == "uncertain"
    assert any("rank R" in reason and "W fits {1}" in reason for reason in c.uncertain)


def test_disagreement_of_ranks_and_hessian_is_uncertain(monkeypatch):
    problem, widths = POOL["3 wide"]
    net = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind="strict")
    found = gf.classify(problem, net)

    def with_eigenvalues(values):
        fake = found.inertia.__class__(1, 0, 0, 1e-9, 1.0, 0.0, np.asarray(values))
        monkeypatch.setattr(classification, "inertia", lambda *args, **kwargs: fake)

    with_eigenvalues([0.0, 1.0])
    c = gf.classify(problem, net)
    assert (c.kind, c.by_pivots, c.escape) == ("uncertain", "strict saddle", None)
    assert "the ranks say strict saddle, but λ_min = 0 is not below" in c.uncertain[0]
    with_eigenvalues([-1.0, 1.0])
    flat_point = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind="non-strict")
    c = gf.classify(problem, flat_point)
    assert (c.kind, c.by_pivots, c.by_hessian) == ("uncertain", "non-strict saddle", "strict saddle")
    assert "the ranks say non-strict saddle, but λ_min = -1 is below" in c.uncertain[0]


def test_the_tolerance_admits_points_known_to_few_digits():
    problem, widths = POOL["3 wide"]
    rng = np.random.default_rng(3)
    for kind in ("strict", "non-strict"):
        net = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(1), kind=kind)
        near = net + 1e-8 * LayerTuple([rng.normal(size=w.shape) for w in net.weights])
        assert gf.classify(problem, near, tolerance=1e-10).kind == "not critical"
        assert gf.classify(problem, near, tolerance=1e-6).kind == KIND[kind]


# Many parameters: the smallest eigenvalue by Lanczos.


def test_large_networks_are_classified_by_their_smallest_eigenvalue():
    problem, widths = whitened([3, 2, 1], 20, 3), (20, 40, 30, 3)
    for subset, kind in [((), "zero-hessian"), ((1,), "non-strict"), ((1,), "strict")]:
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(1), kind=kind)
        assert net.num_parameters > classification.MAX_EIGENVALUES
        c = gf.classify(problem, net)
        assert (c.kind, c.subset, c.inertia, c.uncertain) == (KIND[kind], subset, None, ())
        assert (c.escape is None) == (kind != "strict")
        assert "inertia" not in str(c)


@pytest.mark.parametrize("name", ["3 wide", "4 data, fewer inputs"])
def test_lanczos_and_dense_eigenvalues_give_the_same_verdict(name, monkeypatch):
    problem, _ = POOL[name]
    monkeypatch.setattr(classification, "MAX_EIGENVALUES", 1)
    monkeypatch.setattr(curvature, "MAX_EIGH", 1)
    for p, c, e in classified(name)[::4]:
        other = gf.classify(problem, p.net)
        assert (other.kind, other.subset, other.uncertain) == (c.kind, c.subset, ())
        np.testing.assert_allclose(other.smallest_eigenvalue, e[0], rtol=0, atol=1e-10 * max(1.0, e[-1]))


def test_a_hessian_that_vanishes_has_zero_extreme_eigenvalues(monkeypatch):
    monkeypatch.setattr(curvature, "MAX_EIGH", 1)
    problem = whitened([2, 1], 3, 2)
    values, vectors = extreme_eigenpairs(problem, zero_net(3, 2, 2, 2), 3)
    np.testing.assert_array_equal(values, 0.0)
    # Still an orthonormal system.
    V = np.stack([flat(v) for v in vectors])
    np.testing.assert_array_equal(V @ V.T, np.eye(3))
    values, _ = extreme_eigenpairs(problem, zero_net(3, 2, 2), 1)
    np.testing.assert_allclose(values, -2.0, rtol=1e-12)  # two layers: the Hessian at the origin has eigenvalues ±s_i


# Printing and refusals.


def test_printing():
    problem, widths = POOL["3 wide"]
    for kind, parts in [
        ("strict", ["strict saddle", "escape", "H_W = -", "λ_min = -"]),
        ("non-strict", ["non-strict saddle", "3 of 3 pivots tightened"]),
    ]:
        c = gf.classify(problem, gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind=kind))
        text = " ".join(str(c).split())
        for part in ["Classification", "S {1}", "r = 1", "r_max = 3", "by pivots", "by Hessian", "inertia", *parts]:
            assert part in text
        assert "3.1: RᵀS=RᵀRW_11" in text
        assert ("escape" in text) == (kind == "strict")
        assert "UNCERTAIN" not in text
        assert "<table" in c._repr_html_() or "<pre" in c._repr_html_()


@pytest.mark.parametrize(
    ("s", "message"),
    [
        (
            [2.0, 1.0, 1.0],
            r"classification needs distinct .* s_2 = 1 and s_3 = 1 are equal: subsets that exchange them",
        ),
        (
            [2.0, 1.0, 0.0],
            r"classification needs .* s_3 = 0 is zero.*gdflow\.critical_values and gdflow\.inertia still work",
        ),
    ],
)
def test_ties_and_zeros_are_refused_by_name(s, message):
    problem = whitened(s, 4, 3)
    net = zero_net(4, 3, 3)
    with pytest.raises(ValueError, match=message):
        gf.classify(problem, net)
    values = gf.critical_values(problem, 3).values
    expected = {0.5 * sum(x**2 for x in left) for r in range(4) for left in itertools.combinations(s, r)}
    np.testing.assert_allclose(values, sorted(expected), rtol=0, atol=1e-12)
    # At the origin of two layers every s_i > 0 has d_1 = 3 negative eigenvalues.
    assert gf.inertia(problem, net).negative == 3 * sum(x > 0 for x in s)


def test_what_is_refused():
    problem, widths = POOL["3 wide"]
    net = zero_net(*widths)
    for tolerance in (0.0, 1.0, -1e-9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"tolerance must lie between 0 and 1, got"):
            gf.classify(problem, net, tolerance=tolerance)
    with pytest.raises(ValueError, match=r"widths \(3, 4, 3\) do not fit the problem.*d_0 = 4 and d_N = 3"):
        gf.classify(problem, zero_net(3, 4, 3))
    with pytest.raises(ValueError, match="W_2 is nan at entry"):
        gf.classify(problem, LayerTuple([jnp.zeros((4, 4)), jnp.full((3, 4), jnp.nan)]))
    with pytest.raises(ValueError, match="one network is needed here"):
        gf.classify(problem, LayerTuple([jnp.zeros((2, 4, 4)), jnp.zeros((2, 3, 4))]))
    signs = np.where(np.arange(12).reshape(3, 4) % 2, 1.0, -1.0)
    with pytest.raises(ValueError, match="Logistic has no finite set of critical values: this needs the squared error"):
        gf.classify(Problem(np.eye(4), signs, Logistic()), net)


def test_all_strata_of_a_depth_occur_in_the_pool():
    """The pool misses no subset: what is tested above is tested on every stratum."""
    for name in (*TWO_HIDDEN, "5 wide"):
        assert {p.subset for p in points(name)} == set(admissible_subsets(*POOL[name]))
