"""How lanes lie in arrays: along the first axis or along the last, and products in either layout.

With the lanes along the *last* axis products are sums over the inner index, which the compiler vectorises over lanes (narrow
layers); along the *first* axis they are batched matrix products (wide layers). Arrays with one axis hold a number per lane in
both.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

#: Layers at most this wide are stepped with the lanes along the last axis: up to there it is the faster layout
#: (benchmarks/layout.py measures both).
NARROW = 12


class AbstractProducts(eqx.Module):
    """Products of matrices, of one network or of many at once, and functions of them."""

    @abstractmethod
    def product(self, a: Array, b: Array) -> Array:
        """`ab` in every lane."""

    @abstractmethod
    def transpose(self, a: Array) -> Array:
        """`aᵀ` in every lane."""

    @abstractmethod
    def everywhere(self, matrix: Array) -> Array:
        """One matrix for all lanes, in a shape that broadcasts against packed ones."""

    @abstractmethod
    def each(self, function: Callable[..., Array], *matrices: Array) -> Array:
        """A function of matrices in every lane; it is to leave further axes, behind those of its matrices, alone."""


class One(AbstractProducts):
    """One network, without an axis of lanes."""

    def product(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def transpose(self, a: Array) -> Array:
        return a.T

    def everywhere(self, matrix: Array) -> Array:
        return matrix

    def each(self, function: Callable[..., Array], *matrices: Array) -> Array:
        return function(*matrices)


class AbstractLayout(AbstractProducts):
    """A layout: `lane_axis` is the axis of the lanes in arrays of more than one axis, 0 or -1.

    *Packed* trees have the lanes there; in unpacked ones, batches of networks for instance, the first axis counts the lanes.
    """

    lane_axis: eqx.AbstractClassVar[int]

    def _axis(self, x: Array) -> int:
        return self.lane_axis if x.ndim > 1 else 0

    def pack(self, tree: Any) -> Any:
        """Moves the lanes from the first axis to where they belong here."""
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, self._axis(x)), tree)

    def unpack(self, tree: Any) -> Any:
        """Moves the lanes to the first axis."""
        return jax.tree.map(lambda x: jnp.moveaxis(x, self._axis(x), 0), tree)

    def spread(self, values: Shaped[Array, " lanes"], like: Array) -> Array:
        """A number per lane in a shape that broadcasts against a packed array."""
        shape = [1] * like.ndim
        shape[self._axis(like)] = -1
        return values.reshape(shape)

    def select(self, condition: Array, new: Any, old: Any) -> Any:
        """`new` in the lanes where the condition holds, `old` in the others."""
        return jax.tree.map(lambda a, b: jnp.where(self.spread(condition, b), a, b), new, old)

    def take(self, lanes: Any, index: Array) -> Any:
        """The lanes with given indices (clipped)."""
        return jax.tree.map(lambda x: jnp.take(x, index, axis=self._axis(x), mode="clip"), lanes)

    def join(self, parts: Sequence[Any]) -> Any:
        """Several sets of lanes as one."""
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=self._axis(x[0])), *parts)

    def squares(self, tree: Any) -> list[Float[Array, " lanes"]]:
        """Sums of squares, array by array."""

        def total(x):
            return jnp.sum(jnp.square(x), axis=tuple(k for k in range(x.ndim) if k != self._axis(x) % x.ndim))

        return [total(x) for x in jax.tree.leaves(tree)]

    def norm(self, tree: Any) -> Float[Array, " lanes"]:
        """Euclidean norms."""
        return jnp.sqrt(sum(self.squares(tree)))

    def gram(self, a: Array) -> Array:
        """`aaᵀ` or `aᵀa` in every lane, whichever is smaller: their Frobenius norms are equal."""
        at = self.transpose(a)
        return self.product(a, at) if self.height(a) <= self.height(at) else self.product(at, a)

    @abstractmethod
    def height(self, a: Array) -> int:
        """How many rows the matrices have."""

    def combine(self, factors: Sequence[Float[Array, " lanes"]], trees: Sequence[Any]) -> Any:
        """`Σ factor·tree`, as one sum over a stacked axis, so that it is evaluated once (see `LanesLast.product`)."""
        stacked = jnp.stack(factors)

        def one(*arrays):
            shape = [len(arrays)] + [1] * arrays[0].ndim
            shape[self.lane_axis if self.lane_axis == -1 else 1] = -1
            return jnp.sum(jnp.stack(arrays) * stacked.reshape(shape), axis=0)

        return jax.tree.map(one, *trees)


class LanesFirst(AbstractLayout):
    """Lanes along the first axis."""

    lane_axis: ClassVar[int] = 0

    def product(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def transpose(self, a: Array) -> Array:
        return jnp.swapaxes(a, 1, 2)

    def height(self, a: Array) -> int:
        return a.shape[1]

    def everywhere(self, matrix: Array) -> Array:
        return matrix[None]

    def each(self, function: Callable[..., Array], *matrices: Array) -> Array:
        lanes = max(x.shape[0] for x in matrices)
        return jax.vmap(function)(*(jnp.broadcast_to(x, (lanes, *x.shape[1:])) for x in matrices))


class LanesLast(AbstractLayout):
    """Lanes along the last axis."""

    lane_axis: ClassVar[int] = -1

    def product(self, a: Array, b: Array) -> Array:
        # The compiler never fuses a sum over an axis into several users of it, so it is evaluated once; the same product
        # written out term by term would be evaluated again inside every product that uses it.
        return jnp.sum(a[:, :, None, :] * b[None, :, :, :], axis=1)

    def transpose(self, a: Array) -> Array:
        return jnp.swapaxes(a, 0, 1)

    def height(self, a: Array) -> int:
        return a.shape[0]

    def everywhere(self, matrix: Array) -> Array:
        return matrix[..., None]

    def each(self, function: Callable[..., Array], *matrices: Array) -> Array:
        return function(*matrices)


def suitable_layout(widths: Sequence[int]) -> AbstractLayout:
    """The faster layout for networks of these widths; without any, for points that are no networks."""
    return LanesLast() if widths and max(widths) <= NARROW else LanesFirst()
