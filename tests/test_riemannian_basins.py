"""Basins on the manifold of matrices of rank k: limits by rank and level, certified by the sign of the determinant."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import gdflow as gf
from gdflow.basins import Status
from gdflow.initialization import Balanced, BalancedGaussian, LambdaBalanced, Orthogonal, Support
from gdflow.sides import full_rank_is_out_of_reach
from gdflow.thresholds import Thresholds

KEY = jax.random.key(21)


def signs(law, num):
    """The sign of det W(0), start by start."""
    starts = law.sample_batch(KEY, np.arange(num))
    return np.sign(np.linalg.det(np.asarray(jax.vmap(lambda net: net.end_to_end)(starts))))


@pytest.mark.parametrize("depth", [3])
@pytest.mark.slow
def test_square_starts_of_full_rank_are_decided_by_the_sign_of_their_determinant(depth):
    """The law of `W(0)` is Gaussian: exactly half of the starts have `det W(0) < 0` and end at rank 2, on level 1."""
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0])
    law = BalancedGaussian((3,) * (depth + 1))
    estimate = gf.basin_sizes(problem, law, 300, key=KEY, progress=False, audit=30)
    assert isinstance(estimate.plan.verdict, gf.verdicts.Balanced)
    assert estimate.certified == 300
    negative = signs(law, 300) < 0
    np.testing.assert_array_equal(estimate.outcomes["limit"].to_numpy(), negative)
    assert set(np.array(estimate.outcomes["verdict"].to_pylist())[negative]) == {"lower rank {1,2}"}
    full, lower, *others = estimate.rows
    assert full.ranks == (3,)
    assert (lower.ranks, lower.level.subsets) == ((2,), ((1, 2),))
    assert full.certified + lower.certified == 300
    assert full.interval[0] < 0.5 < full.interval[1]  # 5 % false alarm, at a fixed seed
    assert lower.interval[0] < 0.5 < lower.interval[1]
    assert all(row.certified == row.possible == 0 for row in others)
    assert estimate.fraction == full.certified / 300
    assert estimate.audit.flips == 0
    # The certificate's time: on the way down, not later than the loss that the other levels need.
    assert np.all(estimate.outcomes["loss"].to_numpy()[negative] < 2.0)  # level 2: {1, 3}


def test_lower_limits_are_those_that_exact_modes_have():
    """A start aligned with the target falls apart into scalar modes, each of which keeps its sign (`exact.balanced_chain`)."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    for modes, level in (((0.3, 0.4), 0), ((0.3, -0.4), 1)):
        root = np.sqrt(np.abs(modes))
        net = gf.LayerTuple([np.diag(root), np.diag(root * np.sign(modes))])
        assert bool(full_rank_is_out_of_reach(problem, net)) == (level == 1)
        limit = [gf.dynamics.exact.balanced_chain(s, u, 2, 200.0) for s, u in zip((2.0, 1.0), modes, strict=True)]
        loss = 0.5 * np.sum((np.array([2.0, 1.0]) - limit) ** 2)
        np.testing.assert_allclose(loss, gf.critical_values(problem, 2).values[level], atol=1e-12)


@pytest.mark.slow
def test_side_is_the_same_in_all_coordinates():
    rng = np.random.default_rng(22)
    data = gf.Problem(rng.normal(size=(3, 20)), rng.normal(size=(3, 20)))
    law = BalancedGaussian((3, 3, 3))
    net = law.sample(KEY, 3)
    side = bool(full_rank_is_out_of_reach(data, net))
    minimum = np.asarray(gf.manifold.best_fit(data, 3))
    assert side == (np.linalg.det(minimum) * np.linalg.det(np.asarray(net.end_to_end)) < 0)
    for coordinates in ("reduced", "whitened"):
        other = data.in_coordinates(coordinates)
        assert bool(full_rank_is_out_of_reach(other, data.convert(net, "data", coordinates))) == side


def test_where_nothing_is_claimed():
    square = gf.Problem.from_singular_values([2.0, 1.0])
    wrong = gf.LayerTuple([np.eye(2), np.diag([1.0, -1.0])])
    assert bool(full_rank_is_out_of_reach(square, wrong))
    # A target of lower rank, a start whose sign is in doubt, a matrix that is not square, a narrow layer.
    assert not bool(full_rank_is_out_of_reach(gf.Problem.from_singular_values([2.0, 0.0]), wrong))
    doubtful = gf.LayerTuple([np.eye(2), np.diag([1.0, -1e-16])])
    assert not bool(full_rank_is_out_of_reach(square, doubtful))
    wide = gf.Problem.from_singular_values([2.0, 1.0], d_x=3)
    assert not bool(full_rank_is_out_of_reach(wide, Balanced((3, 2, 2)).sample(KEY, 0)))
    narrow = gf.LayerTuple([np.ones((1, 2)), np.ones((2, 1))])
    assert not bool(full_rank_is_out_of_reach(square, narrow))


@pytest.mark.slow
def test_certificate_of_the_level_above():
    problem = gf.Problem.from_singular_values([2.0, 1.0])  # levels 0, ½, 2, 5/2
    certificate = Thresholds(problem, (2, 2, 2))
    losses, exactly = jnp.asarray([0.4, 1.9, 2.1, jnp.nan]), jnp.zeros(4)
    assert certificate.certified(losses, exactly).tolist() == [True, False, False, False]
    assert certificate.certified(losses, exactly, jnp.ones(4, int)).tolist() == [True, True, False, False]
    # With the levels cut off above the first nothing is known of what lies between.
    short = Thresholds(problem, (2, 2, 2), num_levels=1)
    assert not np.any(short.certified(losses, exactly, jnp.ones(4, int)))
    # One by one there is no other level than zero to end at: certified from the start.
    chain = Thresholds(gf.Problem.from_singular_values([1.0]), (1, 1, 1))
    assert bool(chain.certified(jnp.asarray(7.0), jnp.asarray(0.0), jnp.asarray(1)))
    # Other verdicts know of no side.
    wrong = gf.LayerTuple([np.eye(2)[None], np.diag([1.0, -1.0])[None]])
    made = [kind(problem, (2, 2, 2)) for kind in (gf.verdicts.LevelVerdict, gf.verdicts.Balanced)]
    assert [int(np.ravel(verdict.ground(problem.objective, wrong))[0]) for verdict in made] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "rank"), [((4, 2, 3), 2), ((3, 2, 2, 3), 2)])
def test_below_full_rank_the_limit_is_the_best_fit_of_the_rank(widths, rank):
    """Theorem 6 of Terstiege, Rauhut, Bah, Westdickenberg (2022); `M_k` is connected here and no side is wrong."""
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0], d_x=widths[0])
    estimate = gf.basin_sizes(problem, Balanced(widths, singular_values=0.5), 60, key=KEY, progress=False, audit=0)
    assert estimate.rows[0].certified == 60
    assert estimate.rows[0].ranks == (rank,)
    np.testing.assert_allclose(estimate.rows[0].level.value, 0.5)  # ℓ({1, 2})


@pytest.mark.slow
def test_above_the_rank_of_the_target_there_is_no_minimum_of_full_rank():
    """Both signs of the determinant end at the best fit of rank 2, on the boundary of `M_3`."""
    problem = gf.Problem.from_singular_values([2.0, 1.0, 0.0])
    law = Balanced((3, 3, 3), singular_values=0.5)
    estimate = gf.basin_sizes(problem, law, 60, key=KEY, progress=False, audit=0)
    assert estimate.rows[0].certified == 60
    assert estimate.rows[0].ranks == (2,)
    assert len(set(signs(law, 60))) == 2


class Fixed(gf.initialization.AbstractInitialization):
    """A law that always draws one network."""

    net: gf.LayerTuple
    widths: tuple[int, ...] = eqx.field(static=True, default=(2, 2, 2))

    @property
    def invariant_set(self):
        return Support.BALANCED

    def draw(self, key):
        return self.net


class Pretended(gf.initialization.Gaussian):
    """A law that says that its starts are balanced, which they are not."""

    def __init__(self):
        super().__init__((3, 3, 3))

    @property
    def invariant_set(self):
        return Support.BALANCED


@pytest.mark.parametrize("small", [pytest.param(0.5, marks=pytest.mark.slow), 1e-8])
@pytest.mark.slow
def test_an_integration_that_strays_is_not_certified(small):
    """Modes −`small` and 1 of the target: the exact flow from a start like this tends to the saddle {2} with `det W < 0`.

    In floating point it passes through `det W = 0` there and goes on to the minimum, from which the sign of the determinant
    keeps it: that is said, and not taken for a certificate.
    """
    U, V, R = (scipy.linalg.expm(np.array([[0.0, a], [-a, 0.0]])) for a in (0.6, -1.1, 0.3))
    problem = gf.Problem.from_target(U @ np.diag([2.0, 1.0]) @ V.T)
    root = np.sqrt([small, 1.0])
    net = gf.LayerTuple([R @ np.diag(root) @ V.T, U @ np.diag(root * [-1, 1]) @ R.T])
    estimate = gf.basin_sizes(
        problem,
        Fixed(net),
        1,
        key=KEY,
        progress=False,
        audit=0,
        verdict=gf.verdicts.Balanced(problem, Fixed(net).widths),
    )
    assert estimate.statuses[Status.STRAYED] == 1
    assert estimate.outcomes["verdict"].to_pylist() == ["undecided"]
    assert estimate.rows[0].certified == estimate.rows[1].certified == 0
    assert estimate.interval == (0.0, 1.0)
    # Exactly aligned modes do not stray: no round-off turns them.
    aligned = gf.LayerTuple([np.diag(root), np.diag(root * [1, -1])])
    straight = gf.Problem.from_singular_values([2.0, 1.0])
    estimate = gf.basin_sizes(
        straight,
        Fixed(aligned),
        1,
        key=KEY,
        progress=False,
        audit=0,
        verdict=gf.verdicts.Balanced(straight, Fixed(aligned).widths),
    )
    assert estimate.rows[1].certified == 1


@pytest.mark.slow
def test_laws_know_whether_they_are_balanced():
    for law in (
        Balanced((3, 2, 2)), BalancedGaussian((3, 2, 2)), LambdaBalanced((3, 2, 2), lam=0.0),
        LambdaBalanced((3, 2, 2), lam=0.1), Orthogonal((3, 2, 2, 4)), Orthogonal((2, 3, 2)), Orthogonal((4, 3, 2, 3)),
        Orthogonal((3, 3)), gf.initialization.Gaussian((2, 2, 2)),
    ):  # fmt: skip
        C = gf.conserved(law.sample(KEY, 0))
        assert law.balanced == all(np.allclose(c, 0.0, atol=1e-12) for c in C)


@pytest.mark.slow
def test_gaussian_singular_values():
    """At full rank the product is a Gaussian matrix: its squared norm is chi-square distributed."""
    law = BalancedGaussian((3, 2, 2))
    starts = law.sample_batch(KEY, np.arange(2000))
    W = np.asarray(jax.vmap(lambda net: net.end_to_end)(starts))
    # Six entries of variance 1/3; both tests with false-alarm probability 1e-4.
    assert scipy.stats.kstest(3 * np.sum(W**2, axis=(1, 2)), scipy.stats.chi2(6).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(np.sqrt(3) * W[:, 0, 1], scipy.stats.norm.cdf).pvalue > 1e-4
    thin = BalancedGaussian((3, 2, 3), rank=1)
    assert np.linalg.matrix_rank(np.asarray(thin.sample(KEY, 0).end_to_end), tol=1e-10) == 1


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (gf.initialization.Gaussian((3, 3, 3)), "Gaussian does not say that its starts are"),
        (Pretended(), "the factors are not balanced: .* beside max"),
        (Balanced((3, 3, 3), rank=2), r"starts of rank 2 in widths \(3, 3, 3\).*is that of the widths \(3, 2, 3\)"),
    ],
)
def test_starts_that_are_not_on_the_manifold_are_refused(law, message):
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=message):
        gf.basin_sizes(
            problem, law, 5, key=KEY, progress=False, audit=0, verdict=gf.verdicts.Balanced(problem, law.widths)
        )


@pytest.mark.slow
def test_rank_deficient_inputs_are_refused():
    rng = np.random.default_rng(23)
    X = rng.normal(size=(3, 2)) @ rng.normal(size=(2, 10))
    problem = gf.Problem(X, rng.normal(size=(3, 10)))
    message = "X has rank 2 < d_x = 3, so XXᵀ is not invertible"
    with pytest.raises(ValueError, match=message):
        gf.basin_sizes(
            problem,
            Balanced((3, 3, 3)),
            5,
            key=KEY,
            progress=False,
            audit=0,
            verdict=gf.verdicts.Balanced(problem, Balanced((3, 3, 3)).widths),
        )
    with pytest.raises(ValueError, match=message):
        gf.riemannian_flow(problem, jnp.eye(3), 2, 1.0)
    # Without being asked for it, such starts are not taken for ones on the manifold.
    estimate = gf.basin_sizes(problem, Balanced((3, 3, 3)), 5, key=KEY, progress=False, audit=0)
    assert isinstance(estimate.plan.verdict, gf.verdicts.LevelVerdict)
    assert gf.riemannian_flow(problem.in_coordinates("reduced"), jnp.eye(3, 2), 2, 1.0, ts=2).solved


@pytest.mark.slow
def test_summary_and_table_name_ranks():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    estimate = gf.basin_sizes(problem, Balanced((2, 2, 2)), 20, key=KEY, progress=False, audit=0)
    assert estimate.statuses[Status.CERTIFIED] == 20
    assert [row["ranks"] for row in estimate.summary()["limits"]] == [(2,), (1,), (1,), (0,)]
    assert "lower rank {1}" in str(estimate)
    assert "rank" in str(estimate)
