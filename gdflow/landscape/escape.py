"""Directions along which the loss falls at a strict saddle, from the papers' proofs where they apply."""

import math

import numpy as np

from gdflow.landscape.curvature import extreme_eigenpairs, zero_eigenvalue
from gdflow.landscape.normal_form import NormalForm, as_jax, hidden_product, subset_indices
from gdflow.landscape.scaling import scaled
from gdflow.landscape.second_variation import second_variation
from gdflow.network import LayerTuple
from gdflow.problem import Problem


def escape_direction(
    problem: Problem, net: LayerTuple, subset: tuple[int, ...], *, tolerance: float = 1e-9
) -> tuple[LayerTuple, str] | None:
    """A unit direction `w` with `H_W(w) < 0` at a critical point with subset `S`, and where it comes from; else `None`.

    Tried in turn, and every candidate is checked by its value, which must stand out from round-off:

    - *swap*: where some `s_j > s_i` with `i ∈ S`, `j ∉ S`, the rotation of `W_N` and `W_1` that takes `e_i` to `e_j`.
    - *Proposition 4 iii* of Chitour, Liao, Couillet (2022), where `r_Z > r`: `w_{1,1,2} = vκᵀ`, `w_{N,2} = κ'uᵀ` with
      `W_NZv = 0`, `Zv ≠ 0`, `tr(κ'uᵀ Zvκᵀ E_Y) ≠ 0` (printed `λv`, a vector, where a matrix is needed). For `N = 2`, where
      `Z = I`, it is the direction of Theorem 6.11 of Cohen's lecture.
    - the eigenvector of the Hessian's smallest eigenvalue.

    **Arguments:** `tolerance`: `Zv` counts as zero at or below this multiple of the size of its factors.

    Where the layers' norms are far apart, the eigenvector is that of the network with levelled norms
    (`gdflow.landscape.scaling`): along it, too, the loss falls.
    """
    unit = scaled(problem, net)
    found = _escape(unit.problem, unit.net, subset, tolerance)
    return None if found is None else (unit.back(found[0]), found[1])


def _escape(
    problem: Problem, net: LayerTuple, subset: tuple[int, ...], tolerance: float
) -> tuple[LayerTuple, str] | None:
    form = NormalForm(problem)
    inner = form.into(net)
    round_off = 0.5 * zero_eigenvalue(problem, net, 0.0, 0.0)
    layers = [np.asarray(w) for w in inner.weights]
    candidates = [
        ("swap", _swap(layers, form.singular_values, subset)),
        ("Proposition 4 iii", _kernel(form, layers, subset, tolerance)),
    ]
    for name, w in candidates:
        if w is not None:
            direction = form.back(as_jax(w))
            direction = direction / float(direction.norm())
            if float(second_variation(problem, net, direction)) < -round_off:
                return direction, name
    direction = extreme_eigenpairs(problem, net)[1][0]
    return (direction, "eigenvector") if float(second_variation(problem, net, direction)) < -round_off else None


def _swap(layers: list[np.ndarray], s: np.ndarray, subset: tuple[int, ...]) -> list[np.ndarray] | None:
    """`W_N → KW_N`, `W_1 → −W_1K`, the generator of a rotation in the plane of the best pair to exchange."""
    inside, outside = subset_indices(subset, len(s))
    pairs = [(s[i] * (s[j] - s[i]), i, j) for i in inside for j in outside if s[j] > s[i]]
    if not pairs:
        return None
    _, i, j = max(pairs)
    d_y, d_x = layers[-1].shape[0], layers[0].shape[1]
    K = np.zeros((d_x, d_x))
    K[j, i], K[i, j] = 1.0, -1.0
    return [-layers[0] @ K, *(np.zeros(w.shape) for w in layers[1:-1]), K[:d_y, :d_y] @ layers[-1]]


def _kernel(
    form: NormalForm, layers: list[np.ndarray], subset: tuple[int, ...], tolerance: float
) -> list[np.ndarray] | None:
    """`w_1 = λ·v e_jᵀ`, `w_N = μ·e_j uᵀ`, `v` in the kernel of `R` but not of `Z`, `u = Zv`, for the largest `s_j ∉ S`."""
    s = form.singular_values
    _, outside = subset_indices(subset, len(s))
    if not outside.size:
        return None
    Z = hidden_product(layers)
    # R has rank |S|; where that is zero, R is round-off and its own singular values say nothing.
    kernel = np.linalg.svd(layers[-1] @ Z)[2][len(subset) :].T
    if not kernel.shape[1]:
        return None
    U, sigma, Vt = np.linalg.svd(Z @ kernel, full_matrices=False)
    if not sigma.size or sigma[0] <= tolerance * math.prod(np.linalg.norm(w, 2) for w in layers[1:-1]):
        return None
    v, u, gain = kernel @ Vt[0], U[:, 0], sigma[0]
    j = outside[np.argmax(s[outside])]
    # H(λ, μ) = −s_j·gain·λμ + cμ²/2, for R v = 0: least on the unit circle at the lower eigenvector of a 2×2 matrix.
    first = np.zeros(layers[0].shape)
    last = np.zeros(layers[-1].shape)
    first[:, j], last[j] = v, u
    c = float(np.linalg.norm(u @ Z @ layers[0]) ** 2)
    form_matrix = np.array([[0.0, -s[j] * gain], [-s[j] * gain, c]])
    lam, mu = np.linalg.eigh(form_matrix)[1][:, 0]
    return [lam * first, *(np.zeros(w.shape) for w in layers[1:-1]), mu * last]
