"""Witnesses: why the loss is not convex, and why a point that is no global minimum is no local one either."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gdflow.network import LayerTuple, matmul
from gdflow.problem import Problem
from gdflow.ranks import decide_rank, zero_threshold


@dataclasses.dataclass(frozen=True)
class NonConvexity:
    """An inequality that holds for convex losses, and whether it does here.

    - `left`, `right`: convexity would give `left ≤ right`.
    - `network`: where the loss is off.
    - `violated`: whether `left > right` by more than round-off, which proves that the loss is not convex.
    """

    left: float
    right: float
    network: LayerTuple

    @property
    def violated(self) -> bool:
        return self.left > self.right + 1e-9 * max(abs(self.left), abs(self.right))


def average_over_permutations(net: LayerTuple) -> LayerTuple:
    """The average of all networks that differ from `net` by permutations of hidden units, which all compute the same.

    `W_1 → QW_1`, `W_j → QW_jQ`, `W_N → W_NQ` with `Q = (1/d)11ᵀ` (the lecture prints `1/d!`): all units of a hidden layer
    are alike, so the network does no more than one with hidden widths 1.
    """

    def mean(w: Array, axis: int) -> Array:
        return jnp.broadcast_to(jnp.mean(w, axis=axis, keepdims=True), w.shape)

    weights = list(net.weights)
    for j in range(net.depth - 1):
        weights[j] = mean(weights[j], 0)
        weights[j + 1] = mean(weights[j + 1], 1)
    return LayerTuple(weights)


def symmetry_witness(loss: Callable[[LayerTuple], Float[Array, ""]], net: LayerTuple) -> NonConvexity:
    """Proposition 6.1 of Cohen's lecture: a loss of the input-output map that is convex would be no larger at the average.

    The average of the permuted copies of `net`, all with the loss of `net`, is a network whose hidden layers act like
    layers of width 1. So the loss is not convex if `net` is better than every network of hidden widths 1.

    **Arguments:** `loss`: any function of networks that depends on their input-output map alone, with any activation;
    `problem.effective_loss`, say. `net`: a minimum, or any good network.
    """
    average = average_over_permutations(net)
    return NonConvexity(left=float(loss(average)), right=float(loss(net)), network=average)


def origin_witness(loss: Callable[[LayerTuple], Float[Array, ""]], net: LayerTuple) -> NonConvexity:
    """Proposition 6.2 of Cohen's lecture: the origin is critical, so it would be a global minimum if the loss were convex.

    With `σ(0) = 0` and at least two layers all gradients vanish at zero weights, so the tangent plane there is constant,
    and a convex loss would lie above it: `left = L(0) + ⟨∇L(0), W⟩`, `right = L(W)`.

    **Arguments:** `loss`: differentiable, depending on the input-output map alone; `net`: a network with a loss below that
    of the zero network.

    **Raises:** `ValueError` if the gradient at the origin does not vanish, which the proposition needs.
    """
    origin = 0.0 * net
    gradient = jax.grad(loss)(origin)
    plane = float(loss(origin)) + float(gradient.inner(net))
    size, scale = float(gradient.norm()), max(abs(float(loss(origin))), abs(float(loss(net))))
    # Beside the change of the loss over the distance to the network.
    if size * float(net.norm()) > 1e-9 * scale:
        raise ValueError(
            f"the gradient at zero weights has norm {size:.3g}: this needs σ(0) = 0 and two layers or more"
        )
    return NonConvexity(left=plane, right=float(loss(net)), network=net)


@dataclasses.dataclass(frozen=True)
class KernelPerturbation:
    """The perturbation in the proof of Theorem 6.10.

    - `net`: `W̃`, with the same end-to-end matrix.
    - `k_star`: the first `k` for which `W_k … W_1` has a kernel.
    - `change`: `‖W̃_N…W̃_1 − W_N…W_1‖`, round-off.
    """

    net: LayerTuple
    k_star: int
    change: float


def kernel_perturbation(net: LayerTuple, *, key: Key[Array, ""], size: float = 1e-3) -> KernelPerturbation:
    """Theorem 6.10 of Cohen's lecture (Laurent, von Brecht): `W̃_k = W_k + w_ku_{k-1}ᵀ`, `k > k*`, keeps the product.

    `u_k` is orthogonal to the range of `W_k … W_1` on its smallest singular direction, `w_k` random of norm `size`. At a
    local minimum all these networks are local minima too, and their criticality forces `∇ℓ = 0`: no bad local minima, if no
    hidden layer is narrower than both ends. For `d_N < d_0` the transposed network is meant: hand it over transposed.

    **Raises:** `ValueError` if `W_{N-1} … W_1` has no kernel (then criticality gives `∇ℓ = 0` at once), or if the network
    has `d_N < d_0` or a bottleneck narrower than `d_0`.
    """
    widths = net.widths
    if widths[-1] < widths[0]:
        raise ValueError(f"widths {widths}: transpose the network, the theorem's proof takes d_N ≥ d_0")
    if min(widths[1:-1], default=widths[0]) < widths[0]:
        raise ValueError(
            f"widths {widths} have a bottleneck: the theorem needs every hidden layer at least {widths[0]} wide"
        )
    products = [np.asarray(net.product(1, k)) for k in range(1, net.depth)]
    norms = [float(np.linalg.norm(np.asarray(w), 2)) for w in net.weights]
    # A product that vanishes is round-off of its factors, and has no size of its own.
    with_kernel = [k for k, P in enumerate(products, 1) if _rank(P, float(np.prod(norms[:k]))) < widths[0]]
    if not with_kernel:
        raise ValueError("W_{N-1} … W_1 has no kernel: at a critical point the gradient of the loss is zero at once")
    k_star = with_kernel[0]
    weights = list(net.weights)
    for k, subkey in zip(range(k_star + 1, net.depth + 1), jax.random.split(key, net.depth - k_star), strict=True):
        u = np.linalg.svd(products[k - 2])[0][:, widths[0] - 1]
        w = jax.random.normal(subkey, (widths[k],), weights[k - 1].dtype)
        weights[k - 1] = weights[k - 1] + size * jnp.outer(w / jnp.linalg.norm(w), jnp.asarray(u))
    perturbed = LayerTuple(weights)
    change = float(jnp.linalg.norm(perturbed.end_to_end - net.end_to_end))
    return KernelPerturbation(perturbed, k_star, change)


def _rank(matrix: np.ndarray, scale: float) -> int:
    """Rank beside a scale: of the numbers that the matrix was computed from."""
    s = np.linalg.svd(matrix, compute_uv=False)
    threshold = zero_threshold(scale, max(matrix.shape), float(np.finfo(matrix.dtype).eps))
    return decide_rank(s, threshold=threshold).rank


def descend_two_layers(problem: Problem, net: LayerTuple) -> LayerTuple | None:
    """Theorem 6.11 of Cohen's lecture: at a critical point of two layers that is no minimum, a direction of negative curvature.

    For `ℓ` convex and `v ∈ ker W_2`, `v ≠ 0`: `Δ_1 = αve_jᵀ`, `Δ_2 = e_ivᵀ` with the largest `|∇ℓ_{ij}|` and `α` as is
    best; then `∇²L[Δ, Δ] = ∇²ℓ[Δ_2W_1, Δ_2W_1] + 2α‖v‖²∇ℓ_{ij}` (the lecture prints `∇²ℓ` in the last term). Any twice
    differentiable loss; square matrices, as in the lecture, or whenever `ker W_2 ≠ 0`.

    **Returns:** a unit direction, or `None` where `∇ℓ = 0` or `W_2` has no kernel (transpose then).
    """
    if net.depth != 2:
        raise ValueError(f"this is about two layers, got depth {net.depth}")
    problem.check_network(net)
    W1, W2 = net.weights
    gradient = np.asarray(problem.end_to_end_gradient(net.end_to_end))
    # Zero means round-off of the output and the target that the gradient is a difference of, or a function of.
    matrices = (net.end_to_end @ problem.design, problem.target, problem.design)
    f, a, d = (float(np.linalg.norm(np.asarray(x))) for x in matrices)
    if abs(gradient).max() <= zero_threshold((f + a) * d, max(gradient.shape), float(np.finfo(gradient.dtype).eps)):
        return None
    kernel = np.linalg.svd(np.asarray(W2))[2][_rank(np.asarray(W2), float(np.linalg.norm(np.asarray(W2), 2))) :]
    if not kernel.size:
        return None
    i, j = np.unravel_index(np.argmax(abs(gradient)), gradient.shape)
    v = jnp.asarray(kernel[0])
    first = jnp.zeros(W1.shape, W1.dtype).at[:, j].set(v)
    second = jnp.zeros(W2.shape, W2.dtype).at[i].set(v)
    along = matmul(matmul(second, W1), problem.design)
    F = matmul(net.end_to_end, problem.design)
    c = float(problem.loss.hessian_form(F, problem.target, along))
    g = float(gradient[i, j])
    alpha, beta = np.linalg.eigh(np.array([[0.0, g], [g, c]]))[1][:, 0]
    return LayerTuple([float(alpha) * first, float(beta) * second])
