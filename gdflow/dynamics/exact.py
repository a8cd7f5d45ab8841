"""Exact solutions of the gradient flow, with their conditions checked: what an integration can be measured against.

- `width_h`: one input, one output, one hidden layer of any width, any start.
- `balanced_chain`: scalar chains of any depth from balanced starts, hence every mode of aligned balanced networks.
- `aligned_modes`: balanced networks of any depth and shape whose product is aligned with the target.
- `lambda_balanced`: two layers of any shapes with `C_1 = λI`, whitened coordinates.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.optimize
from jaxtyping import Array, Float

from gdflow.invariants import check_balanced, conserved
from gdflow.network import LayerTuple, matmul
from gdflow.perturbation import is_traced
from gdflow.problem import Problem

#: One step of the matrix Riccati solution covers at most `s_1·δ` of this: beyond, float64 loses the small directions.
_RICCATI_STEP = 3.0


def width_h(
    a: Float[Array, " h"], b: Float[Array, " h"], s: Float[Array, ""] | float, t: Float[Array, ""] | float
) -> tuple[Float[Array, " h"], Float[Array, " h"]]:
    """The flow of `½(s − a·b)²`, one input, one output, a hidden layer of width `h`: the weights `a(t)`, `b(t)`.

    `p = (a + b)/√2` and `q = (a − b)/√2` keep their directions and `|p||q|` is constant; with `P = |p|²`, `Q = |q|²`,
    `δ = √(s² + PQ)` and `T = tanh(δt)/δ`, both at the start,

        p(t) = f p(0),   q(t) = q(0)/f,   f² = (1 + (s + Q)T)/(1 − (s − P)T).

    Differentiable in everything for `s ≠ 0`, also at zero weights.

    **Raises:** `ValueError` if `a` and `b` have different shapes.
    """
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(f"a and b need the same width, got shapes {jnp.shape(a)} and {jnp.shape(b)}")
    p, q = (a + b) / math.sqrt(2.0), (a - b) / math.sqrt(2.0)
    P, Q = jnp.sum(p**2), jnp.sum(q**2)
    square = s**2 + P * Q
    still = square == 0
    delta = jnp.sqrt(jnp.where(still, 1.0, square))
    T = jnp.where(still, t, jnp.tanh(delta * t) / delta)
    # 1 − sT without cancellation: 1 − tanh(x) = 2/(e^{2x} + 1), and δ − s = PQ/(δ + s) for s > 0.
    size = jnp.abs(s)
    rest = (size * 2 / (jnp.exp(2 * delta * t) + 1) + P * Q / (delta + size)) / delta
    above = jnp.where(still, 1.0, jnp.where(s > 0, rest, 1 - s * T))
    below = jnp.where(still, 1.0, jnp.where(s < 0, rest, 1 + s * T))
    f = jnp.sqrt((below + Q * T) / (above + P * T))
    p, q = f * p, q / f
    return (p + q) / math.sqrt(2.0), (p - q) / math.sqrt(2.0)


def width_h_hitting_time(
    a: Float[Array, " h"], b: Float[Array, " h"], s: Float[Array, ""] | float, u: Float[Array, ""] | float
) -> Float[Array, ""]:
    """When the product `a·b` of the flow of `width_h` reaches `u`: closed form, infinite where it never does.

    `(1/2δ) ln[(x − P_−)(P_+ − P)/((P_+ − x)(P − P_−))]` with `x = u + √(u² + PQ)`, `P_± = s ± δ`. Differentiable where it
    is finite.
    """
    P, Q = 0.5 * jnp.sum((a + b) ** 2), 0.5 * jnp.sum((a - b) ** 2)
    delta = jnp.sqrt(s**2 + P * Q)
    x = u + jnp.sqrt(u**2 + P * Q)
    # P_+ and P_−, the smaller one from their product −PQ
    high = jnp.where(s < 0, P * Q / (delta + jnp.abs(s)), s + delta)
    low = jnp.where(s > 0, -P * Q / (delta + jnp.abs(s)), s - delta)
    quotient = (x - low) * (high - P) / ((high - x) * (P - low))
    reached = (quotient >= 1) & (P > 0)
    return jnp.where(reached, jnp.log(jnp.where(reached, quotient, 1.0)) / (2 * delta), jnp.inf)


def balanced_chain(s: float, u_0: float, depth: int, t: float) -> float:
    """The product `u = w_N…w_1` of a scalar chain from a balanced start: the solution of `u̇ = N|u|^{2−2/N}(s − u)`.

    Closed for `N = 1, 2`; for deeper chains time is the integral of `1/(w^{N−1}(s − w^N))`, `w = |u|^{1/N}`, inverted. A
    start with `u_0 < 0 < s` tends to zero from below.

    **Arguments:** floats, on the host; not differentiable. `t ≥ 0`.

    **Raises:** `ValueError` for negative times or depths below 1.
    """
    if depth < 1 or depth != int(depth):
        raise ValueError(f"depth must be a positive integer, got {depth}")
    if not t >= 0:
        raise ValueError(f"t must not be negative, got {t}")
    if depth == 1:
        return s + (u_0 - s) * math.exp(-t)
    if u_0 == 0 or u_0 == s or t == 0:
        return float(u_0)
    # v = |u| follows v̇ = N v^{2−2/N}(c − v) with c = ±s; in z = ln(v/|c − v|) time is the integral of v^{2/N−1}/(Nc), smooth.
    sign, v_0 = math.copysign(1.0, u_0), abs(u_0)
    c = sign * s
    if c == 0:
        return sign * (v_0 ** (2 / depth - 2) + 2 * (depth - 1) * t) ** (depth / (2 - 2 * depth))
    z_0 = math.log(v_0 / abs(c - v_0))

    def v(z):
        e = math.exp(-abs(z))
        if c < 0:  # z < 0: v = |c| e^z/(1 − e^z)
            return -c * e / -math.expm1(z)
        if v_0 > c:  # z > 0: v = c/(1 − e^{−z})
            return c / -math.expm1(-z)
        return c / (1 + e) if z > 0 else c * e / (1 + e)

    def time(z):
        if depth == 2:
            return (z - z_0) / (2 * c)
        value, _ = scipy.integrate.quad(
            lambda x: v(x) ** (2 / depth - 1) / (depth * c), z_0, z, epsabs=0.0, epsrel=1e-13, limit=500
        )
        return value

    end = z_0 + 2 * c * t
    if depth > 2:
        step = math.copysign(1.0, c)
        while time(end) < t:
            end += step
            step *= 2
        bracket = sorted((z_0, end)) if c > 0 or end < z_0 else [z_0, end]
        end = scipy.optimize.brentq(lambda z: time(z) - t, *bracket, xtol=1e-14, rtol=1e-14)
    return sign * v(end)


def aligned_modes(problem: Problem, start: LayerTuple, t: float, *, tolerance: float = 1e-9) -> np.ndarray:
    """The end-to-end matrix `W(t)` of a balanced start whose product is aligned with the target, whitened coordinates.

    There the target is `Σ_Y`, diagonal, and so must `W(0)` be: its modes, the entries `u_i` of any sign, do not mix, and each
    is a scalar chain, `u̇_i = N|u_i|^{2−2/N}(s_i − u_i)` (`balanced_chain`).

    **Arguments:** `t ≥ 0`; `tolerance`: for the imbalance and for the entries off the diagonal. On the host; not
    differentiable.

    **Raises:** `ValueError` for other coordinates, negative times, and starts that are not balanced or not aligned.
    """
    problem.check_network(start)
    if problem.coordinates != "whitened":
        raise ValueError(
            f'whitened coordinates are needed, got {problem.coordinates!r}: problem.in_coordinates("whitened")'
        )
    check_balanced(start, tolerance)
    W = np.asarray(start.end_to_end, dtype=np.float64)
    modes = np.diagonal(W)
    mixed = W.copy()
    np.fill_diagonal(mixed, 0.0)
    if not np.max(abs(mixed), initial=0.0) <= tolerance * np.max(abs(W)):
        i, j = np.unravel_index(np.argmax(abs(mixed)), W.shape)
        raise ValueError(
            f"the start is not aligned with the target: W(0) is {mixed[i, j]:.3g} at ({i}, {j}), off the diagonal, beside "
            f"{np.max(abs(W)):.3g} (in whitened coordinates the target is diagonal)"
        )
    values = np.asarray(problem.singular_values, dtype=np.float64)
    out = np.zeros(W.shape)
    for k, (s, u) in enumerate(zip(values, modes, strict=True)):
        out[k, k] = balanced_chain(float(s), float(u), start.depth, t)
    return out


def lambda_balanced(
    problem: Problem, start: LayerTuple, t: float, *, tolerance: float = 1e-9
) -> Float[Array, "d_y d_in"]:
    """The end-to-end matrix `W(t)` of two layers from a start with `C_1 = W_2ᵀW_2 − W_1W_1ᵀ = λI`, whitened coordinates,
    any shapes.

    With `Q = [W_1ᵀ; W_2]` and `F = [[−λ/2 I, Σ_Yᵀ], [Σ_Y, λ/2 I]]`,

        QQᵀ(t) = e^{Ft}Q_0[I + Q_0ᵀφ(t)Q_0]^{-1}Q_0ᵀe^{Ft},   φ(t) = ∫_0^t e^{2Fs}ds,

    in steps of at most `s_1δ = 3`, restarted from `Q ← e^{Fδ}Q(I + QᵀφQ)^{-1/2}` (up to a rotation of the hidden units,
    which `W` does not see): in one step float64 is useless from `s_1t ≈ 20` on. Differentiable in the start and the target,
    at fixed `t`.

    **Raises:** `ValueError` for other depths or coordinates, negative or infinite times, and starts whose `C_1` is not a
    multiple of the identity.
    """
    problem.check_widths(start.widths)
    if start.depth != 2:
        raise ValueError(f"the closed form is for two layers, got {start.depth}")
    if problem.coordinates != "whitened":
        raise ValueError(
            f'whitened coordinates are needed, got {problem.coordinates!r}: problem.in_coordinates("whitened")'
        )
    if not 0 <= t < math.inf:
        raise ValueError(f"t must be finite and not negative, got {t}")
    (C,) = conserved(start)
    lam = jnp.trace(C) / C.shape[0]
    if not is_traced(lam):
        off, size = float(jnp.linalg.norm(C - lam * jnp.eye(C.shape[0]))), float(jnp.max(start.layer_norms())) ** 2
        if off > tolerance * size:
            raise ValueError(
                f"the start is not λ-balanced: ‖C_1 − λI‖ = {off:.3g} beside max ‖W_j‖² = {size:.3g} "
                "(gdflow.initialization.LambdaBalanced draws such starts)"
            )
    W_1, W_2 = start.weights
    d_y, d_x = problem.target.shape
    F = jnp.block([[-lam / 2 * jnp.eye(d_x), problem.target.T], [problem.target, lam / 2 * jnp.eye(d_y)]])
    norm = float(np.linalg.norm(np.asarray(problem.singular_values), 2)) + float(abs(jax.lax.stop_gradient(lam))) / 2
    num = max(1, math.ceil(norm * t / _RICCATI_STEP))
    delta = t / num
    # e^{Fδ} and φ(δ), as one exponential of a block matrix: differentiable also where eigenvalues of F coincide.
    n = d_x + d_y
    zero = jnp.zeros((n, n))
    both = jax.scipy.linalg.expm(delta * jnp.block([[2 * F, jnp.eye(n)], [zero, zero]]))
    growth, phi = jax.scipy.linalg.expm(delta * F), both[:n, n:]
    h = W_1.shape[0]

    def step(Q, _):
        # A Cholesky factor in place of the inverse square root: another rotation of the hidden units.
        L = jnp.linalg.cholesky(jnp.eye(h) + matmul(Q.T, matmul(phi, Q)))
        return jax.scipy.linalg.solve_triangular(L, matmul(growth, Q).T, lower=True).T, None

    Q, _ = jax.lax.scan(step, jnp.concatenate([W_1.T, W_2]), None, length=num)
    return matmul(Q[d_x:], Q[:d_x].T)
