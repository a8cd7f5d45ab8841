"""The Hessian by automatic differentiation: dense, as an operator, its inertia and its extreme eigenpairs.

Vectors are raveled layer tuples, `W_1` first, each row by row (`jax.flatten_util.ravel_pytree`). Everything is in the
problem's coordinates and for any loss; eigenvalues are those of `∇²L`, twice those of the second variation `H_W`.
Eigenvalues are computed on the host and are not differentiable; `hessian` and `hessian_vector_product` are.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from rich.console import RenderableType

from gdflow.network import LayerTuple, check_one_network
from gdflow.problem import Problem
from gdflow.ranks import stands_clear, zero_threshold
from gdflow.tables import Printable, key_value_table

#: Up to so many parameters extreme eigenpairs come from a dense eigendecomposition (half a second).
MAX_EIGH = 1024

#: Dense Hessians of more parameters than this (2 GiB in double precision) are refused.
MAX_DENSE = 2**14


def hessian_vector_product(problem: Problem, net: LayerTuple, w: LayerTuple) -> LayerTuple:
    """`∇²L(W)[w]`, the derivative of the gradient along `w`; about twice the cost of a gradient."""
    return jax.jvp(problem.gradient, (net,), (w,))[1]


def hessian(problem: Problem, net: LayerTuple) -> Float[Array, "P P"]:
    """The Hessian `∇²L(W)` on raveled layer tuples, `P = Σ_j d_jd_{j-1}`.

    **Raises:** `ValueError` for networks that do not fit, and above 2¹⁴ parameters (use `extreme_eigenpairs`).

    ```python
    >>> jnp.linalg.eigvalsh(hessian(problem, net))
    ```
    """
    problem.check_widths(net.widths)
    check_one_network(net)
    if net.num_parameters > MAX_DENSE:
        raise ValueError(
            f"a dense Hessian of {net.num_parameters} parameters takes {8 * net.num_parameters**2 / 2**30:.1f} GiB: "
            "use extreme_eigenpairs or hessian_vector_product"
        )
    H = _dense(problem.without_info(), net)
    return 0.5 * (H + H.T)


@eqx.filter_jit
def _dense(problem: Problem, net: LayerTuple) -> Array:
    flat, unravel = ravel_pytree(net)

    def column(v):
        return ravel_pytree(hessian_vector_product(problem, net, unravel(v)))[0]

    return jax.lax.map(column, jnp.eye(flat.size, dtype=flat.dtype), batch_size=256)


@dataclasses.dataclass(frozen=True, repr=False)
class Inertia(Printable):
    """How many eigenvalues of the Hessian are negative, zero and positive, and how sharply they are told apart.

    - `negative`, `zero`, `positive`: the counts; `negative` is the (Morse) index, `zero` the nullity.
    - `threshold`: eigenvalues of at most this size count as zero.
    - `smallest_kept`, `largest_dropped`: sizes of the smallest eigenvalue that counts as non-zero (`inf` if there is none),
      and of the largest that counts as zero.
    - `eigenvalues`: all of them, ascending.
    """

    negative: int
    zero: int
    positive: int
    threshold: float
    smallest_kept: float
    largest_dropped: float
    eigenvalues: np.ndarray

    @property
    def certain(self) -> bool:
        """Whether no eigenvalue lies within a factor 10 of the threshold."""
        return stands_clear(self.threshold, self.smallest_kept, self.largest_dropped)

    def times(self, factor: float) -> "Inertia":
        """The inertia of the Hessian times a positive factor."""
        sizes = ("threshold", "smallest_kept", "largest_dropped", "eigenvalues")
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in sizes})

    @property
    def index(self) -> int:
        """The number of negative eigenvalues."""
        return self.negative

    @property
    def nullity(self) -> int:
        """The number of zero eigenvalues."""
        return self.zero

    def __rich__(self) -> RenderableType:
        kept = "none" if np.isinf(self.smallest_kept) else f"{self.smallest_kept:.3g}"
        rows = [
            ("negative", str(self.negative)),
            ("zero", str(self.zero)),
            ("positive", str(self.positive)),
            ("eigenvalues", f"{self.eigenvalues[0]:.6g} … {self.eigenvalues[-1]:.6g}"),
            ("zero means", f"|λ| ≤ {self.threshold:.3g}; nearest above {kept}, nearest below {self.largest_dropped:.3g}"
                + ("" if self.certain else "; UNCERTAIN: an eigenvalue lies within a factor 10")),
        ]  # fmt: skip
        return key_value_table("Inertia of the Hessian", rows)


def inertia(problem: Problem, net: LayerTuple, *, tolerance: float = 1e-9) -> Inertia:
    """Signs of the Hessian's eigenvalues, by a dense eigendecomposition.

    **Arguments:** `tolerance`: eigenvalues at or below this multiple of the largest one count as zero. At a point that is
    critical up to a relative error δ, eigenvalues that ought to be zero are of order δ: take `tolerance` well above it.

    **Raises:** as `hessian`; `ValueError` for entries that are not finite and a tolerance that is not positive.
    """
    problem.check_network(net)
    check_tolerance(tolerance)
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessian(problem, net), dtype=np.float64))
    sizes = abs(eigenvalues)
    threshold = zero_eigenvalue(problem, net, float(sizes.max()), tolerance)
    kept = sizes > threshold
    return Inertia(
        negative=int(np.sum(kept & (eigenvalues < 0))),
        zero=int(np.sum(~kept)),
        positive=int(np.sum(kept & (eigenvalues > 0))),
        threshold=threshold,
        smallest_kept=float(sizes[kept].min(initial=np.inf)),
        largest_dropped=float(sizes[~kept].max(initial=0.0)),
        eigenvalues=eigenvalues,
    )


def check_tolerance(tolerance: float) -> None:
    """`ValueError` unless `tolerance` lies between 0 and 1."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")


def zero_eigenvalue(problem: Problem, net: LayerTuple, largest: float, tolerance: float) -> float:
    """Largest size of an eigenvalue of the Hessian that counts as zero beside the `largest` of them.

    A Hessian that vanishes is round-off of what it is made of, and has no scale of its own.
    """
    eps = float(jnp.finfo(net.weights[0].dtype).eps)
    return max(tolerance * largest, zero_threshold(_natural_scale(problem, net), eps=eps))


def _natural_scale(problem: Problem, net: LayerTuple) -> float:
    """Size of the terms that the Hessian is a sum of: `∏‖W_j‖²‖D‖² + ∏‖W_j‖ ‖AD‖`, the layer of least norm or two left out.

    A single layer has the first term only.
    """
    norms = np.sort(np.asarray(net.layer_norms(), dtype=np.float64))
    D, A = (float(jnp.linalg.norm(x)) for x in (problem.design, problem.target))
    first = np.prod(norms[1:]) ** 2 * D**2
    return float(first + np.prod(norms[2:]) * D * (A + np.prod(norms) * D) if net.depth > 1 else first)


def extreme_eigenpairs(
    problem: Problem, net: LayerTuple, num: int = 1, *, which: str = "smallest", tolerance: float = 0.0
) -> tuple[np.ndarray, list[LayerTuple]]:
    """The smallest or largest eigenvalues of the Hessian, each as often as it occurs, with orthonormal eigenvectors.

    Up to `MAX_EIGH` parameters by a dense eigendecomposition, beyond by Lanczos (ARPACK). Lanczos from one vector sees one
    eigenvector of each eigenvalue only, so it is run again on the complement of what it found until nothing better is left.

    **Arguments:**

    - `num`: how many.
    - `which`: `"smallest"` (most negative) or `"largest"`, algebraically.
    - `tolerance`: accuracy of the eigenvalues relative to the largest size among all; 0 for machine precision.

    **Returns:** eigenvalues, shape `(num,)`, from the extreme one inwards, and the eigenvectors as layer tuples.

    **Raises:** `ValueError` for options out of range; ARPACK's `ArpackNoConvergence` if a cluster of eigenvalues keeps it
    from converging (ask for fewer or a looser tolerance).

    ```python
    >>> values, directions = extreme_eigenpairs(problem, net, 3)
    ```
    """
    problem.check_network(net)
    flat, unravel = ravel_pytree(net)
    if which not in ("smallest", "largest"):
        raise ValueError(f'which must be "smallest" or "largest", got {which!r}')
    if not 1 <= num < flat.size:
        raise ValueError(f"num must lie between 1 and {flat.size - 1}, got {num}")
    sign = 1.0 if which == "smallest" else -1.0
    if flat.size <= MAX_EIGH:
        values, vectors = scipy.linalg.eigh(sign * np.asarray(hessian(problem, net)), subset_by_index=(0, num - 1))
    else:
        arrays, rest = eqx.partition(problem.without_info(), eqx.is_array)

        @jax.jit
        def apply(arrays, net, v):
            return ravel_pytree(hessian_vector_product(eqx.combine(arrays, rest), net, unravel(v)))[0]

        def product(v: np.ndarray) -> np.ndarray:
            return sign * np.asarray(apply(arrays, net, jnp.asarray(v, flat.dtype)), dtype=np.float64)

        values, vectors = _smallest_eigenpairs(product, flat.size, num, tolerance, float(jnp.finfo(flat.dtype).eps))
    return sign * values, [unravel(jnp.asarray(v, flat.dtype)) for v in vectors.T]


def _smallest_eigenpairs(
    product: Callable[[np.ndarray], np.ndarray], size: int, num: int, tolerance: float, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest eigenvalues of a symmetric operator, multiplicities counted, and orthonormal eigenvectors as columns."""
    # Fixed generic vectors: results are the same every time.
    rng = np.random.default_rng(0)
    # A lower bound of ‖H‖; zero only if H vanishes, for a generic vector.
    v, norm = rng.normal(size=size), 0.0
    for _ in range(8):
        v = product(v / np.linalg.norm(v))
        norm = float(np.linalg.norm(v))
        if norm == 0:
            return np.zeros(num), np.eye(size, num)
    # ARPACK's accuracy is relative to the eigenvalue, which no iteration reaches where that is zero: shifted, none is. What is
    # found already is moved to zero, the far end.
    shift, found = 2 * norm, np.zeros((size, 0))
    values = np.zeros(0)

    def off(v: np.ndarray) -> np.ndarray:
        return v - found @ (found.T @ v)

    def rest(v: np.ndarray) -> np.ndarray:
        v = off(v.reshape(-1))
        return off(product(v) - shift * v)

    # So much do values differ that are equal to the accuracy asked for.
    slack = max(tolerance, 1e3 * eps) * norm
    while True:
        first = off(rng.normal(size=size))
        # An invariant space of fewer dimensions than ARPACK works in stops it: a multiple of the identity, above all.
        image = rest(first)
        rayleigh = float(first @ image / (first @ first))
        if np.linalg.norm(image - rayleigh * first) <= slack * np.linalg.norm(first):
            news, vectors = np.array([rayleigh]), first[:, None]
        else:
            news, vectors = scipy.sparse.linalg.eigsh(
                scipy.sparse.linalg.LinearOperator((size, size), matvec=rest, dtype=np.float64),
                k=num, which="SA", v0=first, tol=tolerance,
            )  # fmt: skip
        news = news + shift
        if values.size >= num and news.min() >= values[num - 1] - slack:
            return values[:num], found[:, :num]
        # Twice projected, orthogonal to what was found to round-off.
        found = np.linalg.qr(np.concatenate([found, off(off(vectors))], axis=1))[0]
        values = np.concatenate([values, news])
        order = np.argsort(values, kind="stable")
        values, found = values[order], found[:, order]
        if num == 1 or values.size == size:
            return values[:num], found[:, :num]


def sharpness(problem: Problem, net: LayerTuple) -> float:
    """The largest eigenvalue of the Hessian; gradient descent with step `η` is stable at a minimum iff `η < 2/sharpness`."""
    return float(extreme_eigenpairs(problem, net, which="largest")[0][0])


def balanced_minimum_spectrum(singular_values: np.ndarray, depth: int, shape: tuple[int, int]) -> np.ndarray:
    """Non-zero eigenvalues of the Hessian at a balanced minimum with zero residual, whitened: a closed form.

    `Σ_{k=1}^N σ_i^{2(N−k)/N} σ_j^{2(k−1)/N}` over the outputs `i` and inputs `j` of the end-to-end matrix (a zeroth power
    is 1, also of 0), those that vanish left out; the largest, the sharpness, is `Nσ_1^{2−2/N}`.

    **Arguments:** `singular_values`: of the target, all of them fitted; `shape`: `(d_y, d_x)`.

    **Returns:** the eigenvalues, ascending.
    """
    a, b = np.zeros(shape[0]), np.zeros(shape[1])
    s = np.asarray(singular_values, dtype=np.float64)
    a[: s.size] = b[: s.size] = s[: min(shape)]
    total = np.zeros(shape)
    for k in range(1, depth + 1):
        total += np.power(a, 2 * (depth - k) / depth)[:, None] * np.power(b, 2 * (k - 1) / depth)[None, :]
    values = np.sort(total.ravel())
    return values[values > 0]
