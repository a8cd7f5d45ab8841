"""The fused program as C: some starts side by side in vector registers, from their beginning to their verdict.

A lane is an element of a vector of `V` doubles. A first pass begins all starts of a pool; then one loop tries a step of all
lanes, decides on it, and refills lanes that are done; a last pass repeats the steps in which something was crossed, and locates
when. All sizes are fixed in the source: widths, the tableau, the number of levels and of crossings; all numbers that depend on
data, tolerances or limits are arguments, so that one program serves all plans of a shape. Nothing of the source comes from text:
only integers and floating-point constants go in.

The decisions are those of `gdflow.basins.process.LaneProcess` (`init`, `step`, `rows`) with `gdflow.basins.methods.RungeKutta`,
in the same order; roots are found as in `gdflow.dynamics.crossings`. A lane depends on no other.
"""

import itertools
from typing import Any, NamedTuple

import diffrax
import numpy as np

from gdflow.basins.fused.matrices import (
    cheapest_order,
    derivatives,
    layer_offsets,
    number,
    partial_products,
    weighted_sum,
)
from gdflow.basins.fused.tube import tube_source
from gdflow.basins.methods.runge_kutta import path_weights
from gdflow.basins.process import SMALLEST_STEP, VANISHING
from gdflow.dynamics.crossings import MAX_EVALUATIONS
from gdflow.rounding import frobenius_parts

#: Lanes of a block at most.
LANES = 8
#: So many stages are prepared in one pass over those before.
_STAGES = 3
#: Largest order of a method (`_nth_root`), and least absolute tolerance: products of four scales are not to underflow.
LARGEST_ORDER, LEAST_ATOL = 8, 1e-70

#: Numbers that depend on the plan, in this order in the array `numbers`.
NUMBERS = (
    "rtol", "atol", "t1", "largest", "tolerance", "dwell", "max_steps", "round_off", "target_error", "bound", "first_step",
    "d_norm", "a_norm", "data_error", "rotation",
)  # fmt: skip


class Shape(NamedTuple):
    """What a program is made for: all else are arguments of it.

    - `widths`: of the networks that run; `solver`, and the `order` of its error;
    - `levels`: of the verdict; `crossings`: levels that are timed;
    - `proof`: whether the tube of a proof is carried along.
    """

    widths: tuple[int, ...]
    solver: diffrax.AbstractERK
    order: int
    levels: int
    crossings: int
    proof: bool

    @property
    def stack(self) -> int:
        """How many bytes its arrays take on the stack of a thread, at most: in every lane so many copies of a state, the products
        of layers and the derivatives in them.
        """
        tableau: Any = self.solver.tableau
        weights = path_weights(self.solver)
        assert weights is not None
        copies = len(tableau.b_sol) + len(weights) + (24 if self.proof else 14)
        depth, made = len(self.widths) - 1, list(cheapest_order(self.widths))
        made += [(j, k) for j in range(depth) for k in range(j, depth)] if self.proof else made
        products = sum(self.widths[j] * self.widths[k + 1] for j, k in made)
        return 8 * LANES * (copies * sum(a * b for a, b in itertools.pairwise(self.widths)) + products)


def fused_source(shape: Shape, frame: tuple[str, str] | None = None) -> str:
    """The source of a program. **Arguments:** `frame`: what comes before and after what is alike for all machines, by default
    of a CPU.
    """
    widths, solver, order, levels, crossings, proof = shape
    head, tail = (_HEAD, _RUN) if frame is None else frame
    tableau: Any = solver.tableau
    weights = path_weights(solver)
    assert weights is not None
    offsets = layer_offsets(widths)
    parts = [head, _BASICS, f"#define P {offsets[-1]}", f"#define LEVELS {levels}", f"#define CROSSINGS {crossings}"]
    parts += [f"#define PROOF {int(proof)}", f"#define DEPTH {len(widths) - 1}"]
    parts.append(f"TABLE int offsets[] = {{{', '.join(map(str, offsets))}}};")
    underflow, widening = frobenius_parts(np.dtype(np.float64))
    parts += [f"#define TINY {number(underflow)}", f"#define WIDEN {number(widening)}"]
    parts += [f"#define {name.upper()} numbers[{k}]" for k, name in enumerate(NUMBERS)]
    parts += [f"#define VANISHING {number(VANISHING)}", f"#define SMALLEST_STEP {number(SMALLEST_STEP)}"]
    parts += [f"#define MAX_EVALUATIONS {MAX_EVALUATIONS}", _nth_root(order)]
    parts += [_field(widths, offsets), _attempt(tableau), _path(solver), _drift(widths, offsets)]
    if proof:
        parts.append(tube_source(widths, len(weights) - 1))
    parts.append(_LOOP)
    return "\n".join([*parts, tail]) + "\n"


#: A block fills one register. Of 512 bits only where units are as wide: AMD's Zen 4, which older compilers take for Zen 3, has
#: halves of them, and blocks of four fit into its first cache (benchmarks/engines.py).
_HEAD = """
#include <math.h>
#include <stdint.h>
#ifndef V
#if defined(__AVX512F__) && !defined(__znver3__) && !defined(__znver4__)
#define V 8
#elif defined(__AVX__)
#define V 4
#else
#define V 2
#endif
#endif
#define FUNCTION static inline
#define APART static __attribute__((noinline))
#define TABLE static const
typedef double v __attribute__((vector_size(8 * V)));
typedef int64_t m __attribute__((vector_size(8 * V)));
#define NONE ((m){0})
#define CHOOSE(c, a, b) ((v)(((m)(a) & (c)) | ((m)(b) & ~(c))))
#define SQUARE_ROOT __builtin_sqrt
#define FIRST 0  // of the starts of a pool; the next one
#define STEP 1
FUNCTION int64_t take(int64_t *taken) { return (*taken)++; }
"""

#: What is alike for vectors and for single numbers.
_BASICS = """
#define EACH(i) for (int i = 0; i < V; ++i)
FUNCTION v same(double x) { v r; EACH(i) r[i] = x; return r; }
FUNCTION v root(v x) { v r; EACH(i) r[i] = SQUARE_ROOT(x[i]); return r; }
FUNCTION v larger(v a, v b) { return CHOOSE(a > b, a, b); }
FUNCTION v smaller(v a, v b) { return CHOOSE(a < b, a, b); }
FUNCTION v size_of(v x) { return (v)((m)x & INT64_MAX); }
FUNCTION m is_finite(v x) { return size_of(x) < same(INFINITY); }
FUNCTION int any(m c) { int64_t r = 0; EACH(i) r |= c[i]; return r != 0; }
"""


def _nth_root(n: int) -> str:
    """`x^{1/n}` of positive numbers side by side, where the library's `pow` takes one after the other; to a few units in the
    last place.

    The bits of a floating-point number are nearly its logarithm, whose `n`-th part gives the root to a tenth; each of Halley's
    steps then cubes the error: from 0.1 to (n²−1)/12·1e-3 < 6e-3, 1.2e-6 and 1e-17 for n ≤ 8.
    """
    power = " * ".join(["r"] * n)
    return f"""
FUNCTION v nth_root(v x) {{  // what is out of range, zero and infinity, comes out very small or very large
    x = smaller(larger(x, same(1e-280)), same(1e280));
    const v bits = __builtin_convertvector((m)x - 0x3ff0000000000000, v) / {n}.0;
    v r = (v)(__builtin_convertvector(bits, m) + 0x3ff0000000000000);
    for (int k = 0; k < 3; ++k) {{
        const v p = {power};
        r *= ({n - 1}.0 * p + {n + 1}.0 * x) / ({n + 1}.0 * p + {n - 1}.0 * x);
    }}
    return r;
}}"""


def _field(widths: tuple[int, ...], offsets: np.ndarray) -> str:
    """The loss at `y`, and with `−∇L`: the product of the layers, the residual, and back through the products."""
    depth, d_in, d_out = len(widths) - 1, widths[0], widths[-1]
    forward, products = partial_products(widths, offsets)
    whole = (0, depth - 1)
    where = {layers: f"g{layers[0]}_{layers[1]}" for layers in cheapest_order(widths)}
    room = [f"v {where[j, k]}[{widths[k + 1] * widths[j]}];" for j, k in where]
    where |= {(j, j): f"(k + {offsets[j]})" for j in range(depth)}
    entry = f"i * {d_in} + j"
    residual = f"const v e = {products[whole]}[{entry}] * design[j] - target[{entry}];"
    loops = f"for (int i = 0; i < {d_out}; ++i) for (int j = 0; j < {d_in}; ++j) {{"
    data = "const double *target, const double *design"
    value = [f"FUNCTION v value(const v *restrict y, {data}) {{", *forward, "v loss = {0};", loops, residual]
    value += ["loss += e * e; }", "return 0.5 * loss; }"]
    lines = [f"FUNCTION v field(const v *restrict y, v *restrict k, {data}) {{", *forward, *room, "v loss = {0};"]
    lines += [loops, residual, f"loss += e * e; {where[whole]}[{entry}] = -e * design[j]; }}"]
    lines += derivatives(widths, products, where)
    return "\n".join([*value, *lines, "return 0.5 * loss;", "}"])


def joins_smoothly(solver: diffrax.AbstractERK) -> bool:
    """Whether the interpolant is a polynomial with the ends of the step as its ends, and the first and the last stage as slopes.

    So are all of Diffrax's; it is then the cubic with these, and terms of order four and above.
    """
    weights = path_weights(solver)
    if weights is None or len(weights) < 4:
        return False
    tableau: Any = solver.tableau
    unit, orders = np.eye(weights.shape[1]), np.arange(len(weights))
    signs = (-1.0) ** orders
    rest = [signs @ weights - unit[0], np.sum(weights, axis=0) - unit[1]]
    rest += [(-orders * signs) @ weights - 0.5 * unit[2], orders @ weights - 0.5 * unit[-1]]
    step = np.concatenate([[-1.0, 1.0], -np.asarray(tableau.b_sol)])  # y_1 − y_0 − hΣb_i k_i = 0
    apart = [x - (x @ step) / (step @ step) * step for x in rest]
    return bool(np.max(np.abs(apart)) < 1e-11 * max(1.0, np.abs(weights).max()))


def _path(solver: diffrax.AbstractERK) -> str:
    """The coefficients of the polynomial in `s`, from −1 to 1, that a step leaves; see `joins_smoothly`."""
    weights = path_weights(solver)
    tableau: Any = solver.tableau
    assert weights is not None
    degree, names = len(weights) - 1, [f"k[{i}][p]" for i in range(weights.shape[1] - 2)]
    step = np.concatenate([[-1.0, 1.0], -np.asarray(tableau.b_sol)])
    lines = [
        f"#define DEGREE {degree}",
        "APART void path(const v *y, const v *y1, const v (*k)[P], v h, v (*restrict c)[P]) {",
    ]
    even, odd = range(4, degree + 1, 2), range(5, degree + 1, 2)

    def less(factors, orders):
        return "".join(f" - {number(f)} * c{i}" for f, i in zip(factors, orders, strict=True) if f)

    lines.append("for (int p = 0; p < P; ++p) {")
    for i in range(4, degree + 1):
        stages = (weights[i] - weights[i, 1] * step)[2:]  # the ends' weights add up to zero
        lines.append(f"const v c{i} = h * ({weighted_sum(stages, names)});")
    lines += [
        f"const v f0 = 0.5 * h * k[0][p], f1 = 0.5 * h * {names[-1]};",
        "const v mean = 0.5 * (y[p] + y1[p]), half = 0.5 * (y1[p] - y[p]);",
        "const v b = 0.25 * (f1 - f0), d = 0.25 * (f0 + f1) - 0.5 * half;",
        f"c[2][p] = b{less([i / 2 for i in even], even)};",
        f"c[0][p] = mean - b{less([1 - i / 2 for i in even], even)};",
        f"c[3][p] = d{less([(i - 1) / 2 for i in odd], odd)};",
        f"c[1][p] = half - d{less([(3 - i) / 2 for i in odd], odd)};",
        *[f"c[{i}][p] = c{i};" for i in range(4, degree + 1)],
    ]
    return "\n".join([*lines, "} }"])


def _drift(widths: tuple[int, ...], offsets: np.ndarray) -> str:
    """`max_j ‖C_j(y) − C_j(x)‖_F / max ‖W_j‖²`, as `gdflow.invariants.drift`."""
    lines = ["FUNCTION v drift(const v *y, const v *x) {", "v worst = {0}, scale = {0}, sum;"]
    for j in range(len(widths) - 1):
        for net in "yx":
            lines.append("sum = same(0.0);")
            lines.append(f"for (int p = {offsets[j]}; p < {offsets[j + 1]}; ++p) sum += {net}[p] * {net}[p];")
            lines.append("scale = larger(scale, sum);")
    for j in range(1, len(widths) - 1):
        before, d, after = widths[j - 1 : j + 2]
        first, last = offsets[j - 1], offsets[j]
        lines.append(f"""sum = same(0.0);
        for (int a = 0; a < {d}; ++a) for (int b = 0; b <= a; ++b) {{
            v c = {{0}};
            for (int i = 0; i < {after}; ++i) {{
                const int p = {last} + i * {d} + a, q = {last} + i * {d} + b;
                c += y[p] * y[q] - x[p] * x[q];
            }}
            for (int i = 0; i < {before}; ++i) {{
                const int p = {first} + a * {before} + i, q = {first} + b * {before} + i;
                c -= y[p] * y[q] - x[p] * x[q];
            }}
            sum += (a == b ? 1.0 : 2.0) * c * c;
        }}
        worst = larger(worst, root(sum));""")
    lines.append("return worst / CHOOSE(scale > 0.0, scale, same(1.0)); }")
    return "\n".join(lines)


def _attempt(tableau: Any) -> str:
    """A step of every lane: the next state, the field (`k[NEW]`) and the loss there, and the sum of squares of the scaled
    error.
    """
    stages, last = len(tableau.b_sol), bool(tableau.fsal and tableau.ssal)
    names = [f"k[{i}][p]" for i in range(stages)]
    known = stages - 1 if last else stages  # stages that the next state is made of
    lines = [
        f"#define FIELDS {stages if last else stages + 1}\n#define NEW (FIELDS - 1)",
        "FUNCTION v attempt(const v *restrict y, v (*restrict k)[P], v h, v *restrict y1, v *restrict loss,",
        "                 const double *target, const double *design, const double *numbers) {",
        f"v wrong[P], part[{max(_STAGES - 1, 1)}][P];",
    ]
    # A pass over the stages so far, which do not all fit into the cache, serves several stages to come.
    for first in range(1, known, _STAGES):
        group = range(first, min(first + _STAGES, known))
        for i in group:
            lines.append("for (int p = 0; p < P; ++p) {")
            row = tableau.a_lower[i - 1]
            if i == first:
                lines.append(f"y1[p] = y[p] + h * ({weighted_sum(row[:i], names[:i])});")
                for n, later in enumerate(group[1:]):
                    part = weighted_sum(tableau.a_lower[later - 1][:first], names[:first])
                    lines.append(f"part[{n}][p] = y[p] + h * ({part});")
            else:
                rest = weighted_sum(row[first:i], names[first:i])
                lines.append(f"y1[p] = part[{i - first - 1}][p] + h * ({rest});")
            lines.append(f"}} field(y1, k[{i}], target, design);")
    # The next state and its error in one pass over the stages; with `last`, the field at the state is a stage, too.
    solution = tableau.a_lower[-1] if last else tableau.b_sol
    lines.append(f"""for (int p = 0; p < P; ++p) {{
    y1[p] = y[p] + h * ({weighted_sum(solution, names[:known])});
    wrong[p] = {weighted_sum(tableau.b_error[:known], names[:known])};
}}
*loss = field(y1, k[NEW], target, design);
""")
    if last:
        lines.append(f"for (int p = 0; p < P; ++p) wrong[p] += {number(tableau.b_error[-1])} * k[NEW][p];")
    lines.append(_SCALED_SQUARES)
    return "\n".join([*lines, "}"])


#: Divisions are slow: four quotients take one.
_SCALED_SQUARES = """
// Not above 1e75: the product of four is to be finite, and a smaller scale takes errors to be larger.
#define SCALE(p) smaller(ATOL + RTOL * larger(size_of(y[p]), size_of(y1[p])), same(1e75))
    v sum = {0};
    int p = 0;
    for (; p + 3 < P; p += 4) {
        const v a = SCALE(p), b = SCALE(p + 1), c = SCALE(p + 2), d = SCALE(p + 3), ab = a * b, cd = c * d;
        const v rest = 1.0 / (ab * cd), one_ab = cd * rest, one_cd = ab * rest;
        const v e = h * wrong[p] * (b * one_ab), f = h * wrong[p + 1] * (a * one_ab);
        const v g = h * wrong[p + 2] * (d * one_cd), q = h * wrong[p + 3] * (c * one_cd);
        sum += (e * e + f * f) + (g * g + q * q);
    }
    for (; p < P; ++p) {
        const v e = h * wrong[p] / SCALE(p);
        sum += e * e;
    }
    return sum;
"""


#: The passes over a pool. States lie one after the other, `y[n·P + p]`: with starts along the last axis one would be scattered
#: over lines of the cache. What is drawn, `start[p·num + n]`, comes so, and is read block by block.
_LOOP = """
#define DATA target, design
#define MARKS (CROSSINGS + PROOF)  // the last one is of the step that decides, if a proof goes on after it
#define CONSTANTS const double *target, const double *design, const double *numbers, const double *levels
/* A pool of starts. `taken`: how many of them were taken up. */
#define POOL int64_t num, const double *start, double *y, double *f, double *t, double *t_next, double *loss, double *quiet, \\
    int64_t *steps, int64_t *status, int64_t *highest, double *mark_y, double *mark_t, double *mark_next, double *mark_loss, \\
    double *slope, double *drifted, double *time, double *times, double *radius, double *exponent, double *proved, \\
    int64_t *taken, const volatile int64_t *halt, const double *crossings, CONSTANTS
#define ALL num, start, y, f, t, t_next, loss, quiet, steps, status, highest, mark_y, mark_t, mark_next, mark_loss, slope, \\
    drifted, time, times, radius, exponent, proved, taken, halt, crossings, DATA, numbers, levels
enum { CERTIFIED, STATIONARY, CONVERGED, DIVERGING, NON_FINITE, TIME_LIMIT, STEP_LIMIT };

/* The Frobenius norms of the layers, their squares summed up, and the bound of the error of the computed residual. */
FUNCTION v error_of(const v *y, const double *numbers, v *sizes, v *squares) {
    v product = same(1.0), all = same(0.0);
    for (int j = 0; j < DEPTH; ++j) {
        v square = same(0.0);
        for (int p = offsets[j]; p < offsets[j + 1]; ++p) square += y[p] * y[p];
        all += square;
        sizes[j] = root(square + TINY) * WIDEN;
        product *= sizes[j];
    }
    *squares = all;
    return ROUND_OFF * product + TARGET_ERROR;
}

FUNCTION m level_of(v reach, const double *levels) {
    m level = NONE + LEVELS;
    for (int k = 0; k < LEVELS; ++k) level += (m)(reach < levels[k]);
    return level;
}

FUNCTION v rms(const v *x, const v *scale) {
    v sum = same(0.0);
    for (int p = 0; p < P; ++p) sum += (x[p] / scale[p]) * (x[p] / scale[p]);
    return root(sum / (double)P);
}

FUNCTION v first_step(const v *y, const v *f, const double *numbers, const double *target, const double *design) {
    v scale[P], moved[P], there[P];
    for (int p = 0; p < P; ++p) scale[p] = ATOL + size_of(y[p]) * RTOL;
    const v d0 = rms(y, scale), d1 = rms(f, scale);
    const m tiny = (d0 < 1e-5) | (d1 < 1e-5);
    const v h0 = CHOOSE(tiny, same(1e-6), 0.01 * (d0 / CHOOSE(tiny, same(1.0), d1)));
    for (int p = 0; p < P; ++p) moved[p] = y[p] + h0 * f[p];
    field(moved, there, DATA);
    for (int p = 0; p < P; ++p) there[p] -= f[p];
    const v most = larger(d1, rms(there, scale) / h0);
    const v guess = nth_root(0.01 / most);
    v h1 = smaller(100.0 * h0, CHOOSE(most <= 1e-15, larger(same(1e-6), h0 * 1e-3), guess));
    h1 = CHOOSE(is_finite(h1) & (h1 > 0.0), h1, same(FIRST_STEP));
    return smaller(h1, same(T1));
}

/* All starts of a pool: the field, the first step, and which are over before they begin. */
FUNCTION void begin(POOL) {
    for (int64_t first = FIRST; first < num; first += V * STEP) {
        v Y[P], F[P], sizes[DEPTH], squares;
        const int64_t rest = num - first;
        for (int p = 0; p < P; ++p) EACH(i) Y[p][i] = start[p * num + first + (i < rest ? i : 0)];
        const v value = field(Y, F, DATA), h = first_step(Y, F, numbers, DATA);
        const v reach = root(2.0 * value) + error_of(Y, numbers, sizes, &squares);
        m certified = reach < BOUND;
        const m decided = certified;
#if PROOF
        const v away = ROTATION > 0.0 ? ROTATION * (sizes[0] + sizes[DEPTH - 1]) : same(0.0);
        certified &= reach + product_change(sizes, away, numbers) < BOUND;
#endif
        const m level = level_of(reach, levels);
        v slope = same(0.0);
        for (int p = 0; p < P; ++p) slope += F[p] * F[p];
        slope = root(slope);
        EACH(i) if (i < rest) {
            const int64_t n = first + i;
            for (int p = 0; p < P; ++p) y[n * P + p] = Y[p][i], f[n * P + p] = F[p][i];
            t[n] = 0.0, steps[n] = 0, t_next[n] = h[i], loss[n] = value[i], highest[n] = level[i];
            quiet[n] = slope[i] <= TOLERANCE ? 0.0 : INFINITY;
            status[n] = !(isfinite(squares[i]) && isfinite(value[i])) ? NON_FINITE : certified[i] ? CERTIFIED
                      : slope[i] <= VANISHING ? STATIONARY : sqrt(squares[i]) > LARGEST ? DIVERGING : -1;
            for (int c = 0; c < CROSSINGS; ++c) mark_next[c * num + n] = value[i] < crossings[c] ? 0.0 : NAN;
#if PROOF
            mark_next[CROSSINGS * num + n] = decided[i] ? 0.0 : NAN;
            radius[n] = away[i], exponent[n] = 0.0, proved[n] = certified[i] ? 1.0 : 0.0;
#endif
        }
    }
}

/* Steps until every start is over. One whose step decides it stays at the beginning of that step; with a proof it goes on until
   that closes or cannot any more. */
FUNCTION void fly(POOL) {
    v Y[P], Y1[P], K[FIELDS][P], T, NEXT, LOSS, QUIET, marked[MARKS + 1], sizes[DEPTH];
    m STEPS, HIGHEST;
#if PROOF
    v C[DEGREE + 1][P], RADIUS = same(INFINITY), EXPONENT = same(0.0);
    m OPEN = NONE, PROVED = NONE;
#endif
    int64_t lane[V];
    int busy = 0;
    for (int p = 0; p < P; ++p) Y[p] = K[0][p] = same(0.0);
    T = LOSS = QUIET = same(0.0), NEXT = same(1.0), STEPS = HIGHEST = NONE;
    for (int c = 0; c <= MARKS; ++c) marked[c] = same(0.0);
    EACH(i) lane[i] = -1;
    for (;;) {
        EACH(i) if (lane[i] < 0) {
            int64_t n;
            do n = take(taken); while (n < num && status[n] >= 0);
            if (n >= num) continue;
            lane[i] = n;
            ++busy;
            for (int p = 0; p < P; ++p) Y[p][i] = y[n * P + p], K[0][p][i] = f[n * P + p];
            T[i] = 0.0, NEXT[i] = t_next[n], LOSS[i] = loss[n], QUIET[i] = quiet[n], STEPS[i] = 0, HIGHEST[i] = highest[n];
            for (int c = 0; c < MARKS; ++c) marked[c][i] = mark_next[c * num + n];
#if PROOF
            RADIUS[i] = radius[n], EXPONENT[i] = 0.0, PROVED[i] = -(int64_t)(proved[n] > 0.0), OPEN[i] = ~PROVED[i];
#endif
        }
        if (!busy || *halt) return;
        const v h = NEXT - T;
        v loss1, squares;
        v norm = root(attempt(Y, K, h, Y1, &loss1, DATA, numbers) / (double)P);
        const m finite = is_finite(norm) & is_finite(loss1);
        norm = CHOOSE(finite, norm, same(INFINITY));
        const m keep = (norm < 1.0) & finite;
        v factor = 0.9 / nth_root(norm);
        factor = smaller(larger(factor, CHOOSE(keep, same(1.0), same(0.2))), CHOOSE(keep, same(10.0), same(0.9)));
        const v t1 = CHOOSE(keep, NEXT, T), next = t1 + h * factor;
        const v error = error_of(Y1, numbers, sizes, &squares), reach = root(2.0 * loss1) + error;
        const m level = level_of(reach, levels), falls = keep & (level < HIGHEST);
        HIGHEST = (level & falls) | (HIGHEST & ~falls);
        const m decided = keep & (reach < BOUND);
        for (int c = 0; c < MARKS; ++c) {
            const m crossed = keep & (marked[c] != marked[c]) & (c < CROSSINGS ? loss1 < crossings[c] : decided);
            if (!any(crossed)) continue;
            EACH(i) if (crossed[i] && lane[i] >= 0) {
                const int64_t n = c * num + lane[i];
                for (int p = 0; p < P; ++p) mark_y[n * P + p] = Y[p][i];
                mark_t[n] = T[i], mark_next[n] = marked[c][i] = NEXT[i], mark_loss[n] = LOSS[i];
            }
        }
#if PROOF
        const m proving = keep & OPEN, moved = keep, active = ~(NONE), settled = marked[CROSSINGS] == marked[CROSSINGS];
        if (any(proving)) {
            v wider = RADIUS, more = EXPONENT;
            path(Y, Y1, K, h, C);
            follow(C, h, &wider, &more, DATA, numbers);
            const v rest = error + product_change(sizes, wider, numbers);
            const m arrived = proving & (root(2.0 * loss1) + rest < BOUND), hopeless = proving & ~(rest < BOUND);
            RADIUS = CHOOSE(proving, wider, RADIUS), EXPONENT = CHOOSE(proving, more, EXPONENT);
            PROVED |= arrived, OPEN &= ~(arrived | hopeless);
        }
        const m certified = settled & ~OPEN;
#else
        const m moved = keep & ~decided, active = ~decided, certified = decided, settled = decided;
#endif
        v slope = same(0.0);
        for (int p = 0; p < P; ++p) {
            Y[p] = CHOOSE(moved, Y1[p], Y[p]);
            K[0][p] = CHOOSE(moved, K[NEW][p], K[0][p]);
            slope += K[0][p] * K[0][p];
        }
        slope = root(slope);
        const m calm = moved & (slope <= TOLERANCE);
        QUIET = CHOOSE(moved, CHOOSE(calm, smaller(QUIET, t1), same(INFINITY)), QUIET);
        const m converged = calm & (t1 - QUIET >= DWELL), still = moved & (slope <= VANISHING);
        const m too_short = active & (next - t1 <= SMALLEST_STEP * 0x1p-52 * t1);
        STEPS += 1;
        const m far = (moved & (root(squares) > LARGEST)) | (too_short & finite);
        const m late = active & (t1 >= T1), many = active & (__builtin_convertvector(STEPS, v) >= MAX_STEPS);
        T = CHOOSE(active, t1, T);
        NEXT = CHOOSE(active, smaller(next, same(T1)), NEXT);
        LOSS = CHOOSE(moved, loss1, LOSS);
        const m over = certified | still | converged | far | too_short | late | many;
        if (!any(over)) continue;
        EACH(i) if (over[i] && lane[i] >= 0) {
            const int64_t n = lane[i];
            for (int p = 0; p < P; ++p) y[n * P + p] = Y[p][i], f[n * P + p] = K[0][p][i];
            t[n] = T[i], t_next[n] = NEXT[i], loss[n] = LOSS[i], steps[n] = STEPS[i], highest[n] = HIGHEST[i];
            status[n] = settled[i] ? CERTIFIED : still[i] ? STATIONARY : converged[i] ? CONVERGED : far[i] ? DIVERGING
                      : too_short[i] ? NON_FINITE : late[i] ? TIME_LIMIT : STEP_LIMIT;
#if PROOF
            radius[n] = RADIUS[i], exponent[n] = EXPONENT[i], proved[n] = PROVED[i] ? 1.0 : 0.0;
#endif
            lane[i] = -1;
            --busy;
        }
    }
}

/* When the loss falls to a level inside a step: Chandrupatla's method, until the bracket or the excess is round-off. Lanes that
   are done stay as they are. */
FUNCTION v crossing(const v (*c)[P], v t0, v t1, v excess0, v excess1, v level, m wanted, const double *target,
                  const double *design) {
    const v h = t1 - t0;
    const m falls = excess0 > excess1;
    v S[P], share = CHOOSE(falls, excess1 / CHOOSE(falls, excess1 - excess0, same(-1.0)), same(0.5));
    v x1 = t1, f1 = excess1, x2 = t0, f2 = excess0, x3 = t0, f3 = excess0;
    for (int count = 0; count < MAX_EVALUATIONS; ++count) {
        const m open = wanted & (size_of(x2 - x1) > 4 * 0x1p-52 * size_of(x1)) & (size_of(f1) > 0x1p-51 * level) & is_finite(f1);
        if (!any(open)) break;
        const v x = x1 + share * (x2 - x1);
        const v s = 2.0 * ((x - t0) / h) - 1.0;
        for (int p = 0; p < P; ++p) {
            S[p] = c[DEGREE][p];
            for (int i = DEGREE - 1; i >= 0; --i) S[p] = S[p] * s + c[i][p];
        }
        const v f = value(S, DATA) - level;
        const m alike = ((f > 0.0) == (f1 > 0.0)) & ((f < 0.0) == (f1 < 0.0));
        x3 = CHOOSE(open, CHOOSE(alike, x1, x2), x3), f3 = CHOOSE(open, CHOOSE(alike, f1, f2), f3);
        x2 = CHOOSE(open & ~alike, x1, x2), f2 = CHOOSE(open & ~alike, f1, f2);
        x1 = CHOOSE(open, x, x1), f1 = CHOOSE(open, f, f1);
        const v xi = (x1 - x2) / (x3 - x2), phi = (f1 - f2) / (f3 - f2);
        const m safe = (phi * phi < xi) & ((1.0 - phi) * (1.0 - phi) < 1.0 - xi);
        const v inverse = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2);
        const v least = 0x1p-52 * larger(size_of(x1), same(1e-300)) / size_of(x2 - x1);
        share = CHOOSE(safe, inverse, same(0.5));
        share = smaller(larger(share, smaller(least, same(0.5))), larger(1.0 - least, same(0.5)));
    }
    return CHOOSE(excess0 <= 0.0, t0, CHOOSE(size_of(f1) <= size_of(f2), x1, x2));
}

/* The steps in which something was crossed are made again: those of the marks of one level, or those that decided (level NULL),
   which also end there if `ends`. */
FUNCTION void locate(int64_t num, double *y, double *f, const double *t, const double *t_next, double *loss, const int64_t *steps,
                   const int64_t *status, const double *level, int ends, double *time, CONSTANTS) {
    int64_t chosen[V];
    int count = 0;
    for (int64_t n = FIRST; n < num || count; n += STEP) {
        if (n < num && t_next[n] > t[n] && (level || (status[n] == CERTIFIED && steps[n] > 0))) chosen[count++] = n;
        if (count < V && (n < num || !count)) continue;
        v Y[P], Y1[P], K[FIELDS][P], C[DEGREE + 1][P], T, NEXT, LOSS, loss1, sizes[DEPTH], squares;
        m wanted = NONE;
        EACH(i) {
            const int64_t k = chosen[i < count ? i : 0];
            wanted[i] = -(int64_t)(i < count);
            for (int p = 0; p < P; ++p) Y[p][i] = y[k * P + p];
            T[i] = t[k], NEXT[i] = t_next[k], LOSS[i] = loss[k];
        }
        field(Y, K[0], DATA);
        attempt(Y, K, NEXT - T, Y1, &loss1, DATA, numbers);
        v goal;
        if (level) {
            goal = same(*level);
        } else {
            const v rest = larger(BOUND - error_of(Y1, numbers, sizes, &squares), same(0.0));
            goal = 0.5 * rest * rest;
        }
        path(Y, Y1, K, NEXT - T, C);
        const v found = crossing(C, T, NEXT, LOSS - goal, loss1 - goal, goal, wanted, DATA);
        EACH(i) if (i < count) {
            const int64_t k = chosen[i];
            time[k] = found[i];
            if (!ends) continue;
            for (int p = 0; p < P; ++p) y[k * P + p] = Y1[p][i], f[k * P + p] = K[NEW][p][i];
            loss[k] = loss1[i];
        }
        count = 0;
    }
}

/* When things were crossed, and what is asked for of the ends. */
FUNCTION void finish(POOL) {
    for (int c = 0; c < CROSSINGS; ++c) {
        const int64_t at = c * num;
        for (int64_t n = FIRST; n < num; n += STEP) times[at + n] = mark_next[at + n];
        locate(num, mark_y + at * P, f, mark_t + at, mark_next + at, mark_loss + at, steps, status, crossings + c, 0, times + at,
               DATA, numbers, levels);
    }
#if PROOF
    const int64_t at = CROSSINGS * num;
    for (int64_t n = FIRST; n < num; n += STEP) time[n] = status[n] == CERTIFIED ? 0.0 : t[n];
    locate(num, mark_y + at * P, f, mark_t + at, mark_next + at, mark_loss + at, steps, status, 0, 0, time, DATA, numbers,
           levels);
#else
    for (int64_t n = FIRST; n < num; n += STEP) time[n] = t[n];
    locate(num, y, f, t, t_next, loss, steps, status, 0, 1, time, DATA, numbers, levels);
#endif
    for (int64_t first = FIRST; first < num; first += V * STEP) {
        v Y[P], X[P], sum = same(0.0);
        const int64_t rest = num - first;
        for (int p = 0; p < P; ++p) {
            v F;
            EACH(i) {
                const int64_t n = first + (i < rest ? i : 0);
                Y[p][i] = y[n * P + p], X[p][i] = start[p * num + n], F[i] = f[n * P + p];
            }
            sum += F * F;  // of whole vectors: the compiler might round lanes one by one in two ways
        }
        const v size = root(sum);
        EACH(i) if (i < rest) slope[first + i] = size[i];
        if (!drifted) continue;
        const v moved = drift(Y, X);
        EACH(i) if (i < rest) drifted[first + i] = moved[i];
    }
}
"""

_RUN = """
void run(POOL) {
    begin(ALL);
    fly(ALL);
    if (!*halt) finish(ALL);
}
"""
