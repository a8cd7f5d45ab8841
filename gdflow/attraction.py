"""A ball around a minimum from which the gradient flow certainly ends there.

Let `λ` be the least eigenvalue of the Hessian at `w`, `T` a bound of the third derivative at `w` and `Q(R)` one of the fourth
derivative on the ball of radius `R`, all as multilinear forms. On that ball

    λ_min ∇²L ≥ λ − T R − ½ Q(R) R² =: μ(R).

If `μ(R) > 0` and `‖∇L(w)‖ < μ(R) R`, the ball holds exactly one critical point `w*`, at distance at most `‖∇L(w)‖/μ`, and the
distance to `w*` falls along the flow as long as it is in the ball: `d/dt ½‖y − w*‖² = −⟨∇L(y), y − w*⟩ ≤ −μ‖y − w*‖²`. So the
flow from every `y` with `‖y − w‖ < R − 2‖∇L(w)‖/μ` converges to `w*`.

Gradient descent with a fixed step `η` does so, too, if `η(λ_max + T R + ½ Q(R) R²) ≤ 1`: a step is then a contraction, `‖y − w*‖`
falling by the factor `1 − ημ` at least.

`T` is computed from the exact third derivative. `Q(R)` is bounded for networks with smooth activations by the bounds of their
derivatives (`gdflow.activations`): derivatives of the output in all weights go from layer to layer by the product rule and the
chain rule. Eigenvalues, gradients and `T` are computed in floating point; a relative margin stands for their round-off.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from gdflow.layouts import One
from gdflow.losses import LOSS_BOUNDS
from gdflow.network import LayerTuple
from gdflow.objective import NetworkObjective, Objective

#: The Hessian keeps this part of its least eigenvalue on the ball.
_KEPT = 0.25
#: For round-off of what is computed, relative to the largest eigenvalue.
_MARGIN = 1e-9
#: Third derivatives of more parameters than this are not computed (0.5 GB).
MOST_PARAMETERS = 400


def can_bound(objective: Objective) -> bool:
    """Whether the fourth derivative can be bounded."""
    return (
        isinstance(objective, NetworkObjective)
        and type(objective.loss) in LOSS_BOUNDS
        and all(activation.bounds is not None for activation in objective.activations)
    )


def attraction_radius(
    objective: Objective, point: Any, eigenvalues: np.ndarray, gradient_norm: float, step: float = 0.0
) -> float:
    """The radius of a ball around `point` from which the flow ends at the minimum in it; 0 if none is proved.

    Distances are those of the weights that have an effect: rows of constant units (biases) do not count.

    **Arguments:** `eigenvalues`: of the Hessian there on the weights that have an effect; `gradient_norm`: there;
    `step`: of gradient descent, which ends there as well; by default 0, for the flow.
    """
    if not (isinstance(objective, NetworkObjective) and can_bound(objective)) or point.num_parameters > MOST_PARAMETERS:
        return 0.0
    least, largest = float(eigenvalues.min()), float(abs(eigenvalues).max())
    least -= _MARGIN * largest
    if not least > 0:
        return 0.0
    third = (1 + _MARGIN) * float(_third_norm(objective, point))

    def kept(R):
        return least - third * R - 0.5 * fourth_bound(objective, point, R) * R**2

    low, high = 0.0, least / max(third, 1e-300)
    high = min(high, float(point.norm()) + 1.0)
    for _ in range(40):
        middle = 0.5 * (low + high)
        left = kept(middle)
        good = left >= _KEPT * least and step * ((1 + _MARGIN) * largest + least - left) <= 1
        low, high = (middle, high) if good else (low, middle)
    return max(0.0, low - 2 * (gradient_norm + _MARGIN * largest * low) / (_KEPT * least))


@eqx.filter_jit
def _third_norm(objective: Objective, point: Any) -> Array:
    """A bound of `sup |D³L[u, v, v]|` over unit vectors: the largest singular value of `P × P²` third derivatives."""
    flat, unravel = ravel_pytree(point)

    def gradient(x):
        return ravel_pytree(objective.gradient(unravel(x)))[0]

    def hessian(x):
        return jax.jacfwd(gradient)(x)

    T = jax.lax.map(lambda v: jax.jvp(hessian, (flat,), (v,))[1], jnp.eye(flat.size, dtype=flat.dtype))
    T = T.reshape(flat.size, -1)
    gram = T @ T.T
    # The root of the Frobenius norm of a power of TTᵀ is at least its largest eigenvalue, and close to it.
    scale = jnp.maximum(jnp.linalg.norm(gram), jnp.finfo(gram.dtype).tiny)
    power = gram / scale
    for _ in range(3):
        power = power @ power
    return jnp.sqrt(scale * jnp.linalg.norm(power) ** (1 / 8))


def fourth_bound(objective: NetworkObjective, point: LayerTuple, R: float) -> float:
    """A bound of the fourth derivative of `L` in the weights on the ball of radius `R` around `point`.

    Of every layer `B_k` bounds the Frobenius norm, over all samples, of the `k`-th derivative of its output as a multilinear
    form of the weights, and `c_k` the norm of any one sample's column.
    """
    inputs, _ = objective._forward(One(), point.weights)
    norms = [float(np.linalg.norm(np.asarray(w), 2)) + R for w in point.weights]
    X = np.asarray(objective.design)
    # Derivatives 0 to 4 of the input: the data, which are constant. ‖uX‖_F ≤ ‖u‖_F‖X‖_2.
    B = [float(np.linalg.norm(X, 2)), 0.0, 0.0, 0.0, 0.0]
    c = [float(np.max(np.linalg.norm(X, axis=0))), 0.0, 0.0, 0.0, 0.0]
    activations = objective.layer_activations(point.depth)
    for j, (activation, size) in enumerate(zip(activations, norms, strict=True), 1):
        assert activation.bounds is not None
        s1, s2, s3, s4 = activation.bounds
        # z = W a: D^k z[u, …] = W D^k a + k terms u D^{k−1} a.
        z, b = ([0.0] + [size * a[k] + k * a[k - 1] for k in range(1, 5)] for a in (c, B))

        def chain(b1, b2, b3, b4, z=z, s1=s1, s2=s2, s3=s3, s4=s4):
            """Derivatives of `σ(z)`, entry by entry: one factor in the norm wanted, the others bounded by their columns."""
            z1, z2 = z[1], z[2]
            return [
                s1 * b1,
                s2 * z1 * b1 + s1 * b2,
                s3 * z1**2 * b1 + 3 * s2 * z1 * b2 + s1 * b3,
                s4 * z1**3 * b1 + 6 * s3 * z1**2 * b2 + s2 * (4 * z1 * b3 + 3 * z2 * b2) + s1 * b4,
            ]

        new_c, new_B = chain(*z[1:]), chain(*b[1:])
        value = np.asarray(inputs[j])
        c = [float(np.max(np.linalg.norm(value, axis=0))) + R * new_c[0], *new_c]
        B = [float(np.linalg.norm(value, 2)) + R * new_B[0], *new_B]
    l2, l3, l4 = LOSS_BOUNDS[type(objective.loss)]
    l1 = float(np.linalg.norm(np.asarray(objective.loss.gradient(inputs[-1], objective.target)))) + l2 * R * B[1]
    _, B1, B2, B3, B4 = B
    return l4 * B1**4 + 6 * l3 * B1**2 * B2 + l2 * (4 * B1 * B3 + 3 * B2**2) + l1 * B4
