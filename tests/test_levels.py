"""The critical values `½Σ_{i∉S}s_i²` against enumeration in integers and against number theory."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gdflow.levels import MAX_LISTED, MAX_SUBSETS, iterate_levels, list_levels, nested_levels, subset_text

EPS = 2.0**-52


def enumerate_levels(s, max_rank):
    """`{Σ_{i∉S}s_i²: [S, …]}` over `S ⊂ {i : s_i > 0}`, `|S| ≤ max_rank`, for integers; indices from 1 after sorting."""
    s = sorted(s, reverse=True)
    positive = [i for i, value in enumerate(s, 1) if value > 0]
    found = {}
    for size in range(min(max_rank, len(positive)) + 1):
        for subset in itertools.combinations(positive, size):
            excluded = sum(value**2 for i, value in enumerate(s, 1) if i not in subset)
            found.setdefault(excluded, []).append(subset)
    return dict(sorted(found.items()))


@given(st.lists(st.integers(0, 13), min_size=1, max_size=8), st.integers(0, 9), st.sampled_from([1.0, 0.1, 1e3 / 7]))
@example([5, 4, 3], 3, 1.0)  # 5² = 4² + 3²: leaving out {1} or {2, 3} costs the same
@example([5, 4, 3], 2, 0.1)
@example([13, 12, 5, 4, 3], 5, 0.1)  # 13² = 12² + 5² and 5² = 4² + 3²: three subsets at 169/2
@example([2, 2, 2, 2], 2, 0.1)
@example([7, 7, 5, 5, 1], 4, 0.1)  # 7² + 1² = 5² + 5²
@example([3, 0, 0], 3, 1.0)
@example([0, 0], 1, 1.0)
@example([4, 3, 2, 1], 0, 1.0)
def test_stream_equals_enumeration(integers, max_rank, unit):
    s = unit * np.array(integers, dtype=float)
    expected = enumerate_levels(integers, max_rank)
    levels = list(iterate_levels(s, max_rank))
    assert len(levels) == len(expected)
    # Sums of at most 8 squares and one subtraction from the total: a few dozen roundings of Σs².
    tolerance = 50 * EPS * max(float(np.sum(s**2)), 1e-300)
    for level, (excluded, subsets) in zip(levels, expected.items(), strict=True):
        assert level.value == pytest.approx(0.5 * unit**2 * excluded, rel=0, abs=tolerance)
        assert 0 <= level.width <= tolerance
        assert level.num_subsets == len(subsets)
        assert len(set(level.subsets)) == len(level.subsets) == min(len(subsets), MAX_LISTED)
        assert set(level.subsets) <= set(subsets)  # tuples: increasing, counted from 1


def test_levels_increase_strictly_and_count_all_subsets(rng):
    s = rng.uniform(0.1, 2.0, 11)
    levels = list_levels(s, 6)
    assert np.all(np.diff(levels.values) > 0)
    assert sum(level.num_subsets for level in levels) == sum(math.comb(11, r) for r in range(7))
    # Best fit of rank 6 (Eckart and Young) and the zero map; a dozen roundings.
    ordered = np.sort(s)[::-1]
    assert levels[0].value == pytest.approx(0.5 * np.sum(ordered[6:] ** 2), rel=50 * EPS)
    assert levels[-1].value == pytest.approx(0.5 * np.sum(s**2), rel=50 * EPS)
    assert levels[0].subsets == ((1, 2, 3, 4, 5, 6),)
    assert levels[-1].subsets == ((),)


def test_input_order_does_not_matter():
    assert list_levels([1, 3, 0, 2], 2) == list_levels([3, 2, 1, 0], 2)
    assert list_levels([1, 3, 0, 2], 2).singular_values == (3.0, 2.0, 1.0, 0.0)


def test_pythagorean_coincidence_is_one_level_with_two_subsets():
    levels = list_levels([5, 4, 3], 3)
    shared = next(level for level in levels if level.num_subsets == 2)
    assert shared.value == 12.5  # integers up to 25: exact
    assert set(shared.subsets) == {(1,), (2, 3)}
    assert len(levels) == 7  # 2³ subsets, one coincidence


def test_many_ties_are_counted_not_enumerated(monkeypatch):
    """There are 10¹⁷ subsets; whoever runs through them all fails here before memory does."""

    def few(*arguments, combinations=itertools.combinations):
        for number, subset in enumerate(combinations(*arguments)):
            assert number < 10**4
            yield subset

    monkeypatch.setattr(itertools, "combinations", few)
    (lowest,) = list_levels(np.ones(60), 30, lowest=1)
    assert lowest.num_subsets == math.comb(60, 30)
    assert lowest.value == pytest.approx(15.0, abs=50 * EPS * 60)  # a few roundings of Σs² = 60
    assert len(lowest.subsets) == len(set(lowest.subsets)) == MAX_LISTED
    assert all(len(subset) == 30 and list(subset) == sorted(subset) for subset in lowest.subsets)


def test_lowest_levels_for_sixty_values_are_sums_of_distinct_squares():
    """For s = 1…60 the level ½n leaves out a set of squares with sum n: their number is a coefficient of Π(1 + x^{k²})."""
    size = 200
    coefficients = [1] + [0] * size
    for k in range(1, 61):
        for n in range(size, k**2 - 1, -1):
            coefficients[n] += coefficients[n - k**2]
    expected = [(n, count) for n, count in enumerate(coefficients) if count][:100]
    levels = list_levels(np.arange(1, 61), 60, lowest=len(expected))
    assert not levels.complete
    assert len(levels) == len(expected)
    assert [(2 * level.value, level.num_subsets) for level in levels] == expected  # integers: exact


def test_lowest_levels_under_a_rank_bound(rng):
    s = np.sort(rng.integers(1, 10**4, 60))[::-1]
    expected = enumerate_levels(s.tolist(), 3)
    levels = list_levels(s, 3, lowest=200)
    assert [int(2 * level.value) for level in levels] == list(expected)[:200]  # integers below 2⁵³: exact
    assert [level.subsets for level in levels] == [tuple(subsets) for subsets in list(expected.values())[:200]]


def test_complete_says_whether_all_levels_are_listed():
    assert list_levels([3, 2, 1], 3).complete
    assert list_levels([3, 2, 1], 3, lowest=8).complete
    assert list_levels([3, 2, 1], 3, lowest=100).complete
    assert not list_levels([3, 2, 1], 3, lowest=6).complete


def test_rank_bound_above_the_number_of_values():
    assert list_levels([3, 2, 1], 50).levels == list_levels([3, 2, 1], 3).levels
    assert nested_levels([3, 2, 1], 50).values.tolist() == [0.0, 0.5, 2.5, 7.0]


@pytest.mark.parametrize("s", [[0.0], [0.0, 0.0, 0.0], []])
@pytest.mark.parametrize("max_rank", [0, 1, 5])
def test_zero_target_has_the_one_level_zero(s, max_rank):
    (level,) = list_levels(s, max_rank)
    assert (level.value, level.num_subsets, level.subsets) == (0.0, 1, ((),))
    assert nested_levels(s, max_rank).values.tolist() == [0.0]


def test_rank_zero_has_one_level():
    (level,) = list_levels([3, 2, 1], 0)
    assert level.value == 7.0
    assert level.subsets == ((),)


def test_close_levels_merge_within_the_tolerance_only():
    gap = 1e-6
    s = [5.0, 4.0, math.sqrt(9 + 2 * gap)]  # leaving out {2, 3} costs `gap` more than leaving out {1}
    apart = list_levels(s, 3, tolerance=gap / 2)
    merged = list_levels(s, 3, tolerance=2 * gap)
    assert (len(apart), len(merged)) == (8, 7)
    level = next(level for level in merged if level.num_subsets == 2)
    # Rounding of Σs² = 50 in value, and once more in the difference.
    assert level.value == pytest.approx(12.5, abs=100 * EPS * 50)
    assert level.width == pytest.approx(gap, abs=100 * EPS * 50)


def test_width_of_nearly_tied_values():
    """½·1² = 0.5 and ½·0.999² merge at tolerance 0.01: the width is their distance, the value the smaller."""
    level = list_levels([1.0, 0.999], 2, tolerance=0.01)[1]
    assert level.num_subsets == 2
    assert level.value == pytest.approx(0.5 * 0.999**2, abs=20 * EPS)  # a few roundings of numbers below 1
    assert level.width == pytest.approx(0.5 - 0.5 * 0.999**2, abs=20 * EPS)


@pytest.mark.parametrize(
    ("s", "max_rank", "expected"),
    [
        ([3, 2, 1], 3, [0, 0.5, 2.5, 7]),
        ([3, 2, 1], 2, [0.5, 2.5, 7]),
        ([1, 3, 2], 1, [2.5, 7]),
        ([2, 2], 2, [0, 2, 4]),  # ties change nothing: S = {1} costs 2
        ([3, 0, 0], 3, [0, 4.5]),  # leaving out zeros costs nothing: four ranks, two values
        ([3, 1], 0, [5]),
    ],
)
def test_nested_levels(s, max_rank, expected):
    assert nested_levels(s, max_rank).values.tolist() == expected  # integers: exact


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 7))
def test_nested_levels_are_critical_values(s, max_rank):
    nested, levels = nested_levels(s, max_rank).values, list_levels(s, max_rank).values
    assert set(nested) <= set(levels)  # integers: exact
    assert (nested[0], nested[-1]) == (levels[0], levels[-1])


def test_too_many_subsets_are_refused():
    with pytest.raises(ValueError, match=r"60 positive singular values.*lowest=k"):
        list_levels(np.arange(1.0, 61.0), 60)
    # 2²⁰ subsets are the most; a rank bound or zeros make a list short.
    assert MAX_SUBSETS == 2**20
    assert len(list_levels(np.arange(1.0, 61.0), 1)) == 61
    assert len(list_levels([1.0] + [0.0] * 59, 60)) == 2


@pytest.mark.parametrize("bad", [-1, -5])
def test_negative_rank_bounds_are_refused(bad):
    with pytest.raises(ValueError, match="max_rank"):
        list_levels([2.0, 1.0], bad)
    with pytest.raises(ValueError, match="max_rank"):
        iterate_levels([2.0, 1.0], bad)
    with pytest.raises(ValueError, match="max_rank"):
        nested_levels([2.0, 1.0], bad)


@pytest.mark.parametrize("bad", [0, -3])
def test_a_listing_of_no_levels_is_refused(bad):
    with pytest.raises(ValueError, match="lowest must be at least 1"):
        list_levels([2.0, 1.0], 1, lowest=bad)


@pytest.mark.parametrize("bad", [[3.0, -2.0], [3.0, math.nan], [math.inf, 1.0], [[3.0, 2.0]]])
@pytest.mark.parametrize("function", [list_levels, iterate_levels, nested_levels])
def test_values_that_are_no_singular_values_are_refused(function, bad):
    with pytest.raises(ValueError, match="singular values"):
        function(bad, 2)


def test_printed_table_shows_levels_and_subsets():
    text = str(list_levels([5, 4, 3], 3))
    assert "all" in text
    for fact in ("4.5", "12.5", "{1}", "{2,3}", "{1,2,3}"):
        assert fact in text
    assert "lowest 2" in str(list_levels([5, 4, 3], 3, lowest=2))
    assert "12.5" in list_levels([5, 4, 3], 3)._repr_html_()


def test_printed_table_says_which_levels_are_merged():
    text = str(list_levels([1.0, 5e-7], 2))
    assert "0 (+1.2e-13)" in text or "0 (+1.3e-13)" in text
    assert "round-off cannot tell them apart" in text
    assert "round-off" not in str(list_levels([2.0, 2.0, 1.0], 3))  # exact ties are one value


@given(
    st.lists(st.sampled_from([1.0, 1.0 + 1e-13, 0.5, 1e-7, 2e-7, 4e-7, 0.0]), min_size=1, max_size=6), st.integers(1, 6)
)
def test_every_critical_value_lies_in_one_level(s, max_rank):
    """With ties, near-ties and values near zero: each `ℓ(S)` lies in a level, below the next one's, and all are counted."""
    levels = list_levels(s, max_rank)
    ordered = np.sort(np.array(s))[::-1]
    positive = [i for i in range(len(s)) if ordered[i] > 0]
    values = [
        0.5 * math.fsum(np.delete(ordered, subset) ** 2)
        for r in range(min(max_rank, len(positive)) + 1)
        for subset in map(list, itertools.combinations(positive, r))
    ]
    assert sum(level.num_subsets for level in levels) == len(values)
    slack = 20 * EPS * float(np.sum(ordered**2))
    for value in values:
        assert any(level.value - slack <= value <= level.value + level.width + slack for level in levels)
    # The claim of a certificate: below the second level there are none but those of the lowest.
    if len(levels) > 1:
        lowest = levels[0]
        below = [value for value in values if value < levels[1].value - slack]
        assert max(below) <= lowest.value + lowest.width + slack
        assert len(below) <= lowest.num_subsets


def test_subsets_as_text():
    assert [subset_text(S) for S in ((), (2,), (1, 3))] == ["∅", "{2}", "{1,3}"]
