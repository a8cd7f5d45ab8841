"""Analytic test systems: gradient flows of deep linear networks with a solution in closed form or by quadrature.

Every system is the whitened flow of L(W) = ½‖A − W_N⋯W_1‖²_F from a given start,

    Ẇ_j = (W_N⋯W_{j+1})ᵀ (A − W_N⋯W_1) (W_{j−1}⋯W_1)ᵀ          (Chitour, Liao, Couillet 2022, eq. 6),

with W_j of shape (d_j, d_{j−1}). Nothing here uses the library under test, nor an ODE solver: the solver appears only
in `residual_self_check`, which `python tests/systems.py` runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

Weights = tuple[np.ndarray, ...]

# s_1·t at which a system is compared, from the first moves to long after convergence.
SCALED_TIMES = (0.1, 0.5, 2.0, 6.0, 20.0, 60.0)
# Starts on the stable set of a saddle: rounding off that set grows like exp(s_1·t), so they stop while it is small.
SADDLE_TIMES = (0.1, 0.5, 2.0, 4.0, 8.0)


def flatten(weights: Sequence[np.ndarray]) -> np.ndarray:
    """All entries of W_1, …, W_N in this order, row by row: the observable where the whole state is known."""
    return np.concatenate([np.ravel(w) for w in weights])


def gram(weights: Sequence[np.ndarray]) -> np.ndarray:
    """QQᵀ with Q = [W_1ᵀ; W_2]: what rotations of the hidden layer, W_1 → RW_1 and W_2 → W_2Rᵀ, leave alone."""
    q = np.vstack([weights[0].T, weights[1]])
    return q @ q.T


def velocity(weights: Sequence[np.ndarray], target: np.ndarray) -> Weights:
    """Right-hand side (W_N⋯W_{j+1})ᵀ(A − W_N⋯W_1)(W_{j−1}⋯W_1)ᵀ, j = 1…N (Chitour, Liao, Couillet 2022, eq. 6)."""

    def product(factors: Sequence[np.ndarray], size: int) -> np.ndarray:
        return reduce(lambda below, w: w @ below, factors, np.eye(size))

    d_x = weights[0].shape[1]
    residual = target - product(weights, d_x)
    return tuple(
        product(weights[j + 1 :], w.shape[0]).T @ residual @ product(weights[:j], d_x).T for j, w in enumerate(weights)
    )


@dataclass(frozen=True, eq=False)
class System:
    """One flow with its solution: `exact(t)` equals `observe(weights at time t)` for the flow from `weights`.

    `observe` is `flatten` where the whole state is known (then `state(t)` gives the matrices), and a function that the
    unknown part leaves alone otherwise. `times` are sensible test times, increasing.
    """

    name: str
    target: np.ndarray
    weights: Weights
    times: tuple[float, ...]
    exact: Callable[[float], np.ndarray]
    observe: Callable[[Sequence[np.ndarray]], np.ndarray] = flatten

    @property
    def widths(self) -> tuple[int, ...]:
        """(d_0, …, d_N)."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))

    @property
    def knows_state(self) -> bool:
        """Whether `exact` determines every weight."""
        return self.observe is flatten

    def state(self, t: float) -> Weights:
        """The weights W_1(t), …, W_N(t), where they are known."""
        if not self.knows_state:
            raise ValueError(f"{self.name}: only {self.observe.__name__} of the state is known")
        return _unflatten(self.exact(t), self.weights)


def _unflatten(entries: np.ndarray, like: Sequence[np.ndarray]) -> Weights:
    parts = np.split(entries, np.cumsum([w.size for w in like])[:-1])
    return tuple(part.reshape(w.shape) for part, w in zip(parts, like, strict=True))


def _times(target: np.ndarray, scaled: Sequence[float] = SCALED_TIMES) -> tuple[float, ...]:
    return tuple(float(x / np.linalg.norm(target, 2)) for x in scaled)


# Scalar equations. A coordinate y runs monotonically to its limit y*; with y = y* + (y_0 − y*)e^{−τ} the time t(τ) is a
# smooth increasing function even where t(y) has its logarithmic pole, and is inverted by bracketing in τ.

_TAU_MAX = 45.0  # e^{−45} = 3e−20: from here on y equals y* in float64
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


def _invert(time: Callable[[float], float], t: float) -> float:
    """The factor e^{−τ} at which time(τ) = t, 0 once it is far below rounding."""
    if t <= time(0.0):
        return 1.0
    if t >= time(_TAU_MAX):
        return 0.0
    return float(np.exp(-brentq(lambda tau: time(tau) - t, 0.0, _TAU_MAX, xtol=1e-15, rtol=1e-15)))


def balanced_weight(depth: int, s: float, start: float, t: float) -> float:
    """Size r(t) of N = `depth` ≥ 2 balanced scalar weights: ṙ = r^{N−1}(s − r^N), r(0) = `start` ≥ 0, any real s.

    For u = r^N this is u̇ = N u^{2−2/N}(s − u) (Saxe, McClelland, Ganguli 2014; Arora, Cohen, Hazan 2018); s < 0 stands
    for weights whose product has the sign opposite to the target's, and s = 0, u̇ = −N u^{3−2/N}, is elementary. With
    ρ_1, …, ρ_N the complex N-th roots of s, partial fractions give the time

        t = s^{−1} [ r^{2−N}/(2−N) − (Ns)^{−1} Σ_k ρ_k² ln(r − ρ_k) ]  from r(0) to r(t),

    with ln r in the place of r^{2−N}/(2−N) for N = 2.
    """
    if start == 0.0:
        return 0.0
    if s == 0.0:
        power = 2 * depth - 2
        return float((start**-power + power * t) ** (-1 / power))
    limit = s ** (1 / depth) if s > 0 else 0.0
    if start == limit:
        return start
    roots = complex(s) ** (1 / depth) * np.exp(2j * np.pi * np.arange(depth) / depth)
    others = roots[1:] if s > 0 else roots  # the first root is the limit: its logarithm is −τ

    def time(tau: float) -> float:
        r = limit + (start - limit) * np.exp(-tau)
        head = np.log(r / start) if depth == 2 else (start ** (2 - depth) - r ** (2 - depth)) / (depth - 2)
        tail = np.real(others**2 @ np.log((r - others) / (start - others))) - limit**2 * tau
        return (head - tail / (depth * s)) / s

    return limit + (start - limit) * _invert(time, t)


def unbalanced_pair(large: float, small: float, s: float, t: float) -> tuple[float, float]:
    """Weights (a, b)(t) of ȧ = b(s − ab), ḃ = a(s − ab) from a = `large`, b = `small`, |a| > |b|, s ≠ 0.

    c = a² − b² > 0 is constant, so a = √c cosh(θ/2), b = √c sinh(θ/2), 2ab = c sinhθ, and with D = √(c² + 4s²)

        t = D^{−1} ln |(D + z)/(D − z)|  from start to end,  z = c + 2s tanh(θ/2)

    (Saxe, McClelland, Ganguli 2014, appendix), which is explicit in z. Any signs of a, b and s: b may cross zero.
    Digits are lost as c → 0: there balanced weights are the better description.
    """
    sign = np.sign(large)
    c = large**2 - small**2
    d = np.hypot(c, 2 * s)
    z = c + 2 * s * small / large
    ratio, decay = (d + z) / (d - z), np.exp(-d * t)
    tanh = (d * (ratio - decay) / (ratio + decay) - c) / (2 * s)
    cosh = 1 / np.sqrt(1 - tanh**2)
    return float(sign * np.sqrt(c) * cosh), float(sign * np.sqrt(c) * cosh * tanh)


def unbalanced_weights(start: Sequence[float], s: float, t: float) -> np.ndarray:
    """Weights w_1, …, w_N(t) of a scalar chain ẇ_j = (Π_{i≠j} w_i)(s − Π_i w_i), by one quadrature.

    The differences c_j = w_j² − y² to the smallest weight y are constant (Chitour, Liao, Couillet 2022). Let y carry
    the product of the signs of the others, which never change. With R(y) = Π_j √(y² + c_j) over the others,

        ẏ = R(y)(s − yR(y)),  y*R(y*) = s,  dτ/dt = R(y) [yR(y) − y*R(y*)]/(y − y*)  for  y = y* + (y_0 − y*)e^{−τ},

    the difference quotient being formed without cancellation. Needs s ≠ 0, and either a strictly smallest weight (it
    may then cross zero) or a start whose product has the sign of s.
    """
    w = np.asarray(start, dtype=float)
    index = int(np.argmin(np.abs(w)))
    others = np.delete(w, index)
    sign = np.prod(np.sign(others))
    y0 = sign * w[index]
    c = others**2 - y0**2
    if np.min(c) <= 0.0 and y0 * s <= 0.0:
        raise ValueError("tied smallest weights with a product not of the sign of s: use balanced_weight")

    def size(y: np.ndarray | float) -> np.ndarray:
        return np.sqrt(np.square(y) + c[:, None])

    bound = 2 * np.sign(s) * abs(s) ** (1 / w.size)
    limit = brentq(lambda y: y * np.prod(size(y)) - s, *sorted((0.0, bound)), xtol=1e-16, rtol=1e-15)
    at_limit = size(limit)

    def slowness(tau: np.ndarray) -> np.ndarray:
        y = limit + (y0 - limit) * np.exp(-tau)
        r = size(y)
        product = np.prod(r, axis=0)
        telescope = sum(
            np.prod(r[:j], axis=0) * np.prod(at_limit[j + 1 :]) / (r[j] + at_limit[j]) for j in range(len(c))
        )
        return 1 / (product * (product + limit * (y + limit) * telescope))

    def time(tau: float) -> float:
        edges = np.linspace(0.0, tau, max(2, 1 + int(np.ceil(tau / 0.125))))
        half = (edges[1] - edges[0]) / 2
        nodes = (edges[:-1, None] + half * (1 + _NODES)).ravel()
        return float(half * np.sum(slowness(nodes).reshape(-1, _NODES.size) @ _NODE_WEIGHTS))

    y = limit + (y0 - limit) * _invert(time, t)
    return np.insert(np.sign(others) * size(y)[:, 0], index, sign * y)


# The width-h scalar network W_1 = a, W_2 = bᵀ with p = (a + b)/√2, q = (a − b)/√2.


def width_h_state(a: np.ndarray, b: np.ndarray, s: float, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (a, b)(t) of ȧ = b(s − a·b), ḃ = a(s − a·b) in R^h, s > 0.

    ṗ = (s − u)p and q̇ = −(s − u)q, so p = √G p_0, q = q_0/√G (the directions and |p||q| stay) and, from
    u = a·b = (|p|² − |q|²)/2, Ġ = 2sG − P G² + Q, P = |p_0|², Q = |q_0|². This Riccati equation is linear for G = X/Y:
    with ω = √(s² + PQ),

        G = [(ω + s + Q) + (ω − s − Q)e^{−2ωt}] / [(ω − s + P) + (ω + s − P)e^{−2ωt}],   ω − s = PQ/(ω + s).

    The diagonalisation by p and q is the two-layer case of Saxe, McClelland, Ganguli 2014; derived here for any h.
    """
    p, q = (a + b) / np.sqrt(2), (a - b) / np.sqrt(2)
    big_p, big_q = p @ p, q @ q
    omega = np.sqrt(s**2 + big_p * big_q)
    excess = big_p * big_q / (omega + s)
    decay = np.exp(-2 * omega * t)
    growth = (omega + s + big_q + (excess - big_q) * decay) / (excess + big_p + (omega + s - big_p) * decay)
    p, q = np.sqrt(growth) * p, q / np.sqrt(growth)
    return (p + q) / np.sqrt(2), (p - q) / np.sqrt(2)


def hitting_time_width_h(a: np.ndarray, b: np.ndarray, s: float, u: float) -> float:
    """First time the product a·b of the width-h scalar network reaches `u`; infinite if it never does.

    With P = |p|², K = |p|²|q|² constant and u = (P − K/P)/2, Ṗ = (P_+ − P)(P − P_−), P_± = s ± √(s² + K), hence

        t = (P_+ − P_−)^{−1} ln[(P − P_−)/(P_+ − P)]  from P(0) to P = u + √(u² + K).

    Where a·b < 0 the mirror image b → −b, s → −s, u → −u, which exchanges p and q, keeps P away from zero.
    """
    u0 = float(a @ b)
    if u0 < 0:
        return hitting_time_width_h(a, -b, -s, -u)
    start = float((a + b) @ (a + b)) / 2
    k = start * float((a - b) @ (a - b)) / 2

    def p_of(product: float) -> float:
        root = np.hypot(product, np.sqrt(k))
        return product + root if product >= 0 else k / (root - product)

    if u == u0:
        return 0.0
    upper, end = p_of(s), p_of(u)
    if start == 0.0 or (end - start) * (upper - end) <= 0:
        return np.inf
    lower = -p_of(-s)
    ratio = (end - lower) / (upper - end) * (upper - start) / (start - lower)
    return float(np.log(ratio) / (upper - lower))


def lambda_balanced_gram(q: np.ndarray, target: np.ndarray, lam: float, t: float) -> np.ndarray:
    """QQᵀ(t) of a two-layer network, Q = [W_1ᵀ; W_2] from `q`, with W_2ᵀW_2 − W_1W_1ᵀ = λI (`lam`), any widths.

    The flow is Q̇ = FQ − ½QQᵀQ with F = [[−λ/2 I, Aᵀ], [A, λ/2 I]]; QQᵀ then solves a Riccati equation, and

        QQᵀ(t) = e^{Ft} Q [I + Qᵀ φ(t) Q]^{−1} Qᵀ e^{Ft},  φ(t) = ∫_0^t e^{2Fs} ds

    (λ = 0: Fukumizu 1998; Braun, Dominé, Fitzgerald, Saxe 2022; λ ≠ 0: Dominé et al. 2025). In floating point this
    loses all digits for large t, so it is applied over short spans δ, restarting from Q ← e^{Fδ}Q(I + QᵀφQ)^{−1/2},
    which is the state up to a rotation on the right.
    """
    d_y, d_x = target.shape
    f = np.block([[-lam / 2 * np.eye(d_x), target.T], [target, lam / 2 * np.eye(d_y)]])
    rates, basis = np.linalg.eigh(f)
    steps = max(1, int(np.ceil(t * np.max(np.abs(rates)))))
    x = 2 * rates * (t / steps)
    phi = (t / steps) * np.divide(np.expm1(x), x, out=np.ones_like(x), where=x != 0)
    z = basis.T @ q
    for _ in range(steps):
        values, vectors = np.linalg.eigh(np.eye(z.shape[1]) + z.T @ (phi[:, None] * z))
        z = np.exp(x / 2)[:, None] * z @ (vectors / np.sqrt(values)) @ vectors.T
    q = basis @ z
    return q @ q.T


# The systems.


def _chain(
    name: str,
    s: float,
    start: Sequence[float],
    exact: Callable[[float], Sequence[float]],
    scaled_times: Sequence[float] = SCALED_TIMES,
) -> System:
    target = np.array([[float(s)]])
    weights = tuple(np.array([[float(w)]]) for w in start)
    return System(name, target, weights, _times(target, scaled_times), lambda t: np.array(exact(t), dtype=float))


def balanced_chain(name: str, s: float, start: Sequence[float], scaled_times: Sequence[float] = SCALED_TIMES) -> System:
    """Scalar weights of equal size: |w_j|^N = |u|, u̇ = N|u|^{2−2/N}(s − u) (see `balanced_weight`); signs are kept."""
    signs, size = np.sign(start), abs(start[0])
    if not np.all(np.abs(start) == size):
        raise ValueError("balanced scalar weights have one size")
    effective = float(np.prod(signs)) * s
    return _chain(name, s, start, lambda t: signs * balanced_weight(len(start), effective, size, t), scaled_times)


def unbalanced_pair_chain(name: str, s: float, start: tuple[float, float]) -> System:
    """Two scalar weights of different size, by the hyperbolic closed form of `unbalanced_pair`."""
    order = 1 if abs(start[0]) > abs(start[1]) else -1
    return _chain(name, s, start, lambda t: unbalanced_pair(*start[::order], s, t)[::order])


def unbalanced_chain(name: str, s: float, start: Sequence[float]) -> System:
    """Scalar weights of different sizes, by the conserved differences of their squares (see `unbalanced_weights`)."""
    return _chain(name, s, start, lambda t: unbalanced_weights(start, s, t))


def width_h(
    name: str, s: float, a: Sequence[float], b: Sequence[float], scaled_times: Sequence[float] = SCALED_TIMES
) -> System:
    """One input, one output, h hidden units: W_1 = a, W_2 = bᵀ (see `width_h_state`)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    target = np.array([[float(s)]])
    return System(
        name,
        target,
        (a[:, None], b[None, :]),
        _times(target, scaled_times),
        lambda t: np.concatenate(width_h_state(a, b, s, t)),
    )


def _orthogonal(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def _diagonal(rows: int, columns: int, values: Sequence[float]) -> np.ndarray:
    matrix = np.zeros((rows, columns))
    np.fill_diagonal(matrix, [*values, *[0.0] * min(rows, columns)])
    return matrix


def lambda_balanced(
    name: str, widths: tuple[int, int, int], singular_values: Sequence[float], lam: float, scale: float, seed: int
) -> System:
    """Two layers with W_2ᵀW_2 − W_1W_1ᵀ = λI and a target in general position; QQᵀ is known (`lambda_balanced_gram`).

    λ > 0 makes W_2 of rank h, so it needs d_y ≥ h; λ < 0 needs d_x ≥ h.
    """
    d_x, h, d_y = widths
    if (lam > 0 and d_y < h) or (lam < 0 and d_x < h):
        raise ValueError(f"no start of widths {widths} has W_2ᵀW_2 − W_1W_1ᵀ = {lam} I")
    rng = np.random.default_rng(seed)
    target = _orthogonal(d_y, rng) @ _diagonal(d_y, d_x, singular_values) @ _orthogonal(d_x, rng).T
    small = np.zeros(h)
    small[: min(widths)] = scale * rng.uniform(0.5, 1.5, min(widths))
    large = np.sqrt(abs(lam) + small**2)
    first, second = (small, large) if lam >= 0 else (large, small)
    hidden = _orthogonal(h, rng)
    w_1 = hidden @ _diagonal(h, d_x, first) @ _orthogonal(d_x, rng).T
    w_2 = _orthogonal(d_y, rng) @ _diagonal(d_y, h, second) @ hidden.T
    q = np.vstack([w_1.T, w_2])
    return System(
        name, target, (w_1, w_2), _times(target), lambda t: lambda_balanced_gram(q, target, lam, t), observe=gram
    )


def decoupled_modes(
    name: str,
    widths: Sequence[int],
    singular_values: Sequence[float],
    starts: Sequence[float],
    seed: int | None = None,
    scaled_times: Sequence[float] = SCALED_TIMES,
) -> System:
    """Layers W_j = O_j diag(r) O_{j−1}ᵀ, target O_N diag(s) O_0ᵀ: mode i is a balanced scalar chain with its own s_i,

        ṙ_i = r_i^{N−1}(s_i − r_i^N)   (Saxe, McClelland, Ganguli 2014; see `balanced_weight`).

    The O_j are identities, or fixed random orthogonal matrices drawn from `seed`. A mode that starts at 0 stays there:
    the limit is then a saddle where s_i > 0; exact zeros keep the flow on its stable set, random O_j would not.
    """
    depth = len(widths) - 1
    modes = np.zeros(min(widths[0], widths[-1]))
    modes[: len(singular_values)] = singular_values
    if seed is None:
        frames = [np.eye(d) for d in widths]
    else:
        rng = np.random.default_rng(seed)
        frames = [_orthogonal(d, rng) for d in widths]

    def layers(sizes: Sequence[float]) -> Weights:
        return tuple(
            frames[j] @ _diagonal(widths[j], widths[j - 1], sizes) @ frames[j - 1].T for j in range(1, depth + 1)
        )

    def exact(t: float) -> np.ndarray:
        return flatten(layers([balanced_weight(depth, s, r, t) for s, r in zip(modes, starts, strict=False)]))

    target = frames[-1] @ _diagonal(widths[-1], widths[0], modes) @ frames[0].T
    return System(name, target, layers(starts), _times(target, scaled_times), exact)


SYSTEMS: tuple[System, ...] = (
    # Balanced scalar chains, from below and from above the target.
    balanced_chain("balanced-N2-below", 2.0, (0.1,) * 2),
    balanced_chain("balanced-N2-above", 1.5, (1.8,) * 2),
    balanced_chain("balanced-N3-below", 1.0, (0.2,) * 3),
    balanced_chain("balanced-N3-above", 1.5, (1.6,) * 3),
    balanced_chain("balanced-N4-below", 1.0, (0.3,) * 4),
    balanced_chain("balanced-N4-above", 0.7, (1.3,) * 4),
    balanced_chain("balanced-N5-below", 1.2, (0.4,) * 5),
    balanced_chain("balanced-N5-above", 1.0, (1.3,) * 5),
    balanced_chain("balanced-N3-signs", -1.3, (0.4, -0.4, 0.4)),
    # Product of the sign opposite to the target's: the limit is the saddle at the origin.
    balanced_chain("balanced-N2-to-saddle", 1.0, (0.7, -0.7), SADDLE_TIMES),
    balanced_chain("balanced-N3-to-saddle", 1.0, (-0.8, -0.8, -0.8)),
    balanced_chain("balanced-N4-to-saddle", 1.2, (0.8, 0.8, -0.8, 0.8)),
    # Unbalanced scalar chains.
    unbalanced_pair_chain("unbalanced-N2-below", 2.0, (0.3, 1.1)),
    unbalanced_pair_chain("unbalanced-N2-above", 1.0, (2.0, 1.2)),
    unbalanced_pair_chain("unbalanced-N2-crossing", 1.5, (-1.2, 0.5)),
    unbalanced_chain("unbalanced-N3-below", 2.0, (0.5, 1.2, 0.8)),
    unbalanced_chain("unbalanced-N3-above", 1.0, (1.6, 1.1, 1.3)),
    unbalanced_chain("unbalanced-N3-tied", 1.5, (0.4, 0.4, 1.0)),
    unbalanced_chain("unbalanced-N3-crossing", 1.5, (1.0, -0.3, 0.7)),
    unbalanced_chain("unbalanced-N4-below", 1.0, (0.9, 0.4, 0.7, 0.6)),
    unbalanced_chain("unbalanced-N4-above", 1.0, (1.4, 1.1, 1.6, 1.3)),
    unbalanced_chain("unbalanced-N4-signs", -2.0, (-0.8, 0.5, 1.1, 0.9)),
    unbalanced_chain("unbalanced-N5-below", 1.5, (0.6, 0.8, 0.5, 1.0, 0.9)),
    unbalanced_chain("unbalanced-N5-above", 1.0, (1.2, 1.3, 1.0, 1.5, 1.1)),
    # One input, one output, h hidden units; the product starts negative in "opposed".
    width_h("width-1-small", 2.0, [0.1], [0.2]),
    width_h("width-1-opposed", 1.0, [0.9], [-0.6]),
    width_h("width-2-generic", 1.5, [0.5, -0.2], [0.1, 0.4]),
    width_h("width-2-opposed", 1.0, [0.7, 0.3], [-0.6, -0.1]),
    width_h("width-2-above", 1.0, [1.5, -0.5], [1.2, 0.3]),
    width_h("width-2-to-saddle", 1.0, [0.8, -0.5], [-0.8, 0.5], SADDLE_TIMES),
    width_h("width-5-generic", 3.0, [0.3, -0.4, 0.2, 0.6, -0.1], [0.5, 0.1, -0.3, 0.2, 0.4]),
    width_h("width-5-opposed", 0.8, [0.6, -0.4, 0.3, 0.2, -0.5], [-0.4, 0.5, -0.1, -0.3, 0.2]),
    # Two layers, λ-balanced, widths (d_x, h, d_y).
    lambda_balanced("riccati-323-lambda0", (3, 2, 3), (3.0, 2.0, 1.0), 0.0, 0.5, 1),
    lambda_balanced("riccati-323-positive", (3, 2, 3), (3.0, 2.0, 1.0), 0.7, 0.3, 2),
    lambda_balanced("riccati-323-negative", (3, 2, 3), (3.0, 2.0, 1.0), -1.0, 0.4, 3),
    lambda_balanced("riccati-432-lambda0", (4, 3, 2), (2.0, 1.0), 0.0, 0.6, 4),
    lambda_balanced("riccati-432-negative", (4, 3, 2), (2.0, 1.0), -0.5, 0.5, 5),
    lambda_balanced("riccati-224-lambda0", (2, 2, 4), (2.0, 0.8), 0.0, 0.2, 6),
    lambda_balanced("riccati-224-positive", (2, 2, 4), (2.0, 0.8), 1.5, 0.5, 7),
    lambda_balanced("riccati-224-negative", (2, 2, 4), (2.0, 0.8), -0.4, 0.5, 8),
    lambda_balanced("riccati-333-deficient", (3, 3, 3), (2.0, 1.0, 0.0), 0.0, 0.5, 9),
    # Decoupled balanced modes, some with s_i = 0; rotated where the name says so.
    decoupled_modes("modes-N2", (4, 3, 3), (3.0, 2.0, 1.0), (0.3, 1.6, 0.5)),
    decoupled_modes("modes-N2-saddle-limit", (3, 2, 2), (3.0, 2.0), (0.0, 0.5), None, (0.1, 0.5, 2.0, 6.0, 12.0)),
    decoupled_modes("modes-N2-rotated", (2, 4, 3), (2.0, 1.0), (0.4, 1.3), 11),
    decoupled_modes("modes-N3-zero", (5, 4, 3, 3), (2.0, 1.0, 0.0), (0.5, 1.2, 0.8)),
    decoupled_modes("modes-N3-rotated", (3, 5, 4, 2), (2.0, 1.0), (0.5, 1.4), 12),
    decoupled_modes("modes-N4-zero-rotated", (3, 3, 4, 3, 4), (1.5, 0.8, 0.0), (0.5, 1.2, 0.9), 13),
    decoupled_modes("modes-N5", (2, 3, 2, 4, 3, 2), (1.2, 0.7), (0.6, 1.1)),
)


def named(name: str) -> System:
    """The system of this name."""
    return next(s for s in SYSTEMS if s.name == name)


def residual_self_check(systems: Sequence[System] = SYSTEMS) -> float:
    """Integrate every system with SciPy's DOP853, print the norm-relative error of `exact` at t = 0 and at its times.

    Returns the largest. What it shows is the error of the solver and of its dense output (1e-14 to 3e-11), not that of
    `exact`: against fixed steps of the same method in extended precision, `exact` is right to 5e-15.
    """
    worst = 0.0
    for system in systems:

        def field(_t: float, x: np.ndarray, system: System = system) -> np.ndarray:
            return flatten(velocity(_unflatten(x, system.weights), system.target))

        times = (0.0, *system.times)
        solution = solve_ivp(
            field, (0.0, times[-1]), flatten(system.weights), "DOP853", t_eval=times, rtol=1e-12, atol=1e-14
        )
        errors = []
        for t, x in zip(times, solution.y.T, strict=True):
            exact = system.exact(t)
            errors.append(np.linalg.norm(system.observe(_unflatten(x, system.weights)) - exact) / np.linalg.norm(exact))
        worst = max(worst, *errors)
        print(f"{system.name:26s}", " ".join(f"{error:.0e}" for error in errors))
    print(f"{len(systems)} systems, largest relative error {worst:.1e}")
    return worst


if __name__ == "__main__":
    raise SystemExit(int(residual_self_check() > 1e-9))
