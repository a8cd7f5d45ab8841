"""Strata of the critical set: formulas for dimension and index against the Hessian at sampled points, and the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.csv
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

from gdflow.landscape import inertia, sample_critical_point, strata, stratum_tangent_space
from gdflow.losses import Logistic
from gdflow.network import LayerTuple, count_parameters
from gdflow.problem import Problem

# (d_x, d_1, d_y), coordinates, rank of X if not full; d_1 ≠ d_y but for one.
ARCHITECTURES = {
    "4-4-3": ((4, 4, 3), "whitened", None),
    "4-2-3": ((4, 2, 3), "whitened", None),
    "5-1-2": ((5, 1, 2), "reduced", None),
    "5-3-2": ((5, 3, 2), "data", None),
    "3-5-3": ((3, 5, 3), "whitened", None),
    "3-2-3": ((3, 2, 3), "data", None),
    "2-4-3": ((2, 4, 3), "whitened", None),
    "2-1-4": ((2, 1, 4), "reduced", None),
    "3-6-1": ((3, 6, 1), "whitened", None),
    "1-3-2": ((1, 3, 2), "whitened", None),
    "6-2-4": ((6, 2, 4), "whitened", None),
    "2-2-3": ((2, 2, 3), "whitened", None),
    "4-3-3": ((4, 3, 3), "reduced", None),
    "4-4-2, X of rank 3": ((4, 4, 2), "data", 3),
    "4-2-3, X of rank 2": ((4, 2, 3), "data", 2),
}


def make(case: str) -> tuple[Problem, tuple[int, ...]]:
    """A problem with well separated singular values: no eigenvalue comes near the threshold of zero."""
    (d_x, d_1, d_y), coordinates, rank_x = ARCHITECTURES[case]
    rng = np.random.default_rng(sum(map(ord, case)))
    rho = rank_x or d_x
    k = min(rho, d_y)
    U, V, T = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (d_y, rho, d_x))
    X = T[:, :rho] * np.linspace(1.0, 2.0, rho)
    Y = U[:, :k] * (1.0 + np.arange(k)) @ V[:k]
    problem = Problem(X, Y, coordinates=coordinates)
    assert len(problem.singular_values) == k
    return problem, problem.widths((d_1,))


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_formulas_are_the_inertia_of_the_hessian_on_every_stratum(case):
    problem, widths = make(case)
    rows = strata(problem, widths)
    assert rows.complete
    assert rows.notes == () or all("shared" in note for note in rows.notes)
    for row in rows:
        for seed in range(2):
            net = sample_critical_point(problem, widths, row.subset, key=jax.random.key(seed))
            found = inertia(problem, net)
            assert found.certain
            assert (row.index, row.nullity, row.positive) == (found.negative, found.zero, found.positive), row
            assert row.dimension == row.nullity
            # A sampled point has the level up to round-off of a residual with entries of order one.
            assert float(problem.effective_loss(net)) == pytest.approx(row.value, abs=1e-12)


def test_the_printed_dimension_is_wrong():
    """Eq. (27) has `d_y` in place of `d_1`: for widths 4-4-3 and one singular value it gives 8."""
    d_x, d_1, d_y, r = 4, 4, 3, 1
    printed = r * d_1 + (d_y - r) * r + (d_y - r) * (d_x - d_y)
    problem, widths = make("4-4-3")
    row = next(row for row in strata(problem, widths) if row.subset == (2,))
    net = sample_critical_point(problem, widths, (2,), key=jax.random.key(0))
    assert printed == 8
    assert inertia(problem, net).zero == row.nullity == row.dimension == 10


@pytest.mark.parametrize("case", ["4-4-3", "4-2-3", "2-4-3", "5-3-2", "4-4-2, X of rank 3", "4-2-3, X of rank 2"])
def test_the_tangent_space_is_the_kernel_of_the_hessian(case):
    problem, widths = make(case)
    for row in strata(problem, widths):
        net = sample_critical_point(problem, widths, row.subset, key=jax.random.key(5))
        T = np.asarray(stratum_tangent_space(problem, net, row.subset))
        assert T.shape == (count_parameters(widths), row.dimension)
        np.testing.assert_allclose(T.T @ T, np.eye(row.dimension), atol=1e-12)  # a matrix of singular vectors
        kernel = hessian_kernel(problem, net)
        # Kernels turn by round-off over the spectral gap, which is above 1e-4 here.
        assert np.max(scipy.linalg.subspace_angles(T, kernel)) < 1e-8


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_tangent_space_for_singular_values_of_any_size(size):
    problem = Problem.from_singular_values(np.array([3.0, 2.0, 1.0]) * size, d_x=4)
    for subset in ((), (2,), (1, 3)):
        net = sample_critical_point(problem, (4, 4, 3), subset, key=jax.random.key(5))
        T = np.asarray(stratum_tangent_space(problem, net, subset))
        np.testing.assert_allclose(T.T @ T, np.eye(T.shape[1]), atol=1e-12)
        assert T.shape[1] == inertia(problem, net).zero
        # The Hessian, of the order of the singular values, annihilates it up to round-off.
        flat, unravel = ravel_pytree(net)
        H = np.asarray(jax.jit(jax.hessian(lambda x, unravel=unravel: problem.effective_loss(unravel(x))))(flat))
        assert np.linalg.norm(H @ T) <= 1e-12 * np.linalg.norm(H)


def hessian_kernel(problem: Problem, net: LayerTuple) -> np.ndarray:
    """By `jax.hessian`."""
    flat, unravel = ravel_pytree(net)
    H = np.asarray(jax.jit(jax.hessian(lambda x: problem.effective_loss(unravel(x))))(flat))
    values, vectors = np.linalg.eigh(H)
    return vectors[:, abs(values) < 1e-9 * abs(values).max()]


def test_along_a_tangent_the_loss_changes_by_the_fourth_power_of_the_step():
    """The product then moves in second order only, on which the residual is orthogonal: `½‖w_2w_1‖²` is all that is left."""
    problem, widths = make("4-4-3")
    net = sample_critical_point(problem, widths, (1, 3), key=jax.random.key(1))
    unravel = ravel_pytree(net)[1]
    T = stratum_tangent_space(problem, net, (1, 3))
    w = unravel(T @ jnp.asarray(np.random.default_rng(0).normal(size=T.shape[1])))
    level = float(problem.effective_loss(net))
    second = float(jnp.sum(net.mixed_variation(w, 1, 2) ** 2))
    for h in (0.1, 0.01):
        # Round-off of a level of a few units.
        assert float(problem.effective_loss(net + h * w)) - level == pytest.approx(0.5 * h**4 * second, abs=1e-14)
    assert 0.5 * 0.01**4 * second > 1e-9  # so that the line above compares numbers and not round-off


# -- the table -------------------------------------------------------------------------------------------------------------


def test_rows_run_from_the_lowest_level_upwards():
    s = [3.0, 2.0, 1.5]
    rows = strata(Problem.from_singular_values(s, d_x=4), (4, 2, 3))
    assert [row.subset for row in rows] == [(1, 2), (1, 3), (1,), (2, 3), (2,), (3,), ()]
    assert [row.level for row in rows] == list(range(7))
    # Half the sum of squares outside the subset; all of these numbers are exact.
    assert [row.value for row in rows] == [1.125, 2.0, 3.125, 4.5, 5.625, 6.5, 7.625]
    assert [row.kind for row in rows] == ["global minima", *6 * ["strict saddles"]]
    assert all(row.rank == len(row.subset) for row in rows)
    assert all(row.index + row.nullity + row.positive == 4 * 2 + 2 * 3 for row in rows)
    assert (len(rows), rows[-1].subset, rows.widths, rows.singular_values) == (7, (), (4, 2, 3), tuple(s))


def test_deeper_networks_have_kinds_but_no_counts():
    rows = strata(Problem.from_singular_values([3, 2, 1.5], d_x=4), (4, 3, 2, 3))
    kinds = {row.subset: row.kind for row in rows}
    some = "saddles, some non-strict"
    assert kinds.pop((1, 2)) == "global minima"
    assert kinds.pop((1,)) == kinds.pop(()) == some
    assert set(kinds) == {(2,), (3,), (1, 3), (2, 3)}
    assert set(kinds.values()) == {"strict saddles"}
    assert all((row.dimension, row.index, row.nullity, row.positive) == 4 * (None,) for row in rows)


def test_the_table_as_text():
    text = str(strata(Problem.from_singular_values([2, 1], d_x=3), (3, 3, 2)))
    assert "widths 3-3-2" in text
    lines = [line.split() for line in text.split("\n")]
    # S, rank, level, value, dimension, index, nullity, positive
    assert ["{1}", "1", "1", "0.5", "7", "2", "7", "6", "strict", "saddles"] in lines
    assert ["∅", "0", "3", "2.5", "3", "6", "3", "6", "strict", "saddles"] in lines
    deep = str(strata(Problem.from_singular_values([2, 1], d_x=3), (3, 3, 3, 2)))
    assert ["{2}", "1", "2", "2", "–", "–", "–", "–", "strict", "saddles"] in [x.split() for x in deep.split("\n")]


def test_long_tables_are_cut_in_print_only():
    rows = strata(Problem.from_singular_values(2.0 ** -np.arange(7)), (7, 7, 7))
    assert len(rows) == rows.table.num_rows == 2**7
    assert "(64 strata not shown)" in str(rows)


def test_exports(tmp_path):
    rows = strata(Problem.from_singular_values([3, 2], d_x=3), (3, 4, 2))
    assert rows.table.column_names == [
        "subset", "rank", "value", "level", "kind", "dimension", "index", "nullity", "positive",
    ]  # fmt: skip
    assert rows.table.to_pylist()[-1]["subset"] == "∅"
    assert rows.table.to_pylist()[0]["subset"] == "{1,2}"
    rows.write_csv(tmp_path / "strata.csv")
    back = pyarrow.csv.read_csv(tmp_path / "strata.csv")
    assert back.to_pylist() == rows.table.to_pylist()
    deep = strata(Problem.from_singular_values([3, 2], d_x=3), (3, 4, 4, 2))
    deep.write_csv(str(tmp_path / "deep.csv"))
    back = pyarrow.csv.read_csv(tmp_path / "deep.csv")
    assert back.column("dimension").null_count == len(deep) == 4
    assert back.column("value").to_pylist() == [row.value for row in deep]


def test_tied_singular_values_are_named_and_leave_no_counts():
    rows = strata(Problem.from_singular_values([2, 2, 1], d_x=4), (4, 3, 3))
    assert len(rows) == 8
    assert any("s_1 = 2 and s_2 = 2 are equal" in note for note in rows.notes)
    assert all(row.dimension is row.index is row.nullity is row.positive is None for row in rows)
    assert [row.level for row in rows if len(row.subset) == 1] == [3, 3, 4]
    assert "s_1 = 2 and s_2 = 2 are equal" in str(rows)
    with pytest.raises(ValueError, match=r"tangent space of a stratum needs distinct .* are equal"):
        stratum_tangent_space(
            Problem.from_singular_values([2, 2]), LayerTuple([np.eye(2), np.diag([2.0, 2.0])]), (1, 2)
        )


def test_zero_singular_values_are_named_and_leave_no_counts():
    rows = strata(Problem.from_singular_values([2, 1, 0], d_x=4), (4, 3, 3))
    assert [row.subset for row in rows] == [(1, 2), (1,), (2,), ()]
    assert rows[0].value == 0.0
    assert any("s_3 = 0 is zero" in note for note in rows.notes)
    assert all(row.dimension is row.index is row.nullity is row.positive is None for row in rows)
    # Where zeros enlarge the kernel the formula would give another number: this is why there is none.
    net = LayerTuple([np.zeros((3, 4)), np.zeros((3, 3))])
    assert inertia(Problem.from_singular_values([2, 1, 0], d_x=4), net).zero == 3 * 1 + 2 * 3


def test_kinds_of_deep_networks_with_tied_singular_values():
    """Non-strict points fit the largest singular values, whichever of equal ones: exchanging `s_2` for `s_1` lowers the loss."""
    rows = strata(Problem.from_singular_values([2, 1, 1]), (3, 2, 3, 3))
    kinds = {row.subset: row.kind for row in rows}
    assert kinds[1, 2] == kinds[1, 3] == "global minima"
    assert {kinds[S] for S in ((2,), (3,), (2, 3))} == {"strict saddles"}
    assert {kinds[S] for S in ((), (1,))} == {"saddles, some non-strict"}
    rows = strata(Problem.from_singular_values([2, 1, 0]), (3, 3, 3, 3))
    kinds = {row.subset: row.kind for row in rows}
    assert kinds[1, 2] == "global minima"
    assert kinds[2,] == "strict saddles"
    assert {kinds[S] for S in ((), (1,))} == {"saddles, some non-strict"}


@pytest.mark.parametrize("s", [[2, 1, 1], [1, 1, 0.5], [2, 2, 2], [2, 1, 0], [1, 1, 0]], ids=str)
def test_kinds_with_ties_and_zeros_are_those_of_hessians(s):
    """All products of rank `|S|`: a Hessian without negative eigenvalues wherever a point of the stratum can have one."""
    problem = Problem.from_singular_values(s)
    for row in strata(problem, (3, 3, 3, 3)):
        root = np.zeros(3)
        inside = [i - 1 for i in row.subset]
        root[inside] = np.cbrt(np.array(s, float)[inside])
        net = LayerTuple([np.diag(root)] * 3)
        # Orders of `U_Y`, `V_Y` and signs are the problem's own; in reduced coordinates the target is the diagonal itself.
        assert float(problem.effective_loss(net)) == pytest.approx(row.value, abs=1e-12)
        found = inertia(problem, net)
        assert (found.negative > 0) == (row.kind == "strict saddles"), row


@pytest.mark.parametrize("d", [3, 4])
def test_ties_up_to_round_off(d):
    """Singular values that differ by a few units of the last digit are equal."""
    s = np.linspace(2.0, 1.0, d)
    s[1] = s[0] * (1 - 1e-15)
    kinds = {row.subset: row.kind for row in strata(Problem.from_singular_values(s), (d,) * 4)}
    assert kinds[1,] == kinds[2,] == "saddles, some non-strict"
    assert kinds[3,] == "strict saddles"


def test_a_single_layer_has_one_stratum():
    for s, rank_x in [([3.0, 2.0], 3), ([2.0, 2.0], 3), ([2.0, 0.0], 3), ([3.0, 2.0], 2)]:
        rng = np.random.default_rng(0)
        U, T = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (2, 3))
        # `Ȳ = YV_X` has the singular values s: X has rank 2 or 3 of 3.
        X = T[:, :rank_x] * np.linspace(1, 2, rank_x)
        problem = Problem(X, U @ np.eye(2, rank_x) * np.pad(s, (0, rank_x - 2)))
        rows = strata(problem, (3, 2))
        assert len(rows) == 1
        assert rows.complete
        assert rows[0].subset == tuple(range(1, 1 + np.count_nonzero(s)))
        assert (rows[0].kind, rows[0].level, rows[0].value) == ("global minima", 0, pytest.approx(0.0, abs=1e-25))
        net = sample_critical_point(problem, (3, 2), rows[0].subset, key=jax.random.key(0))
        found = inertia(problem, net)
        assert (rows[0].index, rows[0].nullity, rows[0].positive) == (found.negative, found.zero, found.positive)
        assert "convex" in str(rows)


def test_shared_levels_are_named():
    rows = strata(Problem.from_singular_values([5, 4, 3]), (3, 3, 3))  # 25 = 16 + 9
    assert rows.complete
    assert [row.subset for row in rows if row.level == rows[3].level] in ([(1,), (2, 3)], [(2, 3), (1,)])
    assert any("levels shared by several subsets: 3" in note for note in rows.notes)
    assert all(row.dimension is not None for row in rows)


def test_lowest_levels_only():
    problem = Problem.from_singular_values(np.arange(30, 0, -1.0))
    rows = strata(problem, problem.widths([30]), lowest=3)
    assert [row.subset for row in rows] == [tuple(range(1, 31)), tuple(range(1, 30)), (*range(1, 29), 30)]
    assert not rows.complete
    assert [row.index for row in rows] == [0, 1, 2]
    small = Problem.from_singular_values([3, 2, 1.5])
    everything, some = strata(small, (3, 3, 3)), strata(small, (3, 3, 3), lowest=4)
    assert everything.complete
    assert some.strata == everything[:4]


def test_subsets_of_a_shared_level_that_are_not_listed_are_counted():
    rows = strata(Problem.from_singular_values(np.ones(8)), (8, 4, 8))
    assert not rows.complete
    assert any("subsets of shared levels are not listed" in note for note in rows.notes)


# -- errors ----------------------------------------------------------------------------------------------------------------


def test_too_many_subsets_are_refused():
    problem = Problem.from_singular_values(np.arange(24, 0, -1.0))
    with pytest.raises(ValueError, match="lowest"):
        strata(problem, problem.widths([24]))


def test_widths_and_losses_that_do_not_fit_are_refused(rng):
    problem = Problem.from_singular_values([2, 1], d_x=3)
    with pytest.raises(ValueError, match=r"\(4, 3, 2\) do not fit .* d_0 = 3 and d_N = 2"):
        strata(problem, (4, 3, 2))
    with pytest.raises(ValueError, match="positive integers, got 0"):
        strata(problem, (3, 0, 2))
    for widths in ((3, 2), (3, 3, 2)):
        with pytest.raises(ValueError, match="lowest must be at least 1, got 0"):
            strata(problem, widths, lowest=0)
    logistic = Problem(rng.normal(size=(3, 5)), rng.choice([-1.0, 1.0], (2, 5)), Logistic())
    with pytest.raises(ValueError, match="this problem has loss Logistic"):
        strata(logistic, (3, 3, 2))


def test_tangent_spaces_of_other_depths_and_subsets_are_refused(rng):
    problem = Problem.from_singular_values([2, 1], d_x=3)
    deep = LayerTuple([rng.normal(size=shape) for shape in ((3, 3), (3, 3), (2, 3))])
    with pytest.raises(ValueError, match="one hidden layer only, got depth 3"):
        stratum_tangent_space(problem, deep, ())
    net = LayerTuple([rng.normal(size=shape) for shape in ((3, 3), (2, 3))])
    with pytest.raises(ValueError, match="1 to 2; got 0"):
        stratum_tangent_space(problem, net, (0,))
    with pytest.raises(ValueError, match="do not fit"):
        stratum_tangent_space(problem, LayerTuple([rng.normal(size=shape) for shape in ((3, 4), (2, 3))]), ())
