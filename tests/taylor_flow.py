"""The flow to fifty digits: its Taylor series in ball arithmetic, step by step.

Of `Ẇ_j = W_{j+1}ᵀ…W_NᵀMDᵀW_1ᵀ…W_{j−1}ᵀ`, `M = A − W_N…W_1D`, every coefficient follows from those below it by products of
series. A step is as long as keeps the last terms below fifty digits; the radius of the balls tells the round-off of a step.
"""

import flint
import numpy as np

#: Bits, about 77 digits; order of the series.
BITS, ORDER = 256, 44
#: What a term left out may be.
SMALL = 1e-54


def _matrix(x: np.ndarray) -> flint.arb_mat:
    return flint.arb_mat([[flint.arb(float(v)) for v in row] for row in np.asarray(x)])


def _size(m: flint.arb_mat) -> float:
    return max(abs(float(x.mid())) for x in m.entries())


class _Product:
    """The product of two series, coefficient by coefficient."""

    def __init__(self, a: list, b: list):
        self.a, self.b, self.values = a, b, []

    def extend(self) -> None:
        n = len(self.values)
        self.values.append(sum((self.a[i] * self.b[n - i] for i in range(1, n + 1)), self.a[0] * self.b[n]))


class _Transposed:
    def __init__(self, a: list):
        self.a = a

    def __getitem__(self, i):
        return self.a[i].transpose()


def _series(weights: list, A: flint.arb_mat, D: flint.arb_mat) -> list[list]:
    """Taylor coefficients of all layers."""
    N = len(weights)
    W = [[w] for w in weights]
    rights, products = [], []
    for j in range(N):
        product = _Product(W[j], rights[-1].values if j else [D, *[0 * D] * ORDER])
        rights.append(product)
        products.append(product)
    M: list = []
    left, parts = M, [None] * N
    for j in range(N - 1, 0, -1):
        part = _Product(left, _Transposed(rights[j - 1].values))
        below = _Product(_Transposed(W[j]), left)
        parts[j] = part
        products += [part, below]
        left = below.values
    last = _Product(left, [D.transpose(), *[0 * D.transpose()] * ORDER])
    parts[0] = last
    for n in range(ORDER):
        for product in products[:N]:
            product.extend()
        M.append((A if n == 0 else 0 * A) - rights[-1].values[n])
        for product in (*products[N:], last):
            product.extend()
        for j in range(N):
            W[j].append(parts[j].values[n] / flint.arb(n + 1))
    return W


def taylor_flow(weights: list[np.ndarray], A: np.ndarray, D: np.ndarray, times: np.ndarray) -> np.ndarray:
    """All entries of the layers at increasing times, one row a time."""
    before = flint.ctx.prec
    flint.ctx.prec = BITS
    try:
        now, state = flint.arb(0), list(map(_matrix, weights))
        target, design = _matrix(A), _matrix(D)
        rows = []
        W, reach, base = None, 0.0, now
        for time in map(float, times):
            while W is None or float((time - base).mid()) > reach:
                if W is not None:
                    base, state = base + reach, _at(W, flint.arb(reach))
                W = _series(state, target, design)
                top = (
                    max(_size(w[ORDER]) ** (1 / ORDER) for w in W),
                    max(_size(w[ORDER - 1]) ** (1 / (ORDER - 1)) for w in W),
                )
                reach = min(SMALL ** (1 / ORDER) / max(*top, 1e-300), 10.0)
            values = _at(W, time - base)
            entries = [x for w in values for x in w.entries()]
            rows.append([float(x.mid()) for x in entries])
        return np.array(rows)
    finally:
        flint.ctx.prec = before


def _at(W: list, h: flint.arb) -> list:
    result = []
    for series in W:
        total = series[ORDER]
        for c in reversed(series[:ORDER]):
            total = total * h + c
        assert max(float(x.rad()) for x in total.entries()) < 1e-50
        result.append(flint.arb_mat(total.nrows(), total.ncols(), [x.mid() for x in total.entries()]))
    return result
