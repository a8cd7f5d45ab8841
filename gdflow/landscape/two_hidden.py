"""Two hidden layers: the case analysis of section 4.2 of the first version of Chitour, Liao, Couillet (2018).

At a critical point below the largest rank, in normal-form coordinates with rows and columns ordered `S` first,
`W_2 = U_2Σ_2V_2ᵀ`, and the parts outside the range of `W_2`

    W_{1,1,2,2} = rows r+1… of V_2ᵀW_{1,1,2},   W_{3,2,2} = columns r+1… of W_{3,2}U_2:

| case | where | the Hessian |
|---|---|---|
| `"r_Z>r"` | `rank W_2 > rank W_3W_2` | has a negative eigenvalue (Proposition 4 iii) |
| `"1.1"` | `W_2 = 0`, `W_{1,1} ≠ 0` or `W_3 ≠ 0` | has a negative eigenvalue |
| `"1.2"` | `W_2 = 0`, `W_{1,1} = 0`, `W_3 = 0` | vanishes |
| `"2.1"` | `r_Z = r ≥ 1`, `W_{1,1,2,2} ≠ 0` or `W_{3,2,2} ≠ 0` | has a negative eigenvalue |
| `"2.2"` | `r_Z = r ≥ 1`, both zero | has `#{(i∈S, j∉S) : s_j > s_i}` of them (Remark 3) |
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.landscape.escape import escape_direction
from gdflow.landscape.normal_form import NormalForm, as_jax, count_exchanges, subset_indices
from gdflow.landscape.scaling import scaled
from gdflow.landscape.second_variation import second_variation
from gdflow.network import LayerTuple, matmul
from gdflow.problem import Problem
from gdflow.ranks import RankDecision, decide_rank


@dataclasses.dataclass(frozen=True)
class TwoHiddenCase:
    """The case a critical point of two hidden layers belongs to.

    - `name`: as in the module's table.
    - `subset`, `rank`, `rank_Z`: `S`, `r = rank W_3W_2`, `r_Z = rank W_2`, with margins.
    - `first`, `last`: `‖W_{1,1,2,2}‖` and `‖W_{3,2,2}‖` (cases 1: `‖W_{1,1}‖` and `‖W_3‖`).
    - `index`: number of negative eigenvalues where the case determines it (1.2: 0; 2.2), else `None`: at least one.
    - `direction`: in cases 1.1, 2.1 and `r_Z>r` a unit variation with `H_W < 0`, as in the proof; in case 2.2 with
      `index > 0` too.
    """

    name: str
    subset: tuple[int, ...]
    rank: RankDecision
    rank_Z: RankDecision
    first: float
    last: float
    index: int | None
    direction: LayerTuple | None


def two_hidden_case(
    problem: Problem, net: LayerTuple, subset: tuple[int, ...], *, tolerance: float = 1e-9
) -> TwoHiddenCase:
    """Which case of the analysis a critical point of two hidden layers with subset `S` belongs to.

    **Arguments:** `tolerance`: norms and singular values count as zero at or below this multiple of the size of their
    factors.

    **Raises:** `ValueError` for other depths, tied or zero singular values, and `|S| = r_max`, where the analysis (made for
    hidden layers at least as wide as the output) says nothing.
    """
    basis = _basis(problem, net, subset)
    form, (W1, W2, W3) = basis.form, basis.layers
    n1, n2, n3 = (float(np.linalg.norm(w, 2)) for w in (W1, W2, W3))
    tiny = float(np.finfo(float).tiny)
    rank_Z = decide_rank(np.linalg.svd(W2, compute_uv=False), threshold=max(tolerance * n2, tiny))
    rank = decide_rank(np.linalg.svd(W3 @ W2, compute_uv=False), threshold=max(tolerance * n2 * n3, tiny))
    first, last = float(np.linalg.norm(basis.W_1122)), float(np.linalg.norm(basis.W_322))
    free = first > tolerance * max(n1, tiny) or last > tolerance * max(n3, tiny)
    index, direction = None, None
    if rank_Z.rank > rank.rank:
        name = "r_Z>r"
        direction = (escape_direction(problem, net, subset) or (None,))[0]
    else:
        name = ("1." if rank_Z.rank == 0 else "2.") + ("1" if free else "2")
        if free:
            unit = scaled(problem, net)
            inner = _basis(unit.problem, unit.net, basis.subset)
            through_first = first / max(n1, tiny) >= last / max(n3, tiny)
            direction = unit.back(_descend(unit.problem, unit.net, inner, through_first))
        else:
            index = count_exchanges(basis.subset, form.singular_values)
            direction = (escape_direction(problem, net, subset) or (None,))[0] if index else None
    return TwoHiddenCase(name, basis.subset, rank, rank_Z, first, last, index, direction)


@dataclasses.dataclass(frozen=True)
class _Basis:
    """The adapted coordinates at a point: ordered indices and the singular vectors of `W_2`."""

    form: NormalForm
    layers: list[np.ndarray]
    subset: tuple[int, ...]
    inside: np.ndarray
    outside: np.ndarray
    U: np.ndarray
    sigma: np.ndarray
    V: np.ndarray

    @property
    def W_1122(self) -> np.ndarray:
        return self.V[:, len(self.subset) :].T @ self.layers[0][:, self.outside]

    @property
    def W_322(self) -> np.ndarray:
        return self.layers[2][self.outside] @ self.U[:, len(self.subset) :]


def _basis(problem: Problem, net: LayerTuple, subset: tuple[int, ...]) -> _Basis:
    if net.depth != 3:
        raise ValueError(f"this case analysis is for two hidden layers, got depth {net.depth}")
    problem.check_widths(net.widths)
    form = NormalForm(problem)
    form.check_distinct("the case analysis")
    widths = form.widths(net.widths)
    subset = form.check_subset(subset, widths)
    if len(subset) == min(widths):
        raise ValueError(f"the case analysis is for ranks below r_max = {min(widths)}; S = {subset} has that rank")
    layers = [np.asarray(w, dtype=np.float64) for w in form.into(net).weights]
    U, sigma, Vt = np.linalg.svd(layers[1])
    inside, outside = subset_indices(subset, form.rank_bound)
    return _Basis(form, layers, subset, inside, outside, U, sigma, Vt.T)


def _descend(problem: Problem, net: LayerTuple, basis: _Basis, through_first: bool) -> LayerTuple:
    """Cases 1.1 and 2.1: the Hessian is linear in `w_{3,2,2}` (or `w_{1,1,2,2}`), so a multiple of it makes it negative."""
    r = len(basis.subset)
    U, V, E = basis.U[:, r:], basis.V[:, r:], basis.form.singular_values[basis.outside]
    w1, w2, w3 = (np.zeros(w.shape) for w in basis.layers)
    if through_first:
        # tr(w_{3,2,2} w_{2,4} W_{1,1,2,2} E_Y) is largest along the top singular vectors of W_{1,1,2,2}E_Y.
        x, _, y = np.linalg.svd(basis.W_1122 * E[None, :])
        w2 = np.outer(U[:, 0], V @ x[:, 0])
        w3[basis.outside] = np.outer(y[0], U[:, 0])
        other = [w1, np.zeros(w2.shape), w3]
    else:
        x, _, y = np.linalg.svd(E[:, None] * basis.W_322)
        w2 = np.outer(U @ y[0], V[:, 0])
        w1[:, basis.outside] = np.outer(V[:, 0], x[:, 0])
        other = [w1, np.zeros(w2.shape), np.zeros(w3.shape)]
    a = basis.form.back(as_jax([np.zeros(w1.shape), w2, np.zeros(w3.shape)]))
    b = basis.form.back(as_jax(other))
    a, b = a / float(a.norm()), b / float(b.norm())
    # The lowest direction in the plane of the two, in which the form is a 2×2 matrix (they are orthogonal).
    haa, hbb, hab = (float(second_variation(problem, net, w)) for w in (a, b, a + b))
    cross = 0.5 * (hab - haa - hbb)
    lam, mu = np.linalg.eigh(np.array([[haa, cross], [cross, hbb]]))[1][:, 0]
    return float(lam) * a + float(mu) * b


def second_variation_case_1(problem: Problem, net: LayerTuple, w: LayerTuple) -> Float[Array, ""]:
    """`H_W(w)` where `W_2 = 0` (cases 1.1 and 1.2):

    −tr(w_3w_2W_{1,1}E_Y) − tr(w_2w_{1,1}E_YW_3) + ½‖W_3w_2W_{1,1}‖² + ½‖W_3w_2W_{1,2}‖²,   E_Y = S_Y.
    """
    basis = _basis(problem, net, ())
    W1, _, W3 = (jnp.asarray(x) for x in basis.layers)
    w1, w2, w3 = basis.form.into(w).weights
    d, E = basis.form.rank_bound, jnp.asarray(np.diag(basis.form.singular_values))
    linear = jnp.trace(matmul(w3, matmul(w2, matmul(W1[:, :d], E)))) + jnp.trace(
        matmul(w2, matmul(w1[:, :d], matmul(E, W3)))
    )
    return -linear + 0.5 * jnp.sum(matmul(W3, matmul(w2, W1)) ** 2)


@dataclasses.dataclass(frozen=True)
class Case22:
    """The second variation in case 2.2 and the lower bound of Remark 3.

    - `value`:
      `−tr(D_2w_{1,1,2,1}E_Yw_{3,2,1}) + ½‖W_{3,1}w_2W_{1,1,1} + w_{3,1,1}D_2W_{1,1,1,1} + W_{3,1,1}D_2w_{1,1,1,1}‖²`
      `+ ½‖W_{3,1,1}D_2w_{1,1,2,1}‖² + ½‖w_{3,2,1}D_2W_{1,1,1,1}‖² + ½‖W_{3,1}w_2W_{1,2} + W_{3,1,1}D_2w_{1,2,1}‖²`.
    - `bound`: `½‖A‖² + ½‖B‖² − tr(A E_Y B D_Y^{-1})` with `A = W_{3,1,1}D_2w_{1,1,2,1}`, `B = w_{3,2,1}D_2W_{1,1,1,1}`; at
      most `value`.
    """

    value: float
    bound: float


def second_variation_case_2_2(problem: Problem, net: LayerTuple, w: LayerTuple, subset: tuple[int, ...]) -> Case22:
    """`H_W(w)` in case 2.2 by its own formula, with `W_2 = U_2 diag(D_2, 0) V_2ᵀ`, and the bound that gives Remark 3."""
    basis = _basis(problem, net, subset)
    r, d = len(basis.subset), basis.form.rank_bound
    U, D2, V = basis.U[:, :r], basis.sigma[:r], basis.V[:, :r]
    W1, _, W3 = basis.layers
    w1, w2, w3 = (np.asarray(x) for x in basis.form.into(w).weights)
    inside, outside, s = basis.inside, basis.outside, basis.form.singular_values
    W_311, W_1111 = W3[inside] @ U, V.T @ W1[:, inside]
    A = (W_311 * D2) @ (V.T @ w1[:, outside])
    B = ((w3[outside] @ U) * D2) @ W_1111
    outer = W3[inside] @ w2
    first = outer @ W1[:, inside] + ((w3[inside] @ U) * D2) @ W_1111 + (W_311 * D2) @ (V.T @ w1[:, inside])
    # The part of W_{1,2} outside the range of W_2ᵀ is free: w_3W_2W_{1,2} = 0.
    last = outer @ W1[:, d:] + (W_311 * D2) @ (V.T @ w1[:, d:])
    # tr(D_2 w_{1,1,2,1} E_Y w_{3,2,1}) = tr(A E_Y B D_Y^{-1})
    cross = float(np.sum((A * s[outside]).T * (B / s[inside])))
    squares = 0.5 * float(np.sum(A**2) + np.sum(B**2))
    value = -cross + squares + 0.5 * float(np.sum(first**2) + np.sum(last**2))
    return Case22(value, squares - cross)
