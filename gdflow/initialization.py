"""Laws of random starts. Start `i` of a law depends on the key and on `i` alone, never on batch, lane or device."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from gdflow.network import LayerTuple, check_widths, matmul

#: Start ids are 64-bit.
MAX_ID = 2**64


def start_key(key: Key[Array, ""], i: int) -> Key[Array, ""]:
    """The key of start `i`: `fold_in(fold_in(key, i >> 32), i & 0xFFFFFFFF)`.

    Two folds because one takes 32 bits and silently repeats past 2³².

    **Raises:** `ValueError` if `i` is not in `[0, 2⁶⁴)`.
    """
    i = int(i)
    if not 0 <= i < MAX_ID:
        raise ValueError(f"start ids lie between 0 and 2**64 - 1, got {i}")
    return jax.random.fold_in(jax.random.fold_in(key, np.uint32(i >> 32)), np.uint32(i & 0xFFFFFFFF))


def split_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High and low 32 bits of 64-bit ids, in a form that survives JAX's 32-bit mode."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or np.any(ids < 0):
        raise ValueError(f"start ids are integers between 0 and 2**64 - 1, got {ids.min()} of dtype {ids.dtype}")
    ids = ids.astype(np.uint64)
    return (ids >> np.uint64(32)).astype(np.uint32), (ids & np.uint64(0xFFFFFFFF)).astype(np.uint32)


class AbstractInitialization(eqx.Module):
    """A law of starts on networks of fixed widths.

    The law is drawn in the coordinates of the problem it is used with.
    """

    widths: eqx.AbstractVar[tuple[int, ...]]

    @abstractmethod
    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        """One network from a key of its own. Traceable."""

    @property
    def balanced(self) -> bool:
        """Whether all starts are known to be balanced, `C_j = 0` for all `j`."""
        return False

    def sample(self, key: Key[Array, ""], i: int) -> LayerTuple:
        """Start number `i` (a Python integer in `[0, 2⁶⁴)`) of the sequence of starts that belongs to `key`.

        ```python
        >>> Gaussian((3, 5, 2)).sample(jax.random.key(0), 7).widths
        (3, 5, 2)
        ```
        """
        return self.draw(start_key(key, i))

    def sample_batch(self, key: Key[Array, ""], ids: np.ndarray) -> LayerTuple:
        """The starts of several ids, stacked along a leading axis; equal to `sample` id by id up to round-off."""
        return eqx.filter_jit(type(self).draw_batch)(self, key, *map(jnp.asarray, split_ids(ids)))

    def draw_batch(self, key: Key[Array, ""], high: UInt32[Array, " n"], low: UInt32[Array, " n"]) -> LayerTuple:
        """`sample_batch` for ids split into high and low 32 bits. Traceable."""
        return jax.vmap(lambda h, lo: self.draw(jax.random.fold_in(jax.random.fold_in(key, h), lo)))(high, low)


def _shapes(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(widths[1:], widths[:-1], strict=True))


def _positive(name: str, value) -> None:
    if not np.all(np.asarray(value) > 0) or not np.all(np.isfinite(np.asarray(value))):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _gaussian(key: Key[Array, ""], widths: tuple[int, ...], scales: list[float]) -> LayerTuple:
    keys = jax.random.split(key, len(scales))
    shapes = _shapes(widths)
    return LayerTuple(c * jax.random.normal(k, shape) for k, shape, c in zip(keys, shapes, scales, strict=True))


class Gaussian(AbstractInitialization):
    """Independent centred Gaussian entries.

    **Arguments:**

    - `widths`: `(d_0, …, d_N)`.
    - `scale`: `"fan_in"` for standard deviation `1/√d_{j-1}` in layer `j`, `"fan_out"` for `1/√d_j` (the teachers of
      Terstiege, Rauhut, Bah, Westdickenberg 2022); or one standard deviation for all entries.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    scale: str | float = eqx.field(static=True, default="fan_in")

    def __check_init__(self):
        if isinstance(self.scale, str):
            if self.scale not in ("fan_in", "fan_out"):
                raise ValueError(f'scale must be "fan_in", "fan_out" or a number, got {self.scale!r}')
        else:
            _positive("scale", self.scale)

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        if isinstance(self.scale, str):
            scales = [1 / np.sqrt(d) for d in (self.widths[:-1] if self.scale == "fan_in" else self.widths[1:])]
        else:
            scales = [self.scale] * (len(self.widths) - 1)
        return _gaussian(key, self.widths, scales)


class UniformBall(AbstractInitialization):
    """Uniform in the ball `‖W‖ ≤ radius` of the space of all layers together."""

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    radius: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _positive("radius", self.radius)

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        direction_key, radius_key = jax.random.split(key)
        direction = _gaussian(direction_key, self.widths, [1.0] * (len(self.widths) - 1))
        size = jax.random.uniform(radius_key) ** (1 / direction.num_parameters)
        return (self.radius * size / direction.norm()) * direction


class Orthogonal(AbstractInitialization):
    """Every layer is `scale` times a Haar-distributed matrix with orthonormal rows or columns (whichever fit)."""

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _positive("scale", self.scale)

    @property
    def balanced(self) -> bool:
        # W_jW_jᵀ = scale²·I = W_{j+1}ᵀW_{j+1} where no layer narrows on the way in or out of a hidden one.
        d_x, *hidden, d_y = self.widths
        return len(set(hidden)) <= 1 and max(hidden, default=0) <= min(d_x, d_y)

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        keys = jax.random.split(key, len(self.widths) - 1)
        return LayerTuple(
            self.scale * jax.random.orthogonal(k, rows, m=columns)
            for k, (rows, columns) in zip(keys, _shapes(self.widths), strict=True)
        )


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
    singular_values: float | tuple[float, ...] | str = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        k = self._rank
        if not isinstance(k, int | np.integer):
            raise ValueError(f"rank must be an integer, got {k}")
        if not 1 <= k <= min(self.widths):
            raise ValueError(f"rank must lie between 1 and the smallest width {min(self.widths)}, got {k}")
        if isinstance(self.singular_values, str):
            if self.singular_values != "gaussian":
                raise ValueError(f'singular_values must be numbers or "gaussian", got {self.singular_values!r}')
            return
        if np.size(self.singular_values) not in (1, k):
            raise ValueError(f"rank {k} needs {k} singular values or one, got {np.size(self.singular_values)}")
        _positive("singular_values", self.singular_values)

    @property
    def _rank(self) -> int:
        return min(self.widths) if self.rank is None else self.rank

    @property
    def balanced(self) -> bool:
        return True

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        keys = jax.random.split(key, len(self.widths))
        frames = [jax.random.orthogonal(k, d, m=self._rank) for k, d in zip(keys, self.widths, strict=True)]
        if isinstance(self.singular_values, str):
            # A Gaussian matrix is U diag(σ) Vᵀ with U and V Haar-distributed and independent of σ.
            d_x, d_y = self.widths[0], self.widths[-1]
            entries = jax.random.normal(jax.random.fold_in(key, 0), (d_y, d_x)) / np.sqrt(d_x)
            values = jnp.linalg.svd(entries, compute_uv=False)[: self._rank]
        else:
            values = jnp.asarray(self.singular_values, dtype=frames[0].dtype)
        root = jnp.broadcast_to(values, (1, self._rank)) ** (1 / (len(self.widths) - 1))
        return LayerTuple(matmul(after * root, before.T) for before, after in zip(frames[:-1], frames[1:], strict=True))


def _symmetric_root(square: Float[Array, "d d"], shift: float) -> Float[Array, "d d"]:
    values, vectors = jnp.linalg.eigh(square)
    return matmul(vectors * jnp.sqrt(jnp.maximum(values, 0) + shift)[None, :], vectors.T)


class LambdaBalanced(AbstractInitialization):
    """λ-balanced starts: `C_j = λI` for every hidden layer.

    For `λ ≥ 0`, `W_1` is Gaussian (standard deviation `scale/√d_0`) and `W_{j+1} = Q_{j+1}(W_jW_jᵀ + λI)^{1/2}` with Haar
    `Q_{j+1}`, `QᵀQ = I`, which needs `d_1 ≤ d_2 ≤ … ≤ d_N`; for `λ < 0` the same from the last layer down, which needs
    `d_0 ≥ d_1 ≥ … ≥ d_{N-1}`. For two layers these are the conditions `d_y ≥ h` and `d_x ≥ h`.

    **Raises:** `ValueError` where the widths make such a network impossible.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    lam: float = eqx.field(static=True)
    scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _positive("scale", self.scale)
        if not np.isfinite(self.lam):
            raise ValueError(f"λ must be finite, got {self.lam}")
        steps = np.diff(self.widths[1:]) if self.lam >= 0 else np.diff(self.widths[:-1][::-1])
        if np.any(steps < 0):
            needed = "d_1 ≤ … ≤ d_N (or take Balanced for λ = 0)" if self.lam >= 0 else "d_0 ≥ … ≥ d_{N-1}"
            raise ValueError(f"λ = {self.lam} needs widths with {needed}, got {self.widths}")

    @property
    def balanced(self) -> bool:
        return self.lam == 0

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        if self.lam < 0:  # the transposed network is |λ|-balanced
            net = self._upwards(key, self.widths[::-1])
            return LayerTuple(w.T for w in reversed(net))
        return LayerTuple(self._upwards(key, self.widths))

    def _upwards(self, key: Key[Array, ""], widths: tuple[int, ...]) -> list[Array]:
        first, *keys = jax.random.split(key, len(widths) - 1)
        layers = [self.scale / np.sqrt(widths[0]) * jax.random.normal(first, (widths[1], widths[0]))]
        for k, d, after in zip(keys, widths[1:-1], widths[2:], strict=True):
            root = _symmetric_root(matmul(layers[-1], layers[-1].T), abs(self.lam))
            layers.append(matmul(jax.random.orthogonal(k, after, m=d), root))
        return layers


class Pyramidal(AbstractInitialization):
    """Starts with a proved exponential rate: they meet Proposition 2 of Chitour, Liao, Couillet (2022).

    `W_1` is Gaussian (standard deviation `scale/√d_0`) and `W_{l+1} = (‖W_l‖_2² + margin)^{1/2} Q_{l+1}` with Haar `Q`,
    `QQᵀ = I`. By Weyl's inequality the `d_{l+1}`-th largest eigenvalue of `C_l` is then at least `margin`.

    **Arguments:** `widths` with `d_1 ≥ … ≥ d_N`; `margin > 0`; `scale`.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    margin: float = eqx.field(static=True, default=1.0)
    scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _positive("margin", self.margin)
        _positive("scale", self.scale)
        if np.any(np.diff(self.widths[1:]) > 0):
            raise ValueError(f"pyramidal starts need d_1 ≥ … ≥ d_N, got widths {self.widths}")

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        first, *keys = jax.random.split(key, len(self.widths) - 1)
        layers = [self.scale / np.sqrt(self.widths[0]) * jax.random.normal(first, (self.widths[1], self.widths[0]))]
        for k, (rows, columns) in zip(keys, _shapes(self.widths)[1:], strict=True):
            size = jnp.sqrt(jnp.linalg.norm(layers[-1], ord=2) ** 2 + self.margin)
            layers.append(size * jax.random.orthogonal(k, rows, m=columns))
        return LayerTuple(layers)


class Around(AbstractInitialization):
    """A given network plus independent Gaussian entries of standard deviation `scale`."""

    center: LayerTuple
    scale: float = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, center: LayerTuple, scale: float):
        _positive("scale", scale)
        if center.batch_shape:
            raise ValueError(f"the centre must be one network, got a batch of shape {center.batch_shape}")
        self.center, self.scale, self.widths = center, scale, center.widths

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        return self.center + _gaussian(key, self.widths, [self.scale] * self.center.depth)


def id_range(first: int, num: int) -> range:
    """`first, …, first + num − 1`; `ValueError` unless all are 64-bit ids."""
    if first < 0 or first + num > MAX_ID:
        raise ValueError(f"start ids {first} … {first + num - 1} do not lie between 0 and 2**64 - 1")
    return range(first, first + num)
