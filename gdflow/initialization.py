"""Laws of random starts. Start `i` of a law depends on the key and on `i` alone, never on batch, lane or device."""

import enum
import functools
import operator
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from gdflow.factorizations import orthonormal, singular_values, symmetric_eigen
from gdflow.network import LayerTuple, check_widths, matmul

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


def start_key(key: Key[Array, ""], i: int) -> Key[Array, ""]:
    """The key of start `i`: `fold_in(fold_in(key, i >> 32), i & 0xFFFFFFFF)`.

    Two folds because one takes 32 bits and silently repeats past 2³².

    **Raises:** `ValueError` if `i` is not in `[0, 2⁶⁴)`, `TypeError` if it is no integer, or `key` no key.
    """
    check_key(key)
    i = operator.index(i)
    if not 0 <= i < MAX_ID:
        raise ValueError(f"start ids lie between 0 and 2**64 - 1, got {i}")
    return jax.random.fold_in(jax.random.fold_in(key, np.uint32(i >> 32)), np.uint32(i & 0xFFFFFFFF))


def _as_uint64(ids: Any) -> np.ndarray:
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
    array = _as_uint64(ids)
    return (array >> np.uint64(32)).astype(np.uint32), (array & np.uint64(0xFFFFFFFF)).astype(np.uint32)


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
        return jax.vmap(lambda h, lo: self.draw(jax.random.fold_in(jax.random.fold_in(key, h), lo)))(high, low)


def check_law(law: Any) -> AbstractInitialization:
    """`law`, if it is one; else a `TypeError` that says where laws are made."""
    if isinstance(law, AbstractInitialization):
        return law
    hint = "gdflow.initialization.Gaussian(problem.widths([5, 5])), for instance"
    if isinstance(law, LayerTuple):
        hint = "gdflow.initialization.Around(net, scale) draws starts near a network; gdflow.simulate runs from one"
    raise TypeError(f"a law of starts is needed, got {type(law).__name__}: {hint}")


def _shapes(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(widths[1:], widths[:-1], strict=True))


def _number(name: str, value: Any) -> float:
    """`value` as a float if it is one number; `name` is for the error."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be one number, got {value!r}")
    return float(array)


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 < number < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return number


def _haar(keys: Iterable[Key[Array, ""]], shapes: Sequence[tuple[int, int]]) -> list[Float[Array, "_ _"]]:
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


def _gaussian(key: Key[Array, ""], widths: tuple[int, ...], scales: list[float]) -> LayerTuple:
    keys = jax.random.split(key, len(scales))
    shapes = _shapes(widths)
    return LayerTuple(c * jax.random.normal(k, shape) for k, shape, c in zip(keys, shapes, scales, strict=True))


def _gaussian_scale(scale: Any) -> str | float:
    if not isinstance(scale, str):
        return _positive("scale", scale)
    if scale not in ("fan_in", "fan_out"):
        raise ValueError(f'scale must be "fan_in", "fan_out" or a number, got {scale!r}')
    return scale


#: Converters of the parameters that must be positive numbers.
_scale, _radius, _margin = (functools.partial(_positive, name) for name in ("scale", "radius", "margin"))


class Gaussian(AbstractInitialization):
    """Independent centred Gaussian entries.

    **Arguments:**

    - `widths`: `(d_0, …, d_N)`.
    - `scale`: `"fan_in"` for standard deviation `1/√d_{j-1}` in layer `j`, `"fan_out"` for `1/√d_j` (the teachers of
      Terstiege, Rauhut, Bah, Westdickenberg 2022); or one standard deviation for all entries.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    scale: str | float = eqx.field(static=True, default="fan_in", converter=_gaussian_scale)

    @property
    def invariant_set(self) -> Support:
        return Support.FULL

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        if isinstance(self.scale, str):
            scales = [1 / np.sqrt(d) for d in (self.widths[:-1] if self.scale == "fan_in" else self.widths[1:])]
        else:
            scales = [self.scale] * (len(self.widths) - 1)
        return _gaussian(key, self.widths, scales)


class UniformBall(AbstractInitialization):
    """Uniform in the ball `‖W‖ ≤ radius` of the space of all layers together."""

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    radius: float = eqx.field(static=True, default=1.0, converter=_radius)

    @property
    def invariant_set(self) -> Support:
        return Support.FULL

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        direction_key, radius_key = jax.random.split(key)
        direction = _gaussian(direction_key, self.widths, [1.0] * (len(self.widths) - 1))
        size = jax.random.uniform(radius_key) ** (1 / direction.num_parameters)
        return (self.radius * size / direction.norm()) * direction


class Orthogonal(AbstractInitialization):
    """Every layer is `scale` times a Haar-distributed matrix with orthonormal rows or columns (whichever fit)."""

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    scale: float = eqx.field(static=True, default=1.0, converter=_scale)

    @property
    def invariant_set(self) -> Support:
        # W_jW_jᵀ = scale²·I = W_{j+1}ᵀW_{j+1} where no layer narrows on the way in or out of a hidden one.
        d_x, *hidden, d_y = self.widths
        balanced = len(set(hidden)) <= 1 and max(hidden, default=0) <= min(d_x, d_y)
        return Support.BALANCED if balanced else Support.NULL

    @property
    def end_to_end_rank(self) -> int:
        return min(self.widths)

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        keys = jax.random.split(key, len(self.widths) - 1)
        return LayerTuple(self.scale * Q for Q in _haar(keys, _shapes(self.widths)))


def _singular_values(values: Any) -> float | tuple[float, ...] | str:
    if isinstance(values, str):
        if values != "gaussian":
            raise ValueError(f'singular_values must be numbers or "gaussian", got {values!r}')
        return values
    if isinstance(values, tuple | list) or getattr(values, "ndim", 0) == 1:
        return tuple(_positive("singular_values", value) for value in values)
    return _positive("singular_values", values)


class Balanced(AbstractInitialization):
    """Balanced starts, all `C_j = 0`: the construction of Terstiege, Rauhut, Bah, Westdickenberg (2022), Appendix B.1.

    With Haar-distributed `U_j ∈ R^{d_j×k}`, `U_jᵀU_j = I`, `j = 0, …, N`, the layers are
    `W_j = U_j diag(σ^{1/N}) U_{j-1}ᵀ`, so the product `U_N diag(σ) U_0ᵀ` has rank `k`. The paper has `σ = 1` and `k = d_1`,
    the smallest width, and leaves open which columns of its `V_j` make up `U_j`: the first `d_1`, `j` from 0.

    **Arguments:**

    - `widths`: `(d_0, …, d_N)`.
    - `rank`: `k`, at most the smallest width, which is the default.
    - `singular_values`: `σ` of the product: one number, `k` of them, or `"gaussian"` for those of the best approximation of
      rank `k` of a `d_N×d_0` matrix with independent entries of standard deviation `1/√d_0`; at full rank the product is
      then such a Gaussian matrix.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    rank: int | None = eqx.field(static=True, default=None)
    singular_values: float | tuple[float, ...] | str = eqx.field(static=True, default=1.0, converter=_singular_values)

    def __check_init__(self):
        k = self.end_to_end_rank
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise ValueError(f"rank must be an integer, got {k}")
        if not 1 <= k <= min(self.widths):
            raise ValueError(f"rank must lie between 1 and the smallest width {min(self.widths)}, got {k}")
        if not isinstance(self.singular_values, str) and np.size(self.singular_values) not in (1, k):
            raise ValueError(f"rank {k} needs {k} singular values or one, got {np.size(self.singular_values)}")

    @property
    def invariant_set(self) -> Support:
        return Support.BALANCED

    @property
    def end_to_end_rank(self) -> int:
        return min(self.widths) if self.rank is None else self.rank

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        # One split for everything: fold_in(key, i) is split(key, n)[i], so the two must never be mixed.
        *keys, values_key = jax.random.split(key, len(self.widths) + 1)
        rank = self.end_to_end_rank
        frames = _haar(keys, [(d, rank) for d in self.widths])
        if isinstance(self.singular_values, str):
            # A Gaussian matrix is U diag(σ) Vᵀ with U and V Haar-distributed and independent of σ.
            d_x, d_y = self.widths[0], self.widths[-1]
            values = singular_values(jax.random.normal(values_key, (d_y, d_x)) / np.sqrt(d_x))[:rank]
        else:
            values = jnp.asarray(self.singular_values, dtype=frames[0].dtype)
        root = jnp.broadcast_to(values, (1, rank)) ** (1 / (len(self.widths) - 1))
        return LayerTuple(matmul(after * root, before.T) for before, after in zip(frames[:-1], frames[1:], strict=True))


def _symmetric_root(W: Float[Array, "d m"], shift: float) -> Float[Array, "d d"]:
    """`(WWᵀ + shift·I)^{1/2}` for `shift ≥ 0`."""
    size = jnp.maximum(jnp.max(jnp.abs(W)), np.sqrt(shift))  # entries of any size: their squares stay in range
    size = jnp.where(size == 0, 1.0, size)
    values, vectors = symmetric_eigen(matmul(W / size, (W / size).T))
    root = jnp.sqrt(jnp.maximum(values, 0) + (np.sqrt(shift) / size) ** 2)
    return matmul(vectors * (size * root)[None, :], vectors.T)


class LambdaBalanced(AbstractInitialization):
    """λ-balanced starts: `C_j = λI` for every hidden layer.

    For `λ ≥ 0`, `W_1` is Gaussian (standard deviation `scale/√d_0`) and `W_{j+1} = Q_{j+1}(W_jW_jᵀ + λI)^{1/2}` with Haar
    `Q_{j+1}`, `QᵀQ = I`, which needs `d_1 ≤ d_2 ≤ … ≤ d_N`; for `λ < 0` the same from the last layer down, which needs
    `d_0 ≥ d_1 ≥ … ≥ d_{N-1}`. For two layers these are the conditions `d_y ≥ h` and `d_x ≥ h`.

    **Raises:** `ValueError` where the widths make such a network impossible.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    lam: float = eqx.field(static=True, converter=functools.partial(_number, "λ"))
    scale: float = eqx.field(static=True, default=1.0, converter=_scale)

    def __check_init__(self):
        if not np.isfinite(self.lam):
            raise ValueError(f"λ must be finite, got {self.lam}")
        steps = np.diff(self.widths[1:]) if self.lam >= 0 else np.diff(self.widths[:-1][::-1])
        if np.any(steps < 0):
            needed = "d_1 ≤ … ≤ d_N (or take Balanced for λ = 0)" if self.lam >= 0 else "d_0 ≥ … ≥ d_{N-1}"
            raise ValueError(f"λ = {self.lam} needs widths with {needed}, got {self.widths}")

    @property
    def invariant_set(self) -> Support:
        if self.lam == 0:
            return Support.BALANCED
        # Without a hidden layer there is no condition: the law is Gaussian.
        return Support.NULL if len(self.widths) > 2 else Support.FULL

    @property
    def end_to_end_rank(self) -> int:
        return min(self.widths)

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        if self.lam < 0:  # the transposed network is |λ|-balanced
            net = self._upwards(key, self.widths[::-1])
            return LayerTuple(w.T for w in reversed(net))
        return LayerTuple(self._upwards(key, self.widths))

    def _upwards(self, key: Key[Array, ""], widths: tuple[int, ...]) -> list[Array]:
        first, *keys = jax.random.split(key, len(widths) - 1)
        layers = [self.scale / np.sqrt(widths[0]) * jax.random.normal(first, (widths[1], widths[0]))]
        for Q in _haar(keys, _shapes(widths)[1:]):
            layers.append(matmul(Q, _symmetric_root(layers[-1], abs(self.lam))))
        return layers


class Pyramidal(AbstractInitialization):
    """Starts with a proved exponential rate: they meet Proposition 2 of Chitour, Liao, Couillet (2022).

    `W_1` is Gaussian (standard deviation `scale/√d_0`) and `W_{l+1} = (‖W_l‖_2² + margin)^{1/2} Q_{l+1}` with Haar `Q`,
    `QQᵀ = I`. By Weyl's inequality the `d_{l+1}`-th largest eigenvalue of `C_l` is then at least `margin`.

    **Arguments:** `widths` with `d_1 ≥ … ≥ d_N`; `margin > 0`; `scale`.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    margin: float = eqx.field(static=True, default=1.0, converter=_margin)
    scale: float = eqx.field(static=True, default=1.0, converter=_scale)

    def __check_init__(self):
        if np.any(np.diff(self.widths[1:]) > 0):
            raise ValueError(f"pyramidal starts need d_1 ≥ … ≥ d_N, got widths {self.widths}")

    @property
    def invariant_set(self) -> Support:
        # All layers but the first have orthogonal rows of one length.
        return Support.NULL if len(self.widths) > 2 else Support.FULL

    @property
    def end_to_end_rank(self) -> int:
        return min(self.widths)

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        first, *keys = jax.random.split(key, len(self.widths) - 1)
        layers = [self.scale / np.sqrt(self.widths[0]) * jax.random.normal(first, (self.widths[1], self.widths[0]))]
        if not keys:
            return LayerTuple(layers)
        size = singular_values(layers[0])[0]
        for Q in _haar(keys, _shapes(self.widths)[1:]):
            size = jnp.hypot(size, np.sqrt(self.margin))  # the spectral norm of the layer that it scales
            layers.append(size * Q)
        return LayerTuple(layers)


class Around(AbstractInitialization):
    """A given network plus independent Gaussian entries of standard deviation `scale`."""

    center: LayerTuple
    scale: float = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, center: LayerTuple, scale: float):
        if not isinstance(center, LayerTuple):
            raise TypeError(f"the centre must be a network, a gdflow.LayerTuple, got {center!r}")
        if center.batch_shape:
            raise ValueError(f"the centre must be one network, got a batch of shape {center.batch_shape}")
        self.center, self.scale, self.widths = center, _positive("scale", scale), center.widths

    @property
    def invariant_set(self) -> Support:
        return Support.FULL

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        return self.center + _gaussian(key, self.widths, [self.scale] * self.center.depth)


def id_range(first: int, num: int) -> range:
    """`first, …, first + num − 1`; `ValueError` unless all are 64-bit ids."""
    if first < 0 or first + num > MAX_ID:
        raise ValueError(f"start ids {first} … {first + num - 1} do not lie between 0 and 2**64 - 1")
    return range(first, first + num)
