"""Exact solutions of the gradient flow, with their conditions checked: what an integration can be measured against.

- `width_h`: one input, one output, one hidden layer of any width, any start.
- `balanced_chain`: scalar chains of any depth from balanced starts, hence every mode of aligned balanced networks.
- `aligned_modes`: balanced networks of any depth and shape whose product is aligned with the target.
- `lambda_balanced`: two layers of any shapes with `C_1 = λI`, whitened coordinates.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Array, Float

from gdflow.checks import is_traced
from gdflow.invariants import check_balanced, conserved
from gdflow.network import LayerTuple, matmul
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
    rest = (size * 2 * jax.nn.sigmoid(-2 * delta * t) + P * Q / (delta + size)) / delta
    above = jnp.where(still, 1.0, jnp.where(s > 0, rest, 1 - s * T))
    below = jnp.where(still, 1.0, jnp.where(s < 0, rest, 1 + s * T))
    top, bottom = below + Q * T, above + P * T
    p, q = _scaled(p, P, top, bottom), _scaled(q, Q, bottom, top)
    return (p + q) / math.sqrt(2.0), (p - q) / math.sqrt(2.0)


def _scaled(x: Array, square: Array, top: Array, bottom: Array) -> Array:
    """`x√(top/bottom)`, `bottom` zero at most where `square = |x|²` is.

    There it is `e^{−2δt}`, which underflows at last, and depends on `x` to second order only.
    """
    tiny = jnp.finfo(jnp.result_type(bottom, float)).tiny
    fixed = jnp.maximum(jax.lax.stop_gradient(bottom), tiny)
    return x * (jnp.sqrt(jnp.where(top > 0, top, tiny)) / jnp.sqrt(jnp.where(square > 0, bottom, fixed)))


def width_h_hitting_time(
    a: Float[Array, " h"], b: Float[Array, " h"], s: Float[Array, ""] | float, u: Float[Array, ""] | float
) -> Float[Array, ""]:
    """When the product `a·b` of the flow of `width_h` reaches `u`: closed form, infinite where it never does.

    `P` follows `Ṗ = −(P − P_+)(P − P_−)` with `P_± = s ± δ`, and is `x = u + √(u² + PQ)` where the product is `u`:

        (1/2δ) ln(1 + 2δr),   r = (x − P)/((P_+ − x)(P − P_−)),

    all differences from products without cancellation, `x − P = (u − a·b)(x + P)/(√(u² + PQ) + (P + Q)/2)` and
    `P_+ − x = 2x(s − u)/(x − P_−)`. Differentiable where it is finite, for `s ≠ 0`.
    """
    s, u = jnp.asarray(s, dtype=float), jnp.asarray(u, dtype=float)
    product = jnp.sum(a * b)
    p, q = _norm((a + b) / math.sqrt(2.0)), _norm((a - b) / math.sqrt(2.0))
    # The flow of (a, −b) towards −s exchanges P and Q: so u is not negative.
    flip = u < 0
    p, q = jnp.where(flip, q, p), jnp.where(flip, p, q)
    s, u, product = (jnp.where(flip, -x, x) for x in (s, u, product))
    end = jnp.where(((s > 0) & (p > 0)) | ((s < 0) & (q > 0)), s, 0.0)
    reached = ((product < u) & (u < end)) | ((end < u) & (u < product)) | (u == product)

    def positive(x, condition=True):
        """The divisor `x` where it is one."""
        return jnp.where(reached & condition & (x != 0), x, 1.0)

    delta, root = _hypot(s, p * q), _hypot(u, p * q)
    x = positive(u + root)
    k = q**2 / positive(jnp.abs(s) + delta)  # P − P_− = P(1 + k) for s > 0
    # (x − P_−)/(P − P_−); x/P overflows for the smallest starts, whose time is a logarithm of it.
    huge = jnp.log(x) - 2 * jnp.log(positive(p)) > 575.0
    share = jnp.where(
        s > 0,
        (x / positive(p, ~huge) / positive(p, ~huge) + k) / (1 + k),
        (x + delta - s) / positive(p**2 + delta - s),
    )
    way = (u - product) / positive(s - u) * (1 + p**2 / x) / positive(2 * root + p**2 + q**2)
    r = jnp.where(reached, way * jnp.where(huge, 1.0, share), 0.0)
    growth = positive(2 * delta, huge)
    logarithm = jnp.log(positive(growth * r, huge)) + jnp.log(x / (1 + k)) - 2 * jnp.log(positive(p))
    time = jnp.where(huge, logarithm / growth, r * _logarithm_ratio(2 * delta * r))
    return jnp.where(reached, time, jnp.inf)


def _logarithm_ratio(z: Array) -> Array:
    """`ln(1 + z)/z`, with its derivative, down to `z = 0`."""
    near = jnp.abs(z) < 1e-2
    far = jnp.where(near, 1.0, z)
    series = jnp.polyval(jnp.array([(-1) ** k / (k + 1) for k in range(9, -1, -1)]), jnp.where(near, z, 0.0))
    return jnp.where(near, series, jnp.log1p(far) / far)


def _norm(x: Array) -> Array:
    """`|x|` where the square of it would under- or overflow, too; its derivative at zero is taken to be zero."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    scale = jnp.where(largest > 0, largest, 1.0)
    return jnp.where(largest > 0, scale * jnp.sqrt(jnp.where(largest > 0, jnp.sum((x / scale) ** 2), 1.0)), 0.0)


def _hypot(x: Array, y: Array) -> Array:
    """`√(x² + y²)`, as `_norm`."""
    return _norm(jnp.stack([x, y]))


#: Gauss's rule for integrands that are analytic in a strip of half-width π, in pieces of length 2 at most: exact to round-off.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
#: Closer to its limit than e^{-45} of it a chain is there.
_AT_LIMIT = 45.0


def balanced_chain(s: float, u_0: float, depth: int, t: float) -> float:
    """The product `u = w_N…w_1` of a scalar chain from a balanced start: the solution of `u̇ = N|u|^{2−2/N}(s − u)`.

    Closed for `N = 1, 2` and for `s = 0`; for deeper chains time is an integral over the logarithm of `u` or of its distance
    from the limit, inverted. A start with `u_0 < 0 < s` tends to zero from below.

    **Arguments:** floats, on the host; not differentiable. `t ≥ 0`, also infinite.

    **Raises:** `ValueError` for negative times, depths below 1, and `s` or `u_0` that are not finite.
    """
    if depth < 1 or depth != int(depth):
        raise ValueError(f"depth must be a positive integer, got {depth}")
    if not t >= 0:
        raise ValueError(f"t must not be negative, got {t}")
    if not (math.isfinite(s) and math.isfinite(u_0)):
        raise ValueError(f"s and u_0 must be finite, got {s} and {u_0}")
    if depth == 1:
        return s + (u_0 - s) * math.exp(-t)
    if u_0 == 0 or u_0 == s or t == 0:
        return float(u_0)
    # v = |u| follows v̇ = N v^{1+m}(c − v) with c = ±s and m = 1 − 2/N, and does not change sides.
    sign, v = math.copysign(1.0, u_0), abs(float(u_0))
    c = sign * s
    if math.isinf(t):
        return sign * max(c, 0.0)
    if c == 0:
        power = 2 - 2 / depth
        grown = np.logaddexp(0.0, math.log(power * depth) + math.log(t) + power * math.log(v))
        return sign * v * math.exp(-grown / power)
    return sign * (_two_layers(v, c, t) if depth == 2 else _deep(v, c, depth, t))


def _two_layers(v: float, c: float, t: float) -> float:
    """`v̇ = 2v(c − v)`: `ln(v/|c − v|)` grows at the rate `2c`."""
    z = math.log(v) - math.log(abs(c - v))
    if 0 < v < c:
        return c * float(scipy.special.expit(z + 2 * c * t))
    if v > abs(c):
        z = -math.log1p(-c / v)  # small beside the logarithms
    z = abs(z) + 2 * abs(c) * t
    if z == 0:
        return v / (1 + 2 * v * t)
    return (c if c > 0 else -c * math.exp(-z)) / -math.expm1(-z)


def _deep(v: float, c: float, depth: int, t: float) -> float:
    """`v̇ = N v^{1+m}(c − v)` for `N > 2`, in units of the larger of `v` and `|c|`, as `d(t)` with `ḋ > 0` and `d(0) = 0`.

    What is integrated over `d` is analytic and positive, and differential inequalities bracket the solution.
    """
    m = 1 - 2 / depth
    scale = max(v, abs(c))
    nu, gamma = v / scale, c / scale
    with np.errstate(over="ignore"):
        tau = float(np.float64(depth) * scale * np.power(v, m) * t)
    if not math.isfinite(tau):
        return max(c, 0.0)
    if 0 < v < c:  # γ = 1: e^d is the growth of ν/(1 − ν)
        rest = (c - v) / c
        far = min(tau / nu**m, max(_AT_LIMIT - math.log(nu) + math.log(rest), 0.0))
        d = _invert(lambda d: (nu + rest * np.exp(-d)) ** m, tau, far, tau)
        return v / (nu + rest * math.exp(-d))
    if c > 0:  # ν = 1 at the start: e^{−d} is the decay of ν − γ, and ν stays above the solution for γ = 0
        rest = (v - c) / v
        below = math.exp(-math.log1p((1 + m) * tau) / (1 + m))
        lowest = math.log(below - gamma) if below > gamma else math.log(gamma) - _AT_LIMIT
        far = min(tau, max(math.log(rest) - lowest, 0.0))
        d = _invert(lambda d: (gamma + rest * np.exp(-d)) ** (-1 - m), gamma ** (1 + m) * tau, far, tau)
        return c + (v - c) * math.exp(-d)
    # e^{−d} is the decay of ν, and ν^{−m} grows at rates between m|γ| and m(ν + |γ|).
    near, far = (math.log1p(m * rate * tau) / m for rate in (-gamma, nu - gamma))
    d = _invert(lambda d: np.exp(m * d) / (nu * np.exp(-d) - gamma), near, far, tau)
    return v * math.exp(-d)


def _invert(rate: Callable[[np.ndarray], np.ndarray], near: float, far: float, tau: float) -> float:
    """The `d` between two bounds to which the integral of `rate` from 0 is `tau`."""

    def excess(d):
        ends = np.linspace(0.0, d, max(1, math.ceil(d / 2)) + 1)
        half = 0.5 * np.diff(ends)[:, None]
        return float(np.sum(half * _WEIGHTS * rate(ends[:-1, None] + half * (1 + _NODES)))) - tau

    if excess(far) <= 0:
        return far
    if excess(near) >= 0:
        return near
    return float(scipy.optimize.brentq(excess, near, far, xtol=1e-15, rtol=1e-15))


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
