"""Critical points that are exactly critical as floating-point numbers, and the arithmetic to prove it: integers and fractions.

In whitened coordinates with target `Σ_Y` and `S ⊂ {1, …, d_y}`, `r = |S|`,

    W_1 = G_1[Σ_S; 0],   W_h = G_h diag(I_r, Z_h) G_{h−1}^{-1},   W_N = [E_S, 0] G_{N−1}^{-1}

is critical with value `ℓ(S) = ½Σ_{i∉S}s_i²` for any `Z_h` (Achour, Malgouyres, Gerchinovitz 2024, with `Z_1 = Z_N = 0`). With
unimodular integer `G_h` and layers rescaled by powers of two, whose product is 1, every entry is a floating-point number; the
larger the entries, the more cancels in the products, which is what round-off gets wrong.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce

import numpy as np


def unimodular(rng: np.random.Generator, n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An integer matrix of determinant 1 with entries of about `size`, and its inverse, as objects."""
    G, inverse = np.eye(n, dtype=int).astype(object), np.eye(n, dtype=int).astype(object)
    for i in range(n):
        for j in range(n):
            if i != j and rng.random() < 0.7:
                shear = np.eye(n, dtype=int).astype(object)
                shear[i, j] = int(rng.integers(-size, size + 1))
                back = shear.copy()
                back[i, j] = -shear[i, j]
                G, inverse = G.dot(shear), back.dot(inverse)
    return G, inverse


def exact_critical_point(
    rng: np.random.Generator, s: Sequence[float], widths: tuple[int, ...], subset: Sequence[int], size: int, spread: int
) -> list[np.ndarray]:
    """Weights (fractions) of a point on the stratum of `subset` (indices from 1); `spread`: powers of two up to `2^±spread`."""
    d_x, *hidden, d_y = widths
    r, N = len(subset), len(widths) - 1
    target = np.zeros((d_y, d_x), dtype=object)
    target[:] = Fraction(0)
    for i, value in enumerate(s):
        target[i, i] = Fraction(float(value))
    inside = [i - 1 for i in subset]
    frames = [unimodular(rng, d, size) for d in hidden]
    first = np.full((hidden[0], d_x), Fraction(0), dtype=object)
    first[:r] = target[inside]
    layers = [frames[0][0].dot(first)]
    for h in range(1, N - 1):
        middle = np.full((hidden[h], hidden[h - 1]), Fraction(0), dtype=object)
        for i in range(r):
            middle[i, i] = Fraction(1)
        Z = rng.integers(-1, 2, (hidden[h] - r, hidden[h - 1] - r))
        middle[r:, r:] = [[Fraction(int(z)) for z in row] for row in Z] if Z.size else middle[r:, r:]
        layers.append(frames[h][0].dot(middle).dot(frames[h - 1][1]))
    last = np.full((d_y, hidden[-1]), Fraction(0), dtype=object)
    for column, i in enumerate(inside):
        last[i, column] = Fraction(1)
    layers.append(last.dot(frames[-1][1]))
    powers = rng.integers(-spread, spread + 1, N)
    powers[0] -= powers.sum()
    return [w * Fraction(2) ** int(p) for w, p in zip(layers, powers, strict=True)]


def as_fractions(matrix) -> np.ndarray:
    """A floating-point matrix, exactly."""
    array = np.asarray(matrix, dtype=np.float64)
    return np.array([[Fraction(float(x)) for x in row] for row in array], dtype=object)


def as_floats(matrix: np.ndarray) -> np.ndarray | None:
    """The matrix in double precision if that is exact, else `None`."""
    floats = np.array([[float(x) for x in row] for row in matrix])
    exact = all(Fraction(float(f)) == x for f, x in zip(floats.ravel(), matrix.ravel(), strict=True))
    return floats if exact and np.all(np.isfinite(floats)) else None


def exact_residual(weights: Sequence, target, design) -> np.ndarray:
    """`A − W_N…W_1D` in rational arithmetic, from floating-point matrices."""
    product = reduce(lambda right, left: left.dot(right), [as_fractions(w) for w in weights])
    return as_fractions(target) - product.dot(as_fractions(design))


def exact_loss(weights: Sequence, target, design) -> Fraction:
    """`½‖A − W_N…W_1D‖²` in rational arithmetic."""
    return sum((x * x for x in exact_residual(weights, target, design).ravel()), Fraction(0)) / 2


def exact_gradient_vanishes(weights: Sequence, target, design) -> bool:
    """Whether `∇L = 0`, in rational arithmetic."""
    layers = [as_fractions(w) for w in weights]
    slope = exact_residual(weights, target, design).dot(as_fractions(design).T)
    for j in range(len(layers)):
        after = reduce(
            lambda left, w: w.dot(left), layers[j + 1 :], np.eye(layers[j].shape[0], dtype=int).astype(object)
        )
        before = reduce(lambda right, w: w.dot(right), layers[:j], np.eye(layers[0].shape[1], dtype=int).astype(object))
        if any(x != 0 for x in after.T.dot(slope).dot(before.T).ravel()):
            return False
    return True
