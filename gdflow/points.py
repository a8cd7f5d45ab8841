"""Points of a space of arrays: any pytree, with its Euclidean norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def point_norm(point: Any) -> Float[Array, ""]:
    """The Euclidean norm of all entries; its derivative at zero is taken to be zero."""
    leaves = jax.tree.leaves(point)
    square = sum((jnp.sum(jnp.square(x)) for x in leaves), start=jnp.zeros((), jnp.result_type(*leaves)))
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def count_numbers(point: Any) -> int:
    """How many numbers a point consists of; of arrays, or of their shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(point))


def is_finite(point: Any) -> Array:
    """Whether all entries are finite. Traceable."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(point)]))
