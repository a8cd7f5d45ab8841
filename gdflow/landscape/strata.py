"""The critical set, stratum by stratum: every subset `S` of singular values with its level, dimension, index and nullity.

The critical points with `W = W_N…W_1` the part of the target on the singular values in `S` form the stratum of `S`,
`|S| = r ≤ r_max`, at the level `ℓ(S) = ½Σ_{i∉S}s_i²`. For one hidden layer it is a manifold (Proposition 5 of Chitour,
Liao, Couillet 2022) with

- dimension = nullity of the Hessian `= r·d_1 + (d_1 − r)r + (d_1 − r)(d_x − d_y)` (eq. (27), printed with `d_y` for `d_1`
  in the brackets),
- index `= #{(i∈S, j∉S) : s_j > s_i} + (d_1 − r)(d_y − r)`,

for distinct `s_i > 0` and `d_x ≥ d_y` (else with `d_x` and `d_y` exchanged).
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Array, Float
from rich.console import RenderableType

from gdflow.landscape.normal_form import NormalForm, count_exchanges, subset_indices
from gdflow.levels import subset_text
from gdflow.network import LayerTuple, count_parameters
from gdflow.problem import Problem, critical_values
from gdflow.tables import Printable, column_table


@dataclasses.dataclass(frozen=True)
class Stratum:
    """The critical points that fit the singular values in one subset.

    - `subset`: `S`, indices from 1; `rank`: `|S|`; `value`: `ℓ(S)`.
    - `level`: the number of its level, 0 the global minimum.
    - `kind`: `"global minima"`, `"strict saddles"`, or `"saddles, some non-strict"` (which needs `N ≥ 3`,
      no singular value outside `S` above one inside, up to ties, and room in `S` for another positive one).
    - `dimension`, `index`, `nullity`, `positive`: of the stratum and of the Hessian's eigenvalues on it; `None` where no
      formula is known (more than one hidden layer; one with tied or zero singular values): sample a point and take its
      `inertia`.
    """

    subset: tuple[int, ...]
    rank: int
    value: float
    level: int
    kind: str
    dimension: int | None = None
    index: int | None = None
    nullity: int | None = None
    positive: int | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Strata(Printable, Sequence):
    """The strata of the critical set from the lowest level upwards, a sequence of `Stratum`.

    - `strata`: the rows; `widths`: of the networks; `singular_values`: of the target.
    - `complete`: whether these are all; otherwise only the lowest levels, or levels shared by very many subsets.
    - `notes`: what is peculiar, ties and zeros among the singular values above all.
    """

    strata: tuple[Stratum, ...]
    widths: tuple[int, ...]
    singular_values: tuple[float, ...]
    complete: bool
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.strata)

    def __getitem__(self, k):
        return self.strata[k]

    @property
    def table(self) -> pa.Table:
        """The rows as an Arrow table (`.to_pandas()` where pandas is at hand); subsets as text."""
        columns = {
            field.name: [getattr(row, field.name) for row in self.strata] for field in dataclasses.fields(Stratum)
        }
        columns["subset"] = [subset_text(S) for S in columns["subset"]]
        return pa.table(columns)

    def write_csv(self, path: str | os.PathLike) -> None:
        """Writes the rows as a CSV file with a header."""
        pa.csv.write_csv(self.table, os.fspath(path))

    def __rich__(self) -> RenderableType:
        table = column_table(
            f"Strata of the critical set, widths {'-'.join(map(str, self.widths))}",
            "S", "rank", "level", "value", "dimension", "index", "nullity", "positive", "points",
        )  # fmt: skip
        for row in self.strata[:64]:
            numbers = [row.dimension, row.index, row.nullity, row.positive]
            table.add_row(
                subset_text(row.subset),
                str(row.rank),
                str(row.level),
                f"{row.value:.6g}",
                *("–" if n is None else str(n) for n in numbers),
                row.kind,
            )
        hidden = [f"({len(self) - 64} strata not shown)"] if len(self) > 64 else []
        table.caption = "\n".join([*self.notes, *hidden]) or None
        return table


def stratum_counts(
    widths: tuple[int, int, int], subset: tuple[int, ...], singular_values: np.ndarray
) -> tuple[int, int]:
    """Nullity (= dimension) and index on a stratum of one hidden layer, in normal-form widths `(d_x, d_1, d_y)`, `d_x ≥ d_y`.

    The formulas of the module's head, for distinct positive singular values.
    """
    d_x, d_1, d_y = widths
    r = len(subset)
    swaps = count_exchanges(subset, singular_values)
    return r * d_1 + (d_1 - r) * r + (d_1 - r) * (d_x - d_y), swaps + (d_1 - r) * (d_y - r)


def strata(problem: Problem, widths: Iterable[int], *, lowest: int | None = None) -> Strata:
    """Every stratum of the critical set of networks of given widths, with its level, dimension and index.

    **Arguments:**

    - `widths`: `(d_0, …, d_N)`, fitting the problem. A single layer (`N = 1`) is convex and has the one stratum of the
      global minima, where the whole target is fitted.
    - `lowest`: only the strata of the lowest so many levels.

    **Raises:** `ValueError` for losses without levels, widths that do not fit, and more than 2²⁰ subsets without `lowest`.

    ```python
    >>> print(strata(problem, problem.widths([4])))
    ```
    """
    form, widths = NormalForm(problem), problem.check_widths(widths)
    if lowest is not None and lowest < 1:
        raise ValueError(f"lowest must be at least 1, got {lowest}")
    if len(widths) == 2:
        return _single_layer(form, problem, widths)
    s, max_rank = form.singular_values, form.max_rank(widths)
    levels = critical_values(problem, max_rank, lowest=lowest)
    degeneracy = form.degeneracy()
    distinct = degeneracy is None
    notes = [degeneracy] if degeneracy else []
    shared = [k for k, level in enumerate(levels) if level.num_subsets > 1]
    if shared and distinct:
        notes.append(
            f"levels shared by several subsets: {', '.join(map(str, shared[:8]))}{' …' if len(shared) > 8 else ''}"
        )
    unlisted = sum(level.num_subsets - len(level.subsets) for level in levels)
    if unlisted:
        notes.append(f"{unlisted} subsets of shared levels are not listed")
    d_in_null = problem.d_in - form.widths(widths)[-1 if form.transposed else 0]
    best = min(max_rank, len(form.positive_subset()))
    rows = []
    for k, level in enumerate(levels):
        for subset in level.subsets:
            counts: dict[str, int] = {}
            if len(widths) == 3 and distinct:
                nullity, index = stratum_counts(form.widths(widths), subset, s)  # type: ignore[arg-type]
                nullity += widths[1] * d_in_null  # W_1 on the null directions of X
                counts = dict(
                    dimension=nullity, index=index, nullity=nullity, positive=count_parameters(widths) - nullity - index
                )
            if k == 0:
                kind = "global minima"
            elif len(widths) > 3 and form.is_nested(subset) and len(subset) < best:
                kind = "saddles, some non-strict"
            else:
                kind = "strict saddles"
            rows.append(
                Stratum(
                    subset,
                    len(subset),
                    0.5 * float(np.sum(np.delete(s, [i - 1 for i in subset]) ** 2)),
                    k,
                    kind,
                    **counts,
                )
            )
    return Strata(tuple(rows), widths, tuple(map(float, s)), levels.complete and not unlisted, tuple(notes))


def _single_layer(form: NormalForm, problem: Problem, widths: tuple[int, ...]) -> Strata:
    """The minimisers of a convex quadratic form: an affine space, along the null directions of `X`."""
    subset, s = form.positive_subset(), form.singular_values
    rank_inputs = problem.decomposition.S_X.shape[0]
    nullity = problem.d_out * (problem.d_in - rank_inputs)
    row = Stratum(
        subset=subset, rank=len(subset), value=0.5 * float(np.sum(s[len(subset) :] ** 2)), level=0, kind="global minima",
        dimension=nullity, index=0, nullity=nullity, positive=problem.d_out * rank_inputs,
    )  # fmt: skip
    return Strata((row,), widths, tuple(map(float, s)), True, ("a single layer is convex: there are no saddles",))


def stratum_tangent_space(problem: Problem, net: LayerTuple, subset: Iterable[int]) -> Float[Array, "P dim"]:
    """Orthonormal basis of the tangent space of the stratum at a critical point of one hidden layer.

    Columns are raveled layer tuples (`jax.flatten_util.ravel_pytree`). From the parametrisation `W_1 = G[Σ_S; Z]`,
    `W_2 = [E_S 0]G^{-1}` of the stratum, `Z` zero on the columns outside `S`: the tangent vectors are `(KW_1, −W_2K)` for
    all `K`, and `(v, 0)` with `W_2v = 0` and `v` zero on the columns outside `S`. By Proposition 5 of Chitour, Liao,
    Couillet (2022) it is the kernel of the Hessian.

    **Raises:** `ValueError` for other depths, tied or zero singular values. That the point is critical is not checked.
    """
    if net.depth != 2:
        raise ValueError(f"the strata are known to be manifolds for one hidden layer only, got depth {net.depth}")
    problem.check_network(net)
    form = NormalForm(problem)
    form.check_distinct("the tangent space of a stratum")
    subset = form.check_subset(subset, form.widths(net.widths))
    W1, W2 = (np.asarray(w) for w in form.into(net).weights)
    (d_1, d_x), r = W1.shape, len(subset)
    _, outside = subset_indices(subset, form.rank_bound)
    vectors = []
    # Of order one beside the unit vectors below, whatever the size of the target: all get into one decomposition.
    size = max(float(np.max(abs(W1))), float(np.max(abs(W2))), float(np.finfo(float).tiny))
    W1, W2 = W1 / size, W2 / size
    for k in range(d_1 * d_1):
        K = np.zeros(d_1 * d_1)
        K[k] = 1.0
        K = K.reshape(d_1, d_1)
        vectors.append((K @ W1, -W2 @ K))
    kernel = np.linalg.svd(W2)[2][r:].T
    for column in np.setdiff1d(np.arange(d_x), outside):
        for u in kernel.T:
            v = np.zeros(W1.shape)
            v[:, column] = u
            vectors.append((v, np.zeros(W2.shape)))
    flat = [
        np.concatenate([np.ravel(w) for w in form.back(LayerTuple([jnp.asarray(a), jnp.asarray(b)])).weights])
        for a, b in vectors
    ]
    null = np.asarray(_null_directions(problem, net.widths))
    basis = np.concatenate([np.stack(flat, axis=1), null], axis=1)
    U, _, _ = np.linalg.svd(basis, full_matrices=False)
    dim, _ = stratum_counts(form.widths(net.widths), subset, form.singular_values)  # type: ignore[arg-type]
    return jnp.asarray(U[:, : dim + null.shape[1]])


def _null_directions(problem: Problem, widths: tuple[int, ...]) -> np.ndarray:
    """Raveled variations of `W_1` on the null directions of `X`, which change nothing; none but in data coordinates."""
    if problem.coordinates != "data":
        return np.zeros((count_parameters(widths), 0))
    U = np.asarray(problem.decomposition.U_X)
    null = np.linalg.svd(U)[0][:, U.shape[1] :]
    columns = []
    for i in range(widths[1]):
        for n in null.T:
            w = np.zeros((widths[1], widths[0]))
            w[i] = n
            columns.append(np.concatenate([w.ravel(), np.zeros(count_parameters(widths) - w.size)]))
    return np.stack(columns, axis=1) if columns else np.zeros((count_parameters(widths), 0))
