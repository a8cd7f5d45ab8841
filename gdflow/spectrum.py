"""The samples and what is left of them: singular value decompositions of the data, and coordinates made from these.

The samples are needed only once. With the compact singular value decomposition `X = U_X S_X V_Xᵀ` and `Ȳ = Y V_X`,

    ½‖Y − WX‖² = ½‖Ȳ − W U_X S_X‖² + ½(‖Y‖² − ‖Ȳ‖²),

the first term is the *effective loss*, the second the residual of least squares. Three coordinates, two flows:

| coordinates | state | effective loss | flow |
|---|---|---|---|
| `"data"` | the given `W_j` | `½‖Ȳ − W U_X S_X‖²` | the one a practitioner runs |
| `"reduced"` | `W_1U_X`, `U_YᵀW_N` | `½‖U_YᵀȲ − W S_X‖²` | the same flow, isometric, with diagonal input |
| `"whitened"` | `W_1U_XS_XV_Y`, `U_YᵀW_N` | `½‖Σ_Y − W‖²` | another flow unless `XXᵀ = I`: the GDD of eq. (3) |

with `Ȳ = U_Y Σ_Y V_Yᵀ`; eq. (3) is that of Chitour, Liao, Couillet (2022). All three have the same critical values.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.network import LayerTuple, matmul
from gdflow.ranks import RankDecision, decide_rank, zero_threshold

COORDINATES = ("data", "reduced", "whitened")

#: Samples are taken into the triangular factor in blocks of this many, which bounds the memory of the reduction.
_BLOCK = 65536


def check_coordinates(coordinates: str) -> str:
    """`coordinates`, or a `ValueError` that lists those there are."""
    if coordinates not in COORDINATES:
        raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}; got {coordinates!r}")
    return coordinates


class Spectrum(eqx.Module):
    """The decompositions `X = U_X S_X V_Xᵀ` (compact, `ρ = rank X`) and `Ȳ = Y V_X = U_Y Σ_Y V_Yᵀ` (full)."""

    U_X: Float[Array, "d_x rho"]
    S_X: Float[Array, " rho"]
    Y_bar: Float[Array, "d_y rho"]
    U_Y: Float[Array, "d_y d_y"]
    s: Float[Array, " min_d_y_rho"]
    V_Y: Float[Array, "rho rho"]

    @property
    def Sigma_Y(self) -> Float[Array, "d_y rho"]:
        """`Σ_Y`, the rectangular diagonal matrix of the singular values."""
        k = jnp.arange(self.s.shape[0])
        return jnp.zeros(self.Y_bar.shape, self.s.dtype).at[k, k].set(self.s)

    def standard_form(self, coordinates: str) -> tuple[Float[Array, "d_y rho"], Float[Array, "d_in rho"]]:
        """The target `A` and the design `D` with effective loss `½‖A − WD‖²`."""
        check_coordinates(coordinates)
        if coordinates == "data":
            return self.Y_bar, self.U_X * self.S_X[None, :]
        if coordinates == "reduced":
            return matmul(self.U_Y.T, self.Y_bar), jnp.diag(self.S_X)
        return self.Sigma_Y, jnp.eye(self.S_X.shape[0])

    def convert(self, net: LayerTuple, source: str, destination: str) -> LayerTuple:
        """Maps a network (or a batch) between coordinates, with the same loss.

        Into data coordinates the network of least `‖W_1‖` is returned: its first layer vanishes on the null directions of
        `X`, which the other coordinates do not have.

        **Raises:** `ValueError` for unknown coordinates and for widths that do not fit the source.
        """
        check_coordinates(source)
        check_coordinates(destination)
        if source == destination:
            return net
        ends = (self.U_X.shape[0] if source == "data" else self.S_X.shape[0], self.U_Y.shape[0])
        if (net.widths[0], net.widths[-1]) != ends:
            raise ValueError(f"widths {net.widths} do not fit {source} coordinates, which need d_0, d_N = {ends}")
        into = {"data": self.U_X, "whitened": self.V_Y.T / self.S_X[None, :]}
        out_of = {"data": self.U_X.T, "whitened": self.S_X[:, None] * self.V_Y}
        first, *_ = net.weights
        if source != "reduced":
            first = matmul(first, into[source])
        if destination != "reduced":
            first = matmul(first, out_of[destination])
        weights = [first, *net.weights[1:]]
        if "data" in (source, destination):
            weights[-1] = matmul(self.U_Y.T if source == "data" else self.U_Y, weights[-1])
        return LayerTuple(weights)


class SingularValues(eqx.Module):
    """The singular values of `Ȳ` alone, of a problem whose data carry derivatives: see `gdflow.perturbation`."""

    s: Float[Array, " k"]


def data_error(S_X: Any, norm_Y: Any, *, size: int) -> Any:
    """How far `Ȳ = YV_X` as computed may be from the exact one (Frobenius norm), up to a rotation: `max(100, size)·eps·κ(X)·‖Y‖`.

    Decompositions are backward stable in `X`: the range of the rows is turned by `eps·κ(X)`, which moves parts of `Y` as large
    as the residual of least squares. NumPy or JAX, traced or not, in double precision.
    """
    return zero_threshold(1.0, size) * (S_X[0] / S_X[-1]) * norm_Y


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What is left of the samples.

    - `spectrum`: the decompositions, with singular values at the level of round-off set to zero.
    - `residual`: `½(‖Y‖² − ‖Ȳ‖²)`, that of least squares.
    - `data_error`: how far the effective target may be from the exact one, see `gdflow.spectrum.data_error`.
    - `neglected`: the norm of the singular values of the target that were set to zero.
    - `rank_x`, `rank_y`, `rank_targets`: the ranks of `X`, of `Ȳ` and of `Y`, as they were decided.
    - `notes`: what a reader should know, in words.
    """

    spectrum: Spectrum
    residual: float
    data_error: float
    neglected: float
    rank_x: RankDecision
    rank_y: RankDecision
    rank_targets: RankDecision
    notes: tuple[str, ...]


def reduce_samples(X: np.ndarray, Y: np.ndarray) -> Reduction:
    """Decomposes the data `X (d_x, m)`, `Y (d_y, m)`, with `X` not zero. On the host, in float64.

    Where `X` has rank `ρ < d_x` it is reduced to its range.
    """
    d_x, size, notes = len(X), len(X) + len(Y), []
    if X.shape[1] > size:
        notes.append("samples reduced by Householder QR: singular values to a few eps of the largest")
    X, Y = _compress(X, Y)
    U_X, S_X, V_Xt = np.linalg.svd(X, full_matrices=False)
    rank_x = decide_rank(S_X, size=max(X.shape))
    rank_targets = decide_rank(np.linalg.svd(Y, compute_uv=False), size=max(Y.shape))
    rho = rank_x.rank
    if rho < d_x:
        notes.append(f"X has rank {rho} < d_x = {d_x}: reduced to its range; W_1 never moves on the null directions")
    U_X, S_X, V_Xt = U_X[:, :rho], S_X[:rho], V_Xt[:rho]
    Y_bar = Y @ V_Xt.T
    residual = Y - Y_bar @ V_Xt
    U_Y, s, V_Yt = np.linalg.svd(Y_bar, full_matrices=True)
    # Rank is judged beside ‖Y‖: where X explains nothing of Y, the entries of Ȳ are round-off of Y's.
    rank_y = decide_rank(np.append(s, np.linalg.norm(Y)), size=max(Y_bar.shape))
    rank_y = dataclasses.replace(rank_y, rank=max(rank_y.rank - 1, 0))
    neglected = 0.0
    if rank_y.rank < len(s):
        neglected = float(np.linalg.norm(s[s <= rank_y.threshold]))
        s = np.where(s > rank_y.threshold, s, 0.0)
        Y_bar = (U_Y[:, : len(s)] * s) @ V_Yt[: len(s)]
        notes.append(f"the effective target has rank {rank_y.rank} of {len(s)}: zero singular values add no levels")
    return Reduction(
        spectrum=Spectrum(*map(jnp.asarray, (U_X, S_X, Y_bar, U_Y, s, V_Yt.T))),
        residual=float(0.5 * np.sum(residual**2)),
        data_error=float(data_error(S_X, np.linalg.norm(Y), size=size)),
        neglected=neglected,
        rank_x=rank_x,
        rank_y=rank_y,
        rank_targets=rank_targets,
        notes=tuple(notes),
    )


def _compress(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotates the samples into at most `d_x + d_y` of them: the triangular factor of `[X; Y]ᵀ` by Householder QR.

    Backward stable (unlike forming `XXᵀ`, which loses half the digits of small singular values), and blockwise.
    """
    d_x, width = X.shape[0], X.shape[0] + Y.shape[0]
    if X.shape[1] <= width:
        return X, Y
    R = np.zeros((0, width))
    for first in range(0, X.shape[1], _BLOCK):
        block = np.concatenate([X[:, first : first + _BLOCK], Y[:, first : first + _BLOCK]]).T
        R = np.asarray(np.linalg.qr(np.concatenate([R, block]), mode="r"))
    return R[:, :d_x].T, R[:, d_x:].T
