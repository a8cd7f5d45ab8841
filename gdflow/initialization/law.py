"""What a law of starts is: random networks of fixed widths, each from a key of its own."""

import enum
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

from gdflow.ids import check_key, fold_id, split_ids, start_key
from gdflow.network import LayerTuple


class Support(enum.Enum):
    """On which set of measure zero, if on any, all starts of a law lie. The gradient flow keeps a start on such a set.

    What holds for Lebesgue-almost every start, as that no gradient flow converges to a strict saddle, holds with probability 1
    under a law with a density, and says nothing about a law on a set of measure zero.

    - `FULL`: on none: the law has a density (Lebesgue's measure on all layers together).
    - `BALANCED`: on the balanced networks: all `C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ` vanish but for the round-off of the draw.
      `AbstractInitialization.end_to_end_rank` is the rank of the product. Nothing is said about a density on that set.
    - `NULL`: on another set of measure zero, or it is not known.
    """

    FULL = "full"
    BALANCED = "balanced"
    NULL = "null"


class AbstractInitialization(eqx.Module):
    """A law of starts on networks of fixed widths.

    The law is drawn in the coordinates of the problem it is used with.
    """

    widths: eqx.AbstractVar[tuple[int, ...]]

    @abstractmethod
    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        """One network from a key of its own. Traceable."""

    @property
    def invariant_set(self) -> Support:
        """On which set of measure zero, if on any, all starts lie.

        `Support.NULL` unless a law says otherwise, which claims the least: a law of your own that has a density should override
        this by `Support.FULL`.
        """
        return Support.NULL

    @property
    def balanced(self) -> bool:
        """Whether all starts are known to be balanced, `C_j = 0` for all `j`."""
        return self.invariant_set is Support.BALANCED

    @property
    def end_to_end_rank(self) -> int | None:
        """The rank that `W_N … W_1` has with probability 1; `None` if it is not known."""
        return min(self.widths) if self.invariant_set is Support.FULL else None

    def sample(self, key: Key[Array, ""], i: int) -> LayerTuple:
        """Start number `i` (a Python integer in `[0, 2⁶⁴)`) of the sequence of starts that belongs to `key`.

        ```python
        >>> Gaussian((3, 5, 2)).sample(jax.random.key(0), 7).widths
        (3, 5, 2)
        ```
        """
        return eqx.filter_jit(type(self).draw)(self, start_key(key, i))

    def sample_batch(self, key: Key[Array, ""], ids: Sequence[int] | np.ndarray) -> LayerTuple:
        """The starts of several ids, stacked along a leading axis; equal to `sample` id by id up to round-off.

        **Arguments:** `ids`: a `range`, a sequence of Python integers or an array of integers, all in `[0, 2⁶⁴)`.
        """
        return eqx.filter_jit(type(self).draw_batch)(self, check_key(key), *map(jnp.asarray, split_ids(ids)))

    def draw_batch(self, key: Key[Array, ""], high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> LayerTuple:
        """`sample_batch` for ids split into high and low 32 bits. Traceable."""
        return jax.vmap(lambda h, lo: self.draw(fold_id(key, h, lo)))(high, low)


def check_law(law: Any) -> AbstractInitialization:
    """`law`, if it is one; else a `TypeError` that says where laws are made."""
    if isinstance(law, AbstractInitialization):
        return law
    hint = "gdflow.initialization.Gaussian(problem.widths([5, 5])), for instance"
    if isinstance(law, LayerTuple):
        hint = "gdflow.initialization.Around(net, scale) draws starts near a network; gdflow.simulate runs from one"
    raise TypeError(f"a law of starts is needed, got {type(law).__name__}: {hint}")
