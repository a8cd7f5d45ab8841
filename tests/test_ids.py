"""Ids and keys: a start depends on its key and its 64-bit id alone; what is no id or no key is refused."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from gdflow.ids import MAX_ID, check_key, id_range, split_ids, start_key
from gdflow.initialization import (
    Around,
    BalancedGaussian,
    Gaussian,
    LambdaBalanced,
    Orthogonal,
    Pyramidal,
    UniformBall,
)
from gdflow.network import LayerTuple

LAWS = (
    Gaussian((3, 4, 2)),
    UniformBall((3, 4, 2), radius=2.0),
    Orthogonal((3, 4, 2), scale=0.7),
    BalancedGaussian((3, 4, 2)),
    LambdaBalanced((3, 2, 4), lam=0.8),
    Pyramidal((3, 4, 2), margin=0.5),
    Around(LayerTuple([np.ones((4, 3)), np.ones((2, 4))]), scale=0.1),
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.slow
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
