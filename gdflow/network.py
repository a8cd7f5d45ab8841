"""The layer tuple `(W_1, …, W_N)`: products, variations and its vector space.

Layers are numbered from 1 as in the papers: `net.product(j, k)` is `(ΠW)_j^k = W_k … W_j`.
"""

import functools
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

#: Matrix products at full precision: on GPUs the default would round float32 to TF32.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class LayerTuple(eqx.Module):
    """A deep linear network `x ↦ W_N … W_1 x`, with the Frobenius metric `⟨W,V⟩ = Σ_j tr(W_jᵀV_j)`.

    **Arguments:**

    - `weights`: `W_1, …, W_N`, `W_j` of shape `(d_j, d_{j-1})`, all floating point; what is not of JAX is made so, integers
      included. Leading batch axes, equal in all layers, are allowed for use with `jax.vmap`; the products below are of one
      network.

    **Raises:** `ValueError` if the shapes do not chain or entries are masked, `TypeError` if a weight is not real floating
    point.

    A layer tuple is a point *and* a tangent vector: `+`, `-`, scalar `*`, `inner` and `norm` are those of the space
    `R^{d_1×d_0} × … × R^{d_N×d_{N-1}}`, for two of the same shapes.

    ```python
    >>> net = LayerTuple([jnp.ones((2, 3)), jnp.ones((1, 2))])
    >>> net.widths
    (3, 2, 1)
    >>> net.end_to_end
    Array([[2., 2., 2.]], dtype=float64)
    ```
    """

    weights: tuple[Float[Array, "..."], ...]

    def __init__(self, weights: Iterable):
        self.weights = tuple(_as_weight(j, w) for j, w in enumerate(weights, 1))

    def __check_init__(self):
        if not self.weights:
            raise ValueError("a network needs at least one weight matrix")
        for j, w in enumerate(self.weights, 1):
            if getattr(w, "ndim", 0) < 2:
                raise ValueError(f"W_{j} must be a matrix, got shape {getattr(w, 'shape', ())}")
            if not jnp.issubdtype(w.dtype, jnp.floating):
                raise TypeError(f"W_{j} must be real floating point, got dtype {w.dtype}")
            if 0 in w.shape[-2:]:
                raise ValueError(f"W_{j} has a width of zero: shape {w.shape}")
        for j, (v, w) in enumerate(zip(self.weights[:-1], self.weights[1:], strict=True), 1):
            if w.shape[-1] != v.shape[-2]:
                raise ValueError(
                    f"W_{j + 1} of shape {w.shape} does not follow W_{j} of shape {v.shape}: "
                    f"it needs {v.shape[-2]} columns, not {w.shape[-1]}"
                )
            if w.shape[:-2] != v.shape[:-2]:
                raise ValueError(f"W_{j} and W_{j + 1} have different batch shapes: {v.shape[:-2]} and {w.shape[:-2]}")

    @property
    def depth(self) -> int:
        """The number `N` of factors."""
        return len(self.weights)

    @property
    def widths(self) -> tuple[int, ...]:
        """`(d_0, …, d_N)`."""
        return (self.weights[0].shape[-1], *(w.shape[-2] for w in self.weights))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes: `()` for one network."""
        return self.weights[0].shape[:-2]

    @property
    def num_parameters(self) -> int:
        """`Σ_j d_j d_{j-1}`."""
        return count_parameters(self.widths)

    def product(self, j: int, k: int) -> Float[Array, "d_k d_j_minus_1"]:
        """`(ΠW)_j^k = W_k … W_j` for `1 ≤ j ≤ k ≤ N`; the identity of size `d_k` for `k = j − 1`."""
        if not 1 <= j <= k + 1 <= self.depth + 1:
            raise ValueError(f"no product (ΠW)_{j}^{k} in a network of depth {self.depth}")
        check_one_network(self)
        if k == j - 1:
            return jnp.eye(self.widths[k], dtype=self.weights[0].dtype)
        return functools.reduce(lambda right, left: matmul(left, right), self.weights[j - 1 : k])

    @property
    def end_to_end(self) -> Float[Array, "d_N d_0"]:
        """`W = W_N … W_1`."""
        return matmul(*self.halves) if self.waist else self.product(1, self.depth)

    @property
    def waist(self) -> int | None:
        """The narrowest hidden layer `k`, where it is narrower than both ends: `d_k < min(d_0, d_N)`."""
        hidden = self.widths[1:-1]
        narrow = bool(hidden) and min(hidden) < min(self.widths[0], self.widths[-1])
        return 1 + hidden.index(min(hidden)) if narrow else None

    @property
    def halves(self) -> tuple[Float[Array, "d_N d_k"], Float[Array, "d_k d_0"]]:
        """`W_N … W_{k+1}` and `W_k … W_1`, the products above and below the waist `k`, at `d_j d_{j-1} d_k` a layer.

        **Raises:** `ValueError` for a network without a waist.
        """
        upper, lower = self._cut()
        return upper.product(1, upper.depth), lower.product(1, lower.depth).T

    def _cut(self) -> "tuple[LayerTuple, LayerTuple]":
        """The layers above the waist and, transposed, those below it: both lead away from the waist."""
        check_one_network(self)
        if self.waist is None:
            raise ValueError(f"no hidden layer is narrower than both ends in a network of widths {self.widths}")
        above, below = self.weights[self.waist :], self.weights[: self.waist]
        return LayerTuple(above), LayerTuple(w.T for w in reversed(below))

    def __call__(self, x: Float[Array, "d_0 m"]) -> Float[Array, "d_N m"]:
        """Applies the layers, first to last, to the columns of `x`."""
        return functools.reduce(lambda y, w: matmul(w, y), self.weights, x)

    def variation(self, w: "LayerTuple", j: int) -> Float[Array, "d_N d_0"]:
        """`P_j(w) = (ΠW)_{j+1}^N w_j (ΠW)_1^{j-1}`, the first variation of the product in layer `j`."""
        return matmul(matmul(self.product(j + 1, self.depth), w.weights[j - 1]), self.product(1, j - 1))

    def mixed_variation(self, w: "LayerTuple", j: int, k: int) -> Float[Array, "d_N d_0"]:
        """`P_jk(w) = (ΠW)_{k+1}^N w_k (ΠW)_{j+1}^{k-1} w_j (ΠW)_1^{j-1}` for `j < k`, its mixed second variation."""
        if not j < k:
            raise ValueError(f"P_jk needs j < k, got j={j}, k={k}")
        inner = matmul(w.weights[k - 1], matmul(self.product(j + 1, k - 1), w.weights[j - 1]))
        return matmul(matmul(self.product(k + 1, self.depth), inner), self.product(1, j - 1))

    def expansion(self, w: "LayerTuple") -> tuple[Float[Array, "d_N d_0"], Float[Array, "d_N d_0"]]:
        """`Σ_j P_j(w)` and `Σ_{j<k} P_jk(w)`: the product's terms of first and second order in `w`, in one sweep."""
        zeroth, first = self.weights[0], w.weights[0]
        second = jnp.zeros_like(first)
        for W, v in zip(self.weights[1:], w.weights[1:], strict=True):
            # (W + εv)(zeroth + ε first + ε² second)
            second = matmul(W, second) + matmul(v, first)
            first = matmul(W, first) + matmul(v, zeroth)
            zeroth = matmul(W, zeroth)
        return first, second

    def pullback(self, gradient: Float[Array, "d_N d_0"]) -> "LayerTuple":
        """Gradient in the layers of a function of the product, from its gradient `G` at the product.

        `[(ΠW)_{j+1}^N]ᵀ G [(ΠW)_1^{j-1}]ᵀ` for every `j`, the adjoint of `w ↦ Σ_j P_j(w)`; with `G = −(A − WD)Dᵀ` the
        right-hand side of eq. (6) of Chitour, Liao, Couillet (2022), up to sign. Costs two sweeps over the layers.
        """
        if self.waist:
            upper, lower = self.halves
            return self.pullback_halves(matmul(gradient, lower.T), matmul(upper.T, gradient))
        right: list[Array | None] = [None]  # (ΠW)_1^{j-1}, None for the identity
        for w in self.weights[:-1]:
            right.append(w if right[-1] is None else matmul(w, right[-1]))
        left, layers = gradient, []
        for w, r in zip(reversed(self.weights), reversed(right), strict=True):
            layers.append(left if r is None else matmul(left, r.T))
            if r is not None:
                left = matmul(w.T, left)
        return LayerTuple(reversed(layers))

    def pullback_halves(self, upper: Float[Array, "d_N d_k"], lower: Float[Array, "d_k d_0"]) -> "LayerTuple":
        """`pullback` from the gradients at the two `halves`, without a matrix of the size `d_N d_0`."""
        above, below = self._cut()
        from_below = LayerTuple(w.T for w in reversed(below.pullback(lower.T).weights))
        return LayerTuple((*from_below.weights, *above.pullback(upper).weights))

    def _pairs(self, other: "LayerTuple") -> list[tuple[Array, Array]]:
        """The layers of both, which must have the same shapes: broadcast, different networks would add silently."""
        shapes = [tuple(w.shape for w in net.weights) for net in (self, check_layer_tuple(other))]
        if shapes[0] != shapes[1]:
            widths = [
                f"widths {n.widths}" + f" in a batch {n.batch_shape}" * bool(n.batch_shape) for n in (self, other)
            ]
            raise ValueError(f"layer tuples of different shapes do not combine: {' and '.join(widths)}")
        return list(zip(self.weights, other.weights, strict=True))

    def __add__(self, other: "LayerTuple") -> "LayerTuple":
        return LayerTuple(a + b for a, b in self._pairs(other))

    def __sub__(self, other: "LayerTuple") -> "LayerTuple":
        return LayerTuple(a - b for a, b in self._pairs(other))

    def __neg__(self) -> "LayerTuple":
        return LayerTuple(-a for a in self.weights)

    def __mul__(self, scalar) -> "LayerTuple":
        return LayerTuple(scalar * a for a in self.weights)

    __rmul__ = __mul__

    def __truediv__(self, scalar) -> "LayerTuple":
        return LayerTuple(a / scalar for a in self.weights)

    def inner(self, other: "LayerTuple") -> Float[Array, ""]:
        """`⟨W,V⟩ = Σ_j tr(W_jᵀV_j)`."""
        return sum((jnp.sum(a * b) for a, b in self._pairs(other)), start=jnp.zeros((), self.weights[0].dtype))

    def norm(self) -> Float[Array, ""]:
        """`√⟨W,W⟩`; its derivative at the zero tuple is taken to be zero."""
        square = self.inner(self)
        zero = square == 0
        return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))

    def layer_norms(self) -> Float[Array, " N"]:
        """`‖W_j‖_F` of every layer."""
        return jnp.stack([jnp.linalg.norm(w) for w in self.weights])


def _as_weight(j: int, w: Any) -> Any:
    """A weight given as numbers of another kind as an array; arrays of JAX (and stand-ins for them) as they are."""
    if isinstance(w, jax.Array | jax.ShapeDtypeStruct) or not (
        isinstance(w, list | tuple | np.ndarray) or hasattr(w, "__array__")
    ):
        return w
    if np.ma.is_masked(w):
        raise ValueError(f"W_{j} has masked entries, which have no values: fill them, e.g. by w.filled(0.0)")
    try:
        array = np.asarray(w)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"W_{j} is no matrix: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"W_{j} must be real floating point, got dtype {array.dtype}")
    return jnp.asarray(array, dtype=float)


def check_layer_tuple(net: object) -> LayerTuple:
    """`net`, or a `TypeError` where it is no network, such as a plain list of matrices."""
    if not isinstance(net, LayerTuple):
        raise TypeError(
            f"a network must be a gdflow.LayerTuple, got {type(net).__name__}: gf.LayerTuple(weights) makes one"
        )
    return net


def check_one_network(net: LayerTuple) -> LayerTuple:
    """`net`, or a `ValueError` where it is a batch of networks."""
    if net.batch_shape:
        raise ValueError(f"one network is needed here, got a batch of shape {net.batch_shape}: use jax.vmap")
    return net


def check_finite(net: LayerTuple) -> LayerTuple:
    """`net`, or a `ValueError` that names the first entry that is not finite."""
    for j, w in enumerate(net.weights, 1):
        bad = np.argwhere(~np.isfinite(np.asarray(w)))
        if bad.size:
            raise ValueError(f"W_{j} is {w[tuple(bad[0])]} at entry {tuple(map(int, bad[0]))}; starts must be finite")
    return net


#: Networks with more parameters than this (8 GiB in double precision) are taken for a mistake.
MAX_PARAMETERS = 2**30


def count_parameters(widths: tuple[int, ...]) -> int:
    """`Σ_j d_j d_{j-1}`."""
    return sum(a * b for a, b in zip(widths[1:], widths[:-1], strict=True))


def check_widths(widths: Iterable[int]) -> tuple[int, ...]:
    """`widths` as a tuple of at least two positive integers `(d_0, …, d_N)`.

    **Raises:** `TypeError` if it is no sequence, `ValueError` for what is no possible width: both name the culprit.
    """
    try:
        widths = tuple(widths)
    except TypeError:
        raise TypeError(f"widths must be a sequence (d_0, …, d_N), such as (3, 5, 2); got {widths!r}") from None
    if len(widths) < 2:
        raise ValueError(f"widths (d_0, …, d_N) need at least an input and an output, got {widths}")
    for d in widths:
        if isinstance(d, bool) or not isinstance(d, int | np.integer) or d < 1:
            raise ValueError(f"widths must be positive integers, got {d!r} in {widths}")
    widths = tuple(int(d) for d in widths)
    count = count_parameters(widths)
    if count > MAX_PARAMETERS:
        raise ValueError(f"widths {widths} make {min(count, 10**300):.2g} parameters, more than {MAX_PARAMETERS:.2g}")
    return widths
