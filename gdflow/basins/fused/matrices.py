"""Matrices of vectors in C: products whose sums stay in registers, Gram matrices. All sizes are fixed."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: Rows and columns of the sums that stay in registers.
_ROWS, _COLUMNS = 3, 6
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


def partial_products(widths: tuple[int, ...], offsets: np.ndarray) -> tuple[list[str], dict[int, str]]:
    """Lines that compute the products `W_j … W_1`, and where these are."""
    lines, right = [], {1: "y"}
    for j in range(2, len(widths)):
        lines.append(f"v r{j}[{widths[j] * widths[0]}];")
        shape = (widths[j], widths[j - 1], widths[0])
        lines.append(
            product(f"r{j}", f"(y + {offsets[j - 1]})", right[j - 1], shape, (widths[j - 1], 1), (widths[0], 1))
        )
        right[j] = f"r{j}"
    return lines, right


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
