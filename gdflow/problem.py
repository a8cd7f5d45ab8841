"""The regression problem `min ½‖Y − W_N…W_1X‖²`: data, checked once, and what they say in chosen coordinates.

Beside the squared error other losses `ℓ(W_N…W_1X; Y)` are admitted, activations between the layers, and weight decay. Of the
squared error of a linear network the critical values are known beforehand, and in every coordinate system the problem is
`½‖A − WD‖²` for a target `A` and a design `D`; how these come about is told in `gdflow.spectrum`. All others have data
coordinates only. What is minimised is a `gdflow.objective.Objective`.
"""

import dataclasses
import os
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from gdflow.activations import AbstractActivation, Identity, as_activation
from gdflow.checks import check_number, is_traced
from gdflow.data import (
    Table,
    check_array,
    diagonal_target,
    from_frame,
    prepare,
    read_csv,
    read_npz,
    signed,
    standardize,
    standardize_features,
)
from gdflow.levels import CriticalValues, Level, iterate_levels, list_levels, single_layer_level
from gdflow.losses import AbstractLoss, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.network import LayerTuple, check_finite, check_layer_tuple, check_one_network, check_widths, matmul
from gdflow.objective import DataObjective, LinearObjective, NetworkObjective, Objective, PotentialObjective
from gdflow.ranks import equal_threshold
from gdflow.report import DataInfo, Report, ShortReport
from gdflow.spectrum import SingularValues, Spectrum, check_coordinates, reduce_samples
from gdflow.tables import some_numbers

# Compiled, so that a first call costs one program and not one for every operation.


@eqx.filter_jit
def _loss(objective: Objective, net: Any) -> Float[Array, ""]:
    return objective.effective_loss(net)


@eqx.filter_jit
def _gradient(objective: Objective, net: Any) -> Any:
    return objective.gradient(net)


class AbstractProblem(eqx.Module):
    """An objective to be minimised, and what is known of it.

    - `objective`: all of it that compiled programs need.
    - `coordinates`: of the points; `"data"` where there are no others.
    - `info`: where the data come from, if there are any.
    """

    objective: eqx.AbstractVar[Objective]
    coordinates: eqx.AbstractVar[str]
    info: eqx.AbstractVar[DataInfo | None]

    @abstractmethod
    def check_start(self, net: Any, *, batch: bool = False) -> None:
        """`ValueError` or `TypeError` unless `net` is a finite point (or, with `batch`, a batch of them)."""

    @property
    def dtype(self) -> Any:
        """The precision of the problem."""
        return jnp.result_type(float)

    @property
    def why_no_levels(self) -> str | None:
        """Why there is no finite set of critical values known beforehand; `None` if there is one."""
        return "its critical values are not known beforehand"

    def effective_loss(self, net: Any) -> Float[Array, ""]:
        """Effective loss of a point: the loss less the residual of least squares, where that is known (else all of it)."""
        return _loss(self.objective, net)

    def gradient(self, net: Any) -> Any:
        """Gradient of the loss."""
        return _gradient(self.objective, net)

    def isometric(self) -> "AbstractProblem":
        """The same flow in the coordinates that suit computation best; by default these."""
        return self

    def convert(self, net: Any, source: str, destination: str) -> Any:
        """Maps a point (or a batch) between coordinates; by default there is but one kind."""
        return net

    def without_info(self) -> "AbstractProblem":
        """The same problem without its description, which is static: with it, every new data set would compile anew."""
        return self.replace(info=None)

    def replace(self, **fields: Any) -> Any:
        """A copy with other fields, static ones too; whether they fit each other is not checked."""
        copy = jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(self))
        for name, value in fields.items():
            object.__setattr__(copy, name, value)
        return copy


class Potential(AbstractProblem):
    """Any function of any pytree of arrays as a problem: `gf.simulate` and `gf.basin_sizes` follow its gradient flow.

    **Arguments:** `function`: real-valued and traceable; its gradient is taken by automatic differentiation.

    ```python
    >>> double_well = gf.Potential(lambda x: (x**2 - 1) ** 2 / 4)
    >>> float(gf.simulate(double_well, jnp.asarray(0.3), 20.0).final)
    1.0
    ```
    """

    objective: PotentialObjective
    coordinates: str = eqx.field(static=True, default="data")
    info: DataInfo | None = eqx.field(static=True, default=None)

    def __init__(self, function: Callable[[Any], Array]):
        if not callable(function):
            raise TypeError(f"a potential needs a function of a point, got {function!r}")
        self.objective = PotentialObjective(function)
        self.coordinates, self.info = "data", None

    def check_start(self, net: Any, *, batch: bool = False) -> None:
        leaves = jax.tree.leaves(net)
        if not leaves:
            raise ValueError("a start needs at least one number")
        for x in leaves:
            if not eqx.is_inexact_array_like(x) or jnp.iscomplexobj(x):
                raise TypeError(f"a start is a tree of real floating-point arrays, but it contains {x!r}")
            if not np.all(np.isfinite(np.asarray(x))):
                raise ValueError("the start is not finite")
        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:] if batch else jnp.shape(x), jnp.result_type(x)), net
        )
        try:
            value = jax.eval_shape(self.objective.function, one)
        except Exception as error:
            raise ValueError(
                f"the potential cannot be evaluated at such a start: {type(error).__name__}: {error}"
            ) from error
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"a potential is a real number, but at the start it has shape {value.shape} and type {value.dtype}"
            )


class Problem(AbstractProblem):
    """The problem of fitting `Y ≈ W_N … W_1 X`, in chosen coordinates, checked once.

    **Arguments:**

    - `X`: shape `(d_x, m)`, one column a sample.
    - `Y`: shape `(d_y, m)`.
    - `loss`: a loss of the end-to-end output; by default the squared error `½‖Y − WX‖²_F`. Other losses have neither the
      m-free reduction nor a finite set of critical values and exist in data coordinates only.
    - `activations`: of a nonlinear network, see `gdflow.activations`: one (an instance or a name such as `"tanh"`) for all
      hidden layers, the output being linear; or a sequence of one for every layer, that of the output included.
    - `weight_decay`: `κ` of a term `½κΣ_j‖W_j‖²`.
    - `biases`: give every layer a bias: a constant unit 1 is appended to the inputs and to every hidden layer, so the widths
      count one more (`widths` knows), and the last column of every `W_j` is its bias.
    - `coordinates`: `"data"`, `"reduced"` or `"whitened"`, see `gdflow.spectrum`. Networks and laws of starts are
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
        activations: AbstractActivation | str | Sequence[AbstractActivation | str] | None = None,
        weight_decay: float = 0.0,
        biases: bool = False,
        coordinates: str = "data",
        center: bool = False,
        scale: bool = False,
        features: Sequence[str] = (),
        targets: Sequence[str] = (),
        source: str = "arrays",
    ):
        if is_traced(X, Y):
            raise TypeError(
                "Problem(X, Y) decomposes its data on the host and cannot be transformed by jax.jit, grad or vmap: make the "
                "problem outside, and put traced data into it with gdflow.perturbation.with_data or with_singular_values"
            )
        check_coordinates(coordinates)
        if not isinstance(loss, AbstractLoss):
            raise TypeError(f"the loss must be one of gdflow.losses, such as SquaredError(); got {loss!r}")
        layers = _as_activations(activations)
        decay = check_number("weight_decay", weight_decay)
        if decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        if not isinstance(biases, bool):
            raise TypeError(f"biases is True or False, got {biases!r}")
        linear = not decay and not biases and all(isinstance(layer, Identity) for layer in layers)
        reduces = linear and isinstance(loss, SquaredError)
        if not reduces and coordinates != "data":
            why = _why_no_levels(loss, layers, decay, biases)
            raise ValueError(
                f"coordinates {coordinates!r} are those of linear networks: {why}, which has data coordinates only"
            )
        dtype = jnp.result_type(float)
        X, Y, notes = prepare(X, Y, dtype, center=center, scale=scale, features=features, targets=targets)
        loss.check_target(Y)
        target, design, reduced = jnp.asarray(Y), jnp.asarray(X), None
        _check_lanes(loss, target)
        if reduces:
            reduced = reduce_samples(X, Y)
            target, design = reduced.spectrum.standard_form(coordinates)
        sizes = (reduced.residual, reduced.neglected, reduced.data_error) if reduced else (0.0, 0.0, 0.0)
        self.offset, self.neglected, data_error = (jnp.asarray(size, dtype) for size in sizes)
        if linear:
            self.objective = LinearObjective(target, design, loss, data_error, coordinates != "data")
        else:
            if biases:
                design = jnp.concatenate([design, jnp.ones((1, design.shape[1]), dtype)])
            self.objective = NetworkObjective(target, design, loss, layers, jnp.asarray(decay, dtype), bool(biases))
        self.spectrum = reduced.spectrum if reduced else None
        self.coordinates = coordinates
        self.info = DataInfo(
            m=X.shape[1],
            d_x=X.shape[0],
            d_y=Y.shape[0],
            rank_x=reduced.rank_x if reduced else None,
            rank_y=reduced.rank_y if reduced else None,
            rank_targets=reduced.rank_targets if reduced else None,
            features=tuple(features),
            targets=tuple(targets),
            source=source,
            notes=(*notes, *(reduced.notes if reduced else ())),
        )

    def __repr__(self) -> str:
        parts = [f"d_in={self.d_in}", f"d_out={self.d_out}", f"coordinates={self.coordinates!r}", f"loss={self.loss}"]
        if self.info is not None:
            parts.insert(0, f"m={self.info.m}")
        if isinstance(self.objective, NetworkObjective):
            parts.append(f"activations=[{', '.join(a.name for a in self.objective.activations)}]")
        if self.spectrum is not None:
            s = self.spectrum.s
            known = isinstance(s, np.ndarray | jax.Array) and not is_traced(s)
            parts.append(f"singular_values=[{some_numbers(np.asarray(s)) if known else '…'}]")
        return f"Problem({', '.join(parts)})"

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
        return cls.from_target(diagonal_target(s, d_x, d_y), coordinates=coordinates)

    @classmethod
    def from_table(
        cls,
        table: Table,
        loss: AbstractLoss = SquaredError(),
        *,
        center: bool = False,
        scale: bool = False,
        **options: Any,
    ) -> "Problem":
        """From a table that was read already, `gdflow.data.read_csv` or another.

        **Arguments:** `center`, `scale`: of the features and of targets that are numbers; classes are never standardised.

        **Raises:** `ValueError` also for targets of another kind than the loss is for, with what to do.
        """
        names: dict[str, Any] = dict(features=table.features, source=table.source)
        if table.label is None:
            _check_kind_of_targets(loss, table, center, scale)
            return cls(table.X, table.Y, loss, targets=table.targets, center=center, scale=scale, **names, **options)
        if isinstance(loss, Logistic):
            table = signed(table)
        X, notes = standardize_features(table, center, scale)
        problem = cls(X, table.Y, loss, **names, **options)
        info = dataclasses.replace(problem.info, targets=table.targets, notes=(*notes, *problem.info.notes))
        return problem.replace(info=info)

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike,
        targets: Iterable[str] | str = (),
        features: Iterable[str] | str | None = None,
        *,
        label: str | None = None,
        center: bool = True,
        scale: bool = True,
        **options: Any,
    ) -> "Problem":
        """From a CSV file with a header, standardised by default; see `gdflow.data.read_csv` for its errors.

        **Arguments:**

        - `targets`, `features`: names of columns; the features are by default all that are no targets.
        - `label`: instead of targets a column of classes, of texts, whole numbers or truth values. They are sorted, numbers by
          value, and `problem.info.targets` names them in this order. `Y` has a row for each, 1 for its samples and 0 for the
          others; for the logistic loss, of two classes, a single row with -1 for the first and 1 for the second. `Y` is not
          standardised; `X` is. By default the features are all other columns that hold a number.
        - `options`: of `gdflow.Problem`, such as `loss` and `activations`.

        ```python
        >>> Problem.from_csv(iris_path(), label="Species", loss=SoftmaxCrossEntropy(), activations="tanh").target.shape
        (3, 150)
        ```
        """
        return cls.from_table(read_csv(path, targets, features, label=label), center=center, scale=scale, **options)

    @classmethod
    def from_npz(cls, path: str | os.PathLike, **options: Any) -> "Problem":
        """From an NPZ file with arrays `X (d_x, m)` and `Y (d_y, m)`; not standardised unless asked."""
        return cls.from_table(read_npz(path), **options)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        targets: Hashable | Iterable[Hashable] = (),
        features: Hashable | Iterable[Hashable] | None = None,
        *,
        label: Hashable | None = None,
        center: bool = True,
        scale: bool = True,
        **options: Any,
    ) -> "Problem":
        """From a data frame or a dictionary of columns, one row a sample, standardised by default: `gdflow.data.from_frame`.

        The arguments are those of `from_csv`.

        ```python
        >>> frame = {"a": [1.0, 2.0, 4.0], "passed": ["no", "yes", "yes"]}
        >>> Problem.from_frame(frame, label="passed", loss=Logistic()).target
        Array([[-1.,  1.,  1.]], dtype=float64)
        ```
        """
        return cls.from_table(from_frame(frame, targets, features, label=label), center=center, scale=scale, **options)

    # -- sizes ---------------------------------------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        """`d_0` of networks in these coordinates: `d_x` in data coordinates, `ρ = rank X` in the others."""
        return self._network.d_in

    @property
    def d_out(self) -> int:
        """`d_N = d_y`."""
        return self._network.d_out

    def widths(self, hidden: Iterable[int]) -> tuple[int, ...]:
        """`(d_0, *hidden, d_N)` for networks of this problem.

        **Arguments:** `hidden`: `d_1, …, d_{N−1}` alone; the problem knows `d_0` and `d_N` and puts them around. So the widths of
        a whole network, given here, make one with two layers more.

        ```python
        >>> Problem.from_singular_values([3, 2, 1], d_x=6).widths([5, 5])
        (6, 5, 5, 3)
        ```
        """
        if not isinstance(hidden, Iterable):
            raise TypeError(f"the widths of the hidden layers must be a sequence, such as [5, 5]; got {hidden!r}")
        more = 1 if isinstance(self.objective, NetworkObjective) and self.objective.biases else 0
        return self.check_widths((self.d_in, *(d + more for d in check_widths((1, *hidden, 1))[1:-1]), self.d_out))

    def check_widths(self, widths: Iterable[int]) -> tuple[int, ...]:
        """`widths` if networks of these widths fit the problem; else a `ValueError` that says what would."""
        widths = check_widths(widths)
        if (widths[0], widths[-1]) != (self.d_in, self.d_out):
            raise ValueError(
                f"widths {widths} do not fit the problem, whose {self.coordinates} coordinates need "
                f"d_0 = {self.d_in} and d_N = {self.d_out}"
            )
        if isinstance(self.objective, NetworkObjective):
            self.objective.layer_activations(len(widths) - 1)
            if self.objective.biases and min(widths[:-1]) < 2:
                raise ValueError(
                    f"with biases the last unit of every layer is constant, so widths {widths} leave none: 2 or more"
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
        if not batch:
            check_one_network(net)
        for j, w in enumerate(net.weights, 1):
            if w.dtype != self.target.dtype:
                raise ValueError(f"W_{j} is {w.dtype} but the problem is {self.target.dtype}: convert the network")
        check_finite(net)

    def check_start(self, net: Any, *, batch: bool = False) -> None:
        """`ValueError` or `TypeError` unless `net` is one finite network (or, with `batch`, a batch) in these coordinates."""
        self.check_network(check_layer_tuple(net), batch=batch)

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
                f"this needs the critical values, known for the squared error of linear networks only: {self.why_no_levels}"
            )
        return self.spectrum

    @property
    def why_no_levels(self) -> str | None:
        if self.spectrum is not None:
            return None
        if isinstance(self.objective, NetworkObjective):
            o = self.objective
            return _why_no_levels(o.loss, o.activations, float(o.decay), o.biases)
        return _why_no_levels(self.loss, (), 0.0, False)

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
    def _network(self) -> DataObjective:
        """The objective, of a network in any case."""
        assert isinstance(self.objective, DataObjective)
        return self.objective

    @property
    def linear(self) -> LinearObjective:
        """The objective of a linear network; `ValueError` if it is of another."""
        if not isinstance(self.objective, LinearObjective):
            raise ValueError(f"this is about linear networks without weight decay: {self.why_no_levels}")
        return self.objective

    @property
    def dtype(self) -> Any:
        return self.target.dtype

    @property
    def target(self) -> Float[Array, "d_y q"]:
        """The target `A` in these coordinates."""
        return self._network.target

    @property
    def design(self) -> Float[Array, "d_in q"]:
        """The design `D` in these coordinates."""
        return self._network.design

    @property
    def loss(self) -> AbstractLoss:
        """The loss `ℓ` of the output."""
        return self._network.loss

    @property
    def data_error(self) -> Float[Array, ""]:
        """How far the target may be from the exact one, by round-off of its decomposition."""
        return self.linear.data_error

    def end_to_end_loss(self, W: Float[Array, "d_y d_in"]) -> Float[Array, ""]:
        """Effective loss `ℓ(WD; A)` of an end-to-end matrix."""
        return self.linear.end_to_end_loss(W)

    def end_to_end_gradient(self, W: Float[Array, "d_y d_in"]) -> Float[Array, "d_y d_in"]:
        """Its gradient; for the squared error `−M Dᵀ` with `M = A − WD`."""
        return self.linear.end_to_end_gradient(W)

    def total_loss(self, net: LayerTuple) -> Float[Array, ""]:
        """The loss on the data, `½‖Y − W_N…W_1X‖²` for the squared error."""
        return self.effective_loss(net) + self.offset

    def least_squares(self) -> Float[Array, "d_y d_in"]:
        """The end-to-end matrix of least norm that minimises the loss without rank constraint (`W_LS = YXᵀ(XXᵀ)⁺`)."""
        f = self.decomposition
        W = matmul(f.U_Y.T, f.Y_bar) / f.S_X[None, :]
        return self.convert(LayerTuple([W]), "reduced", self.coordinates).weights[0]

    # -- coordinates ---------------------------------------------------------------------------------------------------

    def in_coordinates(self, coordinates: str) -> "Problem":
        """The same problem in other coordinates."""
        check_coordinates(coordinates)
        if coordinates == self.coordinates:
            return self
        parts = (*self.decomposition.standard_form(coordinates), self.loss, self.data_error)
        objective = LinearObjective(*parts, coordinates != "data")
        return self.replace(coordinates=coordinates, objective=objective)

    def isometric(self) -> "Problem":
        """The same flow in coordinates in which the design is diagonal: whitened ones stay, all others become reduced.

        From data coordinates the change is an isometry of the weights, on the range of `X`. Problems without levels stay as
        they are.
        """
        if self.spectrum is None:
            return self
        return self.in_coordinates("whitened" if self.coordinates == "whitened" else "reduced")

    def without_info(self) -> "Problem":
        return self.replace(info=None)

    def convert(self, net: LayerTuple, source: str, destination: str) -> LayerTuple:
        """Maps a network (or a batch) between coordinates, with the same loss.

        Into data coordinates the network of least `‖W_1‖` is returned: its first layer vanishes on the null directions of
        `X`, which the other coordinates do not have.
        """
        check_coordinates(source)
        check_coordinates(destination)
        return net if source == destination else self.decomposition.convert(net, source, destination)

    # -- before any flow -----------------------------------------------------------------------------------------------

    def report(self, widths: Iterable[int] | None = None, *, lowest: int | None = None) -> Report | ShortReport:
        """Assumptions with margins, singular values and critical values for networks of given widths.

        Where no critical values are known beforehand: sizes, loss, activations, and why there are none.

        **Arguments:**

        - `widths`: `(d_0, …, d_N)`; without them the rank is bounded by the data alone.
        - `lowest`: list that many levels; by default all if they are at most 2¹⁰, else the lowest 64.
        """
        if self.why_no_levels is not None:
            return self._short_report(None if widths is None else self.check_widths(widths))
        f = self.decomposition
        widths = None if widths is None else self.check_widths(widths)
        max_rank = min(f.Y_bar.shape) if widths is None else self.max_rank(widths)
        levels = critical_values(
            self,
            max_rank,
            lowest=64 if lowest is None and len(f.s) > 10 else lowest,
            num_layers=2 if widths is None else len(widths) - 1,
        )
        return Report(self.info, self.coordinates, widths, max_rank, levels, float(self.offset))

    def _short_report(self, widths: tuple[int, ...] | None) -> ShortReport:
        o, why = self._network, self.why_no_levels
        assert why is not None
        return ShortReport(
            self.info,
            widths,
            loss=str(o.loss).removesuffix("()"),
            activations=tuple(a.name for a in o.activations) if isinstance(o, NetworkObjective) else (Identity().name,),
            weight_decay=float(o.decay) if isinstance(o, NetworkObjective) else 0.0,
            biases=isinstance(o, NetworkObjective) and o.biases,
            smooth=o.smooth,
            separates=isinstance(o.loss, Logistic | SoftmaxCrossEntropy),
            why_no_levels=why,
        )


def _as_activations(activations: Any) -> tuple[AbstractActivation, ...]:
    if activations is None:
        return (Identity(),)
    if isinstance(activations, list | tuple):
        if not activations:
            raise ValueError("there must be at least one activation; leave them out for a linear network")
        return tuple(map(as_activation, activations))
    return (as_activation(activations),)


def _check_kind_of_targets(loss: AbstractLoss, table: Table, center: bool, scale: bool) -> None:
    """`ValueError` for targets, as they are or standardised, that the loss does not admit, with what to do."""
    if not isinstance(loss, AbstractLoss) or type(loss).check_target is AbstractLoss.check_target:
        return
    Y = check_array("Y", table.Y)
    try:
        loss.check_target(Y)
    except ValueError as error:
        hint = (
            "; of a column of classes, named by label=… (--label), the right targets are made" if table.targets else ""
        )
        raise ValueError(f"{error}{hint}") from None
    standardised = standardize("Y", Y, table.targets, center, scale)
    try:
        loss.check_target(standardised)
    except ValueError as error:
        raise ValueError(
            f"the targets would be standardised, and then do not fit the loss: {error}. Give center=False and scale=False "
            "(--no-center --no-scale), or name a column of classes by label=… (--label), which is never standardised"
        ) from None


def _why_no_levels(loss: AbstractLoss, layers: tuple[AbstractActivation, ...], decay: float, biases: bool) -> str:
    """In words, what a problem has that linear networks with the squared error do not."""
    nonlinear = [layer.name for layer in layers if not isinstance(layer, Identity)]
    reasons = [f"activation {nonlinear[0]}"] if nonlinear else []
    reasons += [f"loss {type(loss).__name__}"] if not isinstance(loss, SquaredError) else []
    reasons += [f"weight decay {decay:g}"] if decay else []
    reasons += ["biases"] if biases else []
    return "this problem has " + ", ".join(reasons)


def _check_lanes(loss: AbstractLoss, target: Float[Array, "d_y m"]) -> None:
    """`ValueError` unless a loss is a sum over the first two axes: that of two outputs at once is that of each."""
    two = jnp.stack([jnp.zeros_like(target), 0.5 * jnp.ones_like(target)], axis=-1)
    apart = np.array([loss.value(two[..., i], target) for i in range(2)])
    together = np.asarray(loss.value(two, target[..., None]))
    if together.shape != (2,) or not np.allclose(apart, together, rtol=1e-3, equal_nan=True):
        raise ValueError(
            f"{type(loss).__name__}.value must sum over the first two axes of the outputs, axis=(0, 1), and leave further ones "
            "alone: they count networks"
        )


def check_any_problem(problem: object) -> AbstractProblem:
    """`problem`, if it is one, of data or a potential; else a `TypeError`, as for arguments in the wrong order."""
    if not isinstance(problem, AbstractProblem):
        raise TypeError(
            f"the first argument must be a gdflow.Problem or a gdflow.Potential, got {type(problem).__name__}"
        )
    return problem


def check_problem(problem: object) -> Problem:
    """`problem`, if it is one; else a `TypeError`, as for arguments in the wrong order."""
    if not isinstance(problem, Problem):
        raise TypeError(f"the first argument must be a gdflow.Problem, got {type(problem).__name__}")
    return problem


def critical_values(
    problem: Problem, max_rank: Any, *, lowest: int | None = None, num_layers: int = 2
) -> CriticalValues:
    """The critical values `½Σ_{i∉S}s_i²`, `|S| ≤ max_rank`, of the effective loss, in increasing order.

    **Arguments:**

    - `max_rank`: `r_max`; `problem.max_rank(widths)` for networks of given widths.
    - `lowest`: only the lowest so many, without enumerating the others.
    - `num_layers`: `N`; the values are the same from two layers on, but a single layer is convex and has its minimum only.

    **Raises:** `ValueError` for losses without levels, and if all of more than 2²⁰ subsets are asked for; `TypeError` for widths
    in place of the rank.
    """
    if isinstance(max_rank, Sequence):
        raise TypeError(f"max_rank is an integer: problem.max_rank(widths) for these widths, {tuple(max_rank)}")
    s = np.asarray(problem.singular_values, dtype=np.float64)
    if num_layers == 1:
        return single_layer_level(s, max_rank)
    return list_levels(s, max_rank, lowest=lowest, tolerance=problem.level_tolerance)


def iterate_critical_values(problem: Problem, max_rank: int) -> Iterator[Level]:
    """Streams the critical values from the lowest upwards; see `gdflow.critical_values`."""
    s = np.asarray(problem.singular_values, dtype=np.float64)
    return iterate_levels(s, max_rank, tolerance=problem.level_tolerance)
