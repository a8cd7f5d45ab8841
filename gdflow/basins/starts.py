"""Starts: which network an id stands for. Drawn from a law with a key, or listed."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from gdflow.ids import check_key, split_ids
from gdflow.initialization import AbstractInitialization, Support, check_law
from gdflow.network import LayerTuple, check_layer_tuple


class AbstractStarts(eqx.Module):
    """A network for every 64-bit id, in the coordinates of the problem.

    - `widths`: of all of them.
    - `invariant_set`: on which set of measure zero they lie, if on any.
    - `num`: how many there are; `None` for as many as there are ids.
    """

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """`(d_0, …, d_N)`."""

    @property
    @abstractmethod
    def invariant_set(self) -> Support:
        """On which set of measure zero the starts lie, if on any."""

    @property
    def num(self) -> int | None:
        """How many starts there are; `None` for as many as there are ids."""
        return None

    @property
    @abstractmethod
    def name(self) -> str:
        """For tables and messages."""

    @abstractmethod
    def draw(self, high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> LayerTuple:
        """The starts with given ids, split into high and low 32 bits: a batch. Traceable."""

    def networks(self, ids: Any) -> LayerTuple:
        """The starts with given ids as a batch."""
        return eqx.filter_jit(type(self).draw)(self, *map(jnp.asarray, split_ids(ids)))


class Drawn(AbstractStarts):
    """Start `i` is drawn from a law with a key: it depends on the key and on `i` alone.

    **Arguments:** `law`: of `gdflow.initialization`; `key`: made by `jax.random.key`.
    """

    law: AbstractInitialization = eqx.field(converter=check_law)
    key: Key[Array, ""] = eqx.field(converter=check_key)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.law.widths

    @property
    def invariant_set(self) -> Support:
        return self.law.invariant_set

    @property
    def name(self) -> str:
        return type(self.law).__name__

    def draw(self, high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> LayerTuple:
        return self.law.draw_batch(self.key, high, low)


class Listed(AbstractStarts):
    """Start `i` is the `i`-th of a batch of networks.

    **Arguments:** `nets`: one network or a batch with one axis; `invariant_set`: the set that they are known to lie on, exactly
    or up to the round-off of their making. A finite list is a set of measure zero in any case.
    """

    nets: LayerTuple
    invariant_set: Support = eqx.field(static=True, default=Support.NULL)

    def __init__(self, nets: LayerTuple, invariant_set: Support = Support.NULL):
        shape = check_layer_tuple(nets).batch_shape
        if len(shape) > 1:
            raise ValueError(f"starts are one network or a batch with one axis, got a batch of shape {shape}")
        self.nets = nets if shape else jax.tree.map(lambda w: w[None], nets)
        self.invariant_set = invariant_set

    @property
    def widths(self) -> tuple[int, ...]:
        return self.nets.widths

    @property
    def num(self) -> int:
        return self.nets.batch_shape[0]

    @property
    def name(self) -> str:
        return "Listed"

    def draw(self, high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> LayerTuple:
        index: Int[Array, " n"] = low.astype(jnp.int32)
        return jax.tree.map(lambda w: jnp.take(w, index, axis=0, mode="clip"), self.nets)


def as_starts(starts: Any, key: Any) -> AbstractStarts:
    """Starts from what users hand over: starts, a law with a key, one network, a batch of them.

    **Raises:** `TypeError` for anything else, for a law without a key, and for a key without a law.
    """
    if isinstance(starts, AbstractStarts | LayerTuple):
        if key is not None:
            raise TypeError("a key is for laws of starts: these starts are given, leave it out")
        return starts if isinstance(starts, AbstractStarts) else Listed(starts)
    check_law(starts)
    if key is None:
        raise TypeError("a law of starts needs a key, e.g. key=jax.random.key(0)")
    return Drawn(starts, key)


def selection_seed(starts: AbstractStarts) -> list[int]:
    """What a selection among the starts is seeded with: of drawn ones their key."""
    return np.asarray(jax.random.key_data(starts.key)).ravel().tolist() if isinstance(starts, Drawn) else []
