"""Laws of starts: their distributions, on which sets of measure zero they lie, and many draws in one call."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.stats
from draws import FALSE_ALARM, ROUNDING, assert_law, assert_uncorrelated, conserved, draws, flat

from gdflow.initialization import (
    AbstractInitialization,
    Around,
    Balanced,
    BalancedGaussian,
    Gaussian,
    LambdaBalanced,
    Orthogonal,
    Pyramidal,
    Support,
    UniformBall,
    fan_out,
)
from gdflow.network import LayerTuple


def test_gaussian_entries_have_the_fan_in_variance():
    layers = draws(Gaussian((3, 4, 2)), 4000)
    for w in layers:
        assert_law(w * np.sqrt(w.shape[-1]), scipy.stats.norm.cdf)
        # n·m_2 of n independent standard normal entries is chi-square.
        n = w.size
        total = w.shape[-1] * np.sum(w**2)
        assert scipy.stats.chi2.isf(1 - FALSE_ALARM / 2, n) < total < scipy.stats.chi2.isf(FALSE_ALARM / 2, n)
        assert abs(np.sum(w)) * np.sqrt(w.shape[-1] / n) < scipy.stats.norm.isf(FALSE_ALARM / 2)
    assert_uncorrelated(flat(layers))


@pytest.mark.parametrize(
    ("scale", "deviations"), [(fan_out, (4**-0.5, 2**-0.5)), (lambda d_in, d_out: d_in / d_out, (0.75, 2.0))]
)
def test_gaussian_with_a_function_for_a_scale(scale, deviations):
    law = Gaussian((3, 4, 2), scale=scale)
    assert law == Gaussian((3, 4, 2), scale=scale)
    for w, standard, expected in zip(draws(law, 9), draws(Gaussian((3, 4, 2), 1.0), 9), deviations, strict=True):
        np.testing.assert_allclose(w, expected * standard, rtol=1e-14)


def test_gaussian_with_one_scale_for_all_layers():
    assert_law(flat(draws(Gaussian((3, 4, 2), scale=0.3), 2000)) / 0.3, scipy.stats.norm.cdf)


def test_uniform_ball_radius_and_direction():
    law = UniformBall((3, 4, 2), radius=2.5)
    x = flat(draws(law, 4000))
    dimension = x.shape[1]
    assert dimension == 3 * 4 + 4 * 2
    radii = np.linalg.norm(x, axis=1)
    assert np.max(radii) <= 2.5
    assert_law((radii / 2.5) ** dimension, scipy.stats.uniform.cdf)
    # A coordinate u of a uniform direction has u² ~ Beta(1/2, (dimension − 1)/2), and a sign that is fair.
    directions = x / radii[:, None]
    square = scipy.stats.beta(0.5, (dimension - 1) / 2)
    for column in directions.T[[0, 7, 15, 19]]:
        assert_law(column**2, square.cdf)
        assert scipy.stats.binomtest(int(np.sum(column > 0)), len(column)).pvalue > FALSE_ALARM
    assert_uncorrelated(directions)


@pytest.mark.parametrize("widths", [(1, 1), (1, 1, 1)])
def test_uniform_ball_radius_in_low_dimension(widths):
    # P(‖W‖ ≤ r) = (r/R)^dimension; in dimension 20 a wrong power would hardly show.
    radii = np.linalg.norm(flat(draws(UniformBall(widths, radius=2.5), 4000)), axis=1)
    assert_law((radii / 2.5) ** (len(widths) - 1), scipy.stats.uniform.cdf)


@pytest.mark.slow
def test_orthogonal_layers_are_haar_with_orthonormal_rows_or_columns():
    layers = draws(Orthogonal((4, 2, 3, 3), scale=0.7), 3000)
    # Both halves of the orthogonal group are equally likely.
    assert scipy.stats.binomtest(int(np.sum(np.linalg.det(layers[-1]) > 0)), 3000).pvalue > FALSE_ALARM
    for w, wide in zip(layers, (True, False, False), strict=True):
        gram = w @ w.mT if wide else w.mT @ w
        np.testing.assert_allclose(gram, np.broadcast_to(0.49 * np.eye(gram.shape[-1]), gram.shape), atol=ROUNDING)
        # Each unit row (column) is uniform on the sphere of its dimension.
        dimension = max(w.shape[1:])
        for entry in (w[:, 0, 0], w[:, -1, 0], w[:, 0, -1]):
            assert_law((entry / 0.7) ** 2, scipy.stats.beta(0.5, (dimension - 1) / 2).cdf)
            assert scipy.stats.binomtest(int(np.sum(entry > 0)), len(entry)).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("widths", "rank", "values"),
    [
        ((5, 3, 3), None, (3.0, 1.0, 0.2)),
        ((3, 3, 5, 5, 5), None, 1.0),
        ((5, 3, 5, 3), 2, (2.0, 0.5)),
        ((3, 2), 1, 1.7),
    ],
)
@pytest.mark.slow
def test_balanced_starts(widths, rank, values):
    law = Balanced(widths, rank=rank, singular_values=values)
    layers = draws(law, 20)
    depth, k = len(widths) - 1, min(widths) if rank is None else rank
    expected = np.zeros(min(widths[0], widths[-1]))
    expected[:k] = values
    product = layers[0]
    for w in layers[1:]:
        product = w @ product
    for found, wanted in zip(np.linalg.svd(product, compute_uv=False), [expected] * 20, strict=True):
        np.testing.assert_allclose(found, wanted, atol=ROUNDING)
    for c in conserved(layers):
        np.testing.assert_allclose(c, np.zeros_like(c), atol=ROUNDING)
    for w in layers:  # every layer has the N-th roots
        np.testing.assert_allclose(
            np.linalg.svd(w, compute_uv=False)[:, :k],
            np.broadcast_to(expected[:k] ** (1 / depth), (20, k)),
            atol=ROUNDING,
        )


@pytest.mark.slow
def test_gaussian_singular_values_are_independent_of_the_frames():
    # At full rank the product is a Gaussian matrix with independent entries: the row space is independent of the singular
    # values. Drawn with the key of the first frame they were correlated with it (here with coefficients up to 0.1).
    n = 20_000
    first, second = draws(BalancedGaussian((3, 2, 2)), n)
    W = second @ first
    entries = W.reshape(n, -1) * np.sqrt(3)
    for column in entries.T:
        assert_law(column, scipy.stats.norm.cdf)
    assert_law(np.sum(entries**2, axis=1), scipy.stats.chi2(6).cdf)
    assert_uncorrelated(entries)
    assert_uncorrelated(entries**2)
    U, values, Vt = np.linalg.svd(W)
    logs = np.log(np.column_stack([values, values[:, 0] / values[:, 1]]))
    normal = Vt[:, 2]  # of the row space; the products of its entries do not depend on its sign
    space = np.column_stack([normal[:, i] * normal[:, j] for i, j in ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2))])
    left = np.column_stack([U[:, 0, 0] ** 2, U[:, 0, 0] * U[:, 1, 0]])
    for frame in (space, left):
        r = np.corrcoef(frame.T, logs.T)[: frame.shape[1], frame.shape[1] :]
        # The limit law of r√n for independent columns is standard normal; Bonferroni over columns and signs.
        assert np.max(np.abs(r)) * np.sqrt(n) < scipy.stats.norm.isf(FALSE_ALARM / (2 * r.size))


def test_balanced_frames_are_haar():
    # With rank 1 the product is σ u vᵀ, u and v uniform on their spheres and independent.
    first, second = draws(Balanced((3, 2, 4), rank=1, singular_values=2.0), 3000)
    product = second @ first / 2.0
    v = product[:, 0, :] / np.linalg.norm(product[:, 0, :], axis=1)[:, None]
    u = product[:, :, 0] / np.linalg.norm(product[:, :, 0], axis=1)[:, None]
    assert_law(v[:, 1] ** 2, scipy.stats.beta(0.5, 1.0).cdf)
    assert_law(u[:, 2] ** 2, scipy.stats.beta(0.5, 1.5).cdf)
    assert_uncorrelated(np.column_stack([abs(u[:, 1]), abs(v[:, 1])]))  # their common sign is arbitrary


@pytest.mark.parametrize(
    ("widths", "lam"),
    [
        ((1, 2, 2, 3), 1.3),
        ((3, 2, 4), 0.0),
        ((3, 3, 2, 4), -2.0),
        ((3, 2), 1.0),
    ],
)
@pytest.mark.slow
def test_lambda_balanced_starts(widths, lam):
    layers = draws(LambdaBalanced(widths, lam=lam, scale=1.5), 300)
    for c in conserved(layers):
        np.testing.assert_allclose(c, np.broadcast_to(lam * np.eye(c.shape[-1]), c.shape), atol=10 * ROUNDING)
    free, fan = (layers[-1], widths[-1]) if lam < 0 else (layers[0], widths[0])  # from which the others follow
    assert_law(free * np.sqrt(fan) / 1.5, scipy.stats.norm.cdf)


@pytest.mark.parametrize(
    ("widths", "lam"),
    [
        # λ > 0: W_{j+1}ᵀW_{j+1} = W_jW_jᵀ + λI has full rank d_j, so d_{j+1} ≥ d_j.
        ((3, 3, 2), 0.5),
        ((1, 2, 3, 2), 0.5),
        # λ < 0: W_jW_jᵀ has full rank d_j, so d_{j-1} ≥ d_j.
        ((2, 3, 5), -0.5),
        ((4, 2, 3, 5), -0.5),
    ],
)
def test_lambda_balanced_refuses_impossible_widths(widths, lam):
    with pytest.raises(ValueError, match=f"λ = {lam} needs widths with .*, got {str(widths).replace('(', '.')[:-1]}"):
        LambdaBalanced(widths, lam=lam)


@pytest.mark.parametrize(("widths", "margin"), [((3, 4, 2), 0.5), ((2, 4, 3, 1), 2.0)])
@pytest.mark.slow
def test_pyramidal_starts_meet_the_eigenvalue_condition(widths, margin):
    layers = draws(Pyramidal(widths, margin=margin, scale=1.2), 50)
    for c, after in zip(conserved(layers), widths[2:], strict=True):
        largest_first = np.linalg.eigvalsh(c)[:, ::-1]
        assert np.all(largest_first[:, after - 1] >= margin - 1e-10)  # rounding of entries up to about a hundred
        assert np.all(largest_first[:, after:] <= 1e-10)  # the rank of W_{l+1} is no larger: the index matters
    assert_law(layers[0] * np.sqrt(widths[0]) / 1.2, scipy.stats.norm.cdf)


def test_around_a_network():
    center = LayerTuple([np.arange(12.0).reshape(4, 3), np.ones((2, 4))])
    law = Around(center, scale=0.1)
    assert law.widths == (3, 4, 2)
    noise = flat(draws(law, 3000)) - np.concatenate([np.ravel(w) for w in center.weights])
    assert_law(noise / 0.1, scipy.stats.norm.cdf)
    assert_uncorrelated(noise)


# Sets of measure zero.


@pytest.mark.parametrize(
    ("law", "support", "rank"),
    [
        (Gaussian((3, 4, 2)), Support.FULL, 2),
        (UniformBall((3, 4, 2)), Support.FULL, 2),
        (Around(LayerTuple([np.zeros((4, 3)), np.zeros((2, 4))]), 0.1), Support.FULL, 2),
        (Balanced((3, 2, 4)), Support.BALANCED, 2),
        (BalancedGaussian((3, 2, 4), rank=1), Support.BALANCED, 1),
        (Orthogonal((3, 2, 2, 3)), Support.BALANCED, 2),
        (Orthogonal((3, 2, 3, 3)), Support.NULL, 2),
        (Orthogonal((2, 3, 2)), Support.NULL, 2),
        (LambdaBalanced((3, 2, 4), lam=0.0), Support.BALANCED, 2),
        (LambdaBalanced((3, 2, 4), lam=1e-10), Support.NULL, 2),  # close to balanced is not balanced
        (LambdaBalanced((3, 2), lam=1.0), Support.FULL, 2),  # no hidden layer: just Gaussian
        (Pyramidal((3, 4, 2)), Support.NULL, 2),
        (Pyramidal((3, 4)), Support.FULL, 3),
    ],
    ids=repr,
)
@pytest.mark.slow
def test_laws_say_on_which_set_they_live(law, support, rank):
    assert law.invariant_set is support
    assert law.balanced == (support is Support.BALANCED)
    assert law.end_to_end_rank == rank
    layers = draws(law, 60)
    if len(layers) > 1:  # without hidden layers there is nothing to balance
        largest = max(np.max(np.abs(c)) for c in conserved(layers))
        assert (largest < ROUNDING) == (support is Support.BALANCED)
    product = layers[0]
    for w in layers[1:]:
        product = w @ product
    assert np.all(np.linalg.matrix_rank(product, tol=1e-9) == rank)


def test_a_law_that_does_not_say_claims_nothing():
    class Mine(AbstractInitialization):
        widths: tuple[int, ...]

        def draw(self, key):
            return LayerTuple([jax.random.normal(key, (2, 2))])

    law = Mine((2, 2))
    assert law.invariant_set is Support.NULL
    assert not law.balanced
    assert law.end_to_end_rank is None


# Many starts in one call: batched LAPACK calls deadlock XLA's thread pool (see gdflow.factorizations).

MANY = """
import sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from gdflow.initialization import *
from gdflow.network import LayerTuple
num, per_call = int(sys.argv[1]), int(sys.argv[2])
for text in sys.argv[3:]:
    law = eval(text)
    for first in range(0, num, per_call):
        batch = law.sample_batch(jax.random.key(5), range(first, first + per_call))
        assert all(bool(np.all(np.isfinite(w))) for w in batch.weights), text
    print(text, flush=True)
"""


def draw_many(num: int, per_call: int, laws: list[str], limit: float) -> None:
    """In a process of its own, with a time limit: a deadlock would never end."""
    run = subprocess.run(
        [sys.executable, "-c", MANY, str(num), str(per_call), *laws], capture_output=True, text=True, timeout=limit
    )
    assert run.stdout.split("\n")[:-1] == laws, run.stderr


@pytest.mark.slow
def test_many_starts_in_one_call_return():
    # With LAPACK's QR, SVD and eigendecomposition, all of which these two need, none ever ended on two cores.
    laws = ["BalancedGaussian((2, 2, 2))", "LambdaBalanced((2, 2, 2), lam=1.0)"]
    draw_many(30_000, 30_000, laws, limit=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "num"), [((2, 2, 2), 10**6), ((3, 3, 3, 3), 2 * 10**5), ((10, 8, 8, 4), 4 * 10**4)], ids=str
)
def test_a_million_starts_of_every_law(widths, num):
    """Fewer of wide layers, whose factorisations are LAPACK's, one matrix at a time."""
    laws = [
        f"Gaussian({widths})",
        f"Gaussian({widths}, scale=fan_out)",
        f"Gaussian({widths}, scale=0.3)",
        f"UniformBall({widths})",
        f"Orthogonal({widths})",
        f"Balanced({widths})",
        f"BalancedGaussian({widths}, rank=1)",
        f"BalancedGaussian({widths})",
        f"Around(LayerTuple([np.ones(shape) for shape in zip({widths[1:]}, {widths[:-1]})]), scale=0.1)",
    ]
    if list(widths[1:]) == sorted(widths[1:]):
        laws += [f"LambdaBalanced({widths}, lam=0.0)", f"LambdaBalanced({widths}, lam=0.7)"]
    if list(widths[:-1]) == sorted(widths[:-1], reverse=True):
        laws.append(f"LambdaBalanced({widths}, lam=-0.7)")
    if list(widths[1:]) == sorted(widths[1:], reverse=True):
        laws.append(f"Pyramidal({widths})")
    draw_many(num, 200_000, laws, limit=1800)
