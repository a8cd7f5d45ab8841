"""Small dense factorisations in lanes: plain array arithmetic in place of batched LAPACK calls, which can hang for ever.

On a CPU, jaxlib spreads a batched LAPACK call (QR, SVD, eigh, LU) over XLA's thread pool and *blocks* until the pool has worked
off the parts (`jax::ParallelBatchMap` waits on an `absl::BlockingCounter`). The call itself runs on a thread of that very pool.
Where as many such calls run at once as the pool has threads, one per core, all threads wait for parts that none is left to work
on. Two layers whose QR decompositions are independent suffice on two cores, and so do two host threads that run one program
each. `xla_cpu_multi_thread_eigen=false` is no cure. More threads (`NPROC=8` in the environment), or batches too small to be
split, only make it rarer. Seen in native stack traces of jaxlib 0.10.1.

So nothing here calls LAPACK on a batch. Matrices at most `NARROW` wide are factorised by array arithmetic, which `jax.vmap`
turns into vector code; that is also several times faster. Wider ones go to LAPACK, one at a time under `jax.vmap`: a single
matrix is never split, and costs more than the loop around it. None of these functions is meant to be differentiated.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gdflow.network import matmul

#: Matrices with more columns than this go to LAPACK, one at a time: from about there it is faster than array arithmetic.
NARROW = 6
#: Most sweeps of Jacobi rotations; they converge quadratically, so five to ten suffice.
SWEEPS = 30


def _eps(A: Array) -> float:
    return float(jnp.finfo(A.dtype).eps)


def _tall(A: Array) -> Array:
    if A.ndim != 2:
        raise ValueError(f"one matrix is needed here, got shape {A.shape}: use jax.vmap")
    return A.T if A.shape[0] < A.shape[1] else A


def _normalized(x: Array) -> tuple[Array, Array]:
    """`x` by its largest entry, and that: squares of the quotient neither over- nor underflow. Zero stays zero."""
    size = jnp.max(jnp.abs(x), axis=0)
    return x / jnp.where(size == 0, 1.0, size)[None], size


def column_lengths(A: Float[Array, "m n"]) -> Float[Array, " n"]:
    """Euclidean lengths of the columns, to relative accuracy `m·eps` over the whole range of exponents."""
    quotient, size = _normalized(A)
    return size * jnp.sqrt(jnp.sum(quotient * quotient, axis=0))


# QR.


def _householder(A: Array) -> Array:
    """`Q` of `A = QR`, one column after the other: `Q = H (1 ⊕ Q')`, `H` the reflection that makes the first column `R_11e_1`."""
    x, _ = _normalized(A[:, 0])
    length = jnp.sqrt(jnp.sum(x * x))
    # H = I − wvᵀ maps x to ∓‖x‖e_1, with the sign that adds up; a zero column keeps H = I.
    w = x.at[0].add(jnp.where(x[0] < 0, -length, length))
    norm = length * (length + jnp.abs(x[0]))
    v = w / jnp.where(norm == 0, 1.0, norm)

    def reflect(B):
        return B - w[:, None] * jnp.sum(v[:, None] * B, axis=0)[None, :]

    Q = jnp.zeros_like(A[:, :1]).at[0].set(jnp.where((x[0] < 0) | (length == 0), 1.0, -1.0))  # so that R_11 ≥ 0
    if A.shape[1] > 1:
        below = _householder(reflect(A[:, 1:])[1:])
        Q = jnp.concatenate([Q, jnp.concatenate([jnp.zeros_like(below[:1]), below])], axis=1)
    return reflect(Q)


@jax.custom_batching.sequential_vmap
def _lapack_qr(A: Array) -> Array:
    Q, R = jnp.linalg.qr(A)
    return Q * jnp.where(jnp.diagonal(R) < 0, -1.0, 1.0)[None, :]


def orthonormal(A: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """`Q` of `A = QR` with `QᵀQ = I` and `R_ii ≥ 0`, for `m ≥ n`, by Householder reflections.

    For Gaussian `A`, `Q` is Haar-distributed: the decomposition with positive diagonal is unique, so `A ↦ OA` makes `Q ↦ OQ`
    for every orthogonal `O` (Stewart 1980; Mezzadri 2007). `‖QᵀQ − I‖` is a small multiple of `n·eps` whatever `A` is; where
    `A` has no full rank, the columns of `Q` that it does not determine are any that complete the others.

    **Raises:** `ValueError` if `m < n`.
    """
    if A.ndim != 2 or A.shape[0] < A.shape[1]:
        raise ValueError(
            f"orthonormal columns need a matrix with at least as many rows as columns, got shape {A.shape}"
        )
    return _householder(A) if A.shape[1] <= NARROW else _lapack_qr(A)


# Jacobi rotations.


def _turn(M: Array, c: Array, s: Array) -> Array:
    """Rotates column `i` of the left half against column `i` of the right half."""
    h = M.shape[1] // 2
    left, right = M[:, :h], M[:, h:]
    return jnp.concatenate([c[None, :] * left - s[None, :] * right, s[None, :] * left + c[None, :] * right], axis=1)


def _next_pairs(M: Array) -> Array:
    """Moves the columns on in the round-robin tournament in which, by `2h − 1` rounds, each of `2h` meets each other once."""
    h = M.shape[1] // 2
    if h == 1:
        return M
    return jnp.concatenate([M[:, :1], M[:, h : h + 1], M[:, 1 : h - 1], M[:, h + 1 :], M[:, h - 1 : h]], axis=1)


def _tangent(zeta: Array) -> Array:
    """The smaller root of `t² + 2ζt − 1 = 0`, for `|ζ|` of any size."""
    large = jnp.abs(zeta) > 1e8  # 1 + ζ² = ζ² in the arithmetic
    safe = jnp.where(large, 1.0, zeta)
    t = jnp.where(safe >= 0, 1.0, -1.0) / (jnp.abs(safe) + jnp.sqrt(1 + safe * safe))
    return jnp.where(large, 0.5 / jnp.where(large, zeta, 1.0), t)


def _sweep_until(tolerance: float, rounds: int, one_round: Callable, first: Array) -> Array:
    """Sweeps of Jacobi rotations until none had anything above `tolerance` to annihilate.

    `one_round` maps the matrices to the next ones and to the largest quantity that it annihilated.
    """

    def sweep(carry):
        M, _, count = carry

        def body(_, inner):
            M, worst = inner
            M, size = one_round(M)
            return M, jnp.maximum(worst, size)

        M, worst = jax.lax.fori_loop(0, rounds, body, (M, jnp.zeros((), first.dtype)))
        return M, worst, count + 1

    def unfinished(carry):
        _, worst, count = carry
        return (worst > tolerance) & (count < SWEEPS)

    M, *_ = jax.lax.while_loop(unfinished, sweep, (first, jnp.asarray(jnp.inf, first.dtype), jnp.asarray(0)))
    return M


def _even(A: Array) -> Array:
    """`A` with a column of zeros appended if it has an odd number: no rotation touches it."""
    return jnp.pad(A, ((0, 0), (0, A.shape[1] % 2)))


def orthogonalize_columns(A: Float[Array, "m n"]) -> tuple[Float[Array, "m n"], Float[Array, "n n"]]:
    """One-sided Jacobi: `A ↦ (AJ, J)`, `J` orthogonal, the columns of `AJ` orthogonal relative to their lengths.

    For `m ≥ n`. The lengths are the singular values. If `A = BD` with `D` diagonal, they have a relative error of a small
    multiple of `n·eps·κ(B)`, however large `κ(D)` (Demmel, Veselić 1992); in any case an absolute one of `n·eps·‖A‖`. The
    rotations of a round are disjoint, in the round-robin order (Luk, Park 1989).
    """
    m, n = A.shape
    if n == 1:
        return A, jnp.eye(1, dtype=A.dtype)
    eps = _eps(A)
    h = (n + 1) // 2

    def one_round(M):
        # Lengths apart from inner products of unit vectors: nothing under- or overflows.
        lengths = column_lengths(M[:m])
        unit = M[:m] / jnp.where(lengths == 0, 1.0, lengths)[None, :]
        cosine = jnp.sum(unit[:, :h] * unit[:, h:], axis=0)
        a, b = (jnp.where(lengths == 0, 1.0, lengths)[part] for part in (slice(h), slice(h, None)))
        t = _tangent((b / a - a / b) / (2 * jnp.where(cosine == 0, 1.0, cosine)))
        t = jnp.where(jnp.abs(cosine) > eps, t, 0.0)
        c = 1 / jnp.sqrt(1 + t * t)
        return _next_pairs(_turn(M, c, c * t)), jnp.max(jnp.abs(cosine))

    stacked = jnp.concatenate([_even(A), _even(jnp.eye(n, dtype=A.dtype))])
    M = _sweep_until(4 * eps * math.sqrt(m), 2 * h - 1, one_round, stacked)
    return M[:m, :n], M[m:, :n]


@jax.custom_batching.sequential_vmap
def _lapack_singular_values(A: Array) -> Array:
    return jnp.linalg.svd(A, compute_uv=False)


def singular_values(A: Float[Array, "m n"]) -> Float[Array, " k"]:
    """All `k = min(m, n)` singular values, largest first, by one-sided Jacobi.

    Errors are at most a small multiple of `k·eps·‖A‖`, and relative where `gdflow.factorizations.orthogonalize_columns` says.
    """
    tall = _tall(A)
    if tall.shape[1] > NARROW:
        return _lapack_singular_values(tall)
    return jnp.sort(column_lengths(orthogonalize_columns(tall)[0]), descending=True)


@jax.custom_batching.sequential_vmap
def _lapack_eigen(S: Array) -> tuple[Array, Array]:
    return tuple(jnp.linalg.eigh(S))


def symmetric_eigen(S: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues, in any order, and orthonormal eigenvectors (columns) of a symmetric matrix, by Jacobi rotations.

    Only the symmetric part of `S` counts. `‖S − VΛVᵀ‖` and the errors of the eigenvalues are at most a small multiple of
    `d·eps·‖S‖`, those of `VᵀV = I` of `d·eps`.
    """
    d = S.shape[-1]
    if S.ndim != 2 or S.shape[0] != d:
        raise ValueError(f"one square matrix is needed here, got shape {S.shape}")
    S = 0.5 * S + 0.5 * S.T
    if d > NARROW:
        return _lapack_eigen(S)
    if d == 1:
        return S[0], jnp.ones_like(S)
    h = (d + 1) // 2
    size = jnp.max(jnp.abs(S))
    size = jnp.where(size == 0, 1.0, size)
    padding = ((0, 2 * h - d), (0, 2 * h - d))
    first = jnp.concatenate([jnp.pad(S / size, padding), jnp.eye(2 * h, dtype=S.dtype)])
    eps = _eps(S)
    pairs = jnp.concatenate([jnp.zeros((h, h)), jnp.eye(h)], axis=1)
    others = 1 - jnp.concatenate([pairs, jnp.roll(pairs, h, axis=1)]).astype(S.dtype)

    def one_round(M):
        T = M[: 2 * h]
        diagonal, off = jnp.diagonal(T), jnp.diagonal(T[:h, h:])
        t = _tangent((diagonal[h:] - diagonal[:h]) / (2 * jnp.where(off == 0, 1.0, off)))
        t = jnp.where(jnp.abs(off) > eps, t, 0.0)
        c = 1 / jnp.sqrt(1 + t * t)
        turned = _turn(M, c, c * t)
        T = _turn(turned[: 2 * h].T, c, c * t)  # symmetric
        # What has been annihilated is zero but for round-off; below the tolerance it stays.
        T = jnp.where(jnp.tile(jnp.abs(off) > eps, 2)[:, None], T * others, T)
        T = _next_pairs(_next_pairs(T).T)
        return jnp.concatenate([T, _next_pairs(turned[2 * h :])]), jnp.max(jnp.abs(off))

    M = _sweep_until(eps, 2 * h - 1, one_round, first)
    return size * jnp.diagonal(M)[:d], M[2 * h : 2 * h + d, :d]


# Determinants.


def _powers(sizes: Array) -> Array:
    """Powers of two that bring positive numbers into `[1/2, 1)`; 1 for zero."""
    exponent = jnp.frexp(sizes)[1]
    return jnp.ldexp(jnp.ones_like(sizes), jnp.where(sizes > 0, -exponent, 0))


def determinant_sign(A: Float[Array, "d d"]) -> Int[Array, ""]:
    """The sign of `det A`, `±1`, with a certificate; `0` where round-off leaves it in doubt, as for every singular `A`.

    Elimination with partial pivoting gives `L̂Û = A + ΔA` with `|ΔA| ≤ γ|L̂||Û|`, `γ = d·eps` (Higham 2002, Theorem 9.3). The
    sign is that of `det L̂Û`, exactly, if no matrix between `A` and `A + ΔA` is singular. With an approximate inverse `X` from
    the same elimination (Gauss–Jordan), this follows from `‖|X||ΔA|‖_∞ + ‖I − XA‖_∞ < 1`; both are computed, their own
    round-off is added, and ½ stands in place of 1. Rows and columns are first scaled by powers of two, which neither rounds nor
    changes the sign. So whether it decides depends on the condition of the matrix after scaling: in double precision up to
    about `10^14/d²`.

    `O(d³)` array arithmetic for any `d`.
    """
    d = A.shape[-1]
    if A.ndim != 2 or A.shape[0] != d:
        raise ValueError(f"one square matrix is needed here, got shape {A.shape}")
    eps, tiny = _eps(A), float(jnp.finfo(A.dtype).tiny)
    rows = _powers(jnp.max(jnp.abs(A), axis=1))
    B = A * rows[:, None]
    columns = _powers(jnp.max(jnp.abs(B), axis=0))
    B = B * columns[None, :]
    index = jnp.arange(d)

    def eliminate(j, carry):
        M, unused, growth, order, sign = carry
        column = jax.lax.dynamic_index_in_dim(M, j, axis=1, keepdims=False)
        p = jnp.argmax(jnp.where(unused, jnp.abs(column), -1.0))
        chosen = index == p
        row = jnp.sum(jnp.where(chosen[:, None], M, 0.0), axis=0)
        pivot = jnp.sum(jnp.where(chosen, column, 0.0))
        factor = jnp.where(chosen, 0.0, column / jnp.where(pivot == 0, 1.0, pivot))
        # |L̂||Û|: the rows not yet used, with the row of the pivot (its factor 1), whose entries left of it are zero by now.
        below = jnp.where(chosen, 1.0, jnp.where(unused, jnp.abs(factor), 0.0))
        growth = growth + below[:, None] * jnp.where(index >= j, jnp.abs(row[:d]), 0.0)[None, :]
        M = M - factor[:, None] * row[None, :]
        # Every later row that was used before an earlier one is a transposition.
        swaps = jnp.sum(jnp.where(unused & (index < p), 1, 0))
        sign = sign * jnp.sign(pivot) * jnp.where(swaps % 2 == 0, 1.0, -1.0)
        return M, unused & ~chosen, growth, order.at[j].set(p), sign

    start = (
        jnp.concatenate([B, jnp.eye(d, dtype=B.dtype)], axis=1),
        jnp.ones(d, bool),
        jnp.zeros_like(B),
        jnp.zeros(d, index.dtype),
        jnp.ones((), B.dtype),
    )
    M, _, growth, order, sign = jax.lax.fori_loop(0, d, eliminate, start)
    M = M[order]
    pivots = jnp.diagonal(M)
    X = M[:, d:] / jnp.where(pivots == 0, 1.0, pivots)[:, None]
    absolute = jnp.abs(X)
    # Numbers below `tiny` may have been flushed to zero, in A, by the scaling or on the way.
    change = 2 * (d + 1) * eps * growth + (tiny * rows)[:, None] * columns[None, :] + d * tiny
    inverse_error = jnp.abs(matmul(X, B) - jnp.eye(d, dtype=B.dtype)) + (d + 2) * eps * matmul(absolute, jnp.abs(B))
    bound = jnp.max(jnp.sum(matmul(absolute, change) + inverse_error, axis=1))
    return jnp.where(bound < 0.5, sign, 0.0).astype(int)  # NaN is in doubt too
