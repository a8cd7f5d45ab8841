"""Matrices of vectors in C: products whose sums stay in registers, Gram matrices. All sizes are fixed."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: Rows and columns of the sums that stay in registers.
_ROWS, _COLUMNS = 2, 6
#: The same of Gram matrices.
_GRAM_ROWS = 5


def number(x: float) -> str:
    """A constant of the source, to the last bit."""
    return float(x).hex()


def parts(size: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Parts of at most so many, as few as possible and of two lengths that differ by one: where they begin, how many there are,
    and how long they are.
    """
    count = -(-size // most)
    long = size % count
    length = size // count
    if long:
        yield 0, long, length + 1
    if count > long:
        yield long * (length + 1), count - long, length


def _each_part(variable: str, first: int, count: int, length: int) -> str:
    if count == 1:
        return f"for (int {variable} = {first}, once = 1; once; once = 0)"
    return f"for (int {variable} = {first}; {variable} < {first + count * length}; {variable} += {length})"


def product(
    out: str, a: str, b: str, shape: tuple[int, int, int], a_steps: tuple[int, int], b_steps: tuple[int, int]
) -> str:
    """`out = a b`, `shape` rows, inner, columns; `a(i, k) = a[i·s + k·t]`, `b(k, j) = b[k·s + j·t]`; block by block."""
    rows, inner, columns = shape
    lines = []
    for row_parts in parts(rows, _ROWS):
        for column_parts in parts(columns, _COLUMNS):
            h, w = range(row_parts[-1]), range(column_parts[-1])
            names = [f"s{r}_{c}" for r in h for c in w]
            lines.append(f"{_each_part('i', *row_parts)} {_each_part('j', *column_parts)} {{")
            lines.append("v " + ", ".join(f"{name} = {{0}}" for name in names) + ";")
            lines.append(f"for (int n = 0; n < {inner}; ++n) {{")
            lines += [f"const v a{r} = {a}[(i + {r}) * {a_steps[0]} + n * {a_steps[1]}];" for r in h]
            lines += [f"const v b{c} = {b}[n * {b_steps[0]} + (j + {c}) * {b_steps[1]}];" for c in w]
            lines += [f"s{r}_{c} += a{r} * b{c};" for r in h for c in w]
            lines.append("}")
            lines += [f"{out}[(i + {r}) * {columns} + j + {c}] = s{r}_{c};" for r in h for c in w]
            lines.append("}")
    return "\n".join(lines)


def layer_offsets(widths: tuple[int, ...]) -> np.ndarray:
    """Where the layers begin among the entries of a network, and where the last one ends."""
    sizes = [a * b for a, b in zip(widths[1:], widths[:-1], strict=True)]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(int)


#: Consecutive layers, by the first and the last: `(j, k)` stands for `W_k … W_j`, of shape `(d_k, d_{j−1})`; counted from zero.
Layers = tuple[int, int]


def cheapest_order(widths: tuple[int, ...]) -> dict[Layers, int]:
    """In which order all layers are multiplied with the fewest operations: of every product `W_k … W_j` that is made on the way
    the `s` with `(W_k … W_{s+1})(W_s … W_j)`. Going back through the products costs twice as much, in whatever order.
    """

    @functools.cache
    def best(j: int, k: int) -> tuple[int, int]:
        outer = widths[j] * widths[k + 1]
        costs = [(cost(j, s) + cost(s + 1, k) + outer * widths[s + 1], -s) for s in range(j, k)]
        return min(costs)  # of equal ones from the right, as a network is evaluated

    def cost(j: int, k: int) -> int:
        return best(j, k)[0] if k > j else 0

    order, rest = {}, [(0, len(widths) - 2)]
    while rest:
        j, k = rest.pop()
        if k > j:
            order[j, k] = s = -best(j, k)[1]
            rest += [(j, s), (s + 1, k)]
    return order


def partial_products(widths: tuple[int, ...], offsets: np.ndarray) -> tuple[list[str], dict[Layers, str]]:
    """Lines that compute the product of all layers, in the cheapest order, and where it, its factors and the layers are."""
    lines, where = [], {(j, j): f"(y + {offsets[j]})" for j in range(len(widths) - 1)}
    for (j, k), s in sorted(cheapest_order(widths).items(), key=lambda item: item[0][1] - item[0][0]):
        shape = (widths[k + 1], widths[s + 1], widths[j])
        lines.append(f"v p{j}_{k}[{shape[0] * shape[2]}];")
        lines.append(product(f"p{j}_{k}", where[s + 1, k], where[j, s], shape, (shape[1], 1), (shape[2], 1)))
        where[j, k] = f"p{j}_{k}"
    return lines, where


def derivatives(widths: tuple[int, ...], products: dict[Layers, str], where: dict[Layers, str]) -> list[str]:
    """Lines that compute the derivatives of a function of the product of all layers in products of some of them.

    The derivative in `W_k … W_j` follows from that in a longer product, `W_l … W_j` or `W_k … W_i`: by a product with the
    transpose of what the latter has beside it, from the left or from the right.

    **Arguments:** `products`: of layers that are known; `where`: where the derivatives are to be; that in the product of all
    layers is there.
    """
    lines, known = [], [(0, len(widths) - 2)]
    for j, k in sorted(where, key=lambda layers: layers[0] - layers[1])[1:]:
        rows, columns = widths[k + 1], widths[j]
        above = [(widths[last + 1], (j, last)) for first, last in known if first == j and (k + 1, last) in products]
        beside = [(widths[first], (first, k)) for first, last in known if last == k and (first, j - 1) in products]
        inner, source = min(above + beside)
        if source[0] == j:
            a, b = products[k + 1, source[1]], where[source]
            lines.append(product(where[j, k], a, b, (rows, inner, columns), (1, rows), (columns, 1)))
        else:
            a, b = where[source], products[source[0], j - 1]
            lines.append(product(where[j, k], a, b, (rows, inner, columns), (inner, 1), (1, inner)))
        known.append((j, k))
    return lines


def weighted_sum(weights: Any, names: Sequence[str]) -> str:
    """`Σ weight·name`, without the terms that vanish."""
    terms = [f"{number(w)} * {name}" for w, name in zip(weights, names, strict=True) if w != 0]
    return " + ".join(terms) or "same(0.0)"


def gram_squares(out: str, a: str, rows: int, columns: int) -> str:
    """`out += ‖aaᵀ‖²_F`, or of `aᵀa` if that is smaller, which is the same; `a(i, k) = a[i·columns + k]`."""
    height, inner = min(rows, columns), max(rows, columns)
    steps = (columns, 1) if rows <= columns else (1, columns)
    lines = []
    for first, count, length in parts(height, _GRAM_ROWS):
        rows_here, begun = range(length), []
        for other_first, other_count, other_length in parts(height, _GRAM_ROWS):
            # Parts before: those of the other length, and of the same length; above the diagonal everything is as below.
            if other_first < first:
                begun.append((_each_part("j", other_first, other_count, other_length), other_length))
            elif other_first == first and count > 1:
                begun.append((f"for (int j = {first}; j < i; j += {length})", length))
        lines.append(f"{_each_part('i', first, count, length)} {{")
        for loop, width in [*begun, ("", 0)]:
            pairs = [(r, c) for r in rows_here for c in (range(width) if width else range(r + 1))]
            lines.append(loop + " { v " + ", ".join(f"s{r}_{c} = {{0}}" for r, c in pairs) + ";")
            lines.append(f"for (int n = 0; n < {inner}; ++n) {{")
            lines += [f"const v a{r} = {a}[(i + {r}) * {steps[0]} + n * {steps[1]}];" for r in rows_here]
            lines += [f"const v b{c} = {a}[(j + {c}) * {steps[0]} + n * {steps[1]}];" for c in range(width)]
            lines += [f"s{r}_{c} += a{r} * {'b' if width else 'a'}{c};" for r, c in pairs]
            lines.append("}")
            lines += [f"{out} += {'2.0' if width or r > c else '1.0'} * s{r}_{c} * s{r}_{c};" for r, c in pairs]
            lines.append("}")
        lines.append("}")
    return "\n".join(lines)
