"""The tube of a proof as C: `gdflow.basins.path_bounds` and `gdflow.basins.tube`, all lanes of a block at once.

The bounds are those of these modules, in their order and with their allowances for round-off, but for two things. The
coefficients of the path are written to memory once, so that all that is computed of them is about the same polynomial. And how
far its ends `p(±1)` are from the states that it joins is bounded beforehand: `gdflow.basins.fused.source._path` subtracts from
`½(y_0 ± y_1)` the coefficients that are there, by sums of at most `g/2 + 2` terms with factors below `(i + 1)/2`. So the lowest
two even coefficients, and the lowest two odd ones, are rounded by at most `3γΣ(i + 1)|c_i|` together, and both ends are off by
`6γ_{g+6}Σ(i + 1)‖c_i‖` at most.
"""

import numpy as np

from gdflow.basins.fused.matrices import (
    derivatives,
    gram_squares,
    layer_offsets,
    number,
    partial_products,
    product,
    weighted_sum,
)
from gdflow.basins.path_bounds import INFLATION, RATIOS, UNDERFLOW, num_nodes, relative_error, tail_factor
from gdflow.basins.tube import INFLATION as SUMS
from gdflow.basins.tube import MARGINS
from gdflow.rounding import gamma

_EPS = float(np.finfo(np.float64).eps)


def tube_source(widths: tuple[int, ...], degree: int, nodes: int | None = None) -> str:
    """The functions `follow`, the tube at the end of a step, and `product_change`.

    **Arguments:** `degree`: of the path; `nodes`: of the quadratures, by default those of `num_nodes`.
    """
    depth = len(widths) - 1
    nodes = num_nodes(degree, depth) if nodes is None else nodes
    constants = {
        "INFLATION": INFLATION,
        "SUMS": SUMS,
        "UNDERFLOW": UNDERFLOW,
        "RELATIVE": relative_error(widths, degree, _EPS),
        "ENDS_ERROR": 6 * gamma(degree + 6, _EPS),
        "GROWTH_ERROR": 8 * (depth + 4) * _EPS,
        "TRACELESS": 2 * 2 * (depth - 1) / depth,
    }
    ratios = (1.0, *RATIOS)
    defect_tails = [tail_factor(degree * (2 * depth - 1), nodes, x) for x in RATIOS]
    gram_tails = [
        [tail_factor(2 * degree * (2 * depth - inner), nodes, x) for x in RATIOS] for inner in range(2, depth + 1)
    ] or [[0.0] * len(RATIOS)]
    tables = [f"#define {name} {number(value)}" for name, value in constants.items()]
    tables += [
        f"#define RATIOS {len(ratios)}",
        f"#define MARGINS {len(MARGINS)}",
        f"#define PAIRS {depth * (depth - 1) // 2}",
    ]
    tables += [_table("ratios", ratios), _table("defect_tails", defect_tails), _table("margins", MARGINS[::-1])]
    rows = ", ".join("{" + ", ".join(map(number, row)) + "}" for row in gram_tails)
    tables.append(f"TABLE double gram_tails[][RATIOS - 1] = {{{rows}}};")
    return "\n".join([*tables, _EXPONENTIAL, _squares_at(widths), _centre(widths), _sums(degree, nodes), _BOUNDS])


def _table(name: str, values: tuple[float, ...] | list[float]) -> str:
    return f"TABLE double {name}[] = {{{', '.join(map(number, values))}}};"


#: `e^x` to a few units in the last place: `2^n e^r`, `|r| ≤ ½ln 2`, by the series to order 13. Infinite beyond 700, and of what
#: is no number.
_EXPONENTIAL = """
FUNCTION v exponential(v x) {
    const v shift = same(0x1.8p52), n = (x * 0x1.71547652b82fep+0 + shift) - shift;
    const v r = (x - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
    v sum = same(1.0);
    for (int k = 13; k > 0; --k) sum = sum * (r / (double)k) + 1.0;
    const m power = (__builtin_convertvector(CHOOSE(size_of(n) < 1100.0, n, same(0.0)), m) + 1023) << 52;
    return CHOOSE(x < -700.0, same(0.0), CHOOSE(x < 700.0, sum * (v)power, same(INFINITY)));
}"""


def _squares_at(widths: tuple[int, ...]) -> str:
    """The squares that are integrated, at one node: of the defect, and of the Gram matrices of all `X_jk`, times a weight."""
    depth, d_in, d_out = len(widths) - 1, widths[0], widths[-1]
    offsets = layer_offsets(widths)
    forward, products = partial_products(widths, offsets)
    pairs = [(j, k) for j in range(depth) for k in range(j, depth)]
    where = {(j, k): f"x{j}_{k}" for j, k in pairs}  # X_jkᵀ; for j = k the layer's part of −∇L
    entry = f"i * {d_in} + j"
    lines = [
        "FUNCTION void squares_at(const v *restrict y, const v *restrict velocity, v half, double weight,",
        "                       const double *target, const double *design, v *sums) {",
        *forward,
        "v out[1 + PAIRS];",
        "for (int i = 0; i <= PAIRS; ++i) out[i] = same(0.0);",
        *[f"v {name}[{widths[k + 1] * widths[j]}];" for (j, k), name in where.items()],
        f"for (int i = 0; i < {d_out}; ++i) for (int j = 0; j < {d_in}; ++j)",
        f"x0_{depth - 1}[{entry}] = (target[{entry}] - {products[0, depth - 1]}[{entry}] * design[j]) * design[j];",
        *derivatives(widths, products, where),
    ]
    for j in range(depth):
        lines.append(f"for (int p = 0; p < {offsets[j + 1] - offsets[j]}; ++p) {{")
        lines.append(f"const v r = velocity[{offsets[j]} + p] - half * {where[j, j]}[p]; out[0] += r * r; }}")
    pairs = [(j, k) for j, k in pairs if j < k]
    for n, (j, k) in enumerate(pairs, 1):
        lines.append(gram_squares(f"out[{n}]", where[j, k], widths[k + 1], widths[j]))
    return "\n".join([*lines, "for (int i = 0; i <= PAIRS; ++i) sums[i] += weight * out[i];", "}"])


def _centre(widths: tuple[int, ...]) -> str:
    """For every layer `‖(WWᵀ)²‖²_F`, the eighth power of a bound of its spectral norm."""
    lines = ["FUNCTION void eighth_powers(const v *y, v *out) {"]
    offset = 0
    for j, (d_in, d_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        height, inner = min(d_in, d_out), max(d_in, d_out)
        rows, columns = ((d_in, 1), (1, d_in)) if d_out <= d_in else ((1, d_in), (d_in, 1))
        name = f"g{j}"
        lines.append(f"v {name}[{height * height}]; out[{j}] = same(0.0);")
        lines.append(product(name, f"(y + {offset})", f"(y + {offset})", (height, inner, height), rows, columns))
        lines.append(gram_squares(f"out[{j}]", name, height, height))
        offset += d_in * d_out
    return "\n".join([*lines, "}"])


def _sums(degree: int, nodes: int) -> str:
    """The quadratures: nodes come in pairs `±s`, of which even and odd parts of the path are alike but for the sign."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    half = nodes // 2
    names = [f"c[{i}][p]" for i in range(degree + 1)]
    lines = [
        "FUNCTION void integrate(const v (*c)[P], v half, const double *target, const double *design, v *sums) {",
        "for (int i = 0; i <= PAIRS; ++i) sums[i] = same(0.0);",
        "v w[2][P], velocity[2][P];",
    ]
    for s, weight in zip(points[nodes - half :], weights[nodes - half :], strict=True):
        powers = s ** np.arange(degree + 1.0)
        slopes = np.concatenate([[0.0], np.arange(1, degree + 1) * powers[:-1]])
        even, odd = np.arange(degree + 1) % 2 == 0, np.arange(degree + 1) % 2 == 1
        lines += [
            "for (int p = 0; p < P; ++p) {",
            f"const v a = {weighted_sum(powers * even, names)}, b = {weighted_sum(powers * odd, names)};",
            f"const v da = {weighted_sum(slopes * even, names)}, db = {weighted_sum(slopes * odd, names)};",
            "w[0][p] = a + b, w[1][p] = a - b, velocity[0][p] = db + da, velocity[1][p] = db - da;",
            "}",
            f"for (int k = 0; k < 2; ++k) squares_at(w[k], velocity[k], half, {number(weight)}, target, design, sums);",
        ]
    if nodes % 2:
        lines.append(f"squares_at(c[0], c[1], half, {number(weights[half])}, target, design, sums);")
    return "\n".join([*lines, "}"])


_BOUNDS = """
FUNCTION v frobenius(v squares) { return root(squares + TINY) * WIDEN; }
FUNCTION v norm(v squares) { return frobenius(squares) * INFLATION; }

/* ‖D‖‖M‖∏‖W_i‖ over all layers but those from one to another. */
FUNCTION v around(const v *sizes, int first, int last, double d_norm, double a_norm) {
    v all = same(1.0), others = same(d_norm);
    for (int i = 0; i < DEPTH; ++i) {
        all *= sizes[i];
        if (i < first || i > last) others *= sizes[i];
    }
    return others * (a_norm + d_norm * all);
}

FUNCTION v slope_of(const v *sizes) {  // (Σ_j∏_{i≠j}a_i²)^½
    v sum = same(0.0);
    for (int j = 0; j < DEPTH; ++j) {
        v others = same(1.0);
        for (int i = 0; i < DEPTH; ++i) if (i != j) others *= sizes[i];
        sum += others * others;
    }
    return norm(sum);
}

/* Δ: how far the end-to-end matrix moves if the layers, of norms up to `sizes`, move by a tuple of norm up to `radius`. */
FUNCTION v product_change(const v *sizes, v radius, const double *numbers) {
    v symmetric[DEPTH + 1], higher = same(0.0), power = radius;
    symmetric[0] = same(1.0);
    for (int k = 1; k <= DEPTH; ++k) symmetric[k] = same(0.0);
    for (int i = 0; i < DEPTH; ++i) for (int k = DEPTH; k > 0; --k) symmetric[k] += sizes[i] * symmetric[k - 1];
    for (int k = 2; k <= DEPTH; ++k) {
        power *= radius;
        higher += symmetric[DEPTH - k] * power;
    }
    return D_NORM * (radius * slope_of(sizes) + higher) * INFLATION;
}

/* By how much the expansion grows if the rate is to hold within a radius of the path. */
FUNCTION v widening(const v *sizes, v radius, v h, const double *numbers) {
    v wide[DEPTH], rows[DEPTH], most = same(0.0);
    for (int j = 0; j < DEPTH; ++j) wide[j] = sizes[j] + radius, rows[j] = same(0.0);
    for (int j = 0; j < DEPTH; ++j) for (int k = j + 1; k < DEPTH; ++k) {
        v all = same(1.0), large = same(D_NORM), total = same(1.0), small = same(D_NORM);
        for (int i = 0; i < DEPTH; ++i) {
            all *= wide[i], total *= sizes[i];
            if (i != j && i != k) large *= wide[i], small *= sizes[i];
        }
        large *= A_NORM + D_NORM * all, small *= A_NORM + D_NORM * total;
        const v growth = large - small + GROWTH_ERROR * large;
        rows[j] += growth, rows[k] += growth;
    }
    for (int j = 0; j < DEPTH; ++j) most = larger(rows[j], most);
    return h * most * INFLATION;
}

/* The tube at the end of a step with path `c`: radius and exponent; infinite if the inequalities break. */
FUNCTION void follow(const v (*c)[P], v h, v *radius, v *exponent, const double *target,
                   const double *design, const double *numbers) {
    const double d_norm = D_NORM * INFLATION, a_norm = A_NORM * INFLATION;
    v norms[DEGREE + 1][DEPTH], totals[RATIOS][DEPTH], sums[1 + PAIRS], sizes[DEPTH], eighth[DEPTH];
    v weighted = same(0.0);
    for (int j = 0; j < DEPTH; ++j) for (int i = 0; i <= DEGREE; ++i) {
        v sum = same(0.0);
        for (int p = offsets[j]; p < offsets[j + 1]; ++p) sum += c[i][p] * c[i][p];
        norms[i][j] = norm(sum);
        weighted += (i + 1.0) * norms[i][j];
    }
    for (int r = 0; r < RATIOS; ++r) for (int j = 0; j < DEPTH; ++j) {
        v sum = norms[DEGREE][j];
        for (int i = DEGREE - 1; i >= 0; --i) sum = sum * ratios[r] + norms[i][j];
        totals[r][j] = sum;
    }
    integrate(c, 0.5 * h, target, design, sums);

    v high = same(0.0), whole = same(0.0), product = same(1.0);
    for (int j = 0; j < DEPTH; ++j) {
        v tail = same(INFINITY);
        for (int r = 1; r < RATIOS; ++r) tail = smaller(tail, defect_tails[r - 1] * around(totals[r], j, j, d_norm, a_norm));
        tail *= INFLATION;
        high += tail * tail;
        whole += around(totals[0], j, j, d_norm, a_norm);
        product *= 1.0 + totals[0][j];
    }
    const v rounding = RELATIVE * (weighted + 0.5 * h * whole) + UNDERFLOW * (1.0 + h) * product * product;
    const v defect = (0x1.6a09e667f3bcdp+0 * norm(sums[0]) + 2.0 * h * norm(high) + 2.0 * rounding) * INFLATION;

    eighth_powers(c[0], eighth);
    for (int j = 0; j < DEPTH; ++j) {
        const v centre = root(root(norm(eighth[j]))) * INFLATION;
        sizes[j] = (smaller(centre, norms[0][j]) + (totals[0][j] - norms[0][j])) * INFLATION;
    }
    v square = same(0.0);
    for (int j = 0, n = 0; j < DEPTH; ++j) for (int k = j + 1; k < DEPTH; ++k) {
        v tail = same(INFINITY), inner = same(1.0);
        for (int r = 1; r < RATIOS; ++r) {
            const v bound = around(totals[r], j, k, d_norm, a_norm);
            tail = smaller(tail, gram_tails[k - j - 1][r - 1] * bound * bound);
        }
        const v bound = around(totals[0], j, k, d_norm, a_norm);
        for (int i = j + 1; i < k; ++i) inner *= sizes[i];
        const v gram = 0x1.6a09e667f3bcdp+0 * norm(sums[++n]) + 4.0 * INFLATION * tail + 2.0 * RELATIVE * bound * bound;
        square += gram * inner * inner;
    }
    const v expansion = 0.5 * h * root(TRACELESS * square) * INFLATION;

    const v entry = *radius + defect + ENDS_ERROR * weighted, guess = exponential(expansion) * entry;
    v found = same(INFINITY), rate = expansion;
    for (int i = 0; i < MARGINS; ++i) {
        v wide[DEPTH];
        const v E = margins[i] * guess;
        for (int j = 0; j < DEPTH; ++j) wide[j] = sizes[j] + E;
        const v mu = (expansion + widening(sizes, E, h, numbers)) * SUMS;
        const v forced = h * (DATA_ERROR * D_NORM * slope_of(wide) * INFLATION);
        const v reached = exponential(mu) * (entry + forced) * SUMS;
        const m holds = reached < E;
        found = CHOOSE(holds, reached, found), rate = CHOOSE(holds, mu, rate);
    }
    *radius = found, *exponent += rate;
}
"""
