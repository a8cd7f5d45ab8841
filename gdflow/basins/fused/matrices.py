"""Matrices of vectors in C: products whose sums stay in registers, Gram matrices. All sizes are fixed."""

import itertools
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


def parts(size: int, most: int) -> Iterator[tuple[int, int]]:
    """Where parts begin and how long they are: as few as possible, of equal length as far as possible."""
    ends = np.linspace(0, size, -(-size // most) + 1).round().astype(int).tolist()
    yield from ((a, b - a) for a, b in itertools.pairwise(ends))


def product(
    out: str, a: str, b: str, shape: tuple[int, int, int], a_steps: tuple[int, int], b_steps: tuple[int, int]
) -> str:
    """`out = a b`, `shape` rows, inner, columns; `a(i, k) = a[i·s + k·t]`, `b(k, j) = b[k·s + j·t]`; block by block."""
    rows, inner, columns = shape
    lines = []
    for i, num_rows in parts(rows, _ROWS):
        for j, num_columns in parts(columns, _COLUMNS):
            h, w = range(num_rows), range(num_columns)
            names = [f"s{r}{c}" for r in h for c in w]
            lines.append("{ v " + ", ".join(f"{name} = {{0}}" for name in names) + ";")
            lines.append(f"for (int k = 0; k < {inner}; ++k) {{")
            lines += [f"const v a{r} = {a}[{(i + r) * a_steps[0]} + k * {a_steps[1]}];" for r in h]
            lines += [f"const v b{c} = {b}[k * {b_steps[0]} + {(j + c) * b_steps[1]}];" for c in w]
            lines += [f"s{r}{c} += a{r} * b{c};" for r in h for c in w]
            lines.append("}")
            lines += [f"{out}[{(i + r) * columns + j + c}] = s{r}{c};" for r in h for c in w]
            lines.append("}")
    return "\n".join(lines)


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
    blocks = list(parts(height, _GRAM_ROWS))
    for n, (i, num_i) in enumerate(blocks):
        for j, num_j in blocks[: n + 1]:
            # Above the diagonal everything is as below.
            pairs = [(r, c) for r in range(num_i) for c in range(num_j) if j + c <= i + r]
            lines.append("{ v " + ", ".join(f"s{r}_{c} = {{0}}" for r, c in pairs) + ";")
            lines.append(f"for (int k = 0; k < {inner}; ++k) {{")
            lines += [f"const v a{r} = {a}[{(i + r) * steps[0]} + k * {steps[1]}];" for r in range(num_i)]
            if i != j:
                lines += [f"const v b{c} = {a}[{(j + c) * steps[0]} + k * {steps[1]}];" for c in range(num_j)]
            other = "a" if i == j else "b"
            lines += [f"s{r}_{c} += a{r} * {other}{c};" for r, c in pairs]
            lines.append("}")
            lines += [f"{out} += {'1.0' if i + r == j + c else '2.0'} * s{r}_{c} * s{r}_{c};" for r, c in pairs]
            lines.append("}")
    return "\n".join(lines)
