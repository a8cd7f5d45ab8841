"""Starts: which network an id stands for. Drawn from a law with a key, or listed."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from gdflow.ids import check_key, fold_id, split_ids
from gdflow.initialization import AbstractInitialization, Support, check_law
from gdflow.network import LayerTuple
from gdflow.points import count_numbers


class AbstractStarts(eqx.Module):
    """A point for every 64-bit id, in the coordinates of the problem: a network, or any pytree of arrays.

    - `widths`: of all of them, if they are networks; else `()`.
    - `invariant_set`: on which set of measure zero they lie, if on any.
    - `num`: how many there are; `None` for as many as there are ids.
    """

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """`(d_0, …, d_N)`; `()` for points that are no networks."""

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
    def draw(self, high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> Any:
        """The starts with given ids, split into high and low 32 bits: a batch. Traceable."""

    @property
    def num_parameters(self) -> int:
        """How many numbers a start consists of."""
        one = jnp.zeros(1, jnp.uint32)
        return count_numbers(eqx.filter_eval_shape(self.draw, one, one))

    def networks(self, ids: Any) -> Any:
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


class Sampled(AbstractStarts):
    """Start `i` is drawn by a function of your own from a key that depends on `key` and `i` alone.

    **Arguments:** `function`: from a key to a point, traceable; `key`: made by `jax.random.key`.

    ```python
    >>> starts = gf.basins.Sampled(lambda key: jax.random.normal(key, (2,)), jax.random.key(0))
    ```
    """

    function: Callable[[Key[Array, ""]], Any]
    key: Key[Array, ""] = eqx.field(converter=check_key)

    @property
    def widths(self) -> tuple[int, ...]:
        point = eqx.filter_eval_shape(self.function, self.key)
        return point.widths if isinstance(point, LayerTuple) else ()

    @property
    def invariant_set(self) -> Support:
        return Support.NULL

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "Sampled").strip("<>")

    def draw(self, high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> Any:
        return jax.vmap(lambda h, lo: self.function(fold_id(self.key, h, lo)))(high, low)


class Listed(AbstractStarts):
    """Start `i` is the `i`-th of a batch of networks, or of other points: arrays whose first axes count the same.

    **Arguments:** `nets`: one network or a batch with one axis, or a batch of points; `invariant_set`: the set that they are
    known to lie on, exactly or up to the round-off of their making. A finite list is a set of measure zero in any case.
    """

    nets: Any
    invariant_set: Support = eqx.field(static=True, default=Support.NULL)

    def __init__(self, nets: Any, invariant_set: Support = Support.NULL):
        self.invariant_set = invariant_set
        if not isinstance(nets, LayerTuple):
            self.nets = jax.tree.map(jnp.asarray, nets)
            sizes = {x.shape[:1] for x in jax.tree.leaves(self.nets)}
            if len(sizes) != 1 or () in sizes:
                raise ValueError(
                    f"a list of points is a tree of arrays whose first axes count the same, got {sorted(sizes)}"
                )
            return
        shape = nets.batch_shape
        if len(shape) > 1:
            raise ValueError(f"starts are one network or a batch with one axis, got a batch of shape {shape}")
        self.nets = nets if shape else jax.tree.map(lambda w: w[None], nets)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.nets.widths if isinstance(self.nets, LayerTuple) else ()

    @property
    def num(self) -> int:
        return jax.tree.leaves(self.nets)[0].shape[0]

    @property
    def name(self) -> str:
        return "Listed"

    def draw(self, high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> Any:
        index: Int[Array, " n"] = low.astype(jnp.int32)
        return jax.tree.map(lambda w: jnp.take(w, index, axis=0, mode="clip"), self.nets)


def as_starts(starts: Any, key: Any) -> AbstractStarts:
    """Starts from what users hand over: starts, a law or a function of a key with a key, networks or other points, one or many.

    **Raises:** `TypeError` for anything else, for a law without a key, and for a key without a law.
    """
    is_points = not (isinstance(starts, AbstractInitialization) or callable(starts)) and _is_tree_of_arrays(starts)
    if isinstance(starts, AbstractStarts | LayerTuple) or is_points:
        if key is not None:
            raise TypeError("a key is for laws of starts: these starts are given, leave it out")
        return starts if isinstance(starts, AbstractStarts) else Listed(starts)
    if not callable(starts):
        check_law(starts)
    if key is None:
        raise TypeError("a law of starts needs a key, e.g. key=jax.random.key(0)")
    return Drawn(starts, key) if isinstance(starts, AbstractInitialization) else Sampled(starts, key)


def _is_tree_of_arrays(x: Any) -> bool:
    leaves = jax.tree.leaves(x)
    return bool(leaves) and all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)


def selection_seed(starts: AbstractStarts) -> list[int]:
    """What a selection among the starts is seeded with: of drawn ones their key."""
    return np.asarray(jax.random.key_data(starts.key)).ravel().tolist() if isinstance(starts, Drawn | Sampled) else []
