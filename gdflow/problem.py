"""The regression problem `min ½‖Y − W_N…W_1X‖²`: its reduction, its coordinates and what can be said before any flow.

The samples are needed only once. With the compact singular value decomposition `X = U_X S_X V_Xᵀ` and `Ȳ = Y V_X`,

    ½‖Y − WX‖² = ½‖Ȳ − W U_X S_X‖² + ½(‖Y‖² − ‖Ȳ‖²),

the first term is the *effective loss*, the second the residual of least squares. Three coordinates, two flows:

| coordinates | state | effective loss | flow |
|---|---|---|---|
| `"data"` | the given `W_j` | `½‖Ȳ − W U_X S_X‖²` | the one a practitioner runs |
| `"reduced"` | `W_1U_X`, `U_YᵀW_N` | `½‖U_YᵀȲ − W S_X‖²` | the same flow, isometric, with diagonal input |
| `"whitened"` | `W_1U_XS_XV_Y`, `U_YᵀW_N` | `½‖Σ_Y − W‖²` | another flow unless `XXᵀ = I`: the GDD of eq. (3) |

with `Ȳ = U_Y Σ_Y V_Yᵀ`; eq. (3) is that of Chitour, Liao, Couillet (2022).
All three have the same critical values. Every form is `ℓ(WD; A)` for a target `A` and a design `D`.
"""

import dataclasses
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from gdflow.assumptions import Assumption, check_dimensions, check_distinct, check_ranks, check_subset_sums
from gdflow.data import Table, check_array, from_frame, read_csv, read_npz, standardize
from gdflow.levels import CriticalValues, Level, iterate_levels, list_levels, single_layer_level
from gdflow.losses import AbstractLoss, SquaredError
from gdflow.network import LayerTuple, check_layer_tuple, check_widths, matmul
from gdflow.objective import Objective
from gdflow.ranks import RankDecision, decide_rank, equal_threshold
from gdflow.tables import Printable, key_value_table, some_names

COORDINATES = ("data", "reduced", "whitened")

#: Samples are taken into the triangular factor in blocks of this many, which bounds the memory of the reduction.
_BLOCK = 65536


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What is known of the data: sizes, rank decisions, names, how they were prepared, and notes for the report."""

    m: int
    d_x: int
    d_y: int
    rank_x: RankDecision | None
    rank_y: RankDecision | None
    rank_targets: RankDecision | None
    features: tuple[str, ...]
    targets: tuple[str, ...]
    source: str
    notes: tuple[str, ...]


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


class SingularValues(eqx.Module):
    """The singular values of `Ȳ` alone, of a problem whose data carry derivatives: see `gdflow.perturbation`."""

    s: Float[Array, " k"]


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


def data_error(S_X: Any, norm_Y: Any, *, size: int, eps: float = float(np.finfo(np.float64).eps)) -> Any:
    """How far `Ȳ = YV_X` as computed may be from the exact one (Frobenius norm), up to a rotation: `max(100, size)·eps·κ(X)·‖Y‖`.

    Decompositions are backward stable in `X`: the range of the rows is turned by `eps·κ(X)`, which moves parts of `Y` as large
    as the residual of least squares. NumPy or JAX, traced or not.
    """
    return max(100, size) * eps * (S_X[0] / S_X[-1]) * norm_Y


def _check_scale(name: str, array: np.ndarray) -> None:
    """`ValueError` where products of a few entries would leave the floating-point range: levels would be 0 or infinite."""
    limits = jnp.finfo(float)
    least, most = float(limits.tiny) ** 0.25, float(limits.max) ** 0.25
    largest = float(abs(array).max())
    if largest and not least <= largest <= most:
        raise ValueError(
            f"the entries of {name} are up to {largest:.2g}: losses and critical values, which are made of their squares, would "
            f"leave the range of {limits.dtype}. Divide {name} by {largest:.1g}, which only changes the "
            "unit of the weights, or let scale=True standardise the rows"
        )


class Problem(eqx.Module):
    """The problem of fitting `Y ≈ W_N … W_1 X`, in chosen coordinates, checked once.

    **Arguments:**

    - `X`: shape `(d_x, m)`, one column a sample.
    - `Y`: shape `(d_y, m)`.
    - `loss`: a loss of the end-to-end output; by default the squared error `½‖Y − WX‖²_F`. Other losses have neither the
      m-free reduction nor a finite set of critical values and exist in data coordinates only.
    - `coordinates`: `"data"`, `"reduced"` or `"whitened"`, see the module's table. Networks and laws of starts are
      understood in them.
    - `center`, `scale`: whether to subtract the mean and divide by the standard deviation, row by row, of `X` and `Y`;
      off by default.
    - `features`, `targets`, `source`: names for the report.

    Fields: `objective`, what is minimised, in the chosen coordinates, and all of it that compiled programs need; `offset`, the
    residual of least squares; `spectrum`, the decompositions; `neglected`, the norm of the singular values of the target that
    were taken for zero, which certificates allow for.

    A rank-deficient `X` is reduced to its range (Chitour, Liao, Couillet 2022, Remark 1): the component of `W_1` on its
    null directions never moves. The decomposition runs on the host in float64; derivatives with respect to the data go
    through `gdflow.perturbation`.

    **Raises:** `ValueError`/`TypeError` for shapes that do not fit, non-finite or non-real entries (naming the entry), a
    zero `X`, a constant row where `scale=True`, coordinates the loss does not admit, and entries so large or small (beyond
    about 1e±77) that the squares of losses would leave the range of the arithmetic.

    ```python
    >>> problem = Problem(X, Y, coordinates="whitened")
    >>> print(problem.report(problem.widths([5, 5])))
    ```
    """

    objective: Objective
    offset: Float[Array, ""]
    spectrum: Spectrum | SingularValues | None
    neglected: Float[Array, ""]
    coordinates: str = eqx.field(static=True)
    info: DataInfo = eqx.field(static=True)

    def __init__(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        loss: AbstractLoss = SquaredError(),
        *,
        coordinates: str = "data",
        center: bool = False,
        scale: bool = False,
        features: Sequence[str] = (),
        targets: Sequence[str] = (),
        source: str = "arrays",
    ):
        if any(isinstance(array, jax.core.Tracer) for array in (X, Y)):
            raise TypeError(
                "Problem(X, Y) decomposes its data on the host and cannot be transformed by jax.jit, grad or vmap: make the "
                "problem outside, and put traced data into it with gdflow.perturbation.with_data or with_singular_values"
            )
        X, Y = check_array("X", X), check_array("Y", Y)
        if X.shape[1] != Y.shape[1]:
            raise ValueError(
                f"X has {X.shape[1]} samples (columns) but Y has {Y.shape[1]}; shapes {X.shape}, {Y.shape}"
            )
        _check_coordinates(coordinates)
        for kind, names, array in (("features", features, X), ("targets", targets, Y)):
            if len(names) not in (0, len(array)):
                raise ValueError(f"{len(names)} names of {kind} for {len(array)} rows: {some_names(names)}")
        notes = []
        if center or scale:
            how = {(True, True): "standardised", (True, False): "centred", (False, True): "scaled"}[center, scale]
            notes.append(f"rows of X and Y were {how}" + (" to unit variance" if scale else ""))
        X = standardize("X", X, features, center, scale)
        Y = standardize("Y", Y, targets, center, scale)
        _check_scale("X", X)
        _check_scale("Y", Y)
        if not X.any():
            raise ValueError("X is zero" + (" after centring: there are too few distinct samples" if center else ""))
        if not isinstance(loss, AbstractLoss):
            raise TypeError(f"the loss must be one of gdflow.losses, such as SquaredError(); got {loss!r}")
        loss.check_target(Y)
        sizes = dict(
            m=X.shape[1],
            d_x=X.shape[0],
            d_y=Y.shape[0],
            features=tuple(features),
            targets=tuple(targets),
            source=source,
        )
        if not isinstance(loss, SquaredError):
            if coordinates != "data":
                raise ValueError(
                    f"coordinates {coordinates!r} need the squared error; {type(loss).__name__} has data coordinates only"
                )
            self.objective = Objective(jnp.asarray(Y), jnp.asarray(X), loss, jnp.zeros(()))
            self.offset, self.spectrum, self.coordinates = jnp.zeros(()), None, coordinates
            self.neglected = jnp.zeros(())
            self.info = DataInfo(rank_x=None, rank_y=None, rank_targets=None, notes=tuple(notes), **sizes)
            return

        if X.shape[1] > sum((X.shape[0], Y.shape[0])):
            notes.append("samples reduced by Householder QR: singular values to a few eps of the largest")
        X, Y = _compress(X, Y)
        U_X, S_X, V_Xt = np.linalg.svd(X, full_matrices=False)
        rank_x = decide_rank(S_X, size=max(X.shape))
        rank_targets = decide_rank(np.linalg.svd(Y, compute_uv=False), size=max(Y.shape))
        rho = rank_x.rank
        if rho < sizes["d_x"]:
            notes.append(
                f"X has rank {rho} < d_x = {sizes['d_x']}: reduced to its range; W_1 never moves on the null directions"
            )
        U_X, S_X, V_Xt = U_X[:, :rho], S_X[:rho], V_Xt[:rho]
        Y_bar = Y @ V_Xt.T
        residual = Y - Y_bar @ V_Xt
        U_Y, s, V_Yt = np.linalg.svd(Y_bar, full_matrices=True)
        # Rank is judged beside ‖Y‖: where X explains nothing of Y, the entries of Ȳ are round-off of Y's.
        rank_y = decide_rank(np.append(s, np.linalg.norm(Y)), size=max(Y_bar.shape))
        rank_y = dataclasses.replace(rank_y, rank=max(rank_y.rank - 1, 0))
        error = jnp.asarray(data_error(S_X, np.linalg.norm(Y), size=sizes["d_x"] + sizes["d_y"]))
        self.neglected = jnp.asarray(np.linalg.norm(s[s <= rank_y.threshold]) if rank_y.rank < len(s) else 0.0)
        if rank_y.rank < len(s):
            s = np.where(s > rank_y.threshold, s, 0.0)
            Y_bar = (U_Y[:, : len(s)] * s) @ V_Yt[: len(s)]
            notes.append(f"the effective target has rank {rank_y.rank} of {len(s)}: zero singular values add no levels")
        self.spectrum = Spectrum(*map(jnp.asarray, (U_X, S_X, Y_bar, U_Y, s, V_Yt.T)))
        self.offset = jnp.asarray(0.5 * np.sum(residual**2))
        self.coordinates = coordinates
        self.info = DataInfo(rank_x=rank_x, rank_y=rank_y, rank_targets=rank_targets, notes=tuple(notes), **sizes)
        self.objective = Objective(*self.standard_form(coordinates), loss, error)

    def standard_form(self, coordinates: str) -> tuple[Array, Array]:
        """`(A, D)` with effective loss `½‖A − WD‖²`."""
        f = self.decomposition
        if coordinates == "data":
            return f.Y_bar, f.U_X * f.S_X[None, :]
        if coordinates == "reduced":
            return matmul(f.U_Y.T, f.Y_bar), jnp.diag(f.S_X)
        return f.Sigma_Y, jnp.eye(f.S_X.shape[0])

    @classmethod
    def from_target(cls, A: ArrayLike, D: ArrayLike | None = None, *, coordinates: str = "data") -> "Problem":
        """The problem `½‖A − WD‖²` for a target matrix `A (d_y, d_x)` and an input scale `D`.

        **Arguments:** `D`: a matrix with `d_x` columns, the `d_x` entries of a diagonal, or `None` for the identity.
        """
        A = check_array("A", A)
        D = np.eye(A.shape[1]) if D is None else np.asarray(D)
        D = check_array("D", np.diag(D) if D.ndim == 1 else D)
        if D.shape[1] != A.shape[1]:
            raise ValueError(f"D has {D.shape[1]} columns but A has {A.shape[1]}; shapes {D.shape}, {A.shape}")
        return cls(D, A, coordinates=coordinates, source="target matrix")

    @classmethod
    def from_singular_values(
        cls, s: ArrayLike, d_x: int | None = None, d_y: int | None = None, *, coordinates: str = "whitened"
    ) -> "Problem":
        """The problem `½‖Σ − W‖²` with the given singular values on the diagonal of a `(d_y, d_x)` target.

        ```python
        >>> Problem.from_singular_values([3, 2, 1], d_x=6).target.shape
        (3, 6)
        ```
        """
        values = np.atleast_1d(np.asarray(s, dtype=np.float64))
        d_x, d_y = (values.size if d is None else d for d in (d_x, d_y))
        if min(d_x, d_y) < (values.size > 0):
            raise ValueError(f"d_x and d_y must be positive, got {d_x} and {d_y}")
        if values.ndim != 1 or values.size == 0 or not np.all(values >= 0) or not np.all(np.isfinite(values)):
            raise ValueError(
                f"singular values must be finite and not negative, at least one of them; got {values.tolist()}"
            )
        if values.size > min(d_x, d_y):
            raise ValueError(f"a {d_y}×{d_x} target has at most {min(d_x, d_y)} singular values, got {values.size}")
        A = np.zeros((d_y, d_x))
        A[np.arange(values.size), np.arange(values.size)] = -np.sort(-values)
        return cls.from_target(A, coordinates=coordinates)

    @classmethod
    def _from_table(cls, table: Table, **options: Any) -> "Problem":
        names: dict[str, Any] = dict(features=table.features, targets=table.targets, source=table.source)
        return cls(table.X, table.Y, **names, **options)

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike,
        targets: Iterable[str] | str,
        features: Iterable[str] | str | None = None,
        *,
        center: bool = True,
        scale: bool = True,
        **options: Any,
    ) -> "Problem":
        """From a CSV file with a header, standardised by default; see `gdflow.data.read_csv` for its errors."""
        return cls._from_table(read_csv(path, targets, features), center=center, scale=scale, **options)

    @classmethod
    def from_npz(cls, path: str | os.PathLike, **options: Any) -> "Problem":
        """From an NPZ file with arrays `X (d_x, m)` and `Y (d_y, m)`; not standardised unless asked."""
        return cls._from_table(read_npz(path), **options)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        targets: Hashable | Iterable[Hashable],
        features: Hashable | Iterable[Hashable] | None = None,
        *,
        center: bool = True,
        scale: bool = True,
        **options: Any,
    ) -> "Problem":
        """From a data frame or a dictionary of columns, one row a sample, standardised by default: `gdflow.data.from_frame`."""
        return cls._from_table(from_frame(frame, targets, features), center=center, scale=scale, **options)

    # -- sizes ---------------------------------------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        """`d_0` of networks in these coordinates: `d_x` in data coordinates, `ρ = rank X` in the others."""
        return self.objective.d_in

    @property
    def d_out(self) -> int:
        """`d_N = d_y`."""
        return self.objective.d_out

    def widths(self, hidden: Iterable[int]) -> tuple[int, ...]:
        """`(d_0, *hidden, d_N)` for networks of this problem."""
        if not isinstance(hidden, Iterable):
            raise TypeError(f"the widths of the hidden layers must be a sequence, such as [5, 5]; got {hidden!r}")
        return check_widths((self.d_in, *hidden, self.d_out))

    def check_widths(self, widths: Iterable[int]) -> tuple[int, ...]:
        """`widths` if networks of these widths fit the problem; else a `ValueError` that says what would."""
        widths = check_widths(widths)
        if (widths[0], widths[-1]) != (self.d_in, self.d_out):
            raise ValueError(
                f"widths {widths} do not fit the problem, whose {self.coordinates} coordinates need "
                f"d_0 = {self.d_in} and d_N = {self.d_out}"
            )
        return widths

    @property
    def rank_inputs(self) -> int:
        """`ρ = rank X`; taken to be full if there is no decomposition to tell it from."""
        return self.spectrum.S_X.shape[0] if isinstance(self.spectrum, Spectrum) else self.d_in

    @property
    def has_full_row_rank(self) -> bool:
        """Whether `XXᵀ` is invertible (in these coordinates)."""
        return self.rank_inputs == self.d_in

    def check_full_row_rank(self) -> None:
        """`ValueError` unless `XXᵀ` is invertible, which the theory of the Riemannian flow assumes."""
        if not self.has_full_row_rank:
            raise ValueError(
                f"X has rank {self.rank_inputs} < d_x = {self.d_in}, so XXᵀ is not invertible, as the theory of "
                'the Riemannian flow assumes; on the range of X it is: problem.in_coordinates("reduced") or "whitened"'
            )

    def check_network(self, net: LayerTuple, *, batch: bool = False) -> None:
        """`ValueError` unless `net` is one finite network (or, with `batch`, a batch) in these coordinates."""
        self.check_widths(check_layer_tuple(net).widths)
        if net.batch_shape and not batch:
            raise ValueError(f"one network is needed here, got a batch of shape {net.batch_shape}: use jax.vmap")
        for j, w in enumerate(net.weights, 1):
            if w.dtype != self.target.dtype:
                raise ValueError(f"W_{j} is {w.dtype} but the problem is {self.target.dtype}: convert the network")
            bad = np.argwhere(~np.isfinite(np.asarray(w)))
            if bad.size:
                raise ValueError(
                    f"W_{j} is {w[tuple(bad[0])]} at entry {tuple(map(int, bad[0]))}; starts must be finite"
                )

    def max_rank(self, widths: Iterable[int]) -> int:
        """`r_max = min(ρ, d_1, …, d_N)`, the largest rank an end-to-end matrix can have on the range of `X`."""
        _ = self.singular_values  # a loss without them has no such bound
        return min(self.rank_inputs, *self.check_widths(widths)[1:])

    @property
    def decomposition(self) -> Spectrum:
        """The decompositions of the data; `ValueError` if there are none."""
        if isinstance(self.spectrum, SingularValues):
            raise ValueError(
                "this problem was made by gdflow.perturbation.with_data, for derivatives: it has singular values but no vectors"
            )
        if self.spectrum is None:
            raise ValueError(
                f"{type(self.loss).__name__} has no finite set of critical values: this needs the squared error"
            )
        return self.spectrum

    @property
    def singular_values(self) -> Float[Array, " k"]:
        """`s_1 ≥ s_2 ≥ …` of `Ȳ` (equally of `Q = YXᵀ(XXᵀ)^{-1/2}`), `k = min(d_y, ρ)`."""
        return self.spectrum.s if isinstance(self.spectrum, SingularValues) else self.decomposition.s

    @property
    def assumptions_of_rank(self) -> tuple[str, ...]:
        """What is taken for zero, in words: singular values at the level of round-off. Certificates are for what is left."""
        info, notes = self.info, []
        if info is not None and info.rank_x is not None and info.rank_x.largest_dropped > 0:
            notes.append(
                f"X has rank {info.rank_x.rank}: singular values up to {info.rank_x.largest_dropped:.1e} taken for zero"
            )
        if float(self.neglected) > 0:
            notes.append(f"the target's singular values up to {float(self.neglected):.1e} taken for zero")
        return tuple(notes)

    @property
    def level_tolerance(self) -> float:
        """Distance at which two critical values count as one, in the arithmetic of this problem."""
        scale = float(np.sum(np.asarray(self.singular_values, dtype=np.float64) ** 2))
        return equal_threshold(scale, float(jnp.finfo(self.target.dtype).eps))

    # -- the objective -------------------------------------------------------------------------------------------------

    @property
    def target(self) -> Float[Array, "d_y q"]:
        """The target `A` in these coordinates."""
        return self.objective.target

    @property
    def design(self) -> Float[Array, "d_in q"]:
        """The design `D` in these coordinates."""
        return self.objective.design

    @property
    def loss(self) -> AbstractLoss:
        """The loss `ℓ` of the output."""
        return self.objective.loss

    @property
    def data_error(self) -> Float[Array, ""]:
        """How far the target may be from the exact one, by round-off of its decomposition."""
        return self.objective.data_error

    def end_to_end_loss(self, W: Float[Array, "d_y d_in"]) -> Float[Array, ""]:
        """Effective loss `ℓ(WD; A)` of an end-to-end matrix."""
        return self.objective.end_to_end_loss(W)

    def end_to_end_gradient(self, W: Float[Array, "d_y d_in"]) -> Float[Array, "d_y d_in"]:
        """Its gradient; for the squared error `−M Dᵀ` with `M = A − WD`."""
        return self.objective.end_to_end_gradient(W)

    def effective_loss(self, net: LayerTuple) -> Float[Array, ""]:
        """Effective loss of a network: the loss less the residual of least squares (all of it, for other losses)."""
        return self.objective.effective_loss(net)

    def total_loss(self, net: LayerTuple) -> Float[Array, ""]:
        """The loss on the data, `½‖Y − W_N…W_1X‖²` for the squared error."""
        return self.effective_loss(net) + self.offset

    def gradient(self, net: LayerTuple) -> LayerTuple:
        """Gradient of the loss in the layers, in closed form (Chitour, Liao, Couillet 2022, eq. (6), with `D`)."""
        return self.objective.gradient(net)

    def least_squares(self) -> Float[Array, "d_y d_in"]:
        """The end-to-end matrix of least norm that minimises the loss without rank constraint (`W_LS = YXᵀ(XXᵀ)⁺`)."""
        f = self.decomposition
        W = matmul(f.U_Y.T, f.Y_bar) / f.S_X[None, :]
        return self.convert(LayerTuple([W]), "reduced", self.coordinates).weights[0]

    # -- coordinates ---------------------------------------------------------------------------------------------------

    def in_coordinates(self, coordinates: str) -> "Problem":
        """The same problem in other coordinates."""
        _check_coordinates(coordinates)
        if coordinates == self.coordinates:
            return self
        objective = Objective(*self.standard_form(coordinates), self.loss, self.data_error)
        return self.replace(coordinates=coordinates, objective=objective)

    def without_info(self) -> "Problem":
        """The same problem without its description, which is static: with it, every new data set would compile anew."""
        return self.replace(info=None)

    def replace(self, **fields: Any) -> "Problem":
        """A copy with other fields, static ones too; whether they fit each other is not checked."""
        copy = jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(self))
        for name, value in fields.items():
            object.__setattr__(copy, name, value)
        return copy

    def convert(self, net: LayerTuple, source: str, destination: str) -> LayerTuple:
        """Maps a network (or a batch) between coordinates, with the same loss.

        Into data coordinates the network of least `‖W_1‖` is returned: its first layer vanishes on the null directions of
        `X`, which the other coordinates do not have.
        """
        _check_coordinates(source)
        _check_coordinates(destination)
        if source == destination:
            return net
        f = self.decomposition
        ends = (f.U_X.shape[0] if source == "data" else f.S_X.shape[0], self.d_out)
        if (net.widths[0], net.widths[-1]) != ends:
            raise ValueError(f"widths {net.widths} do not fit {source} coordinates, which need d_0, d_N = {ends}")
        into = {"data": f.U_X, "whitened": f.V_Y.T / f.S_X[None, :]}
        out_of = {"data": f.U_X.T, "whitened": f.S_X[:, None] * f.V_Y}
        first, *_ = net.weights
        if source != "reduced":
            first = matmul(first, into[source])
        if destination != "reduced":
            first = matmul(first, out_of[destination])
        weights = [first, *net.weights[1:]]
        if "data" in (source, destination):
            weights[-1] = matmul(f.U_Y.T if source == "data" else f.U_Y, weights[-1])
        return LayerTuple(weights)

    # -- before any flow -----------------------------------------------------------------------------------------------

    def report(self, widths: Iterable[int] | None = None, *, lowest: int | None = None) -> "Report":
        """Assumptions with margins, singular values and critical values for networks of given widths.

        **Arguments:**

        - `widths`: `(d_0, …, d_N)`; without them the rank is bounded by the data alone.
        - `lowest`: list that many levels; by default all if they are at most 2¹⁰, else the lowest 64.
        """
        f = self.decomposition
        widths = None if widths is None else self.check_widths(widths)
        max_rank = min(f.Y_bar.shape) if widths is None else self.max_rank(widths)
        levels = critical_values(
            self,
            max_rank,
            lowest=64 if lowest is None and len(f.s) > 10 else lowest,
            num_layers=2 if widths is None else len(widths) - 1,
        )
        info, s = self.info, np.asarray(f.s, dtype=np.float64)
        assert info.rank_x is not None
        assert info.rank_targets is not None
        checks = (
            check_dimensions(info.m, info.d_x, info.d_y, None if widths is None else widths[1:-1]),
            check_ranks(info.rank_x, info.rank_targets, info.d_x, info.d_y),
            check_distinct(s, info.d_y),
            check_subset_sums(levels),
        )
        return Report(info, self.coordinates, widths, max_rank, checks, levels, float(self.offset))


def check_problem(problem: object) -> Problem:
    """`problem`, if it is one; else a `TypeError`, as for arguments in the wrong order."""
    if not isinstance(problem, Problem):
        raise TypeError(f"the first argument must be a gdflow.Problem, got {type(problem).__name__}")
    return problem


def _check_coordinates(coordinates: str) -> None:
    if coordinates not in COORDINATES:
        raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}; got {coordinates!r}")


def critical_values(
    problem: Problem, max_rank: int, *, lowest: int | None = None, num_layers: int = 2
) -> CriticalValues:
    """The critical values `½Σ_{i∉S}s_i²`, `|S| ≤ max_rank`, of the effective loss, in increasing order.

    **Arguments:**

    - `max_rank`: `r_max`; `problem.max_rank(widths)` for networks of given widths.
    - `lowest`: only the lowest so many, without enumerating the others.
    - `num_layers`: `N`; the values are the same from two layers on, but a single layer is convex and has its minimum only.

    **Raises:** `ValueError` for losses without levels, and if all of more than 2²⁰ subsets are asked for.
    """
    s = np.asarray(problem.singular_values, dtype=np.float64)
    if num_layers == 1:
        return single_layer_level(s, max_rank)
    return list_levels(s, max_rank, lowest=lowest, tolerance=problem.level_tolerance)


def iterate_critical_values(problem: Problem, max_rank: int) -> Iterator[Level]:
    """Streams the critical values from the lowest upwards; see `gdflow.critical_values`."""
    s = np.asarray(problem.singular_values, dtype=np.float64)
    return iterate_levels(s, max_rank, tolerance=problem.level_tolerance)


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Printable):
    """What is known of a problem before any flow; prints as a table."""

    info: DataInfo
    coordinates: str
    widths: tuple[int, ...] | None
    max_rank: int
    assumptions: tuple[Assumption, ...]
    levels: CriticalValues
    residual: float

    def __rich__(self) -> rich.console.RenderableType:
        info = self.info
        rows = [
            ("data", f"{os.path.basename(info.source)}: m={info.m} samples, d_x={info.d_x}, d_y={info.d_y}"),
            *([("features", some_names(info.features))] if info.features else []),
            *([("targets", some_names(info.targets))] if info.targets else []),
            ("coordinates", self.coordinates),
            *([("widths", "-".join(map(str, self.widths)))] if self.widths else []),
            ("largest rank", str(self.max_rank)),
            ("singular values", ", ".join(f"{s:.6g}" for s in self.levels.singular_values[:12])
                + (" …" if len(self.levels.singular_values) > 12 else "")),
            ("least squares", f"residual ½‖Y − W_LS X‖² = {self.residual:.6g}"),
        ]  # fmt: skip
        marks = {True: "holds", False: "FAILS", None: "not checked"}
        rows += [(a.name, f"{marks[a.holds]}: {a.margin}") for a in self.assumptions]
        rows += [("note", note) for note in info.notes]
        return rich.console.Group(key_value_table("Problem", rows), self.levels.__rich__())
