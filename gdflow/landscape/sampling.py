"""Random critical points of any depth, on a chosen stratum and of a chosen kind.

The parametrisation of Achour, Malgouyres and Gerchinovitz (2024), complete for distinct positive singular values, in
normal-form coordinates: with invertible `G_h` and `r = |S|`,

    W_1 = G_1[Σ_S; Z_1],   W_h = G_h diag(I_r, Z_h) G_{h-1}^{-1},   W_N = [E_S, E_QZ_N] G_{N-1}^{-1}

(`E_S`, `E_Q` the unit columns in and outside `S`, `Σ_S`, `Σ_Q` the rows of `Σ_Y`) is critical iff `Z_N…Z_1 = 0` and
`(Z_N…Z_{j+1})ᵀΣ_Q(Z_{j-1}…Z_1)ᵀ = 0` for every `j`. The `Z_h` here are partial permutations, that is systems of disjoint
paths through the layers: the first condition says that no path leads from an input to an output, the second that for
`i ∉ S` the path from input `i` and the path into output `i` leave a layer between them. Every rank type occurs among them;
the `G_h` and a mixing of the free inputs make the points generic.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gdflow.landscape.normal_form import NormalForm, as_jax, subset_indices
from gdflow.landscape.pivots import sparse_pivots
from gdflow.network import LayerTuple
from gdflow.problem import Problem

KINDS = ("any", "strict", "non-strict", "zero-hessian", "minimum", "balanced")

#: So many systems of paths are tried for one that is of the kind and the ranks asked for.
MAX_TRIES = 20_000


def sample_critical_point(
    problem: Problem,
    widths: Iterable[int],
    subset: Iterable[int],
    *,
    key: Key[Array, ""],
    kind: str = "any",
    ranks: Mapping[tuple[int, int], int] | None = None,
    norm: float | None = None,
    imbalance: float | None = None,
    spread: float = 2.0,
) -> LayerTuple:
    """A random critical point on the stratum of `S`, in the problem's coordinates.

    **Arguments:**

    - `widths`: `(d_0, …, d_N)`, `N ≥ 2`, fitting the problem.
    - `subset`: `S`, indices of singular values from 1.
    - `kind`: `"any"`; `"strict"` (the Hessian has a negative eigenvalue); `"non-strict"` (a saddle with non-negative
      Hessian: every pivot tightened, which takes `N ≥ 3` and `S = {1..r}`, `r < r_max`); `"zero-hessian"` (`H_W ≡ 0`; takes
      `N ≥ 3` and `S = ∅`); `"minimum"` (a global one: `S = {1..r_max}`); `"balanced"` (all `C_j = 0`, the least norm on the
      stratum).
    - `ranks`: ranks of partial products to be met, `{(j, k): rank of (ΠW)_j^k}`, counted in the problem's layers.
    - `norm` or `imbalance`: the point is moved on its stratum, by `W_1 → cW_1`, `W_2 → W_2/c`, until `‖(W_1, …, W_N)‖` or
      `‖W_2‖² − ‖W_1‖² = tr C_1` has this value (measured in the papers' coordinates, `gdflow.landscape.NormalForm`). Not for
      balanced points, whose scale is fixed.
    - `spread`: singular values of the `G_h` lie between `1/spread` and `spread`; large ones make points on which every
      eigenvalue tolerance fails.

    **Raises:** `ValueError` for tied or zero singular values, subsets out of range or larger than the bottleneck, kinds
    that the stratum does not have, and ranks that were not met in 20 000 tries.

    ```python
    >>> net = sample_critical_point(problem, (6, 5, 5, 3), (1, 3), key=jax.random.key(0))
    >>> float(problem.gradient(net).norm())  # zero up to round-off
    ```
    """
    form, widths = NormalForm(problem), problem.check_widths(widths)
    form.check_distinct("sampling critical points")
    inner = form.widths(widths)
    subset = form.check_subset(subset, inner)
    if len(widths) < 3:
        raise ValueError("a single layer has no critical point but the least-squares solution: problem.least_squares()")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if not (np.isfinite(spread) and spread >= 1):
        raise ValueError(f"spread must be at least 1, got {spread}")
    if norm is not None and imbalance is not None:
        raise ValueError("give norm or imbalance, not both: one scale is free")
    if kind == "balanced" and (norm is not None or imbalance is not None):
        raise ValueError("a balanced point has no free scale: give neither norm nor imbalance")
    for name, value in (("norm", norm), ("imbalance", imbalance)):
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    _check_kind(kind, subset, inner)
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), jnp.uint32)))
    wanted = _inner_ranks(ranks or {}, widths, form.transposed)
    if kind == "balanced":
        weights = _balanced(form, inner, subset, rng)
        if any(rank != len(subset) for rank in wanted.values()):
            raise ValueError(f"at a balanced point every product has rank {len(subset)}")
    else:
        Z = _find_paths(rng, inner, subset, kind, wanted)
        weights = _assemble(form, inner, subset, Z, rng, spread)
    return form.back(as_jax(_rescaled(weights, norm, imbalance)))


def _check_kind(kind: str, subset: tuple[int, ...], widths: tuple[int, ...]) -> None:
    r, depth = len(subset), len(widths) - 1
    nested = subset == tuple(range(1, r + 1))
    if kind == "minimum" and not (nested and r == min(widths)):
        raise ValueError(f"global minima have S = {{1..{min(widths)}}}, not {subset}")
    if kind == "strict" and nested and r == min(widths):
        raise ValueError(f"S = {subset} belongs to the global minima, none of which is a strict saddle")
    if kind == "non-strict" and not (depth >= 3 and nested and r < min(widths)):
        raise ValueError(
            f"non-strict saddles need at least three layers and S = {{1..r}} with r < {min(widths)}; "
            f"got {depth} layers, S = {subset}"
        )
    if kind == "zero-hessian" and not (depth >= 3 and r == 0):
        raise ValueError(
            f"a zero Hessian needs at least three layers and the empty subset; got {depth} layers, S = {subset}"
        )


def _inner_ranks(
    ranks: Mapping[tuple[int, int], int], widths: tuple[int, ...], transposed: bool
) -> dict[tuple[int, int], int]:
    depth = len(widths) - 1
    inner = {}
    for (j, k), rank in ranks.items():
        if not 1 <= j <= k <= depth:
            raise ValueError(f"there is no product (ΠW)_{j}^{k} in a network of depth {depth}")
        if not 0 <= rank <= min(widths[j - 1 : k + 1]):
            raise ValueError(f"(ΠW)_{j}^{k} has rank at most {min(widths[j - 1 : k + 1])}, not {rank}")
        inner[(depth + 1 - k, depth + 1 - j) if transposed else (j, k)] = rank
    return inner


def _find_paths(rng, widths, subset, kind, ranks) -> list[np.ndarray]:
    """Partial permutations `Z_1 … Z_N` that make a critical point of the kind with the ranks asked for."""
    for _ in range(MAX_TRIES):
        Z = _draw_paths(rng, widths, subset)
        if kind in ("any", "minimum") and not ranks:
            return Z
        pivots = sparse_pivots(_sparse_layers(Z, subset, widths), subset, widths)
        fits = {"strict": pivots.strict, "non-strict": pivots.non_strict, "zero-hessian": pivots.zero_hessian}
        if fits.get(kind, True) and all(pivots.rank(j, k) == rank for (j, k), rank in ranks.items()):
            return Z
    raise ValueError(
        f"no critical point of kind {kind!r} with S = {subset}" + (f" and ranks {dict(ranks)}" if ranks else "")
        + f" was found in {MAX_TRIES} tries: probably there is none"
    )  # fmt: skip


def _draw_paths(rng: np.random.Generator, widths: tuple[int, ...], subset: tuple[int, ...]) -> list[np.ndarray]:
    """A random system of paths that meets the two conditions of the module's head."""
    d_x, *_, d_y = widths
    r, N = len(subset), len(widths) - 1
    _, outside = subset_indices(subset, d_y)
    sizes = [d_x, *(d - r for d in widths[1:-1]), d_y - r]
    density = rng.choice([0.0, 0.3, 0.7, 1.0])
    # Where each path began: ("input", i) or ("layer", h). `extent[i]`: how many layers the path from input i reached.
    origin: list[tuple[str, int] | None] = [("input", i) for i in range(d_x)]
    extent = dict.fromkeys(range(d_x), 0)
    Z = []
    for h in range(1, N):
        matrix = np.zeros((sizes[h], sizes[h - 1]))
        after: list[tuple[str, int] | None] = [("layer", h)] * sizes[h]
        # Paths from inputs outside S end before layer N-1, so that their output may have an empty path.
        able = [c for c in range(sizes[h - 1]) if not (h == N - 1 and _from_outside(origin[c], outside))]
        number = min(int(rng.binomial(min(sizes[h], len(able)), density)), len(able), sizes[h])
        rows, columns = rng.permutation(sizes[h])[:number], rng.permutation(able)[:number]
        for row, column in zip(rows, columns, strict=True):
            matrix[row, column] = 1.0
            start = origin[int(column)]
            after[int(row)] = start
            if start is not None and start[0] == "input":
                extent[start[1]] = h
        Z.append(matrix)
        origin = after
    last = np.zeros((sizes[N], sizes[N - 1]))
    if N > 1:
        unused = [int(c) for c in rng.permutation(sizes[N - 1])]
        for row in rng.permutation(sizes[N]):
            if rng.random() >= density:
                continue
            i = int(outside[row])
            for column in unused:
                start = origin[column]
                # The path into output i starts in a layer b with extent[i] + 2 ≤ b, and never at an input.
                if start is not None and start[0] == "layer" and extent[i] + 2 <= start[1]:
                    last[row, column] = 1.0
                    unused.remove(column)
                    break
    Z.append(last)
    return Z


def _from_outside(origin: tuple[str, int] | None, outside: np.ndarray) -> bool:
    return origin is not None and origin[0] == "input" and origin[1] in outside


def _sparse_layers(Z: list[np.ndarray], subset: tuple[int, ...], widths: tuple[int, ...]) -> list[np.ndarray]:
    """The layers with all `G_h` and all singular values one."""
    r = len(subset)
    inside, outside = subset_indices(subset, widths[-1])
    layers = [np.concatenate([np.eye(widths[0])[inside], Z[0]])]
    for z in Z[1:-1]:
        layer = np.zeros((r + z.shape[0], r + z.shape[1]))
        layer[:r, :r], layer[r:, r:] = np.eye(r), z
        layers.append(layer)
    E = np.eye(widths[-1])
    layers.append(np.concatenate([E[:, inside], E[:, outside] @ Z[-1]], axis=1))
    return layers


def _orthogonal(rng: np.random.Generator, n: int, k: int | None = None) -> np.ndarray:
    Q, R = np.linalg.qr(rng.normal(size=(n, n)))
    return (Q * np.sign(np.diagonal(R)))[:, :k]


def _conditioned(rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    return _orthogonal(rng, n) * spread ** rng.uniform(-1, 1, n) @ _orthogonal(rng, n)


def _assemble(form, widths, subset, Z, rng, spread) -> list[np.ndarray]:
    """The layers from the paths, random `G_h`, and a random mixing of the inputs that no condition involves."""
    inside, _ = subset_indices(subset, widths[-1])
    d_x, d_y = widths[0], widths[-1]
    mix = np.eye(d_x)
    # Inputs in S stay among themselves, in the range of Σ_S: mixed with the surplus inputs they would add to the ranks.
    mix[np.ix_(inside, inside)] = _conditioned(rng, len(subset), spread)
    mix[d_y:, d_y:] = _conditioned(rng, d_x - d_y, spread)
    mix[d_y:, inside] = rng.normal(size=(d_x - d_y, len(subset)))
    layers = _sparse_layers(Z, subset, widths)
    r = len(subset)
    layers[0][:r] = np.asarray(form.target)[inside]
    layers[0][r:] = layers[0][r:] @ mix
    G = [_conditioned(rng, d, spread) for d in widths[1:-1]]
    inverses = [np.linalg.inv(g) for g in G]
    layers[0] = G[0] @ layers[0]
    for h in range(1, len(layers) - 1):
        layers[h] = G[h] @ layers[h] @ inverses[h - 1]
    layers[-1] = layers[-1] @ inverses[-1]
    return layers


def _balanced(form: NormalForm, widths: tuple[int, ...], subset: tuple[int, ...], rng) -> list[np.ndarray]:
    """`W_j = V_j Σ_S^{1/N} V_{j-1}ᵀ` with orthonormal columns, `V_0`, `V_N` the unit vectors in `S`."""
    inside, _ = subset_indices(subset, widths[-1])
    root = form.singular_values[inside] ** (1 / (len(widths) - 1))
    V = [
        np.eye(widths[0])[:, inside],
        *(_orthogonal(rng, d, len(subset)) for d in widths[1:-1]),
        np.eye(widths[-1])[:, inside],
    ]
    return [(after * root) @ before.T for before, after in zip(V[:-1], V[1:], strict=True)]


def _rescaled(weights: list[np.ndarray], norm: float | None, imbalance: float | None) -> list[np.ndarray]:
    """`W_1 → cW_1`, `W_2 → W_2/c`, so that the norm or the imbalance is as asked for."""
    if norm is None and imbalance is None:
        return weights
    a, b, *others = (float(np.sum(w**2)) for w in weights)
    if a == 0 or b == 0:
        raise ValueError("norm and imbalance need W_1 ≠ 0 and W_2 ≠ 0: this point's scale is not free")
    if imbalance is not None:
        # b/q − q·a = imbalance for q = c²
        root = np.sqrt(imbalance**2 + 4 * a * b)
        square = 2 * b / (root + imbalance) if imbalance > 0 else (root - imbalance) / (2 * a)
    else:
        assert norm is not None
        room = norm**2 - sum(others)
        least = np.sqrt(sum(others) + 2 * np.sqrt(a * b))
        if not norm >= least * (1 - 1e-12):
            raise ValueError(f"norm {norm:.6g} is below {least:.6g}, the least that rescaling W_1 and W_2 reaches")
        square = (room + np.sqrt(max(room**2 - 4 * a * b, 0.0))) / (2 * a)
    c = np.sqrt(square)
    return [c * weights[0], weights[1] / c, *weights[2:]]
