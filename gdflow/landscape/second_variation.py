"""The second variation of the loss: the general form, the papers' block forms, and what they reduce to.

`H_W(w)` is the second-order Taylor term, `L(W + w) = L(W) + dL(w) + H_W(w) + O(‖w‖³)`, that is *half* of the Hessian's
quadratic form: `H_W(w) = ½∇²L[w, w]` (Proposition 3 of Chitour, Liao, Couillet 2022 calls it "the Hessian").

The general form holds for any depth, coordinates and twice differentiable loss of the end-to-end matrix. The block forms
are those of the papers, in whitened coordinates with `d_x ≥ d_y` (`gdflow.landscape.normal_form`), with `R = (ΠW)_2^N`,
`M_1 = S_Y − RW_{1,1}`.
"""

import functools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdflow.landscape.normal_form import NormalForm
from gdflow.network import LayerTuple, matmul
from gdflow.problem import Problem


def second_variation(problem: Problem, net: LayerTuple, w: LayerTuple) -> Float[Array, ""]:
    """`H_W(w) = ½∇²ℓ[ΔD, ΔD] + ⟨∇ℓ Dᵀ, Σ_{j<k}P_jk(w)⟩` with `Δ = Σ_jP_j(w)`, for any depth and loss.

    For the squared error `½‖ΔD‖² − ⟨M, Σ_{j<k}P_jk(w)D⟩`, Proposition 3 of Chitour, Liao, Couillet (2022) for every depth
    at once (printed with `Σ_{j≠k}`, which counts every mixed term twice from three hidden layers on); for convex `ℓ` it is
    section 6.2.5 of Cohen's lecture (printed with `j ≤ k`).

    **Arguments:** `net`: a network in the problem's coordinates; `w`: a variation, a layer tuple of the same widths.

    **Returns:** a scalar; half of `∇²L[w, w]`. Differentiable in everything.

    ```python
    >>> second_variation(problem, net, w)  # = ½ vᵀ hessian(problem, net) v, v the raveled w
    ```
    """
    _check_variation(problem, net, w)
    first, mixed = net.expansion(w)
    W = net.end_to_end
    curvature = problem.loss.hessian_form(matmul(W, problem.design), problem.target, matmul(first, problem.design))
    return 0.5 * curvature + jnp.sum(problem.end_to_end_gradient(W) * mixed)


def _check_variation(problem: Problem, net: LayerTuple, w: LayerTuple) -> None:
    problem.check_widths(net.widths)
    if w.widths != net.widths:
        raise ValueError(f"a variation has the widths of its network, {net.widths}, got {w.widths}")


def _tr(*factors: Array) -> Array:
    return jnp.trace(functools.reduce(matmul, factors))


def second_variation_blocks(
    problem: Problem, net: LayerTuple, w: LayerTuple, *, as_printed: bool = False
) -> Float[Array, ""]:
    """The block form of Proposition 3 of Chitour, Liao, Couillet (2022), any depth `N ≥ 2`; equal to `second_variation`.

    With `Q_j = (ΠW)_{j+1}^H w_j (ΠW)_2^{j-1}` and `Q_jk = (ΠW)_{k+1}^H w_k (ΠW)_{j+1}^{k-1} w_j (ΠW)_2^{j-1}`,
    `Z = (ΠW)_2^H`:

        H_W(w) = − tr(W_N ΣQ_jk W_{1,1} M_1ᵀ) − tr(w_N ΣQ_j W_{1,1} M_1ᵀ) − tr(W_N ΣQ_j w_{1,1} M_1ᵀ) − tr(w_N Z w_{1,1} M_1ᵀ)
                 + the same four with (W_{1,2}, w_{1,2}) and Rᵀ-weighted −M_1ᵀ → W_{1,2}ᵀRᵀ
                 + ½‖W_N ΣQ_j W_{1,1} + w_N Z W_{1,1} + R w_{1,1}‖² + ½‖W_N ΣQ_j W_{1,2} + w_N Z W_{1,2} + R w_{1,2}‖².

    **Arguments:** `as_printed`: with the paper's double sum over `j ≠ k` (every pair twice) in place of `j < k`: wrong from
    `H = 3` on, kept so that the difference can be shown.

    **Raises:** `ValueError` for a single layer, and for losses other than the squared error.
    """
    _check_variation(problem, net, w)
    form = NormalForm(problem)
    net, w = form.into(net), form.into(w)
    N = net.depth
    if N < 2:
        raise ValueError("the block form needs at least one hidden layer")
    d = form.rank_bound
    S = form.target[:, :d]
    (W11, W12), (w11, w12) = ((v[:, :d], v[:, d:]) for v in (net.weights[0], w.weights[0]))
    WN, wN = net.weights[-1], w.weights[-1]
    if N == 2:
        Z, Q, QQ = (jnp.eye(net.widths[1]), *[jnp.zeros((net.widths[1],) * 2)] * 2)
    else:
        inner, v = LayerTuple(net.weights[1:-1]), LayerTuple(w.weights[1:-1])
        Z = inner.end_to_end
        Q, QQ = inner.expansion(v)
    if as_printed:
        QQ = 2 * QQ
    R = matmul(WN, Z)
    M = S - matmul(R, W11)

    def along(W, v, G):
        """The four mixed terms against a weight `G`."""
        return _tr(WN, QQ, W, G) + _tr(wN, Q, W, G) + _tr(WN, Q, v, G) + _tr(wN, Z, v, G)

    def first(W, v):
        """The first variation of the product with one block of `W_1`."""
        return matmul(matmul(WN, Q) + matmul(wN, Z), W) + matmul(R, v)

    squares = 0.5 * jnp.sum(first(W11, w11) ** 2) + 0.5 * jnp.sum(first(W12, w12) ** 2)
    return -along(W11, w11, M.T) + along(W12, w12, matmul(W12.T, R.T)) + squares


class SingleHiddenSplit(eqx.Module):
    """The second variation at a critical point of one hidden layer, in the coordinates of eqs. (29)–(32).

    Rows ordered `S` first, `D_Y`, `E_Y` the singular values in and outside `S`, `W_{2,1} = [A 0]V`. Fields: the linear
    forms of the variation whose squares and products make up the value,

        H = ½(‖β‖² + ‖γ‖² + ‖δ_1‖² + ‖ε_1‖² + ‖e_2C_2‖²) − tr(E_Yε_1D_Y^{-1}δ_1) − tr(E_Ye_2δ_2).
    """

    beta: Float[Array, "r r"]
    gamma: Float[Array, "r n"]
    delta_1: Float[Array, "r q"]
    epsilon_1: Float[Array, "q r"]
    e_2C_2: Float[Array, "q n"]
    e_2: Float[Array, "q p"]
    delta_2: Float[Array, "p q"]
    D_Y: Float[Array, " r"]
    E_Y: Float[Array, " q"]

    @property
    def value(self) -> Float[Array, ""]:
        """`H_W(w)`."""
        squares = [jnp.sum(x**2) for x in (self.beta, self.gamma, self.delta_1, self.epsilon_1, self.e_2C_2)]
        outer = jnp.sum(self.E_Y[:, None] * self.epsilon_1 * (self.delta_1 / self.D_Y[:, None]).T)
        inner = jnp.sum(self.E_Y[:, None] * self.e_2 * self.delta_2.T)
        return 0.5 * sum(squares) - outer - inner


def second_variation_single_hidden(problem: Problem, net: LayerTuple, w: LayerTuple) -> Float[Array, ""]:
    """Eq. (25) of Chitour, Liao, Couillet (2022), `H = 1`, valid at critical points:

        H_W(w) = −tr(w_2w_{1,1}M_1ᵀ) + ½‖w_2W_{1,1} + W_2w_{1,1}‖² + ½‖w_2W_{1,2} + W_2w_{1,2}‖².

    **Raises:** `ValueError` for other depths. That the point is critical (`RW_{1,2} = 0` is what matters) is not checked.
    """
    form, net, w = _single_hidden(problem, net, w)
    d = form.rank_bound
    (W1, W2), (w1, w2) = net.weights, w.weights
    M = form.target[:, :d] - matmul(W2, W1[:, :d])
    return -_tr(w2, w1[:, :d], M.T) + 0.5 * jnp.sum((matmul(w2, W1) + matmul(W2, w1)) ** 2)


def split_single_hidden(problem: Problem, net: LayerTuple, w: LayerTuple, subset: tuple[int, ...]) -> SingleHiddenSplit:
    """The change of variables (29)–(32) of Chitour, Liao, Couillet (2022) at a critical point with subset `S`, `H = 1`.

    `B_1 = A^{-1}D_Y`, `VW_{1,1,1} = [B_1; B_2]`, `VW_{1,2} = [0; C_2]`; variations `w_{2,1}Vᵀ = [a_1 a_2]`,
    `w_{2,2}Vᵀ = [e_1 e_2]`, `Vw_{1,1,1} = [b_1; b_2]`, `Vw_{1,1,2} = [f_1; f_2]`, `Vw_{1,2} = [c_1; c_2]`; then
    `β = Ab_1 + a_1B_1 + a_2B_2`, `γ = Ac_1 + a_2C_2`, `δ_1 = Af_1`, `ε_1 = e_1B_1 + e_2B_2` (the transpose of the paper's),
    `δ_2 = f_2 − B_2D_Y^{-1}Af_1`. The dimensions of `(32)` need `d_1` where `d_y` is printed.
    """
    form, net, w = _single_hidden(problem, net, w)
    form.check_distinct("the change of variables")
    form.check_subset(subset, net.widths)
    d, r, p = form.rank_bound, len(subset), net.widths[1] - len(subset)
    inside = jnp.array([i - 1 for i in subset], int)
    outside = jnp.array([i for i in range(d) if i + 1 not in subset], int)
    (W1, W2), (w1, w2) = net.weights, w.weights
    s = jnp.diagonal(form.target)
    D, E = s[inside], s[outside]
    U, sigma, V = jnp.linalg.svd(W2[inside], full_matrices=True)
    A = U * sigma[None, :r]
    VW, Vw = matmul(V, W1), matmul(V, w1)
    B2, C2 = VW[r:, inside], VW[r:, d:]
    B1 = jnp.linalg.solve(A, jnp.diag(D)) if r else jnp.zeros((0, 0))
    a, e = matmul(w2[inside], V.T), matmul(w2[outside], V.T)
    f = Vw[:, outside]
    Af1 = matmul(A, f[:r])
    return SingleHiddenSplit(
        beta=matmul(A, Vw[:r, inside]) + matmul(a[:, :r], B1) + matmul(a[:, r:], B2),
        gamma=matmul(A, Vw[:r, d:]) + matmul(a[:, r:], C2),
        delta_1=Af1,
        epsilon_1=matmul(e[:, :r], B1) + matmul(e[:, r:], B2),
        e_2C_2=matmul(e[:, r:], C2),
        e_2=e[:, r:].reshape(d - r, p),
        delta_2=f[r:] - matmul(B2 / D[None, :], Af1),
        D_Y=D,
        E_Y=E,
    )


def _single_hidden(problem: Problem, net: LayerTuple, w: LayerTuple) -> tuple[NormalForm, LayerTuple, LayerTuple]:
    _check_variation(problem, net, w)
    if net.depth != 2:
        raise ValueError(f"this form is for one hidden layer, got depth {net.depth}")
    form = NormalForm(problem)
    return form, form.into(net), form.into(w)
