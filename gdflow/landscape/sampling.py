"""Random critical points of any depth, on a chosen stratum and of a chosen kind.

The parametrisation of Achour, Malgouyres and Gerchinovitz (2024), complete for distinct positive singular values, in
normal-form coordinates: with invertible `G_h` and `r = |S|`,

    W_1 = G_1[Σ_S; Z_1],   W_h = G_h diag(I_r, Z_h) G_{h-1}^{-1},   W_N = [E_S, E_QZ_N] G_{N-1}^{-1}

(`E_S`, `E_Q` the unit columns in and outside `S`, `Σ_S`, `Σ_Q` the rows of `Σ_Y`) is critical iff `Z_N…Z_1 = 0` and
`(Z_N…Z_{j+1})ᵀΣ_Q(Z_{j-1}…Z_1)ᵀ = 0` for every `j`. The columns of `Z_1` in `S` may be taken to be zero: the block
`[I 0; B I]` of `G_1` that removes them is passed on through the layers and ends in `Z_N…Z_2B = 0`.

The conditions are invariant under `Z_h → G_hZ_hG_{h-1}^{-1}` also at the ends, for `G_0`, `G_N` with `G_0Σ_Qᵀ = Σ_QᵀG_N`:
outputs outside `S` are mixed among themselves, inputs outside `S` along with them, and the surplus inputs, of which `Σ_Q`
knows nothing, freely. Up to all these changes of basis there are finitely many points, the systems of strings of
`gdflow.landscape.strings`. So a random system and random `G_0, …, G_N` make a generic point of a random rank type.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gdflow.landscape.normal_form import NormalForm, as_jax, subset_indices
from gdflow.landscape.scaling import weight_exponent
from gdflow.landscape.strings import find_strings
from gdflow.network import LayerTuple
from gdflow.problem import Problem

KINDS = ("any", "strict", "non-strict", "zero-hessian", "minimum", "balanced")


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

    - `widths`: `(d_0, …, d_N)`, fitting the problem. A single layer (`N = 1`) is convex: its only point is
      `problem.least_squares()`, on the stratum of all positive singular values, of kind `"any"` or `"minimum"`.
    - `subset`: `S`, indices of singular values from 1.
    - `kind`: `"any"`; `"strict"` (the Hessian has a negative eigenvalue); `"non-strict"` (a saddle with non-negative
      Hessian: every pivot tightened, which takes `N ≥ 3` and `S = {1..r}`, `r < r_max`); `"zero-hessian"` (`H_W ≡ 0`; takes
      `N ≥ 3` and `S = ∅`); `"minimum"` (a global one: `S = {1..r_max}`); `"balanced"` (all `C_j = 0`, the least norm on the
      stratum).
    - `ranks`: ranks of partial products to be met, `{(j, k): rank of (ΠW)_j^k}`, counted in the problem's layers.
    - `norm` or `imbalance`: the point is moved on its stratum, by `W_1 → cW_1`, `W_2 → W_2/c`, until `‖(W_1, …, W_N)‖` or
      `‖W_2‖² − ‖W_1‖² = tr C_1` has this value (measured in the papers' coordinates, `gdflow.landscape.NormalForm`). Not for
      balanced points, whose scale is fixed.
    - `spread`: singular values of the `G_h` lie between `1/spread` and `spread`, at the ends of the network up to the square
      root of the ratio of the singular values outside `S`; large ones make points on which every eigenvalue tolerance fails.

    The layers are of the size `s_1^{1/N}`: for a target `2^{Nk}` times as large the same key gives the layers times `2^k`.

    **Raises:** `ValueError` for tied or zero singular values, subsets out of range or larger than the bottleneck, kinds
    that the stratum does not have, and ranks that no point of the kind has: the rank types that exist are known exactly.

    ```python
    >>> net = sample_critical_point(problem, (6, 5, 5, 3), (1, 3), key=jax.random.key(0))
    >>> float(problem.gradient(net).norm())  # zero up to round-off
    ```
    """
    form, widths = NormalForm(problem), problem.check_widths(widths)
    depth = len(widths) - 1
    if depth > 1:
        form.check_distinct("sampling critical points")
    inner = form.widths(widths)
    subset = form.check_subset(subset, inner)
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
    wanted = _inner_ranks(ranks or {}, widths, form.transposed)
    if depth == 1:
        return _single_layer(problem, form, subset, kind, wanted, norm is None and imbalance is None)
    _check_kind(kind, subset, inner)
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), jnp.uint32)))
    if kind == "balanced":
        if any(rank != len(subset) for rank in wanted.values()):
            raise ValueError(f"at a balanced point every product has rank {len(subset)}")
        weights = _balanced(form, inner, subset, rng)
    else:
        Z = _string_layers(rng, inner, subset, kind, wanted)
        weights = _assemble(form, inner, subset, Z, rng, spread)
    return form.back(as_jax(_rescaled(weights, norm, imbalance)))


def _single_layer(problem, form, subset, kind, ranks, scale_is_free) -> LayerTuple:
    """The least-squares solution, the one critical point of a single layer (on the range of `X`)."""
    whole = form.positive_subset()
    if kind not in ("any", "minimum"):
        raise ValueError(
            f"a single layer is convex: its critical points are global minima, there are none of kind {kind!r}"
        )
    if subset != whole:
        raise ValueError(f"a single layer is convex: its critical points have S = {whole}, not {subset}")
    if not scale_is_free:
        raise ValueError("a single layer has no free scale: give neither norm nor imbalance")
    if any(rank != len(whole) for rank in ranks.values()):
        raise ValueError(f"the least-squares solution has rank {len(whole)}")
    return LayerTuple([problem.least_squares()])


def _check_kind(kind: str, subset: tuple[int, ...], widths: tuple[int, ...]) -> None:
    r, depth = len(subset), len(widths) - 1
    nested = _nested(subset)
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


def _nested(subset: tuple[int, ...]) -> bool:
    return subset == tuple(range(1, len(subset) + 1))


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


def _string_layers(rng, widths, subset, kind, ranks) -> list[np.ndarray]:
    """The maps `Z_1 … Z_N` of a random system of strings of the kind with the ranks asked for, all entries 0 or 1.

    `Z_1` has the columns outside `S` only: those of the outputs outside `S`, to which they belong, then the surplus ones.
    """
    r = len(subset)
    sizes = tuple(d - r for d in widths)
    conditions = {
        "strict": "not-tightened" if _nested(subset) else "any",
        "non-strict": "tightened",
        "zero-hessian": "zero-hessian",
    }
    strings = find_strings(
        rng,
        sizes,
        counts={(j - 1, k): rank - r for (j, k), rank in ranks.items()},
        condition=conditions.get(kind, "any"),
    )
    if strings is None:
        of = f" and ranks {dict(ranks)}" if ranks else ""
        raise ValueError(f"there is no critical point of kind {kind!r} with S = {subset}{of}")
    N = len(sizes) - 1
    Z = [np.zeros((after, before)) for before, after in zip(sizes[:-1], sizes[1:], strict=True)]
    # V_N goes into the first part of V_0: a string through both takes the same place in them.
    taken = [0] * N + [0]
    taken[0] = sizes[N]
    for string in strings:
        places: dict[int, int] = {}
        for before, v in zip([None, *string[:-1]], string, strict=True):
            if before == N:
                places[v] = places[N]
            else:
                places[v] = taken[v]
                taken[v] += 1
            if before is not None and before != N:
                Z[before][places[v], places[before]] = 1.0
    return Z


def _orthogonal(rng: np.random.Generator, n: int, k: int | None = None) -> np.ndarray:
    Q, R = np.linalg.qr(rng.normal(size=(n, n)))
    return (Q * np.sign(np.diagonal(R)))[:, :k]


def _conditioned(rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    return _orthogonal(rng, n) * spread ** rng.uniform(-1, 1, n) @ _orthogonal(rng, n)


def _end_mixing(rng: np.random.Generator, s: np.ndarray, surplus: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Random `G_0^{-1}` and `G_N` that take the strings to `Σ_Qᵀ`, up to a factor; `s`: the singular values outside `S`.

    The strings have `[I; 0]` for `Σ_Qᵀ = [D; 0]`, so `G_0 = [DG_N, B; 0, C]`, here with `D/s_min` shared out between both ends:
    `G_N = D^{-1/2}g`, `g`, `C` and `B` random.
    """
    q = s.size
    root = np.sqrt(s / s.min()) if q else np.ones(0)
    g, C = _conditioned(rng, q, spread), _conditioned(rng, surplus, spread)
    B = rng.normal(size=(q, surplus)) / (np.sqrt(q) + np.sqrt(surplus)) if q and surplus else np.zeros((q, surplus))
    A_inverse, C_inverse = np.linalg.inv(g) / root[None, :], np.linalg.inv(C)
    inverse = np.block([[A_inverse, -A_inverse @ B @ C_inverse], [np.zeros((surplus, q)), C_inverse]])
    return inverse, g / root[:, None]


def _assemble(form, widths, subset, Z, rng, spread) -> list[np.ndarray]:
    """The layers from the strings and random `G_0, …, G_N`."""
    d_x, d_y, r, N = widths[0], widths[-1], len(subset), len(widths) - 1
    inside, outside = subset_indices(subset, d_y)
    # Made for singular values of order one: powers of two change no digit.
    exponent = weight_exponent(form.singular_values, N)
    s = np.ldexp(form.singular_values, -N * exponent)
    first_mix, last_mix = _end_mixing(rng, s[outside], d_x - d_y, spread)
    first = np.zeros((widths[1], d_x))
    first[np.arange(r), inside] = s[inside]
    first[r:, [*outside, *range(d_y, d_x)]] = Z[0] @ first_mix
    last = np.zeros((d_y, widths[-2]))
    last[inside, np.arange(r)] = 1.0
    last[outside, r:] = last_mix @ Z[-1]
    layers = [first, *(np.zeros((b, a)) for a, b in zip(widths[1:-2], widths[2:-1], strict=True)), last]
    for layer, z in zip(layers[1:-1], Z[1:-1], strict=True):
        layer[:r, :r], layer[r:, r:] = np.eye(r), z
    for h, d in enumerate(widths[1:-1]):
        G = _conditioned(rng, d, spread)
        layers[h] = G @ layers[h]
        layers[h + 1] = layers[h + 1] @ np.linalg.inv(G)
    return [np.ldexp(w, exponent) for w in layers]


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
