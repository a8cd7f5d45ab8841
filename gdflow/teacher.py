"""ReLU students that learn ReLU teachers from Gaussian inputs: a nonlinear problem whose objective is known exactly.

Students `w_1, …, w_n` and teachers `v_1, …, v_k` in `R^d`, all output weights 1, inputs `x ~ N(0, I)`:

    L(w_1, …, w_n) = ½E(Σ_i[w_iᵀx]_+ − Σ_j[v_jᵀx]_+)² = ½Σ_ik F(w_i, w_k) − Σ_ij F(w_i, v_j) + ½Σ_jl F(v_j, v_l),
    F(w, v) = E[wᵀx]_+[vᵀx]_+ = (‖w‖‖v‖/2π)(sin θ + (π − θ)cos θ),    θ the angle between w and v,
    G(w, v) = ∂_w F(w, v) = (1/2π)(‖v‖ sin θ ŵ + (π − θ)v),            ŵ = w/‖w‖

(Brutzkus, Globerson 2017, section 3; Safran, Shamir 2018, section 4). `F` is twice continuously differentiable where `w ≠ 0` and
`v ≠ 0`, but not three times where they are parallel. All derivatives are written out: those of an angle do not exist there.

*Students at zero.* `L` has a kink at `w_i = 0`. There the gradient is taken to be `¼(Σ_k w_k − Σ_j v_j)` in `w_i`, the mean of
its limits from `u` and from `−u`, for any direction `u`: an element of Clarke's subdifferential, that of `σ'(0) = ½`. Zero need
not be one. Second derivatives in `w_i` are taken to be zero. The flow through such a point need not be unique.

*Symmetries.* `L` does not change when students are permuted, nor when a rotation or reflection of `R^d` that permutes the
teachers acts on all students.
"""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from gdflow.checks import check_count, is_traced
from gdflow.layouts import AbstractLayout
from gdflow.network import LayerTuple, check_finite, check_layer_tuple, check_one_network, check_widths, matmul
from gdflow.objective import Objective, packed
from gdflow.problem import AbstractProblem
from gdflow.report import DataInfo

# -- one network: sums over pairs and their derivatives ----------------------------------------------------------------


def _least_square(dtype: Any) -> float:
    """A vector whose square is not larger is taken for zero: entries of its square may have underflowed."""
    return float(jnp.finfo(dtype).tiny) / float(jnp.finfo(dtype).eps)


def _norm(x: Array) -> Array:
    """Norms along the last axis; their derivative at zero is taken to be zero."""
    square = jnp.sum(jnp.square(x), axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def _polar(W: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
    """`‖w_i‖`, `1/‖w_i‖` and `ŵ_i`, all zero for a vector that counts as zero."""
    square = jnp.sum(jnp.square(W), axis=1)
    zero = ~(square > _least_square(W.dtype)) & ~jnp.isnan(square)
    norm = jnp.sqrt(jnp.where(zero, 1.0, square))
    inverse = jnp.where(zero, 0.0, 1 / norm)
    return jnp.where(zero, 0.0, norm), inverse, W * inverse[:, None]


class _Pairs(eqx.Module):
    """The pairs `(w_i, v_j)`: norms `a`, `b`, their inverses, unit vectors; `sin θ`, `cos θ` and `π − θ` of the angles.

    With `p = ‖ŵ − v̂‖` and `q = ‖ŵ + v̂‖`, so `p² + q² = 4`: `θ = 2 atan2(p, q)`, `sin θ = pq/2`, `cos θ = (q² − p²)/4`. Nothing
    cancels, whatever the angle.
    """

    a: Float[Array, " n"]
    a_inverse: Float[Array, " n"]
    w_unit: Float[Array, "n d"]
    b: Float[Array, " k"]
    v_unit: Float[Array, "k d"]
    p: Float[Array, "n k"]
    q: Float[Array, "n k"]
    sine: Float[Array, "n k"]
    cosine: Float[Array, "n k"]
    supplement: Float[Array, "n k"]

    def __init__(self, W: Float[Array, "n d"], V: Float[Array, "k d"]):
        self.a, self.a_inverse, self.w_unit = _polar(W)
        self.b, _, self.v_unit = _polar(V)
        w, v = self.w_unit[:, None, :], self.v_unit[None, :, :]
        self.p, q = _norm(w - v), _norm(w + v)
        self.q = jnp.where((self.p == 0) & (q == 0), 1.0, q)  # two zeros count as parallel
        defined = (self.a > 0)[:, None] & (self.b > 0)[None, :]
        self.sine = jnp.where(defined, 0.5 * self.p * self.q, 0.0)
        self.cosine = 0.25 * (self.q - self.p) * (self.q + self.p)
        self.supplement = 2 * jnp.arctan2(self.q, self.p)

    def across(self) -> tuple[Float[Array, "n k d"], Float[Array, "n k d"]]:
        """`v̂ − cos θ ŵ` and `ŵ − cos θ v̂`, both of length `sin θ`, without cancellation."""
        w, v = self.w_unit[:, None, :], self.v_unit[None, :, :]
        near = (self.p < self.q)[:, :, None]
        shift = jnp.where(near, 0.5 * jnp.square(self.p)[:, :, None], -0.5 * jnp.square(self.q)[:, :, None])
        return jnp.where(near, v - w, v + w) + shift * w, jnp.where(near, w - v, w + v) + shift * v


@jax.custom_jvp
def kernel_sum(W: Float[Array, "n d"], V: Float[Array, "k d"]) -> Float[Array, ""]:
    """`Σ_ij F(w_i, v_j)`.

    **Arguments:** `W`, `V`: one vector a row.

    **Returns:** a number, with round-off of a few units in the last place of `Σ_ij ‖w_i‖‖v_j‖`. Derivatives of first and second
    order are exact: in `W` it is `kernel_gradient(W, V)`, in `V` `kernel_gradient(V, W)`.

    ```python
    >>> float(kernel_sum(jnp.eye(1), 2 * jnp.eye(1)))  # F(w, w) = ½‖w‖²
    1.0
    ```
    """
    pairs = _Pairs(W, V)
    angular = pairs.sine + pairs.supplement * pairs.cosine
    return jnp.sum(pairs.a[:, None] * pairs.b[None, :] * angular) / (2 * np.pi)


@jax.custom_jvp
def kernel_gradient(W: Float[Array, "n d"], V: Float[Array, "k d"]) -> Float[Array, "n d"]:
    """`Σ_j G(w_i, v_j)` for every `i`.

    **Arguments:** `W`, `V`: one vector a row.

    **Returns:** one vector a row. At `w_i = 0` it is `¼Σ_j v_j`. Its derivatives are exact (Safran, Shamir 2018, section 4):

        ∂_w G(w, v) = (‖v‖/2π‖w‖) sin θ (I − ŵŵᵀ + nnᵀ),    n = (v̂ − cos θ ŵ)/sin θ,
        ∂_v G(w, v) = (1/2π)((π − θ)I + sin θ (ŵv̂ᵀ + nmᵀ)),    m = (ŵ − cos θ v̂)/sin θ.

    ```python
    >>> kernel_gradient(jnp.eye(1), 2 * jnp.eye(1))
    Array([[1.]], dtype=float64)
    ```
    """
    pairs = _Pairs(W, V)
    radial = jnp.sum(pairs.b[None, :] * pairs.sine, axis=1)
    return (radial[:, None] * pairs.w_unit + matmul(pairs.supplement, V)) / (2 * np.pi)


@kernel_sum.defjvp
def _(primals, tangents):
    (W, V), (dW, dV) = primals, tangents
    return kernel_sum(W, V), jnp.sum(kernel_gradient(W, V) * dW) + jnp.sum(kernel_gradient(V, W) * dV)


@kernel_gradient.defjvp
def _(primals, tangents):
    (W, V), (dW, dV) = primals, tangents
    pairs, w = _Pairs(W, V), _polar(W)[2]
    n, m = pairs.across()  # times sin θ, so that nnᵀ sin θ is their product over sin θ
    parallel = pairs.sine == 0
    inverse = jnp.where(parallel, 0.0, 1 / jnp.where(parallel, 1.0, pairs.sine))
    along = jnp.sum(w * dW, axis=1)
    strength = jnp.sum(pairs.b[None, :] * pairs.sine, axis=1)
    turn_w = jnp.sum(n * dW[:, None, :], axis=2) * pairs.b[None, :] * inverse
    own = strength[:, None] * (dW - along[:, None] * w) + jnp.sum(turn_w[:, :, None] * n, axis=1)
    turn_v = jnp.sum(m * dV[None, :, :], axis=2) * inverse
    stretch = jnp.sum(pairs.sine * jnp.sum(pairs.v_unit * dV, axis=1)[None, :], axis=1)
    others = matmul(pairs.supplement, dV) + stretch[:, None] * w + jnp.sum(turn_v[:, :, None] * n, axis=1)
    return kernel_gradient(W, V), (pairs.a_inverse[:, None] * own + others) / (2 * np.pi)


# -- many networks in lanes --------------------------------------------------------------------------------------------

#: `arcsin(√z)/√z` on `[0, ¼]` as a polynomial, lowest power first: interpolation at 13 Chebyshev nodes, off by less than 1e-17.
_ARCSINE = (
    1.0,
    0.16666666666664942,
    0.07500000000385201,
    0.044642856805998936,
    0.03038195969768514,
    0.022371749733164054,
    0.01735977964134998,
    0.01388484282640208,
    0.012170138592391726,
    0.0065293020047365695,
    0.019513468251252167,
    -0.016187392271599134,
    0.03187962140081284,
)


def sine_and_supplement(cosine: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """`sin θ` and `π − θ` from `cos θ` in `[−1, 1]`, by a polynomial: ten times as fast as `arccos` in XLA on a CPU.

    An error `ε` of the cosine moves the angle by `ε/sin θ`, but `F(w, v)` by `½ε‖w‖‖v‖` and `G(w, v)` by `ε‖v‖/2π` at most:
    `∂_θ G = (1/2π)(‖v‖ cos θ ŵ − v)` has the length `‖v‖ sin θ/2π`. So nothing is lost near parallel vectors, as long as both
    results belong to one cosine.

    **Arguments:** `cosine`: of any shape. **Returns:** two arrays of that shape, off by a few units in the last place.

    ```python
    >>> sine_and_supplement(jnp.asarray(-1.0))
    (Array(0., dtype=float64), Array(0., dtype=float64))
    ```
    """
    x = jnp.abs(cosine)
    large = x > 0.5
    # arccos x = 2 arcsin √((1 − x)/2) above ½ and ½π − arcsin x below.
    z = jnp.where(large, 0.5 * (1 - x), x * x)
    power = jnp.full_like(z, _ARCSINE[-1])
    for coefficient in _ARCSINE[-2::-1]:
        power = power * z + coefficient
    arcsine = jnp.where(large, jnp.sqrt(z), x) * power
    angle = jnp.where(large, 2 * arcsine, 0.5 * np.pi - arcsine)
    return jnp.sqrt((1 - x) * (1 + x)), jnp.where(cosine < 0, angle, np.pi - angle)


def _evaluated_once(function: Callable[[Array], tuple[Array, Array]], x: Float[Array, "..."]) -> tuple[Array, Array]:
    """`function(x)` for `x ≤ 1`. On a CPU the compiler would evaluate it anew for each of its users; across a branch it does not.

    Measured for 8 students and 8 teachers: 1.6 µs a lane without the branch, 0.41 with it.
    """
    if jax.default_backend() != "cpu":
        return function(x)
    return jax.lax.cond(x[(0,) * x.ndim] > 2, lambda x: (x, x), function, x)


class TeacherObjective(Objective):
    """The objective of ReLU students and ReLU teachers, see `gdflow.teacher`.

    A point is a `gdflow.LayerTuple` of one matrix, whose rows are the students. It counts as smooth: the gradient jumps at
    `w_i = 0` only, where hardly any flow comes.

    **Arguments:**

    - `teacher`: shape `(k, d)`, one teacher a row.
    - `constant`: `½Σ_jl F(v_j, v_l)`, the loss of students that are all zero.
    """

    teacher: Float[Array, "k d"]
    constant: Float[Array, ""]

    def numbers(self, num_parameters: int) -> int:
        k, d = self.teacher.shape
        n = max(1, num_parameters // d)
        return num_parameters + n * (n + k)

    def effective_loss(self, net: LayerTuple) -> Float[Array, ""]:
        """`L`; its round-off is relative to its three terms, so values near a minimum may be negative, about −1e-16."""
        (W,) = net.weights
        return 0.5 * kernel_sum(W, W) - kernel_sum(W, self.teacher) + self.constant

    def gradient(self, net: LayerTuple) -> LayerTuple:
        """`∂_{w_i}L = Σ_k G(w_i, w_k) − Σ_j G(w_i, v_j)`; derivatives of it are right too, see `kernel_gradient`."""
        (W,) = net.weights
        return LayerTuple([kernel_gradient(W, W) - kernel_gradient(W, self.teacher)])

    # -- what tells limits apart ---------------------------------------------------------------------------------------

    def canonical(self, net: LayerTuple) -> LayerTuple:
        """The students in the order of their components along a fixed direction."""
        (W,) = net.weights
        normal = jnp.cos(1.0 + 0.7 * jnp.arange(W.shape[1]) ** 2 + 0.3 * jnp.arange(W.shape[1]))
        return LayerTuple([W[jnp.argsort(matmul(W, normal.astype(W.dtype)))]])

    def fingerprint(self, net: LayerTuple) -> Float[Array, " q"]:
        """The features: symmetries of the teacher are not in the canonical form."""
        return self.features(net)

    def features(self, net: LayerTuple) -> Float[Array, " q"]:
        """All `w_iᵀv_j`, sorted, and all `w_iᵀw_k`, `i ≤ k`, sorted: no permutation and no rotation changes them."""
        (W,) = net.weights
        i, k = np.triu_indices(W.shape[0])
        return jnp.concatenate([jnp.sort(matmul(W, self.teacher.T).ravel()), jnp.sort(matmul(W, W.T)[i, k])])

    # -- lanes ---------------------------------------------------------------------------------------------------------

    def lane_losses(self, layout: AbstractLayout, nets: LayerTuple) -> Float[Array, " lanes"]:
        return _Lanes(self, layout, nets.weights[0]).losses()

    def lane_gradients(self, layout: AbstractLayout, nets: LayerTuple) -> tuple[LayerTuple, Float[Array, " lanes"]]:
        """`∇L`, packed, and `L` in every lane; to be differentiated take `gradient` and `effective_loss`."""
        lanes = _Lanes(self, layout, nets.weights[0])
        return packed(nets, [lanes.gradients()]), lanes.losses()


class _Lanes:
    """Students in many lanes, and the angles of all their pairs: those of two students (once, `i < k`), then with teachers."""

    def __init__(self, objective: TeacherObjective, layout: AbstractLayout, W: Array):
        self.objective, self.layout, self.W = objective, layout, W
        # Packed arrays have rows and columns in two axes that follow each other.
        self.rows = 0 if layout.lane_axis == -1 else 1
        self.n, self.k = layout.height(W), objective.teacher.shape[0]
        self.first, self.second = np.triu_indices(self.n, 1)
        self.square = jnp.sum(jnp.square(W), axis=self.rows + 1, keepdims=True)
        zero = self.square <= _least_square(W.dtype)
        inverse = jnp.where(zero, 0.0, 1 / jnp.sqrt(jnp.where(zero, 1.0, self.square)))
        self.length, self.unit = self.square * inverse, W * inverse
        self.b, _, v_unit = _polar(objective.teacher)
        students = self._flat(layout.product(self.unit, layout.transpose(self.unit)))
        teachers = self._flat(layout.product(self.unit, layout.everywhere(v_unit.T)))
        cosine = jnp.concatenate([self._at(students, self.first * self.n + self.second), teachers], axis=self.rows)
        self.cosine = jnp.clip(cosine, -1, 1)
        self.sine, self.supplement = _evaluated_once(sine_and_supplement, self.cosine)

    def _flat(self, matrices: Array) -> Array:
        """Matrices as vectors, row by row."""
        shape = matrices.shape
        return matrices.reshape(*shape[: self.rows], -1, *shape[self.rows + 2 :])

    def _square(self, vectors: Array, columns: int) -> Array:
        """Vectors as matrices with so many columns."""
        shape = vectors.shape
        return vectors.reshape(*shape[: self.rows], -1, columns, *shape[self.rows + 1 :])

    def _at(self, x: Array, index: np.ndarray) -> Array:
        return jnp.take(x, index, axis=self.rows, mode="clip")

    def _matrices(self, pairs: Array, diagonal: float) -> tuple[Array, Array]:
        """What is known of all pairs as two matrices: students and students, students and teachers."""
        count = len(self.first)
        index = np.full((self.n, self.n), count + self.n * self.k)
        index[self.first, self.second] = index[self.second, self.first] = np.arange(count)
        last = jnp.full_like(self._at(pairs, np.zeros(1, int)), diagonal)
        students = self._at(jnp.concatenate([pairs, last], axis=self.rows), index.ravel())
        teachers = self._at(pairs, count + np.arange(self.n * self.k))
        return self._square(students, self.n), self._square(teachers, self.k)

    def gradients(self) -> Array:
        layout, V = self.layout, self.objective.teacher
        sine, supplement = self._matrices(self.sine, 0.0), self._matrices(self.supplement, np.pi)
        own = layout.product(sine[0], self.length) - layout.product(sine[1], layout.everywhere(self.b[:, None]))
        across = layout.product(supplement[0], self.W) - layout.product(supplement[1], layout.everywhere(V))
        return (own * self.unit + across) / (2 * np.pi)

    def losses(self) -> Float[Array, " lanes"]:
        a = jnp.squeeze(self.length, self.rows + 1)
        students = self._at(a, self.first) * self._at(a, self.second)
        teachers = self._flat(self.length * self.layout.everywhere(self.b[None, :]))
        terms = jnp.concatenate([students, -teachers], axis=self.rows) * (self.sine + self.supplement * self.cosine)
        pairs = jnp.sum(terms, axis=self.rows) / (2 * np.pi)
        return pairs + 0.25 * jnp.sum(self.square, axis=(self.rows, self.rows + 1)) + self.objective.constant


# -- the problem -------------------------------------------------------------------------------------------------------


class TeacherStudent(AbstractProblem):
    """`n` ReLU students that learn `k` ReLU teachers from standard Gaussian inputs, see `gdflow.teacher`.

    **Arguments:**

    - `teacher`: shape `(k, d)`, one teacher `v_j` a row, in the precision of JAX; may be traced.
    - `num_students`: `n`, by default `k`.

    A point is a `gdflow.LayerTuple` of one matrix `(n, d)`, whose rows are the students. So the laws of starts fit:
    `gf.initialization.Gaussian(problem.widths())` draws `w_i ~ N(0, I/d)`.

    **Raises:** `ValueError` for a teacher that is no matrix, not finite, zero, or so long or short that squares of losses would
    leave the range of the arithmetic, naming it; `TypeError` for what are no real numbers.

    ```python
    >>> problem = TeacherStudent.orthonormal(6)
    >>> net = gf.initialization.Gaussian(problem.widths()).draw(jax.random.key(0))
    >>> problem.gradient(net).weights[0].shape
    (6, 6)
    >>> float(problem.effective_loss(LayerTuple([jnp.eye(6)]))) < 1e-15
    True
    ```
    """

    objective: TeacherObjective
    num_students: int = eqx.field(static=True)
    coordinates: str = eqx.field(static=True)
    info: DataInfo | None = eqx.field(static=True)

    def __init__(self, teacher: ArrayLike, num_students: int | None = None):
        V = _check_teacher(teacher)
        self.objective = TeacherObjective(V, 0.5 * jax.jit(kernel_sum)(V, V))
        self.num_students = V.shape[0] if num_students is None else check_count("num_students", num_students)
        self.coordinates, self.info = "data", None
        self.widths()

    @classmethod
    def orthonormal(cls, k: int, num_students: int | None = None) -> "TeacherStudent":
        """The teachers `v_j = e_j`, `j = 1, …, k`, in `R^k` (Safran, Shamir 2018).

        **Arguments:** `k`: how many; `num_students`: `n`, by default `k`.

        ```python
        >>> TeacherStudent.orthonormal(6, 7).widths()
        (6, 7)
        ```
        """
        return cls(np.eye(check_count("k", k)), num_students)

    def __repr__(self) -> str:
        k, d = self.teacher.shape
        return f"TeacherStudent(num_teachers={k}, num_students={self.num_students}, d={d})"

    @property
    def teacher(self) -> Float[Array, "k d"]:
        """One teacher a row."""
        return self.objective.teacher

    @property
    def dtype(self) -> Any:
        return self.teacher.dtype

    @property
    def why_no_levels(self) -> str | None:
        return "this problem has ReLU students, whose critical values are not known beforehand"

    def widths(self) -> tuple[int, ...]:
        """`(d, n)`, of the networks that fit: one layer.

        ```python
        >>> TeacherStudent.orthonormal(3).widths()
        (3, 3)
        ```
        """
        return check_widths((self.teacher.shape[1], self.num_students))

    def check_widths(self, widths: Iterable[int]) -> tuple[int, ...]:
        """`widths` if networks of these widths fit the problem; else a `ValueError` that says what would."""
        widths = check_widths(widths)
        if widths != self.widths():
            d, n = self.widths()
            raise ValueError(
                f"widths {widths} do not fit the problem, which has {n} students in dimension {d}: it needs one matrix, its rows "
                f"the students, widths {self.widths()}"
            )
        return widths

    def check_start(self, net: Any, *, batch: bool = False) -> None:
        """`ValueError` or `TypeError` unless `net` is one finite matrix of students (or, with `batch`, a batch of them)."""
        self.check_widths(check_layer_tuple(net).widths)
        if not batch:
            check_one_network(net)
        (W,) = net.weights
        if W.dtype != self.dtype:
            raise ValueError(f"the students are {W.dtype} but the problem is {self.dtype}: convert the students")
        check_finite(net)


def _check_teacher(teacher: ArrayLike) -> Float[Array, "k d"]:
    """The teachers as an array, checked unless they are traced."""
    dtype = jnp.result_type(float)
    if not is_traced(teacher):
        try:
            given = np.asarray(teacher)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"the teacher is no matrix: {error}") from None
        if given.dtype.kind not in "fiub" and not jnp.issubdtype(given.dtype, jnp.floating):
            raise TypeError(f"the teacher must hold real numbers, got dtype {given.dtype}")
        if np.ma.is_masked(teacher):
            raise ValueError("the teacher has masked entries, which have no values")
        _check_shape(given.shape)
        bad = np.argwhere(~np.isfinite(given.astype(float)))
        if bad.size:
            raise ValueError(
                f"the teacher is {given[tuple(bad[0])]} at entry {tuple(map(int, bad[0]))}; it must be finite"
            )
        least, most = float(jnp.finfo(dtype).tiny) ** 0.25, float(jnp.finfo(dtype).max) ** 0.25
        for j, size in enumerate(np.max(np.abs(given.astype(float)), axis=1), 1):
            if size == 0:
                raise ValueError(f"the teacher v_{j} is zero: it teaches nothing, leave it out")
            if not least <= size <= most:
                raise ValueError(
                    f"the largest entry of the teacher v_{j} is {size:.2g}, out of the range {least:.1g} to {most:.1g} in which "
                    f"squares of losses can be computed in {dtype}"
                )
    array = jnp.asarray(teacher, dtype)
    _check_shape(array.shape)
    return array


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"the teacher must be a matrix (k, d), one teacher a row, got shape {shape}")
