"""What is guaranteed of gradient descent with a fixed step, with all constants.

`w_{t+1} = w_t − η∇f(w_t)`, following Cohen's lecture 6 (section 6.2) where nothing else is said:

- Far from critical points: every step of `η ≤ 1/β` lowers a `β`-smooth `f` by `(η/2)‖∇f‖²` or more (`descent_excess`). So a
  small gradient is met within a known number of steps (`steps_to_stationary`, Theorem 6.7).
- Near a strict saddle: on the quadratic model `f̃(w) = f(w_s) + ½(w − w_s)ᵀH(w − w_s)` gradient descent leaves within a known
  number of steps (`escape_steps`), corrected where the lecture is wrong. What the model does is known in closed form
  (`measured_escape`), and `escape_coordinates` makes the model of a real saddle.
- Near a minimum: the longest step that does not leave it again (`stability_edge`).

The counts are those of exact arithmetic for the numbers given, and round-off never makes one too small. Everything runs on the
host in float64, except `descent_excess`, which can be traced.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from gdflow.checks import check_count, check_number, check_positive, is_traced
from gdflow.landscape import hessian, inertia, sharpness
from gdflow.landscape.curvature import zero_eigenvalue
from gdflow.network import LayerTuple, check_layer_tuple
from gdflow.problem import Problem, check_problem

#: By so much, relatively, `η·max|λ|` may exceed one: room for the round-off of eigenvalues. It costs nothing: what is derived
#: here needs `|1 − ηλ| ≤ 1` for the positive eigenvalues only, that is `ηλ ≤ 2`.
_STEP_MARGIN = 1e-9
#: Round-off of a product or a logarithm, generously.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


def steps_to_stationary(gap: float, step: float, tolerance: float) -> int:
    """The most steps until the gradient is small: the first `t` with `‖∇f(w_t)‖ ≤ ε` is at most this.

    Theorem 6.7: for `β`-smooth `f` and `η ≤ 1/β`, the first such `t` is 0 or `t < x := 2(f(w_0) − f*)/(ηε²)`. The largest integer
    this allows is `max(0, ⌈x⌉ − 1)`, computed in exact arithmetic. It is attained for `x ≤ 2`. For long runs it is too large by
    a factor of 3/2 at least: the sharp count for `η = 1/β` is `t ≤ ⌈(2x + 1)/3⌉ − 1` (Abbaszadehpeivasti, de Klerk, Zamani 2022).

    **Arguments:**

    - `gap`: `f(w_0) − f*`, or more; `f*` the infimum of `f`, or less.
    - `step`: `η`. That `η ≤ 1/β` is not checked: `β` is not asked for. It may be that of a convex set that holds all iterates.
    - `tolerance`: `ε`.

    **Raises:** `ValueError` for a gap that is negative or not finite, and steps and tolerances that are not positive and finite;
    `TypeError` for what is no number.

    ```python
    >>> steps_to_stationary(gap=1.0, step=0.5, tolerance=1.0)  # t < 4
    3
    ```
    """
    gap = check_number("gap", gap)
    if gap < 0:
        raise ValueError(f"gap must not be negative, got {gap}")
    step, tolerance = check_positive("step", step), check_positive("tolerance", tolerance)
    # Floats are fractions: no rounding here, which could turn t < x into t ≤ x.
    x = 2 * Fraction(gap) / (Fraction(step) * Fraction(tolerance) ** 2)
    return max(0, math.ceil(x) - 1)


def descent_excess(
    losses: ArrayLike, gradient_norms: ArrayLike, step: float | Float[Array, ""]
) -> Float[Array, "*batch T_minus_1"]:
    """By how much every step of gradient descent misses the descent inequality: `L_{t+1} − L_t + (η/2)‖∇L_t‖²`.

    At most zero wherever the loss is `β`-smooth on the segment of the step and `η ≤ 1/β` (proof of Theorem 6.7). A positive
    excess, beyond round-off of the losses, thus shows that the step was longer than `1/β`. Traceable.

    **Arguments:** `losses`, `gradient_norms`: at `w_0, …, w_{T-1}`, along the last axis; the last gradient is not used. `step`:
    `η`.

    **Returns:** the excess of each of the `T − 1` steps.

    **Raises:** `ValueError` for shapes that differ, single numbers, and a step that is not positive and finite; `TypeError` for
    steps that are no number.

    ```python
    >>> descent_excess([1.0, 0.25], [2.0, 1.0], 0.25)  # L = w² from w = 1: β = 2
    Array([-0.25], dtype=float64)
    ```
    """
    losses, gradient_norms = jnp.asarray(losses, dtype=float), jnp.asarray(gradient_norms, dtype=float)
    if losses.shape != gradient_norms.shape or losses.ndim == 0:
        raise ValueError(
            "losses and gradient_norms must have one shape, with time along the last axis; "
            f"got {losses.shape} and {gradient_norms.shape}"
        )
    if not is_traced(step):
        step = check_positive("step", step)
    return losses[..., 1:] - losses[..., :-1] + 0.5 * step * gradient_norms[..., :-1] ** 2


def escape_steps(
    eigenvalues: ArrayLike, theta: ArrayLike, step: float, tolerance: float, *, printed: bool = False
) -> int | float:
    """The most steps until gradient descent has ε-escaped a quadratic strict saddle.

    Escaped means `f̃(w_t) < f̃(w_s)` and `‖∇f̃(w_t)‖ > ε`. In the eigenbasis `θ_i^{(t)} = (1 − ηλ_i)^tθ_i`. For any
    `λ_i = −α < 0` with `θ_i ≠ 0` the other negative eigenvalues only lower `f̃` and only add to the gradient. So with
    `P = Σ_{λ_k>0} λ_kθ_k²` both hold at every integer

        t > x_i := ½ ln(max{P, ε²/α}/(αθ_i²))/ln(1 + ηα),   t ≥ 0.

    The first of them is `max(0, ⌊x_i⌋ + 1)`; the least over `i` is returned (the lecture uses one negative eigenvalue). The
    lecture prints `⌈x⌉`, which is one too small where `x` is an integer, as `t > x` is strict, and negative for `x ≤ −1`.

    Round-off: `x_i` is rounded upward by a bound of its error. So the count is never too small for the numbers given. It is one
    too large only where `x_i` lies below an integer by less than that bound, some `1e-13/ηα` for numbers of ordinary size.

    **Arguments:**

    - `eigenvalues`: of the Hessian at the saddle, shape `(d,)`, in any order.
    - `theta`: `θ = Uᵀ(w − w_s)`, the start in the basis of its eigenvectors; both come from `escape_coordinates`.
    - `step`: `η ≤ 1/max|λ|`; `tolerance`: `ε`.
    - `printed`: the lecture's `⌈x⌉` instead, for comparison (`x` rounded downward, so that integers stay what they are).

    **Returns:** the number of steps; `math.inf` where no `θ_i` along a negative eigenvalue differs from zero, or `ηα < 1e-300`.

    **Raises:** `ValueError` for arrays that do not fit or are not finite, steps and tolerances that are not positive and
    finite, and steps above `1/max|λ|`; `TypeError` for what is no real number.

    ```python
    >>> escape_steps([-1.0, 1.0], [0.25, 0.5], step=1.0, tolerance=1.0)  # x = 2: at t = 2 the gradient is 1, not above
    3
    >>> escape_steps([-1.0, 1.0], [0.25, 0.5], step=1.0, tolerance=1.0, printed=True)
    2
    ```
    """
    values, start, step, tolerance = _check_model(eigenvalues, theta, step, tolerance)
    if start.ndim != 1:
        raise ValueError(f"theta must be one start, of shape {values.shape}, got shape {start.shape}")
    up, down = (values > 0) & (start != 0), (values < 0) & (start != 0)
    # Slower growth than this takes more steps than float64 can count: nothing is guaranteed.
    down &= step * -values >= 1e-300
    if not np.any(down):
        return math.inf
    # All in logarithms, which neither overflow nor underflow.
    log_up, log_start = np.log(values[up]), 2 * np.log(abs(start[up]))
    log_alpha, log_theta, log_tolerance = np.log(-values[down]), 2 * np.log(abs(start[down])), 2 * math.log(tolerance)
    log_P = np.logaddexp.reduce(log_up + log_start, initial=-np.inf)
    twice = np.maximum(log_P - log_alpha, log_tolerance - 2 * log_alpha) - log_theta
    rate = 2 * np.log1p(step * -values[down])
    x = twice / rate
    # Every logarithm, and every term of the sum, brings a rounding error.
    sizes = values.size + np.max(abs(log_up) + abs(log_start), initial=0.0)
    sizes = sizes + 2 * abs(log_alpha) + abs(log_theta) + abs(log_tolerance)
    slack = _ROUNDING * (sizes / rate + abs(x))
    if printed:
        return math.ceil(np.min(x - slack))
    return max(0, math.floor(np.min(x + slack)) + 1)


def measured_escape(
    eigenvalues: ArrayLike, theta: ArrayLike, step: float, tolerance: float, most: float
) -> Int[np.ndarray, "*batch"]:
    """The first step at which gradient descent has ε-escaped a quadratic strict saddle, from the closed form of the model.

    The first `t ≥ 0` with `Σ_i λ_i(1 − ηλ_i)^{2t}θ_i² < 0` and `Σ_i λ_i²(1 − ηλ_i)^{2t}θ_i² > ε²`. For `η ≤ 1/max|λ|` the first
    sum, once negative, stays so. The second is convex in `t`: if it is at most `ε²` when the first turns negative, it exceeds
    `ε²` at one later time and stays above. So both times are found by bisection, and `most` may be large.

    **Arguments:**

    - `eigenvalues`: of the Hessian at the saddle, shape `(d,)`.
    - `theta`: starts in the basis of its eigenvectors, shape `(*batch, d)`.
    - `step`: `η ≤ 1/max|λ|`; `tolerance`: `ε`.
    - `most`: later times are not looked at; at most 2⁵³.

    **Returns:** the steps, shape `batch`; −1 where the start has not escaped after `most`. In float64: where a sum passes its
    bound by less than round-off, the neighbouring step may come out.

    **Raises:** as `escape_steps`; `ValueError` for `most` out of range.

    ```python
    >>> int(measured_escape([-1.0, 1.0], [0.25, 0.5], step=1.0, tolerance=1.0, most=100))
    3
    ```
    """
    values, start, step, tolerance = _check_model(eigenvalues, theta, step, tolerance)
    most = check_count("most", most, least=0)
    if most > 2**53:
        raise ValueError(f"most must be at most 2**53, got {most}")
    shape, start = start.shape[:-1], start.reshape(-1, values.size)
    never = np.full(len(start), most + 1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        first = _first(lambda t: _escaped(values, start, step, tolerance, t)[0], np.zeros_like(never), never)
        at_once = _escaped(values, start, step, tolerance, first)[1]
        found = _first(lambda t: _escaped(values, start, step, tolerance, t)[1], first, np.where(at_once, first, never))
    return np.where(found > most, -1, found).reshape(shape)


def _escaped(
    values: Float[np.ndarray, " d"],
    start: Float[np.ndarray, "n d"],
    step: float,
    tolerance: float,
    t: Int[np.ndarray, " n"],
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Whether the loss is below that of the saddle, and whether the gradient is above the tolerance, after `t` steps."""
    # 1 − ηλ is (1 + r)·base with base the rounded one: without r, t steps would multiply a rounding error by t.
    change = -step * values
    base = 1 + change
    r = np.divide(change - (base - 1), base, out=np.zeros_like(base), where=base != 0)
    # In two factors, of which neither overflows before the product does. Along positive eigenvalues nothing grows.
    half = (t // 2)[:, None]
    first, second = (abs(base) ** n * np.exp(n * np.log1p(r)) for n in (half, t[:, None] - half))
    place = np.where((start == 0) | (values == 0), 0.0, start * first * second)  # what does not move counts for nothing
    slope = values * place
    far = np.any(np.isinf(slope[:, values < 0]), axis=-1)
    # Scaled by powers of two, exactly, so that squares stay in range.
    place_exponent, slope_exponent = (np.frexp(np.max(abs(v), axis=-1))[1] for v in (place, slope))
    place, slope = np.ldexp(place, -place_exponent[:, None]), np.ldexp(slope, -slope_exponent[:, None])
    below = np.sum(place * slope, axis=-1) < 0
    steep = np.sqrt(np.sum(slope**2, axis=-1)) > np.ldexp(tolerance, -slope_exponent)
    return far | below, far | steep


def _first(
    holds: Callable[[Int[np.ndarray, " n"]], Bool[np.ndarray, " n"]],
    low: Int[np.ndarray, " n"],
    high: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """The first integers from `low` on at which `holds`, given that it goes on holding; `high` where there are none below."""
    reach = 1  # doubled every time: early steps are found early, however late `high` is
    while np.any(low < high):
        middle = low + np.minimum((high - low) // 2, reach)  # where low = high it is that, and neither changes
        reach = min(2 * reach, 2**53)
        found = holds(middle) | (low >= high)
        low, high = np.where(found, low, middle + 1), np.where(found, middle, high)
    return high


def escape_coordinates(
    problem: Problem, saddle: LayerTuple, net: LayerTuple
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """The quadratic model of the loss at a critical point: the Hessian's eigenvalues, and a network in their eigenvectors.

    `∇²L(W_s) = UΛUᵀ`, `θ = Uᵀ(W − W_s)` on raveled layer tuples: what `escape_steps` and `measured_escape` ask for. Of the true
    loss they hold up to its terms of third order: as long as `‖∇²L(W_t) − ∇²L(W_s)‖` is small beside the eigenvalue used.

    **Arguments:** `saddle`: a critical point, e.g. from `gdflow.sample_critical_point`; `net`: the start `W`. Both in the
    problem's coordinates, up to 2¹⁴ parameters.

    **Returns:** the eigenvalues, ascending, and `θ`. Eigenvalues that count as zero (`gdflow.inertia`) are exactly zero:
    round-off is no direction of escape.

    **Raises:** `ValueError` for networks that do not fit or are not finite, and a `saddle` that is not critical; `TypeError` for
    what are no networks.

    ```python
    >>> saddle = gf.sample_critical_point(problem, (3, 4, 4, 3), (1, 3), key=key, kind="strict")
    >>> eigenvalues, theta = escape_coordinates(problem, saddle, saddle + 1e-4 * direction)
    >>> escape_steps(eigenvalues, theta, step=1 / eigenvalues[-1], tolerance=1e-2)
    ```
    """
    check_problem(problem)
    for point in (saddle, net):
        problem.check_network(check_layer_tuple(point))
    if saddle.widths != net.widths:
        raise ValueError(f"the saddle has widths {saddle.widths}, the network {net.widths}")
    zero = inertia(problem, saddle).threshold
    values, vectors = np.linalg.eigh(np.asarray(hessian(problem, saddle), dtype=np.float64))
    slope = float(problem.gradient(saddle).norm())
    # As in shooting; where the Hessian vanishes, its round-off is the scale.
    if slope > max(1e-8 * float(np.max(abs(values))), zero) * max(float(saddle.norm()), 1.0):
        raise ValueError(f"the saddle is not a critical point: ‖∇L‖ = {slope:.3g}")
    away = np.asarray(ravel_pytree(net)[0], dtype=np.float64) - np.asarray(ravel_pytree(saddle)[0], dtype=np.float64)
    return np.where(abs(values) > zero, values, 0.0), vectors.T @ away


def stability_edge(problem: Problem, net: LayerTuple) -> float:
    """`2/λ_max(∇²L)`: longer steps of gradient descent leave a minimum here, shorter ones converge near it.

    Near a minimum a step multiplies the distance along an eigenvector by `1 − ηλ`. For `η > 2/λ_max` one of these factors is
    below −1, and almost all starts nearby leave. For `η < 2/λ_max` those of all positive eigenvalues lie between −1 and 1. Then
    gradient descent from close enough converges: to the minimum if no eigenvalue is zero, else to one beside it where the
    minima form a manifold and the zero eigenvalues belong to its tangent directions.

    At a balanced minimum with zero residual, whitened, it is `2/(Ns_1^{2−2/N})` (`gdflow.landscape.balanced_minimum_spectrum`).

    **Arguments:** `net`: the minimum, in the problem's coordinates; that it is one is not checked. Of any size, see
    `gdflow.landscape.extreme_eigenpairs`.

    **Returns:** the step; `math.inf` where the largest eigenvalue is not positive, up to round-off.

    **Raises:** as `gdflow.landscape.extreme_eigenpairs`; `TypeError` for what is no problem or no network.

    ```python
    >>> round(stability_edge(gf.Problem.from_singular_values([4.0]), gf.LayerTuple([[[2.0]], [[2.0]]])), 9)  # N = 2, s = 4
    0.25
    ```
    """
    check_problem(problem).check_network(check_layer_tuple(net))
    # Extreme eigenpairs are of two parameters or more.
    largest = sharpness(problem, net) if net.num_parameters > 1 else float(hessian(problem, net)[0, 0])
    return 2 / largest if largest > zero_eigenvalue(problem, net, 0.0, 0.0) else math.inf


def _check_model(
    eigenvalues: ArrayLike, theta: ArrayLike, step: float, tolerance: float
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Eigenvalues and starts as float64 arrays that fit each other, step and tolerance as floats."""
    values, start = _check_numbers("eigenvalues", eigenvalues), _check_numbers("theta", theta)
    if values.ndim != 1:
        raise ValueError(f"eigenvalues must be one list, of shape (d,), got shape {values.shape}")
    if start.ndim == 0 or start.shape[-1] != values.size:
        raise ValueError(f"theta needs one entry for each of the {values.size} eigenvalues, got shape {start.shape}")
    step, tolerance = check_positive("step", step), check_positive("tolerance", tolerance)
    largest = float(np.max(abs(values)))
    if step * largest > 1 + _STEP_MARGIN:
        raise ValueError(f"step must be at most 1/max|λ| = {1 / largest:.6g}, got {step}")
    return values, start, step, tolerance


def _check_numbers(name: str, value: ArrayLike) -> np.ndarray:
    given = np.asarray(value)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got dtype {given.dtype}")
    if given.size == 0:
        raise ValueError(f"{name} must not be empty")
    bad = np.argwhere(~np.isfinite(given))
    if bad.size:
        raise ValueError(f"{name} must be finite, got {given[tuple(bad[0])]} at entry {tuple(map(int, bad[0]))}")
    return given.astype(np.float64)
