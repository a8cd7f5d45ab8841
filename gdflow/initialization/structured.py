"""Laws on sets of measure zero: orthogonal layers, balanced networks, starts with a proved rate."""

import functools
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gdflow.checks import check_number, check_positive
from gdflow.factorizations import singular_values, symmetric_eigen
from gdflow.initialization.law import AbstractInitialization, Support
from gdflow.initialization.matrices import haar_matrices, layer_shapes
from gdflow.network import LayerTuple, check_widths, matmul


class Orthogonal(AbstractInitialization):
    """Every layer is `scale` times a Haar-distributed matrix with orthonormal rows or columns (whichever fit)."""

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    scale: float = eqx.field(static=True, default=1.0, converter=functools.partial(check_positive, "scale"))

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
        return LayerTuple(self.scale * Q for Q in haar_matrices(keys, layer_shapes(self.widths)))


def _singular_values(values: Any) -> float | tuple[float, ...]:
    if isinstance(values, str):
        raise TypeError(
            f"singular_values must be numbers, got {values!r}; those of a Gaussian matrix: gdflow.initialization.BalancedGaussian"
        )
    if isinstance(values, tuple | list) or getattr(values, "ndim", 0) == 1:
        return tuple(check_positive("singular_values", value) for value in values)
    return check_positive("singular_values", values)


class _AbstractBalanced(AbstractInitialization):
    """The construction that `Balanced` describes, for singular values of any kind."""

    rank: eqx.AbstractVar[int | None]

    def __check_init__(self):
        k = self.end_to_end_rank
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise ValueError(f"rank must be an integer, got {k}")
        if not 1 <= k <= min(self.widths):
            raise ValueError(f"rank must lie between 1 and the smallest width {min(self.widths)}, got {k}")

    @abstractmethod
    def _values(self, key: Key[Array, ""]) -> Float[Array, " k"]:
        """The singular values `σ` of the product."""

    @property
    def invariant_set(self) -> Support:
        return Support.BALANCED

    @property
    def end_to_end_rank(self) -> int:
        return min(self.widths) if self.rank is None else self.rank

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        # One split for everything: fold_in(key, i) is split(key, n)[i], so the two must never be mixed.
        *keys, values_key = jax.random.split(key, len(self.widths) + 1)
        frames = haar_matrices(keys, [(d, self.end_to_end_rank) for d in self.widths])
        root = self._values(values_key)[None, :] ** (1 / (len(self.widths) - 1))
        return LayerTuple(matmul(after * root, before.T) for before, after in zip(frames[:-1], frames[1:], strict=True))


class Balanced(_AbstractBalanced):
    """Balanced starts, all `C_j = 0`, whose product has given singular values.

    The construction of Terstiege, Rauhut, Bah, Westdickenberg (2022), Appendix B.1: with Haar-distributed `U_j ∈ R^{d_j×k}`,
    `U_jᵀU_j = I`, `j = 0, …, N`, the layers are `W_j = U_j diag(σ^{1/N}) U_{j-1}ᵀ`, so the product `U_N diag(σ) U_0ᵀ` has rank
    `k`. The paper has `σ = 1` and `k = d_1`, the smallest width, and leaves open which columns of its `V_j` make up `U_j`: the
    first `d_1`, `j` from 0.

    **Arguments:**

    - `widths`: `(d_0, …, d_N)`.
    - `rank`: `k`, at most the smallest width, which is the default.
    - `singular_values`: `σ` of the product: one number, or `k` of them.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    rank: int | None = eqx.field(static=True, default=None)
    singular_values: float | tuple[float, ...] = eqx.field(static=True, default=1.0, converter=_singular_values)

    def __check_init__(self):
        if np.size(self.singular_values) not in (1, self.end_to_end_rank):
            k, given = self.end_to_end_rank, np.size(self.singular_values)
            raise ValueError(f"rank {k} needs {k} singular values or one, got {given}")

    def _values(self, key: Key[Array, ""]) -> Float[Array, " k"]:
        return jnp.broadcast_to(jnp.asarray(self.singular_values, dtype=float), (self.end_to_end_rank,))


class BalancedGaussian(_AbstractBalanced):
    """Balanced starts as `Balanced` makes them, all `C_j = 0`, whose product is a Gaussian matrix.

    Its singular values are those of a `d_N×d_0` matrix with independent entries of standard deviation `1/√d_0`, the `k` largest.
    At full rank, `k = min(d_0, d_N)`, the product is such a matrix; at a lower one its best approximation of rank `k`.

    **Arguments:** `widths`: `(d_0, …, d_N)`; `rank`: `k`, at most the smallest width, which is the default.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    rank: int | None = eqx.field(static=True, default=None)

    def _values(self, key: Key[Array, ""]) -> Float[Array, " k"]:
        # A Gaussian matrix is U diag(σ) Vᵀ with U and V Haar-distributed and independent of σ.
        d_x, d_y = self.widths[0], self.widths[-1]
        return singular_values(jax.random.normal(key, (d_y, d_x)) / np.sqrt(d_x))[: self.end_to_end_rank]


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
    lam: float = eqx.field(static=True, converter=functools.partial(check_number, "λ"))
    scale: float = eqx.field(static=True, default=1.0, converter=functools.partial(check_positive, "scale"))

    def __check_init__(self):
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
        for Q in haar_matrices(keys, layer_shapes(widths)[1:]):
            layers.append(matmul(Q, _symmetric_root(layers[-1], abs(self.lam))))
        return layers


class Pyramidal(AbstractInitialization):
    """Starts with a proved exponential rate: they meet Proposition 2 of Chitour, Liao, Couillet (2022).

    `W_1` is Gaussian (standard deviation `scale/√d_0`) and `W_{l+1} = (‖W_l‖_2² + margin)^{1/2} Q_{l+1}` with Haar `Q`,
    `QQᵀ = I`. By Weyl's inequality the `d_{l+1}`-th largest eigenvalue of `C_l` is then at least `margin`.

    **Arguments:** `widths` with `d_1 ≥ … ≥ d_N`; `margin > 0`; `scale`.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    margin: float = eqx.field(static=True, default=1.0, converter=functools.partial(check_positive, "margin"))
    scale: float = eqx.field(static=True, default=1.0, converter=functools.partial(check_positive, "scale"))

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
        for Q in haar_matrices(keys, layer_shapes(self.widths)[1:]):
            size = jnp.hypot(size, np.sqrt(self.margin))  # the spectral norm of the layer that it scales
            layers.append(size * Q)
        return LayerTuple(layers)
