"""An independent check of a proof of a start, in ball arithmetic.

*The claim.* The exact flow `W' = −∇L(W)`, `L(W) = ½‖A − W_N…W_1D‖²_F`, from the float64 start, or from any within `ε_0` of it,
and for any target within `δ_A` of `A`, converges to a critical point whose value is below a threshold `T`.

*The proof.* A path `p`, a polynomial on each piece, that the flow stays close to: with `e = W − p` and `r = ṗ + ∇L(p)`,

    d/dt ½‖e‖² = −∫_0^1⟨∇²L(p + se)e, e⟩ds − ⟨e, r⟩ ≤ μ‖e‖² + ‖r‖‖e‖,   μ ≥ −λ_min∇²L within E of the path,

so that on a piece of duration `h` the radius `ε` grows to `e^{μh}ε + max(1, e^{μh})I`, `I ≥ ∫‖r‖`, as long as
`max(1, e^{μh})(ε + I) < E`. There are two bounds of `μ`, from products of layers along the piece and from the Hessian at its
middle. At the end `√(2L)` of the flow is at most that of the path plus `Δ(ε)`. If it is below `√(2T)`, and all critical values
but the lowest are `T` or more, then the limit is a global minimum, for the loss falls and every trajectory converges.

*The arithmetic.* Every number is a ball that holds the exact one (`python-flint`), integrals of polynomials are Gauss sums with
enough nodes to be exact, eigenvalues are enclosed by Gershgorin's circles. NumPy proposes eigenvectors and nothing else; what it
proposes is verified. Nothing is shared with the part of the library that makes the proofs.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# flint is imported only when it is used, so its balls and matrices of balls have no better names here.
Ball = Any
Matrix = Any

_FORMAT = "gdflow proof 1"
#: Radii `E` are tried `1 + _MARGIN·2^i` times as large as the radius that is expected, `i < _TRIES`.
_MARGIN, _TRIES = 0.01, 12
#: Critical values below the threshold may lie at most this multiple of `‖A‖²` above the lowest.
_NARROW = 1e-9


@dataclasses.dataclass(frozen=True)
class Check:
    """What became of a proof.

    - `accepted`: whether it holds; if not, `reason` says why, and `failed_piece` on which piece the tube broke, if it did.
    - `radius`: upper bound of the distance of the exact flow from the end of the path; infinite if the tube broke.
    - `exponent`: upper bound of the sum of `μh`; infinite if the tube broke.
    - `loss`: encloses the loss at the end of the path; only said if the tube got there.
    - `bound`: upper bound of the exact flow's loss there; infinite if the tube broke.
    - `level`: encloses the lowest critical value that is certainly `T` or more; infinite if there is none.
    - `separated`: whether the lowest critical value alone is below `T`, for every target within `δ_A`: then the limit is a global
      minimum. If not, what is proved is only that the limit's value is below `T`. It is one of those of `num_values` subsets of
      the singular values, all within `1e-9‖A‖²` of the lowest. So it is where singular values that the choice of the lowest
      tells apart are closer than the enclosures, and, if `δ_A > 0`, where they are equal or the target's rank is below the
      network's.
    - `num_values`: how many subsets can have a value below `T`; 1 if `separated`.
    - `precision`: of the arithmetic, in bits.
    """

    accepted: bool
    reason: str
    failed_piece: int | None
    radius: float
    exponent: float
    loss: tuple[float, float]
    bound: float
    level: tuple[float, float]
    separated: bool
    num_values: int
    precision: int


class _Unproved(Exception):
    """An inequality does not hold, or not certainly."""


def _flint() -> Any:
    try:
        import flint
    except ImportError as error:
        raise ImportError("balls are python-flint's, which is not installed: pip install 'gdflow[proofs]'") from error
    return flint


# -- the record --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Record:
    A: np.ndarray
    D: np.ndarray
    start: list[np.ndarray]
    durations: np.ndarray
    path: list[np.ndarray]
    sharp: np.ndarray
    radius: float
    target_error: float
    threshold: float

    @property
    def max_rank(self) -> int:
        return min(*(min(w.shape) for w in self.start), self.A.shape[0])


def _read(record: Mapping[str, np.ndarray]) -> _Record:
    """Arrays of the right names, types and shapes with numbers in them, or `ValueError` with the name of one that is not."""
    names = set(record)
    depth = max(1, *(sum(str(name).startswith(kind) for name in names) for kind in ("start_", "path_")))
    layers = range(1, depth + 1)
    expected = {"format", "A", "D", "durations", "sharp", "radius", "target_error", "threshold"}
    expected |= {f"{kind}_{j}" for kind in ("start", "path") for j in layers}
    for what, wrong in (("is missing", expected - names), ("is not a part of a proof", names - expected)):
        if wrong:
            raise ValueError(f"{min(map(str, wrong))} {what}")

    def take(name: str, shape: Sequence[int | None], kind: type = np.float64) -> np.ndarray:
        try:
            array = record[name]
        except Exception as error:  # a broken archive fails in many ways
            raise ValueError(f"{name} cannot be read: {error}") from error
        if type(array) is not np.ndarray or (array.dtype.kind != "U" if kind is str else array.dtype != np.dtype(kind)):
            found = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{name} must be an array of type {np.dtype(kind).name}, not {found}")
        if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
            raise ValueError(f"{name} has shape {array.shape}, which does not fit {tuple(shape)}")
        if kind is np.float64 and name != "threshold" and not np.isfinite(array).all():
            raise ValueError(f"{name} has entries that are infinite or not numbers")
        return array

    if str(take("format", (), str)) != _FORMAT:
        raise ValueError(f"format must be {_FORMAT!r}")
    A = take("A", (None, None))
    D = take("D", (None, A.shape[1]))
    sides = [D.shape[0]]
    start: list[np.ndarray] = []
    path: list[np.ndarray] = []
    for j in layers:
        start.append(take(f"start_{j}", (A.shape[0] if j == depth else None, sides[-1])))
        sides.append(start[-1].shape[0])
    if 0 in (*A.shape, *sides):
        raise ValueError("A, D or a layer is empty")
    durations = take("durations", (None,))
    for j, w in enumerate(start, 1):
        path.append(take(f"path_{j}", (durations.size, path[0].shape[1] if path else None, *w.shape)))
    sharp, radius = take("sharp", durations.shape, np.bool_), take("radius", (durations.size + 1,))
    target_error, threshold = (float(take(name, ())) for name in ("target_error", "threshold"))
    for name, broken in (
        ("path_1", path[0].shape[1] == 0),
        ("durations", (durations <= 0).any()),
        ("radius", (radius < 0).any()),
        ("target_error", target_error < 0),
        ("threshold", math.isnan(threshold)),
    ):
        if broken:
            raise ValueError(f"{name} has {'no coefficients' if name == 'path_1' else 'a value that it must not have'}")
    return _Record(A, D, start, durations, path, sharp, float(radius[0]), target_error, threshold)


# -- balls -------------------------------------------------------------------------------------------------------------


def _exact(array: np.ndarray) -> Matrix:
    return _flint().arb_mat(*array.shape, array.ravel().tolist())


def _identity(n: int) -> Matrix:
    return _exact(np.eye(n))


def _product(factors: Iterable[Ball]) -> Ball:
    return functools.reduce(operator.mul, factors, _flint().arb(1))


def _largest(balls: Iterable[Ball]) -> Ball:
    """Not a number if one of them is not, unlike Python's `max`."""
    return functools.reduce(lambda a, b: a.max(b), balls)


def _root(x: Ball) -> Ball:
    """An upper bound of the root of a number that is not negative."""
    return x.upper().max(0).sqrt().upper()


def _above(x: Ball) -> float:
    """The least float that is certainly an upper bound, or nearly."""
    if x.is_nan():
        return math.inf
    result = float(x.upper())
    while result < math.inf and not x <= result:
        result = math.nextafter(result, math.inf)
    return result


def _below(x: Ball) -> float:
    return -_above(-x)


def _squares(matrices: Iterable[Matrix]) -> Ball:
    return sum((x * x for m in matrices for x in m.entries()), _flint().arb(0))


def _norm(*matrices: Matrix) -> Ball:
    """An upper bound of the Frobenius norm of a tuple."""
    return _root(_squares(matrices))


def _eigenvalues(S: Matrix) -> tuple[Ball, Ball]:
    """A lower bound of the least and an upper bound of the largest eigenvalue of a symmetric matrix, by Gershgorin's circles.

    With `V` near the eigenvectors, `x = Vy`: `xᵀSx = yᵀ(VᵀSV)y` and `|x|² = (1 ± β)|y|²`, `β ≥ ‖VᵀV − I‖`.
    """
    n = S.nrows()
    middle = [x.mid() for x in S.entries()]
    scale = _largest(abs(x) for x in middle)
    floats = np.array([float(x / scale) for x in middle]).reshape(n, n)
    try:
        V = _exact(np.linalg.eigh(floats)[1]) if np.isfinite(floats).all() else _identity(n)
    except np.linalg.LinAlgError:
        V = _identity(n)
    turned = V.transpose() * S * V
    beta = _norm(V.transpose() * V - _identity(n))
    low, high = [], []
    for i in range(n):
        circle = sum((abs(turned[i, j]) for j in range(n) if j != i), _flint().arb(0))
        low.append((turned[i, i] - circle).lower())
        high.append((turned[i, i] + circle).upper())
    if not beta < 1:
        return _flint().arb.neg_inf(), _flint().arb.pos_inf()
    least, most = -_largest(-x for x in low), _largest(high)
    return (
        (least / (1 + beta if least >= 0 else 1 - beta)).lower(),
        (most / (1 - beta if most >= 0 else 1 + beta)).upper(),
    )


def _spectral(B: Matrix) -> Ball:
    """An upper bound of the spectral norm."""
    other = B.transpose()
    tight = _root(_eigenvalues(other * B if B.ncols() < B.nrows() else B * other)[1])
    loose = _norm(B)
    return tight if tight < loose else loose


@functools.cache
def _gauss(num: int, precision: int) -> list[tuple[Ball, Ball]]:
    """Nodes and weights on `[−1, 1]`, exact for polynomials of degree `2num − 1`; `precision`, for it is kept."""
    return [_flint().arb.legendre_p_root(num, k, weight=True) for k in range(num)]


# -- the objective -----------------------------------------------------------------------------------------------------


class _Objective:
    """`A` and `D` in balls, their norms, and how far the target may be off."""

    def __init__(self, record: _Record):
        self.A, self.D = _exact(record.A), _exact(record.D)
        self.size, self.stretch = _norm(self.A), _flint().arb(float(np.diagonal(record.D).max()))  # ‖A‖_F, ‖D‖_2
        self.target_error = _flint().arb(record.target_error)

    def parts(self, weights: Sequence[Matrix]) -> tuple[list[Matrix], list[Matrix], Matrix]:
        """`G_j = (W_N…W_{j+1})ᵀM` and `R_j = W_{j−1}…W_1D` for every `j`, and `M = A − W_N…W_1D`: `−∇_jL = G_jR_jᵀ`."""
        behind = [self.D]
        for w in weights:
            behind.append(w * behind[-1])
        residual = self.A - behind.pop()
        ahead = [residual]
        for w in reversed(weights[1:]):
            ahead.insert(0, w.transpose() * ahead[0])
        return ahead, behind, residual

    def slope(self, sizes: Sequence[Ball]) -> Ball:
        """`‖D‖(Σ_j∏_{i≠j}a_i²)^½`: by how much `W_N…W_1D` moves with the layers, and the gradient with the target."""
        return self.stretch * _root(sum(_product(_without(sizes, j)) ** 2 for j in range(len(sizes))))

    def change(self, sizes: Sequence[Ball], radius: Ball) -> Ball:
        """`Δ`: how far `W_N…W_1D` is at most, if the layers, of norms `a_i`, are moved by a tuple of norm up to `ε`.

        The first-order terms by their slope, those of higher order by the product of norms. With elementary symmetric
        polynomials `e_m` of the `a_i` these are `Σ_{m≥2} ε^m e_{N−m}`.
        """
        N, higher = len(sizes), _flint().arb(0)
        for m in range(2, N + 1):
            higher += radius**m * sum(map(_product, itertools.combinations(sizes, N - m)), _flint().arb(0))
        return (radius * self.slope(sizes) + self.stretch * higher).upper()

    def hessian(self, weights: Sequence[Matrix]) -> Matrix:
        """`∇²L`, layer by layer and row by row: that of `‖Σ_jP_j(w)D‖² − 2⟨M, Σ_{j<k}P_jk(w)D⟩`.

        `P_j(w)D = L_jw_jR_j` gives `L_jᵀL_k ⊗ R_jR_kᵀ`, and `⟨M, P_jk(w)D⟩ = tr(w_k·Z·w_j·X)`, `Z = W_{k−1}…W_{j+1}`,
        `X = (G_kR_jᵀ)ᵀ`.
        """
        N = len(weights)
        ahead, behind, _ = self.parts(weights)
        after = [_identity(weights[-1].nrows())]
        for w in reversed(weights[1:]):
            after.insert(0, after[0] * w)
        shapes = [(w.nrows(), w.ncols()) for w in weights]
        offsets = [0, *itertools.accumulate(a * b for a, b in shapes)]
        H = _flint().arb_mat(offsets[-1], offsets[-1])
        for j in range(N):
            between = _identity(weights[j].nrows())
            for k in range(j, N):
                left, right = after[j].transpose() * after[k], behind[j] * behind[k].transpose()
                cross = ahead[k] * behind[j].transpose()
                for (a, b), (c, d) in itertools.product(np.ndindex(shapes[j]), np.ndindex(shapes[k])):
                    value = left[a, c] * right[b, d]
                    if k > j:
                        value -= between[d, a] * cross[c, b]
                    row, column = offsets[j] + a * shapes[j][1] + b, offsets[k] + c * shapes[k][1] + d
                    H[row, column] = H[column, row] = value
                if k > j:
                    between = weights[k] * between
        return H


def _without(sizes: Sequence[Ball], *left_out: int) -> list[Ball]:
    return [a for i, a in enumerate(sizes) if i not in left_out]


# -- the tube ----------------------------------------------------------------------------------------------------------


def _pairs(N: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(N), 2))


def _at(coefficients: Sequence[Matrix], s: Ball) -> Matrix:
    return functools.reduce(lambda value, c: value * s + c, reversed(coefficients[:-1]), coefficients[-1])


class _Piece:
    """A piece `p_j(s) = Σ_i c_ji s^i`, `s ∈ [−1, 1]`, of duration `h`, with bounds `a_j` of the layers' norms along it."""

    def __init__(self, objective: _Objective, record: _Record, k: int):
        self.objective, self.h = objective, _flint().arb(float(record.durations[k]))
        self.path = [[_exact(c) for c in layer[k]] for layer in record.path]
        self.centre = [layer[0] for layer in self.path]
        self.sharp = bool(record.sharp[k])
        self.centre_sizes = [_spectral(c) for c in self.centre]
        moves = [sum(map(_norm, layer[1:]), _flint().arb(0)) for layer in self.path]
        self.sizes = [(a + m).upper() for a, m in zip(self.centre_sizes, moves, strict=True)]

    def ends(self) -> tuple[list[Matrix], list[Matrix]]:
        begin, end = ([_at(layer, _flint().arb(s)) for layer in self.path] for s in (-1, 1))
        return begin, end

    def integrals(self) -> tuple[Ball, dict[tuple[int, int], Ball]]:
        """`∫‖ṗ + ∇L(p)‖dt` and, for the bound by products, `∫‖X_jk‖_2²ds`, at most: by Cauchy–Schwarz, of polynomials.

        The squares have degrees up to `2g(2N − 1)` and `4g(2N − 2)`.
        """
        N, degree = len(self.path), len(self.path[0]) - 1
        pairs = [] if self.sharp else _pairs(N)
        num = max(degree * (2 * N - 1), 2 * degree * (2 * N - 2) if pairs else 0) + 1
        slopes = [[c * i for i, c in enumerate(layer)][1:] for layer in self.path]
        defect, grams = _flint().arb(0), dict.fromkeys(pairs, _flint().arb(0))
        for s, weight in _gauss(num, _flint().ctx.prec):
            ahead, behind, _ = self.objective.parts([_at(layer, s) for layer in self.path])
            rest = [(g * r.transpose()) * (-self.h / 2) for g, r in zip(ahead, behind, strict=True)]
            if degree > 0:
                rest = [_at(slope, s) + x for slope, x in zip(slopes, rest, strict=True)]
            defect += weight * _squares(rest)
            for j, k in pairs:
                X = ahead[k] * behind[j].transpose()
                gram = X.transpose() * X if X.ncols() < X.nrows() else X * X.transpose()
                grams[j, k] += weight * _squares([gram])
        return _root(2 * defect), {pair: _root(2 * gram) for pair, gram in grams.items()}

    def by_products(self, crosses: dict[tuple[int, int], Ball]) -> Callable[[Ball], Ball]:
        """`E ↦ ∫μdt` at most, `μ = λ_max(K)` on the path, plus `λ_max` of what `K` grows by within `E`.

        `K_jk = ‖X_jk‖_2‖W_{k−1}…W_{j+1}‖_2` has trace zero, so `λ_max(K)² ≤ (N − 1)/N·‖K‖²`; all terms of its growth are
        products of norms, `F_jk(a + E) − F_jk(a)`.
        """
        N, stretch = len(self.sizes), self.objective.stretch
        square = sum((x * _product(self.sizes[j + 1 : k]) ** 2 for (j, k), x in crosses.items()), _flint().arb(0))
        on_path = self.h / 2 * _root(4 * (N - 1) * square / N)

        def growth(a: Sequence[Ball], j: int, k: int) -> Ball:
            return stretch * (self.objective.size + stretch * _product(a)) * _product(_without(a, j, k))

        def exponent(E: Ball) -> Ball:
            wide, more = [a + E for a in self.sizes], _flint().arb_mat(N, N)
            for j, k in _pairs(N):
                more[j, k] = more[k, j] = growth(wide, j, k) - growth(self.sizes, j, k)
            return (on_path + self.h * _eigenvalues(more)[1]).upper()

        return exponent

    def by_hessian(self) -> Callable[[Ball], Ball]:
        """`E ↦ μh` at most, `μ = −λ_min∇²L(c) + λ_max(Λ)`: `c = p(0)`, `Λ` how far `∇²L` moves within `ρ + E` of `c`."""
        objective, a, stretch = self.objective, self.centre_sizes, self.objective.stretch
        N, degree = len(a), len(self.path[0]) - 1
        reach = sum((_norm(*(layer[i] for layer in self.path)) for i in range(1, degree + 1)), _flint().arb(0))
        residual = _spectral(objective.parts(self.centre)[2])
        bottom = _eigenvalues(objective.hessian(self.centre))[0]

        def exponent(E: Ball) -> Ball:
            wide, more = [x + reach + E for x in a], _flint().arb_mat(N, N)
            far = residual + stretch * (_product(wide) - _product(a))
            for j, k in itertools.product(range(N), repeat=2):
                ends = [(_product(_without(x, j)) * _product(_without(x, k))) for x in (wide, a)]
                more[j, k] = stretch**2 * (ends[0] - ends[1])
                if j != k:
                    ends = [m * _product(_without(x, j, k)) for m, x in ((far, wide), (residual, a))]
                    more[j, k] += stretch * (ends[0] - ends[1])
            return (self.h * (_eigenvalues(more)[1] - bottom)).upper()

        return exponent

    def advance(self, radius: Ball) -> tuple[Ball, Ball]:
        """The tube's radius at the end from that at the beginning, and `∫μ`.

        **Raises:** `_Unproved` if no `E` was found that the radius certainly stays below.
        """
        defect, crosses = self.integrals()
        exponent = self.by_hessian() if self.sharp else self.by_products(crosses)
        zero = _flint().arb(0)
        expected = exponent(zero).exp().max(1) * (radius + defect)
        for i in range(_TRIES):
            # The last term is for a radius of zero.
            E = ((1 + _MARGIN * 2**i) * expected + _flint().arb(2) ** -400).upper()
            rate = exponent(E)
            error = defect + self.h * self.objective.target_error * self.objective.slope([a + E for a in self.sizes])
            growth = rate.exp()
            largest = (growth.max(1) * (radius + error)).upper()
            if largest < E:
                return (growth * radius + growth.max(1) * error).upper(), rate
            expected = largest
        bound = "Hessian" if self.sharp else "products"
        raise _Unproved(
            f"no radius holds the flow: defect {_above(defect):.3g}, radius before it {_above(radius):.3g}, "
            f"exponent at least {_above(exponent(zero)):.3g} (bound by {bound})"
        )


# -- the levels --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Levels:
    level: tuple[float, float] = (math.inf, math.inf)
    separated: bool = True
    num_values: int = 1
    narrow: bool = True


class _Values:
    """Enclosures of `½Σ_{i∈R}s_i²` from those of the singular values `s_1 ≥ s_2 ≥ …` of `A`, counted from 0.

    With `T = UᵀAV`, `U`, `V` square and `‖UᵀU − I‖ ≤ α`, `‖VᵀV − I‖ ≤ β`, the singular values of `T` are those of `A` times
    numbers in `√((1 ± α)(1 ± β))` (Ostrowski), and off from any sorted `ŝ` by a vector of norm `‖T − Ŝ‖` at most (Mirsky).
    The rank of `A` is found exactly, over the rationals.
    """

    def __init__(self, A: np.ndarray):
        flint = _flint()
        scale = float(np.abs(A).max()) or 1.0
        try:
            U, s, Vt = np.linalg.svd(A / scale)
        except np.linalg.LinAlgError as error:
            raise _Unproved("NumPy finds no singular values of A") from error
        rationals = [flint.fmpq(*x.as_integer_ratio()) for x in A.ravel().tolist()]
        self.rank = int(flint.fmpq_mat(*A.shape, rationals).rank())
        s = np.sort(np.abs(s))[::-1]
        s[self.rank :] = 0
        self.floats, self.s = s.tolist(), [flint.arb(x) * flint.arb(scale) for x in s.tolist()]
        diagonal = flint.arb_mat(*A.shape)
        for i, x in enumerate(self.s):
            diagonal[i, i] = x
        U, V = _exact(U), _exact(Vt.T)
        alpha, beta = (_norm(Q.transpose() * Q - _identity(Q.nrows())) for Q in (U, V))
        self.error = _norm(U.transpose() * _exact(A) * V - diagonal)
        if not (alpha < 1 and beta < 1 and self.error.is_finite()):
            raise _Unproved("the singular values of A cannot be enclosed")
        self.low, self.high = 2 * (1 + alpha) * (1 + beta), 2 * (1 - alpha) * (1 - beta)
        self.exact = self.error.is_zero() and alpha.is_zero() and beta.is_zero()

    def __call__(self, rest: Iterable[int]) -> tuple[Ball, Ball]:
        """Lower and upper bound of half the sum of squares of some singular values."""
        square = sum((self.s[i] ** 2 for i in rest), _flint().arb(0))
        cross, small = 2 * square.sqrt() * self.error, self.error**2
        # `(√x − δ)²`, and exactly `x` where nothing is off.
        least = square - cross + small if square >= small else _flint().arb(0)
        return (least.max(0) / self.low).lower(), ((square + cross + small) / self.high).upper()

    def equal(self, i: int, j: int) -> bool:
        """Whether two singular values are known to be equal; those beyond the last are zero."""
        return min(i, j) >= self.rank or (self.exact and max(i, j) < len(self.s) and self.floats[i] == self.floats[j])


def _levels(objective: _Objective, record: _Record) -> _Levels:
    """Which critical values are below the threshold.

    The lowest leaves out the singular values from number `r` on, the largest rank. Any other exchanges some `i < r` for as many
    `j ≥ r`, or for none (`j = n`), and is as high at least as after one of these exchanges. That changes nothing if both are
    equal and the target is exactly `A`.
    """
    if len(record.start) == 1:
        return _Levels()  # convex
    values, r, n, T = _Values(record.A), record.max_rank, min(record.A.shape), _flint().arb(record.threshold)
    tail = set(range(r, n))
    above, below = [], []
    for i, j in itertools.product(range(r), range(r, n + 1)):
        if record.target_error == 0 and values.equal(i, j):
            continue
        bounds = values((tail - {j}) | {i})
        if bounds[0] >= T:
            above.append(bounds)
        else:
            below.append((i, j, bounds[1]))
    infinite = _flint().arb.pos_inf()
    least, most = [-_largest(-x for x in side) for side in zip(*above, strict=True)] if above else [infinite, infinite]
    if not below:
        return _Levels((_below(least), _above(most)))
    # What is exchanged below the threshold is exchanged in these ways only, `r` times at most.
    spread = r * (_largest(high for _, _, high in below) - values(tail)[0])
    out, into = {i for i, _, _ in below}, {j for _, j, _ in below}
    fill = len(into - {n})
    num_values = 0
    for m in range(len(out) + 1):
        num_values += math.comb(len(out), m) * sum(math.comb(fill, k) for k in range(0 if n in into else m, m + 1))
    return _Levels(
        level=(max(0.0, min(record.threshold, _above(most))), _above(most)),
        separated=False,
        num_values=num_values,
        narrow=bool(spread <= _NARROW * _squares([objective.A])),
    )


# -- the check ---------------------------------------------------------------------------------------------------------


def _verdict(record: _Record, precision: int) -> Check:
    flint = _flint()
    result = Check(False, "", None, math.inf, math.inf, (0.0, math.inf), math.inf, (0.0, math.inf), False, 0, precision)
    D = record.D
    if D.shape[0] != D.shape[1] or np.any(np.diag(np.diagonal(D)) != D) or not (np.diagonal(D) > 0).all():
        return dataclasses.replace(result, reason="D is not square and diagonal with a positive diagonal")
    objective = _Objective(record)
    piece: int | None = None
    try:
        levels = _levels(objective, record)
        result = dataclasses.replace(
            result, level=levels.level, separated=levels.separated, num_values=levels.num_values
        )
        here, radius, exponent = [_exact(w) for w in record.start], flint.arb(record.radius), flint.arb(0)
        for piece in range(record.durations.size):
            part = _Piece(objective, record, piece)
            begin, end = part.ends()
            radius = (radius + _norm(*(a - b for a, b in zip(begin, here, strict=True)))).upper()
            radius, rate = part.advance(radius)
            here, exponent = end, exponent + rate
        piece = None
        root, error = _squares([objective.parts(here)[2]]), objective.target_error
        change = objective.change([_spectral(w) for w in here], radius)
        reach = _root(root) + change + error
        result = dataclasses.replace(
            result,
            radius=_above(radius),
            exponent=_above(exponent),
            loss=(max(0.0, _below(root / 2)), _above(root / 2)),
            bound=_above(reach**2 / 2),
        )
        if not levels.narrow:
            raise _Unproved("the threshold is above a critical value that is not the lowest, or not certainly below it")
        if len(record.start) > 1 and not (reach + error < (2 * flint.arb(max(record.threshold, 0.0))).sqrt()):
            raise _Unproved(f"the flow is not proved to be below the threshold {record.threshold:.6g} at the end")
    except _Unproved as error_found:
        return dataclasses.replace(result, reason=str(error_found), failed_piece=piece)
    return dataclasses.replace(result, accepted=True)


def check_record(record: Mapping[str, np.ndarray], precision: int = 128) -> Check:
    """Whether a proof of a start holds, checked in ball arithmetic and independently of what made it.

    **Arguments:**

    - `record`: the arrays of a proof, as `np.load` gives them. `format`; `A`, `D`, the objective, `D` square and diagonal;
      `start_1 … start_N`; `durations` of the pieces; `path_1 … path_N` of shapes `(pieces, g + 1, d_j, d_{j−1})`, coefficients
      of powers of `s` from −1 to 1; `sharp`, which bound a piece is to be checked by; `radius`, of which only the first is used,
      that of the ball of starts; `target_error`; `threshold`, which may be infinite.
    - `precision`: of the balls, in bits, at least 53.

    **Returns:** a `Check`. With one layer the loss is convex: the proof is accepted if the tube holds, wherever it ends.

    **Raises:**

    - `ValueError`: the record is malformed; the message begins with the name of what is wrong.
    - `ImportError`: python-flint is not installed.
    """
    flint = _flint()
    if precision < 53:
        raise ValueError(f"precision must be at least 53 bits, not {precision}")
    read = _read(record)
    with flint.ctx.workprec(precision):
        return _verdict(read, precision)
