"""The report: assumptions with their margins, and what it prints."""

import numpy as np
import pytest
from raw_data import DATA, centred_classes, duplicated_features

from gdflow.problem import Problem


def holds(problem, widths=None):
    return {a.name[:2]: a.holds for a in problem.report(widths).assumptions}


def orthonormal_rows(rng, *sizes, m):
    """Blocks of rows, orthonormal among all of them."""
    frame = np.linalg.qr(rng.normal(size=(m, sum(sizes))))[0].T
    return np.split(frame, np.cumsum(sizes)[:-1])


def test_assumptions_hold_in_general_position(rng):
    problem = Problem(*DATA["tall"](rng))
    assert holds(problem) == holds(problem, (4, 3, 2)) == {"A1": True, "A2": True, "A3": True, "A4": True}


def test_dimensions_of_assumption_one(rng):
    tall = Problem(*DATA["tall"](rng))
    assert holds(tall, (4, 2, 2, 2))["A1"] is True
    assert holds(tall, (4, 5, 1, 2))["A1"] is False  # a hidden layer narrower than d_y
    assert holds(Problem(*DATA["more outputs"](rng)))["A1"] is False
    assert holds(Problem(*DATA["wide"](rng)))["A1"] is False


def test_ranks_of_assumption_two(rng):
    assert holds(Problem(*duplicated_features(rng)))["A2"] is False
    assert holds(Problem(*centred_classes(rng)))["A2"] is False
    X, Y = rng.normal(size=(4, 30)), rng.normal(size=(2, 30))
    assert holds(Problem(X, np.vstack([Y, Y[:1]])))["A2"] is False
    # The assumption is on Y, not on what X explains of it: here that is nothing, or less than Y's rank.
    X, Y = orthonormal_rows(rng, 3, 2, m=20)
    assert holds(Problem(X, Y))["A2"] is True
    assert holds(Problem(X, Y))["A3"] is False
    assert holds(Problem(*DATA["more outputs"](rng)))["A2"] is True


@pytest.mark.parametrize(
    ("s", "three", "four"),
    [
        ([3, 2, 1], True, True),
        ([3, 3, 1], False, False),
        ([3, 2, 0], False, False),
        ([5, 4, 3], True, False),  # 5² = 4² + 3²
        ([7, 5, 1], True, True),  # 7² + 1² = 5² + 5², but no two subsets agree
        ([3, 3 - 1e-15, 1], False, False),  # one rounding apart
        ([3, 3 - 1e-9, 1], True, True),
    ],
)
def test_spectra_of_assumptions_three_and_four(s, three, four, rng):
    """Targets with the given spectrum in general position, whatever the coordinates."""
    U, V = np.linalg.qr(rng.normal(size=(3, 3)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :3]
    for problem in (Problem.from_singular_values(s, d_x=4), Problem.from_target(U * s @ V.T)):
        found = holds(problem)
        assert (found["A3"], found["A4"]) == (three, four)


def test_assumption_four_looks_at_ranks_that_occur():
    """For s = (5, 4, 3) the subsets {1} and {2, 3} share a level; at rank one only {1} occurs."""
    problem = Problem.from_singular_values([5, 4, 3])
    assert holds(problem, (3, 2, 3))["A4"] is False
    assert holds(problem, (3, 1, 3))["A4"] is True


def test_fewer_singular_values_than_outputs_fail_assumption_three(rng):
    assert holds(Problem(*DATA["more outputs"](rng)))["A3"] is False  # two zero eigenvalues of a 4×4 matrix


def test_many_levels_are_not_all_listed(rng):
    report = Problem.from_singular_values(np.arange(1, 21)).report()
    assert len(report.levels) == 64
    assert not report.levels.complete
    assert {a.name[:2]: a.holds for a in report.assumptions}["A4"] is None
    assert "not checked" in str(report)
    assert len(Problem.from_singular_values(np.arange(1, 21)).report(lowest=5).levels) == 5


def test_printed_report_holds_the_facts(rng):
    problem = Problem(
        *centred_classes(rng),
        features=["Länge", "mass [kg]", "c", "d", "e"],
        targets=["t0", "t1", "t2", "[/t3]"],
        source="table.csv",
    )
    report = problem.report((5, 6, 3, 4))
    s = np.asarray(problem.singular_values)
    facts = [
        "table.csv", "m=40", "d_x=5", "d_y=4", "Länge", "mass [kg]", "[/t3]", "5-6-3-4", "data",
        *(f"{value:.6g}" for value in s), f"{float(problem.offset):.6g}", f"{0.5 * np.sum(s**2):.6g}", "{1,2,3}",
        "A1", "A2", "A3", "A4", "FAILS", "rank 3 of 4",
    ]  # fmt: skip
    text, html = str(report), report._repr_html_()
    assert repr(report) == text
    for fact in facts:
        assert fact in text
        assert fact in html
    assert html.lstrip().startswith("<pre")
    assert max(map(len, text.splitlines())) <= 120


def test_report_keeps_what_it_says(rng):
    X, Y = DATA["tall"](rng)
    problem = Problem(X, Y)
    report = problem.report((4, 1, 2))
    assert (report.max_rank, report.widths, report.coordinates) == (1, (4, 1, 2), "data")
    assert report.residual == float(problem.offset)
    assert len(report.levels) == 3  # subsets with at most one of two
    assert problem.report().max_rank == 2
    assert "holds" in str(report)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_report_of_no_levels_is_refused(bad, rng):
    with pytest.raises(ValueError, match="lowest must be at least 1"):
        Problem(*DATA["tall"](rng)).report(lowest=bad)
