"""The case analysis for two hidden layers against ranks, Hessians by automatic differentiation, and points made by hand."""

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
    eigenvalues,
    flat,
    kinds,
    natural_size,
    r_max,
    whitened,
)

import gdflow as gf
from gdflow.landscape import NormalForm, second_variation_case_1, second_variation_case_2_2, two_hidden_case
from gdflow.landscape.normal_form import as_jax
from gdflow.network import LayerTuple

# Over these points what ought to be zero is below 1e-13 of the largest eigenvalue (or singular value), and the rest above
# 1e-3 of it.
ZERO = 1e-9

# The others take as long again.
FIRST_OF_TWO_HIDDEN = [TWO_HIDDEN[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TWO_HIDDEN[1:])]


@functools.cache
def points(name: str) -> list[Point]:
    """Points of every case below the largest rank: of chosen kinds with chosen ranks of `W_2`."""
    problem, widths = POOL[name]
    seed = itertools.count(1000 * list(POOL).index(name))
    found = []

    def add(repeats, subset, kind, **ranks_of_second):
        options = {"ranks": {(2, 2): ranks_of_second["rank"]}} if ranks_of_second else {}
        for _ in range(repeats):
            key = jax.random.key(next(seed))
            found.append(
                Point(gf.sample_critical_point(problem, widths, subset, key=key, kind=kind, **options), subset, kind)
            )

    add(22, (), "strict", rank=0)
    add(22, (), "zero-hessian")
    for subset in admissible_subsets(problem, widths):
        r = len(subset)
        if r == r_max(problem, widths):
            continue
        add(10, subset, "strict", rank=r + 1)
        if r:
            add(12, subset, "strict", rank=r)
            add(4, subset, "balanced")
        if "non-strict" in kinds(problem, widths, subset):
            add(6, subset, "non-strict")
    return found


@functools.cache
def cases(name: str):
    problem, _ = POOL[name]
    return [two_hidden_case(problem, p.net, p.subset) for p in points(name)]


@functools.cache
def hessians(name: str) -> np.ndarray:
    return derivatives(POOL[name][0], [p.net for p in points(name)], "hessian")


def numerical_rank(matrix) -> int:
    s = np.linalg.svd(np.asarray(matrix), compute_uv=False)
    return int(np.sum(s > 1e-8))


def inversions(s, subset) -> int:
    """`#{(i, j): i ∈ S, j ∉ S, s_j > s_i}`."""
    return sum(s[j - 1] > s[i - 1] for i in subset for j in range(1, len(s) + 1) if j not in subset)


@pytest.mark.slow
def test_every_case_occurs_a_hundred_times():
    counts = collections.Counter(case.name for name in TWO_HIDDEN for case in cases(name))
    assert set(counts) == {"r_Z>r", "1.1", "1.2", "2.1", "2.2"}
    assert min(counts.values()) >= 100, counts


@pytest.mark.parametrize("name", FIRST_OF_TWO_HIDDEN)
@pytest.mark.slow
def test_cases_are_those_of_the_three_ranks(name):
    """At a critical point `W_{1,1,2,2} = 0` iff `rank W_{1,1} = r`, and `W_{3,2,2} = 0` iff `rank W_3 = r` (where `r_Z = r`)."""
    problem, _ = POOL[name]
    form = NormalForm(problem)
    for p, case in zip(points(name), cases(name), strict=True):
        W1, W2, W3 = form.into(p.net).weights
        r = len(p.subset)
        first, second, last = (numerical_rank(w) for w in (W1[:, : form.rank_bound], W2, W3))
        free = first > r or last > r
        expected = "r_Z>r" if second > r else ("1." if r == 0 else "2.") + ("1" if free else "2")
        assert case.name == expected
        assert (case.rank.rank, case.rank_Z.rank, case.subset) == (r, second, p.subset)
        assert case.rank.certain
        assert case.rank_Z.certain
        if expected != "r_Z>r":
            assert (case.first > 1e-3) == (first > r)
            assert (case.last > 1e-3) == (last > r)
        # And the kind asked of the sampler, which knows nothing of these cases.
        assert (expected in ("1.2", "2.2")) >= (p.kind in ("non-strict", "zero-hessian", "balanced"))


@pytest.mark.parametrize("name", FIRST_OF_TWO_HIDDEN)
@pytest.mark.slow
def test_directions_descend_and_indices_count_negative_eigenvalues(name):
    problem, _ = POOL[name]
    s = np.asarray(problem.singular_values)
    spectra = np.linalg.eigvalsh(hessians(name))
    for p, case, H, e in zip(points(name), cases(name), hessians(name), spectra, strict=True):
        negative = int(np.sum(e < -ZERO * max(abs(e[0]), abs(e[-1]), 1e-3)))
        if case.name in ("r_Z>r", "1.1", "2.1"):
            assert case.index is None
            assert negative > 0
        if case.name == "1.2":
            assert case.index == 0
            # Products of matrices of condition number at most 4, a few eps of their size.
            assert np.max(abs(H)) <= 1e-13 * natural_size(problem, p.net) ** 2
        if case.name == "2.2":
            assert case.index == inversions(s, p.subset) == negative
        assert (case.direction is None) == (negative == 0)
        if case.direction is not None:
            v = flat(case.direction)
            np.testing.assert_allclose(np.linalg.norm(v), 1.0, rtol=1e-12)
            # Far enough below zero that round-off, 1e-15 of the largest eigenvalue, cannot have made the sign.
            assert 0.5 * v @ H @ v < -1e-6 * e[-1]
            assert v @ H @ v >= e[0] * (1 + 1e-9)


@pytest.mark.parametrize("name", ["3 wide", "3 data, rank-deficient, fewer inputs"])
@pytest.mark.slow
def test_the_proofs_directions_use_the_layers_they_should(name):
    """Cases 1.1 and 2.1: `w_2` with `w_3` through `W_{1,1,2,2}`, or with `w_1` through `W_{3,2,2}`, in normal form."""
    problem, _ = POOL[name]
    form, used = NormalForm(problem), set()
    for case in cases(name):
        if case.name in ("1.1", "2.1"):
            assert case.direction is not None
            sizes = [float(np.linalg.norm(w)) for w in form.into(case.direction).weights]
            assert sizes[1] > 1e-6
            assert (sizes[0] < 1e-12) != (sizes[2] < 1e-12)
            through_first = sizes[2] > 1e-12
            assert (case.first if through_first else case.last) > 1e-3
            used.add(through_first)
    assert used == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_OF_TWO_HIDDEN)
def test_the_formula_of_case_1_is_the_second_variation(name):
    problem, _ = POOL[name]
    rng = np.random.default_rng(2)
    chosen = [k for k, case in enumerate(cases(name)) if case.name in ("1.1", "1.2")][::3]
    assert {cases(name)[k].name for k in chosen} == {"1.1", "1.2"}
    for k in chosen:
        net = points(name)[k].net
        w = LayerTuple([rng.normal(size=x.shape) for x in net.weights])
        v = flat(w)
        expected = 0.5 * v @ hessians(name)[k] @ v
        size = natural_size(problem, net) * (v @ v)
        np.testing.assert_allclose(float(second_variation_case_1(problem, net, w)), expected, rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize("name", TWO_HIDDEN)
@pytest.mark.slow
def test_the_formula_of_case_2_2_is_the_second_variation_and_its_bound_is_below(name):
    problem, _ = POOL[name]
    rng = np.random.default_rng(3)
    signs = []
    for p, case, H in zip(points(name), cases(name), hessians(name), strict=True):
        if case.name != "2.2":
            continue
        # Random variations, and one along the lowest eigenvector, where value and bound are negative if there is an index.
        for v in (rng.normal(size=len(H)), np.linalg.eigh(H)[1][:, 0]):
            parts = np.split(v, np.cumsum([x.size for x in p.net.weights])[:-1])
            w = LayerTuple([u.reshape(x.shape) for u, x in zip(parts, p.net.weights, strict=True)])
            found = second_variation_case_2_2(problem, p.net, w, p.subset)
            # The Hessian is a sum of products of layers and variations, each with a few eps of error.
            tolerance = 1e-13 * natural_size(problem, p.net) ** 2 * (v @ v)
            np.testing.assert_allclose(found.value, 0.5 * v @ H @ v, rtol=0, atol=tolerance)
            assert found.bound <= found.value + tolerance
        signs.append((found.bound < -tolerance, case.index > 0))
    assert len(signs) >= 15
    # Remark 3: the bound is a form with the same index.
    assert all(negative == indefinite for negative, indefinite in signs)
    assert {negative for negative, _ in signs} == {True, False} or r_max(*POOL[name]) == 1


def test_the_bound_is_attained_where_the_squares_left_out_vanish():
    """A variation of `w_{1,1,2}` and `w_{3,2}` alone leaves the other three squares zero."""
    problem, _ = POOL["3 wide"]
    rng = np.random.default_rng(4)
    p = next(
        p for p, case in zip(points("3 wide"), cases("3 wide"), strict=True) if case.name == "2.2" and p.subset == (2,)
    )
    outside = [0, 2]
    w1, w2, w3 = (np.zeros(x.shape) for x in p.net.weights)
    w1[:, outside], w3[outside] = rng.normal(size=(len(w1), 2)), rng.normal(size=(2, w3.shape[1]))
    found = second_variation_case_2_2(problem, p.net, LayerTuple([w1, w2, w3]), (2,))
    np.testing.assert_allclose(found.value, found.bound, rtol=0, atol=1e-12)
    assert abs(found.value) > 1e-3


# Points made by hand: Σ = [diag(3, 2, 1) 0], widths 4-3-3-3.

HAND = whitened([3, 2, 1], 4, 3)


def unit(rows: int, columns: int, *places: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros((rows, columns))
    for i, k in places:
        matrix[i, k] = 1.0
    return matrix


@pytest.mark.parametrize(
    ("first", "second", "last", "subset", "name", "index"),
    [
        # S = ∅. The origin, and a weight on the fourth input, which the target does not see.
        ([], [], [], (), "1.2", 0),
        ([(0, 3)], [], [], (), "1.2", 0),
        ([(0, 0)], [], [], (), "1.1", None),
        ([], [], [(2, 1)], (), "1.1", None),
        ([], [(1, 2)], [], (), "r_Z>r", None),
        # S = {2}, the path 2 → 1 → 1 → 2 of weight √2·√2 in the outer layers.
        ([(0, 1)], [(0, 0)], [(1, 0)], (2,), "2.2", 1),
        ([(0, 1), (1, 3)], [(0, 0)], [(1, 0)], (2,), "2.2", 1),
        ([(0, 1), (2, 1)], [(0, 0)], [(1, 0)], (2,), "2.2", 1),  # W_{1,1,2,1} ≠ 0 counts for nothing
        ([(0, 1), (2, 0)], [(0, 0)], [(1, 0)], (2,), "2.1", None),
        ([(0, 1)], [(0, 0)], [(1, 0), (0, 1)], (2,), "2.1", None),
        ([(0, 1)], [(0, 0), (2, 2)], [(1, 0)], (2,), "r_Z>r", None),
        ([(0, 2)], [(0, 0)], [(2, 0)], (3,), "2.2", 2),
        ([(0, 0)], [(0, 0)], [(0, 0)], (1,), "2.2", 0),
    ],
)
def test_cases_made_by_hand(first, second, last, subset, name, index):
    W1, W2, W3 = unit(3, 4, *first), unit(3, 3, *second), unit(3, 3, *last)
    for i in subset:
        W1[0, i - 1] = {1: 3.0, 2: 2.0, 3: 1.0}[i]  # the other two layers have weight one on the path
    net = LayerTuple([W1, W2, W3])
    assert float(HAND.gradient(net).norm()) == 0.0
    case = two_hidden_case(HAND, net, subset)
    assert (case.name, case.index) == (name, index)
    e = eigenvalues(HAND, [net])[0]
    negative = int(np.sum(e < -1e-9))
    assert negative > 0 if index is None else negative == index
    if name == "1.2":
        np.testing.assert_array_equal(derivatives(HAND, [net], "hessian"), 0.0)


def test_the_index_of_case_2_2_is_the_number_of_inversions_of_larger_spectra():
    problem, widths = whitened([5, 4, 3, 2, 1], 6, 5), (6, 5, 6, 5)
    for subset in [(3,), (5,), (2, 5), (4, 5), (1, 3, 5), (2, 3, 4), (1, 2, 3)]:
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(0), kind="balanced")
        case = two_hidden_case(problem, net, subset)
        e = eigenvalues(problem, [net])[0]
        expected = inversions([5, 4, 3, 2, 1], subset)
        assert (case.name, case.index) == ("2.2", expected)
        assert np.sum(e < -ZERO * e[-1]) == expected


def test_zeros_are_told_at_the_tolerance():
    """`W_2 = diag(1, c)`: of rank 1 for `c` below the tolerance, of rank 2 above."""
    for c, tolerance, name in [(1e-12, 1e-9, "2.2"), (1e-6, 1e-9, "r_Z>r"), (1e-6, 1e-4, "2.2")]:
        W = [unit(3, 4, (0, 1)) * 2, unit(3, 3, (0, 0)) + c * unit(3, 3, (2, 2)), unit(3, 3, (1, 0))]
        assert two_hidden_case(HAND, LayerTuple(W), (2,), tolerance=tolerance).name == name
    for c, name in [(1e-12, "2.2"), (1e-6, "2.1")]:
        W = [unit(3, 4, (0, 1)) * 2 + c * unit(3, 4, (2, 0)), unit(3, 3, (0, 0)), unit(3, 3, (1, 0))]
        assert two_hidden_case(HAND, LayerTuple(W), (2,)).name == name


@pytest.mark.slow
def test_cases_are_the_same_in_all_coordinates():
    data, widths = POOL["3 data, more inputs"]
    white = data.in_coordinates("whitened")
    for p, case in list(zip(points("3 data, more inputs"), cases("3 data, more inputs"), strict=True))[::5]:
        other = two_hidden_case(white, data.convert(p.net, "data", "whitened"), p.subset)
        assert (other.name, other.index) == (case.name, case.index)
        np.testing.assert_allclose((other.first, other.last), (case.first, case.last), rtol=1e-9, atol=1e-12)
    assert widths == data.widths((3, 4))


def test_cases_of_the_transposed_network_exchange_the_ends():
    problem, widths = whitened([3, 2, 1], 3, 3), (3, 3, 4, 3)
    for seed in range(10):
        net = gf.sample_critical_point(problem, widths, (2,), key=jax.random.key(seed), ranks={(2, 2): 1})
        case = two_hidden_case(problem, net, (2,))
        # The target is square and diagonal: the transposed network is a critical point of the same problem.
        other = two_hidden_case(problem, as_jax([np.asarray(w).T for w in reversed(net.weights)]), (2,))
        assert (other.name, other.index) == (case.name, case.index)
        np.testing.assert_allclose((other.last, other.first), (case.first, case.last), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("problem", "widths", "subset", "message"),
    [
        (HAND, (4, 3, 3), (1,), "for two hidden layers, got depth 2"),
        (HAND, (4, 3, 3, 3, 3), (1,), "for two hidden layers, got depth 4"),
        (HAND, (4, 3, 3, 3), (1, 2, 3), r"below r_max = 3; S = \(1, 2, 3\) has that rank"),
        (HAND, (4, 3, 1, 3), (2,), r"below r_max = 1; S = \(2,\) has that rank"),
        (HAND, (4, 3, 3, 3), (4,), "1 to 3; got 4"),
        (HAND, (4, 3, 3, 3), (1, 1), "occurs twice"),
        (HAND, (3, 3, 3, 3), (1,), "need d_0 = 4"),
        (
            whitened([2, 2, 1], 4, 3),
            (4, 3, 3, 3),
            (1,),
            r"the case analysis needs distinct .* s_1 = 2 and s_2 = 2 are equal",
        ),
        (whitened([2, 1, 0], 4, 3), (4, 3, 3, 3), (1,), "s_3 = 0 is zero"),
    ],
)
def test_what_is_refused(problem, widths, subset, message):
    net = LayerTuple([jnp.zeros((a, b)) for a, b in itertools.pairwise(widths[::-1])][::-1])
    assert net.widths == widths
    with pytest.raises(ValueError, match=message):
        two_hidden_case(problem, net, subset)
    with pytest.raises(ValueError, match=message):
        second_variation_case_2_2(problem, net, net, subset)


@pytest.mark.parametrize("name", ["3 wide", "3 data, more inputs"])
def test_cases_and_descents_do_not_depend_on_the_norms_of_the_layers(name):
    """`W_j → t_jW_j`, `∏t_j = 1`: the direction, carried back, descends from the point with norms alike."""
    problem, widths = POOL[name]
    cases = set()
    for subset in admissible_subsets(problem, widths):
        if len(subset) == r_max(problem, widths):
            continue
        for seed in range(6):
            net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(seed))
            expected = two_hidden_case(problem, net, subset)
            H = derivatives(problem, [net], "hessian")[0]
            for t in ([1e8, 1e-8, 1.0], [1e-7, 1e2, 1e5]):
                apart = LayerTuple([a * w for a, w in zip(t, net.weights, strict=True)])
                case = two_hidden_case(problem, apart, subset)
                assert (case.name, case.index) == (expected.name, expected.index)
                cases.add(case.name)
                assert (case.direction is None) == (expected.direction is None)
                if case.direction is not None:
                    v = np.concatenate([np.ravel(w) / a for a, w in zip(t, case.direction.weights, strict=True)])
                    assert v @ H @ v < -1e-9 * abs(v) @ abs(H) @ abs(v)
    assert cases >= {"r_Z>r", "1.1"}
