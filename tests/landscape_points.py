"""Critical points of every kind over a pool of architectures, with Hessians by automatic differentiation of a plain loss.

Nothing here but the sampler under test and the change of coordinates comes from gdflow: losses are written out again, so that
gradients and Hessians do not go through the library.
"""

import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import gdflow as gf
from gdflow.network import LayerTuple
from gdflow.problem import Problem


def conditioned(rng: np.random.Generator, rows: int, columns: int, rank: int, low: float, high: float) -> np.ndarray:
    """A matrix of a given rank with singular values spaced between `low` and `high`, so that they are distinct."""
    U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (rows, columns))
    return (U[:, :rank] * np.linspace(high, low, rank)) @ V[:, :rank].T


def data_problem(d_x: int, d_y: int, rank: int, seed: int, coordinates: str = "data") -> Problem:
    """Twelve samples, `X` of a given rank with condition number 2, singular values of the effective target from 1 to 3."""
    rng = np.random.default_rng(seed)
    X = conditioned(rng, d_x, 12, rank, 0.7, 1.4)
    V = np.linalg.svd(X)[2][:rank]  # the range of Xᵀ
    k = min(d_y, rank)
    Y = conditioned(rng, d_y, rank, k, 1.0, 3.0) @ V + 0.1 * rng.normal(size=(d_y, 12)) @ (np.eye(12) - V.T @ V)
    return Problem(X, Y, coordinates=coordinates)


def whitened(s, d_x: int, d_y: int) -> Problem:
    return Problem.from_singular_values(s, d_x=d_x, d_y=d_y)


#: Name: problem and widths. Depths 2 to 5, wide and narrow, more inputs than outputs and fewer, data of deficient rank.
POOL: dict[str, tuple[Problem, tuple[int, ...]]] = {
    "2 wide": (whitened([3, 2, 1], 4, 3), (4, 4, 3)),
    "2 bottleneck, fewer inputs": (whitened([2.5, 1.2], 2, 4), (2, 1, 4)),
    "2 data, rank-deficient": (data_problem(4, 2, 3, 1), (4, 3, 2)),
    "3 wide": (whitened([3, 2, 1], 4, 3), (4, 4, 4, 3)),
    "3 bottleneck": (whitened([3, 2, 1], 3, 3), (3, 3, 2, 3)),
    "3 reduced, fewer inputs": (data_problem(2, 4, 2, 2, "reduced"), (2, 4, 3, 4)),
    "3 data, rank-deficient, fewer inputs": (data_problem(4, 3, 2, 3), (4, 3, 3, 3)),
    "3 data, more inputs": (data_problem(4, 2, 4, 4), (4, 3, 4, 2)),
    "4 wide": (whitened([2, 1], 3, 2), (3, 3, 4, 3, 2)),
    "4 bottleneck": (whitened([3, 2, 1], 3, 3), (3, 4, 2, 3, 3)),
    "4 data, fewer inputs": (data_problem(2, 3, 2, 5), (2, 3, 3, 4, 3)),
    "5 wide": (whitened([2, 1], 3, 2), (3, 3, 3, 3, 3, 2)),
    "5 data, rank-deficient": (data_problem(3, 3, 2, 6), (3, 3, 2, 3, 3, 3)),
    "5 fewer inputs": (whitened([2.2, 0.9], 2, 3), (2, 3, 2, 3, 3, 3)),
}

#: The architectures with two hidden layers.
TWO_HIDDEN = tuple(name for name in POOL if name.startswith("3"))


def r_max(problem: Problem, widths) -> int:
    return min(len(problem.singular_values), *widths[1:-1])


def admissible_subsets(problem: Problem, widths) -> list[tuple[int, ...]]:
    n = len(problem.singular_values)
    return [S for r in range(r_max(problem, widths) + 1) for S in itertools.combinations(range(1, n + 1), r)]


def kinds(problem: Problem, widths, subset) -> list[str]:
    """The kinds that the stratum of `S` has, by the theorems."""
    r, bound, depth = len(subset), r_max(problem, widths), len(widths) - 1
    nested = subset == tuple(range(1, r + 1))
    minimum = nested and r == bound
    non_strict = depth >= 3 and nested and not minimum
    return [
        "any",
        "balanced",
        *(["minimum"] if minimum else ["strict"]),
        *(["non-strict"] if non_strict else []),
        *(["zero-hessian"] if non_strict and r == 0 else []),
    ]


#: What `gdflow.classify` says of points of some kinds; of the others it depends on the point.
KIND = {"strict": "strict saddle", "minimum": "global minimum"}
KIND |= {"non-strict": "non-strict saddle", "zero-hessian": "non-strict saddle"}


@dataclass(frozen=True)
class Point:
    """A sampled critical point with what was asked for."""

    net: LayerTuple
    subset: tuple[int, ...]
    kind: str


def sample(name: str, repeats: int, first_key: int = 0) -> list[Point]:
    """Points of every kind on every admissible stratum of an architecture, `repeats` of each, from consecutive keys."""
    problem, widths = POOL[name]
    seed = itertools.count(10_000 * list(POOL).index(name) + first_key)
    return [
        Point(gf.sample_critical_point(problem, widths, S, key=jax.random.key(next(seed)), kind=kind), S, kind)
        for S in admissible_subsets(problem, widths)
        for kind in kinds(problem, widths, S)
        for _ in range(repeats)
    ]


def flat(net: LayerTuple) -> np.ndarray:
    """All entries, `W_1` first, row by row."""
    return np.concatenate([np.ravel(w) for w in net.weights])


@functools.cache
def _compiled(widths: tuple[int, ...], what: str):
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    ends = np.cumsum([a * b for a, b in shapes])

    def loss(v, A, D):
        product = jnp.eye(widths[0])
        for (a, b), end in zip(shapes, ends, strict=True):
            product = v[end - a * b : end].reshape(a, b) @ product
        return 0.5 * jnp.sum((A - product @ D) ** 2)

    return jax.jit(
        jax.vmap({"loss": loss, "gradient": jax.grad(loss), "hessian": jax.hessian(loss)}[what], (0, None, None))
    )


def derivatives(problem: Problem, nets: list[LayerTuple], what: str) -> np.ndarray:
    """`"loss"`, `"gradient"` or `"hessian"` of `½‖A − W_N…W_1D‖²` at every network, by automatic differentiation."""
    vectors = jnp.asarray(np.stack([flat(net) for net in nets]))
    return np.asarray(_compiled(nets[0].widths, what)(vectors, problem.target, problem.design))


def eigenvalues(problem: Problem, nets: list[LayerTuple]) -> np.ndarray:
    """Eigenvalues of every Hessian, ascending, shape `(n, P)`."""
    return np.linalg.eigvalsh(derivatives(problem, nets, "hessian"))


def natural_size(problem: Problem, net: LayerTuple) -> float:
    """`‖Σ‖∏max(1, ‖W_j‖)`, the size of the terms of the gradient."""
    norms = [max(1.0, float(np.linalg.norm(w))) for w in net.weights]
    return float(np.linalg.norm(problem.target)) * float(np.prod(norms))
