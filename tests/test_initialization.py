"""Laws of starts: reproducible ids, the laws themselves, and parameters that are refused.

Keys are fixed, so every statistical test always gives the same answer; `FALSE_ALARM` is the probability that a right law
would have failed it for a key drawn at random.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats

from gdflow.initialization import (
    MAX_ID,
    AbstractInitialization,
    Around,
    Balanced,
    Gaussian,
    LambdaBalanced,
    Orthogonal,
    Pyramidal,
    Support,
    UniformBall,
    check_key,
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


HIGHEST = [MAX_ID - 3, MAX_ID - 2, MAX_ID - 1]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (range(2**63 - 2, 2**63 + 2), list(range(2**63 - 2, 2**63 + 2))),  # NumPy's own detour is through floats
        (range(MAX_ID - 3, MAX_ID), HIGHEST),
        (range(MAX_ID - 1, MAX_ID - 4, -1), HIGHEST[::-1]),
        (range(3, 3 + 2**33 * 2, 2**33), [3, 3 + 2**33]),
        (HIGHEST, HIGHEST),
        ([0, 2**63, np.int64(5), np.uint64(MAX_ID - 1)], [0, 2**63, 5, MAX_ID - 1]),
        (np.array(HIGHEST, dtype=np.uint64), HIGHEST),
        (np.array([3, 2], dtype=np.int8), [3, 2]),
        (range(0), []),
        ([], []),
    ],
    ids=str,
)
def test_ids_may_be_ranges_lists_and_arrays(ids, expected, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    high, low = split_ids(ids)
    assert [int(h) * 2**32 + int(lo) for h, lo in zip(high, low, strict=True)] == expected


@pytest.mark.parametrize(
    ("ids", "culprit"),
    [
        (range(-1, 3), "-1"),
        (range(MAX_ID - 1, MAX_ID + 1), str(MAX_ID)),
        ([1, -7], "-7"),
        ([1, MAX_ID], str(MAX_ID)),
        ([1, 2.0], "2.0"),
        ([True], "True"),
        (["3"], "'3'"),
        (np.array([1.0, 2.5]), "1.0"),
        (np.array([[1, 2]]), r"shape \(1, 2\)"),
        (7, r"shape \(\)"),
    ],
    ids=str,
)
def test_what_is_no_id_is_named(ids, culprit, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    with pytest.raises(ValueError, match=f"start ids .* got {culprit}"):
        split_ids(ids)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (0, TypeError, r"make one with jax.random.key\(0\); got 0"),
        (None, TypeError, "got None"),
        (jax.random.PRNGKey(0), TypeError, "wrap_key_data"),
        (np.zeros(2, np.uint32), TypeError, "wrap_key_data"),
        (Gaussian((2, 2)), TypeError, "got Gaussian"),
        (
            jax.random.split(jax.random.key(0), 3),
            ValueError,
            r"one random key is needed here, got an array of shape \(3,\)",
        ),
    ],
    ids=["int", "None", "old", "raw", "law", "several"],
)
def test_what_is_no_key_is_refused(bad, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    law = Gaussian((2, 2))
    for use in (
        check_key,
        lambda k: law.sample(k, 3),
        lambda k: law.sample_batch(k, range(2)),
        lambda k: start_key(k, 1),
    ):
        with pytest.raises(error, match=message):
            use(bad)
    key = jax.random.key(1)
    assert check_key(key) is key
    with pytest.raises(TypeError, match="integer"):
        law.sample(key, 1.5)


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


def test_gaussian_singular_values_are_independent_of_the_frames():
    # At full rank the product is a Gaussian matrix with independent entries: the row space is independent of the singular
    # values. Drawn with the key of the first frame they were correlated with it (here with coefficients up to 0.1).
    n = 20_000
    first, second = draws(Balanced((3, 2, 2), singular_values="gaussian"), n)
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


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Gaussian((2, 2), scale=x),
        lambda x: UniformBall((2, 2), radius=x),
        lambda x: Orthogonal((2, 2), scale=x),
        lambda x: Balanced((1, 1), singular_values=[[x]]),
        lambda x: Balanced((2, 2), singular_values=(1.0, x)),
        lambda x: LambdaBalanced((2, 2), lam=x),
        lambda x: Pyramidal((2, 2), margin=x),
        lambda x: Around(LayerTuple([np.ones((2, 2))]), scale=x),
    ],
)
@pytest.mark.parametrize("bad", [True, [1.0, 2.0], np.ones(3), 1j, None], ids=str)
def test_one_number_is_one_number(make, bad, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    with pytest.raises(TypeError, match="must be one number, got"):
        make(bad)


def test_numbers_of_any_kind_and_size(key):
    # NumPy's and JAX's scalars will do, and make the same law; extreme ones stay finite.
    assert (
        Gaussian((2, 2), scale=np.float64(0.5))
        == Gaussian((2, 2), scale=jnp.asarray(0.5))
        == Gaussian((2, 2), scale=0.5)
    )
    assert Balanced((2, 2), singular_values=np.array([2.0, 1.0])) == Balanced((2, 2), singular_values=(2, 1))
    for scale in (1e-150, 1e150):
        for law in (LambdaBalanced((2, 2, 2), lam=1.0, scale=scale), Pyramidal((2, 2, 2), scale=scale)):
            assert all(np.all(np.isfinite(w)) for w in law.sample(key, 0).weights)


def test_widths_must_be_a_sequence(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    for widths in (5, None):
        with pytest.raises(TypeError, match=rf"a sequence \(d_0, …, d_N\), such as \(3, 5, 2\); got {widths}"):
            Gaussian(widths)
    with pytest.raises(TypeError, match="the centre must be a network"):
        Around((3, 2), 0.1)


# Sets of measure zero.


@pytest.mark.parametrize(
    ("law", "support", "rank"),
    [
        (Gaussian((3, 4, 2)), Support.FULL, 2),
        (UniformBall((3, 4, 2)), Support.FULL, 2),
        (Around(LayerTuple([np.zeros((4, 3)), np.zeros((2, 4))]), 0.1), Support.FULL, 2),
        (Balanced((3, 2, 4)), Support.BALANCED, 2),
        (Balanced((3, 2, 4), rank=1), Support.BALANCED, 1),
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


def test_many_starts_in_one_call_return():
    # 15 s at most on an idle machine; before, none of the three ever ended on two cores.
    laws = ["Orthogonal((3, 3, 3))", "Balanced((2, 2, 2), singular_values='gaussian')", "Pyramidal((3, 3, 3))"]
    draw_many(30_000, 30_000, laws, limit=300)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(2, 2, 2), (3, 3, 3, 3), (10, 8, 8, 4)], ids=str)
def test_a_million_starts_of_every_law(widths):
    laws = [
        f"Gaussian({widths})",
        f"Gaussian({widths}, scale='fan_out')",
        f"Gaussian({widths}, scale=0.3)",
        f"UniformBall({widths})",
        f"Orthogonal({widths})",
        f"Balanced({widths})",
        f"Balanced({widths}, rank=1, singular_values='gaussian')",
        f"Balanced({widths}, singular_values='gaussian')",
        f"Around(LayerTuple([np.ones(shape) for shape in zip({widths[1:]}, {widths[:-1]})]), scale=0.1)",
    ]
    if list(widths[1:]) == sorted(widths[1:]):
        laws += [f"LambdaBalanced({widths}, lam=0.0)", f"LambdaBalanced({widths}, lam=0.7)"]
    if list(widths[:-1]) == sorted(widths[:-1], reverse=True):
        laws.append(f"LambdaBalanced({widths}, lam=-0.7)")
    if list(widths[1:]) == sorted(widths[1:], reverse=True):
        laws.append(f"Pyramidal({widths})")
    draw_many(1_000_000, 200_000, laws, limit=1800)
