"""Classification over a pool of critical points: ranks against Hessians by automatic differentiation, invariance."""

import collections
import functools

import numpy as np
import pytest
from landscape_points import (
    KIND,
    POOL,
    TWO_HIDDEN,
    Point,
    admissible_subsets,
    derivatives,
    flat,
    r_max,
    sample,
)

import gdflow as gf
from gdflow.landscape import NormalForm, classification, curvature, find_pivots
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
@pytest.mark.slow
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


# classify.


@functools.cache
def classified(name: str) -> list[tuple[Point, gf.landscape.Classification, np.ndarray]]:
    """Every thirteenth point: `classify` is slower than its parts."""
    problem, _ = POOL[name]
    return [(points(name)[k], gf.classify(problem, points(name)[k].net), spectra(name)[k]) for k in chosen(name)]


def chosen(name: str) -> range:
    return range(0, len(points(name)), 13)


@pytest.mark.parametrize("name", HALF_OF_POOL)
@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF_OF_POOL)
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


@pytest.mark.parametrize(
    "names", [list(POOL)[::2], pytest.param(list(POOL), marks=pytest.mark.slow)], ids=["half", "all"]
)
def test_every_source_of_escape_directions_occurs(names):
    sources = collections.Counter(c.escape_source for name in names for _, c, _ in classified(name))
    assert set(sources) == {None, "swap", "Proposition 4 iii", "eigenvector"}
    for name in names:
        s = np.asarray(POOL[name][0].singular_values)
        for p, c, _ in classified(name):
            # An exchange where one lowers the loss, the kernel of W_N…W_2 where r_Z > r, else the eigenvector.
            swap = any(s[j - 1] > s[i - 1] for i in p.subset for j in range(1, len(s) + 1) if j not in p.subset)
            if c.kind == "strict saddle":
                expected = "swap" if swap else "Proposition 4 iii" if c.rank_Z.rank > c.rank.rank else "eigenvector"
                assert c.escape_source == expected


# Points that are not critical.


@pytest.mark.parametrize("name", ["2 wide", "3 data, rank-deficient, fewer inputs", "5 data, rank-deficient"])
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


@pytest.mark.parametrize(
    "name",
    [
        "2 wide",
        "3 bottleneck",
        "4 wide",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("2 bottleneck, fewer inputs", "5 fewer inputs")),
    ],
)
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


@pytest.mark.parametrize("name", ["3 bottleneck", "4 data, fewer inputs"])
@pytest.mark.slow
def test_lanczos_and_dense_eigenvalues_give_the_same_verdict(name, monkeypatch):
    problem, _ = POOL[name]
    monkeypatch.setattr(classification, "MAX_EIGENVALUES", 1)
    monkeypatch.setattr(curvature, "MAX_EIGH", 1)
    for p, c, e in classified(name)[::4]:
        other = gf.classify(problem, p.net)
        assert (other.kind, other.subset, other.uncertain) == (c.kind, c.subset, ())
        np.testing.assert_allclose(other.smallest_eigenvalue, e[0], rtol=0, atol=1e-10 * max(1.0, e[-1]))


@pytest.mark.slow
def test_all_strata_of_a_depth_occur_in_the_pool():
    """The pool misses no subset: what is tested above is tested on every stratum."""
    for name in (*TWO_HIDDEN, "5 wide"):
        assert {p.subset for p in points(name)} == set(admissible_subsets(*POOL[name]))
