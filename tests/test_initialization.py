"""Laws of starts: reproducible ids, the laws themselves, and parameters that are refused.

Keys are fixed, so every statistical test always gives the same answer; `FALSE_ALARM` is the probability that a right law
would have failed it for a key drawn at random.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gdflow.initialization import (
    MAX_ID,
    Around,
    Balanced,
    Gaussian,
    LambdaBalanced,
    Orthogonal,
    Pyramidal,
    UniformBall,
    id_range,
    split_ids,
    start_key,
)
from gdflow.network import LayerTuple

FALSE_ALARM = 1e-6
# Constructions of a few products of matrices with entries of order one to ten.
ROUNDING = 1e-12

LAWS = (
    Gaussian((3, 4, 2)),
    UniformBall((3, 4, 2), radius=2.0),
    Orthogonal((3, 4, 2), scale=0.7),
    Balanced((3, 4, 2), singular_values=(2.0, 0.5)),
    LambdaBalanced((3, 2, 4), lam=0.8),
    Pyramidal((3, 4, 2), margin=0.5),
    Around(LayerTuple([np.ones((4, 3)), np.ones((2, 4))]), scale=0.1),
)


def law_name(law) -> str:
    return type(law).__name__


def assert_law(sample: np.ndarray, cdf) -> None:
    """Kolmogorov–Smirnov test at level `FALSE_ALARM`."""
    assert scipy.stats.kstest(np.ravel(sample), cdf).pvalue > FALSE_ALARM


def assert_uncorrelated(columns: np.ndarray) -> None:
    """All correlations of the columns (one row a start) within their joint Gaussian quantile at level `FALSE_ALARM`."""
    n, p = columns.shape
    r = np.corrcoef(columns.T)[np.triu_indices(p, 1)]
    bound = scipy.stats.norm.isf(FALSE_ALARM / (2 * r.size)) / np.sqrt(n)  # Bonferroni over pairs and signs
    assert np.max(np.abs(r)) < bound


def draws(law, num: int) -> list[np.ndarray]:
    """The layers of `num` starts, each of shape `(num, d_j, d_{j-1})`."""
    return [np.asarray(w) for w in law.sample_batch(jax.random.key(11), np.arange(num)).weights]


def flat(layers) -> np.ndarray:
    return np.concatenate([w.reshape(len(w), -1) for w in layers], axis=1)


def conserved(layers) -> list[np.ndarray]:
    """`C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ` of a batch, in NumPy."""
    return [b.mT @ b - a @ a.mT for a, b in zip(layers[:-1], layers[1:], strict=True)]


# Ids.


@pytest.mark.parametrize("law", LAWS, ids=law_name)
def test_a_start_depends_on_key_and_id_alone(law, key):
    # Among them pairs that would coincide if only 32 bits, or the sum of the halves, went into the key.
    ids = np.array([7, 7 + 2**32, 7 + 2**33, 7 * 2**32, 8, 2**32, 1, 0, MAX_ID - 1], dtype=np.uint64)
    batch = law.sample_batch(key, ids)
    assert batch.widths == law.widths
    order = np.array([3, 8, 1, 0, 7, 2, 5, 6, 4])
    for a, b in zip(batch.weights, law.sample_batch(key, ids[order]).weights, strict=True):
        np.testing.assert_array_equal(a[order], b)
    for row in (0, 2, 8):
        single = law.sample(key, int(ids[row]))
        assert single.batch_shape == ()
        for a, b in zip(batch.weights, single.weights, strict=True):
            # The random bits agree; XLA may round the arithmetic after them differently for one start and for many.
            np.testing.assert_allclose(a[row], b, rtol=0, atol=1e-13)
    first = np.asarray(batch.weights[0]).reshape(len(ids), -1)
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1)[np.triu_indices(len(ids), 1)]
    assert np.min(distances) > 1e-6  # 36 pairs of draws from a continuous law in 6 or more dimensions


def test_neither_the_size_of_the_batch_nor_the_key_is_shared(key):
    law = Gaussian((3, 4, 2))
    large = law.sample_batch(key, np.arange(9, dtype=np.uint64)).weights[0]
    small = law.sample_batch(key, np.array([6, 2], dtype=np.uint64)).weights[0]
    np.testing.assert_allclose(small, large[np.array([6, 2])], rtol=0, atol=1e-13)  # rounding as above
    other = law.sample_batch(jax.random.key(8), np.arange(9, dtype=np.uint64)).weights[0]
    assert np.min(np.linalg.norm(np.reshape(large - other, (9, -1)), axis=1)) > 1e-6


def test_start_key_folds_the_halves_of_the_id(key):
    folded = jax.random.fold_in(jax.random.fold_in(key, 3), 5)
    assert jnp.array_equal(jax.random.key_data(start_key(key, 3 * 2**32 + 5)), jax.random.key_data(folded))
    high, low = split_ids(np.array([3 * 2**32 + 5, MAX_ID - 1], dtype=np.uint64))
    assert (high.tolist(), low.tolist()) == ([3, 2**32 - 1], [5, 2**32 - 1])
    assert high.dtype == low.dtype == np.uint32


@pytest.mark.parametrize("i", [-1, MAX_ID, MAX_ID + 7])
def test_ids_outside_64_bits_are_refused(i, key):
    with pytest.raises(ValueError, match=rf"between 0 and 2\*\*64 - 1, got {i}"):
        Gaussian((2, 2)).sample(key, i)


@pytest.mark.parametrize("ids", [np.array([3, -1]), np.array([0.5, 1.0])])
def test_batches_refuse_what_is_no_id(ids, key):
    with pytest.raises(ValueError, match=rf"between 0 and 2\*\*64 - 1, got {ids.min()}"):
        Gaussian((2, 2)).sample_batch(key, ids)


def test_id_range():
    ids = id_range(MAX_ID - 3, 3)
    assert list(ids) == [MAX_ID - 3, MAX_ID - 2, MAX_ID - 1]
    assert np.asarray(ids, dtype=np.uint64).tolist() == list(ids)
    assert len(id_range(5, 0)) == 0
    for first, num in ((MAX_ID - 2, 3), (-1, 2), (MAX_ID, 1)):
        with pytest.raises(ValueError, match=r"do not lie between 0 and 2\*\*64 - 1"):
            id_range(first, num)


# Laws.


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


def test_orthogonal_layers_are_haar_with_orthonormal_rows_or_columns():
    for w, wide in zip(draws(Orthogonal((4, 2, 3, 3), scale=0.7), 3000), (True, False, False), strict=True):
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
        ((4, 3, 5), None, (3.0, 1.0, 0.2)),
        ((5, 3, 4, 4, 6), None, 1.0),
        ((4, 3, 5, 3), 2, (2.0, 0.5)),
        ((3, 2), 1, 1.7),
    ],
)
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
        ((1, 2, 2, 3, 5), 1.3),
        ((3, 2, 4), 0.0),
        ((5, 3, 3, 2, 4), -2.0),
        ((3, 2), 1.0),
    ],
)
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


@pytest.mark.parametrize(("widths", "margin"), [((3, 4, 2), 0.5), ((2, 5, 3, 3, 1), 2.0)])
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


# Parameters.


@pytest.mark.parametrize("bad", [0.0, -0.25, np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("scale", lambda x: Gaussian((2, 2), scale=x)),
        ("radius", lambda x: UniformBall((2, 2), radius=x)),
        ("scale", lambda x: Orthogonal((2, 2), scale=x)),
        ("singular_values", lambda x: Balanced((2, 2), singular_values=x)),
        ("singular_values", lambda x: Balanced((2, 2), singular_values=(1.0, x))),
        ("scale", lambda x: LambdaBalanced((2, 2, 2), lam=1.0, scale=x)),
        ("margin", lambda x: Pyramidal((2, 2, 2), margin=x)),
        ("scale", lambda x: Pyramidal((2, 2, 2), scale=x)),
        ("scale", lambda x: Around(LayerTuple([np.ones((2, 2))]), scale=x)),
    ],
)
def test_numbers_that_must_be_positive(name, make, bad):
    with pytest.raises(ValueError, match=rf"{name} must be positive and finite, got .*{bad}"):
        make(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian((2, 0, 2)), "positive integers, got 0"),
        (lambda: Gaussian((2,)), "at least an input and an output"),
        (lambda: Gaussian((2, 2), scale="fan_avg"), '"fan_in", "fan_out" or a number, got \'fan_avg\''),
        (lambda: Balanced((3, 2, 3), rank=0), "between 1 and the smallest width 2, got 0"),
        (lambda: Balanced((3, 2, 3), rank=3), "between 1 and the smallest width 2, got 3"),
        (lambda: Balanced((3, 2, 3), singular_values=(1.0, 2.0, 3.0)), "rank 2 needs 2 singular values or one, got 3"),
        (lambda: LambdaBalanced((2, 2, 2), lam=np.nan), "λ must be finite, got nan"),
        (lambda: LambdaBalanced((2, 2, 2), lam=-np.inf), "λ must be finite, got -inf"),
        (lambda: Pyramidal((2, 2, 3)), r"d_1 ≥ … ≥ d_N, got widths \(2, 2, 3\)"),
        (
            lambda: Around(LayerTuple([np.ones((5, 2, 2))]), scale=1.0),
            r"must be one network, got a batch of shape \(5,\)",
        ),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
