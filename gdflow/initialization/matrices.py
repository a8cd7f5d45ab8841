"""Random matrices that laws are made of."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gdflow.factorizations import orthonormal
from gdflow.network import LayerTuple


def layer_shapes(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """The shapes `(d_j, d_{j-1})` of the layers."""
    return list(zip(widths[1:], widths[:-1], strict=True))


def haar_matrices(keys: Iterable[Key[Array, ""]], shapes: Sequence[tuple[int, int]]) -> list[Float[Array, "_ _"]]:
    """Independent Haar-distributed matrices with orthonormal columns, or rows where there are fewer of these."""
    keys, frames = list(keys), {}
    for rows, columns in dict.fromkeys(shapes):  # those of one shape together: they are compiled once
        tall = (max(rows, columns), min(rows, columns))
        chosen = [j for j, shape in enumerate(shapes) if shape == (rows, columns)]
        # Without the barrier the compiler draws the entries anew wherever they are used.
        entries = jax.lax.optimization_barrier(jnp.stack([jax.random.normal(keys[j], tall) for j in chosen]))
        for j, Q in zip(chosen, jax.vmap(orthonormal)(entries), strict=True):
            frames[j] = Q if rows >= columns else Q.T
    return [frames[j] for j in range(len(shapes))]


def gaussian_network(key: Key[Array, ""], widths: tuple[int, ...], deviations: Sequence[float]) -> LayerTuple:
    """Independent centred Gaussian entries; `deviations`: their standard deviation in every layer."""
    keys, shapes = jax.random.split(key, len(deviations)), layer_shapes(widths)
    # Entries are those of the shape, drawn as a vector: in batches that takes XLA 60 % of the time.
    entries = [jax.random.normal(k, (rows * columns,)) for k, (rows, columns) in zip(keys, shapes, strict=True)]
    return LayerTuple(c * z.reshape(shape) for z, shape, c in zip(entries, shapes, deviations, strict=True))
