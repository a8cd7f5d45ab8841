"""64-bit ids of starts, and the random keys that belong to them."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

#: Start ids are 64-bit.
MAX_ID = 2**64


def check_key(key: Any) -> Key[Array, ""]:
    """`key`, if it is one typed random key, as `jax.random.key(0)` makes it.

    **Raises:** `TypeError` for anything else, old-style keys among it; `ValueError` for an array of several keys.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        if getattr(key, "dtype", None) == np.uint32:
            raise TypeError(
                "the key must be a typed one: make it with jax.random.key(0), not with jax.random.PRNGKey(0); "
                "jax.random.wrap_key_data(key) turns an old one into a new one"
            )
        raise TypeError(f"the key must be a random key: make one with jax.random.key(0); got {key!r}")
    if key.ndim:
        raise ValueError(f"one random key is needed here, got an array of shape {key.shape}: take one of them")
    return key


def fold_id(key: Key[Array, ""], high: Any, low: Any) -> Key[Array, ""]:
    """The key of the start whose id has these high and low 32 bits. Traceable.

    Two folds because one takes 32 bits and silently repeats past 2³².
    """
    return jax.random.fold_in(jax.random.fold_in(key, high), low)


def start_key(key: Key[Array, ""], i: int) -> Key[Array, ""]:
    """The key of start `i`: `fold_in(fold_in(key, i >> 32), i & 0xFFFFFFFF)`.

    **Raises:** `ValueError` if `i` is not in `[0, 2⁶⁴)`, `TypeError` if it is no integer, or `key` no key.
    """
    check_key(key)
    i = operator.index(i)
    if not 0 <= i < MAX_ID:
        raise ValueError(f"start ids lie between 0 and 2**64 - 1, got {i}")
    return fold_id(key, np.uint32(i >> 32), np.uint32(i & 0xFFFFFFFF))


def as_uint64(ids: Any) -> np.ndarray:
    """64-bit ids as an array, without a detour through signed or floating-point numbers."""

    def refuse(culprit):
        return ValueError(f"start ids are integers between 0 and 2**64 - 1, got {culprit!r}")

    if isinstance(ids, range):
        for end in (ids[0], ids[-1]) if ids else ():
            if not 0 <= end < MAX_ID:
                raise refuse(end)
        # Arithmetic modulo 2⁶⁴, so that steps down and first ids from 2⁶³ on are right.
        return np.arange(len(ids), dtype=np.uint64) * np.uint64(ids.step % MAX_ID) + np.uint64(ids.start % MAX_ID)
    array = np.asarray(ids, dtype=None if hasattr(ids, "dtype") else object)
    if array.ndim != 1:
        raise ValueError(f"start ids must be a sequence, got shape {array.shape}")
    if array.dtype == object:
        for i in array:
            if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < MAX_ID:
                raise refuse(i)
    elif array.dtype.kind not in "iu" or np.any(array < 0):
        raise refuse(array.min().item() if array.size else array.dtype)
    return array.astype(np.uint64)


def split_ids(ids: Sequence[int] | np.ndarray) -> tuple[UInt32[np.ndarray, " n"], UInt32[np.ndarray, " n"]]:
    """High and low 32 bits of 64-bit ids, in a form that survives JAX's 32-bit mode.

    **Arguments:** `ids`: a `range`, a sequence of Python integers, or an array of integers.

    **Raises:** `ValueError` for anything that is not an integer in `[0, 2⁶⁴)`.
    """
    array = as_uint64(ids)
    return (array >> np.uint64(32)).astype(np.uint32), (array & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def id_range(first: int, num: int) -> range:
    """`first, …, first + num − 1`; `ValueError` unless all are 64-bit ids."""
    if first < 0 or first + num > MAX_ID:
        raise ValueError(f"start ids {first} … {first + num - 1} do not lie between 0 and 2**64 - 1")
    return range(first, first + num)
