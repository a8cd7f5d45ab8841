"""How fast the gradient can change wherever gradient descent goes from a state: explicit bounds of `‖∇²L‖`.

Theory asks for steps `η ≤ 1/β` with `β ≥ ‖∇²L‖` on a sublevel set. Of a deep linear network there is no such `β`: layers can be
scaled against each other without a change of the loss, so sublevel sets are unbounded, and so is the Hessian on them. But descent
does not go everywhere. One step changes `C_j` by `η²(G_{j+1}ᵀG_{j+1} − G_jG_jᵀ)`, `G = ∇L`, and as long as the loss falls as the
descent inequality says, `Σ_t (η/2)‖G(t)‖² ≤ L(0) − L*`. So no `C_j` ever moves by more than `2η(L(0) − L*)` in the spectral norm,
and with them all layers stay bounded (after Lemma 2.4 of Chitour, Liao, Couillet 2022, here for spectral norms and descent). On
the set of all networks with these bounds and a loss of at most `L(0)`, `‖∇²L‖ ≤ β` in closed form. If `η ≤ 1/β`, the loss does
fall along every step, also inside it: at the first point of the segment where the loss were back at `L(0)` it would have fallen.
So the assumption proves itself, and gradient descent with this step never leaves the set. The loss falls, the steps tend to zero,
and, `L` being analytic, the iterates converge to a critical point (Absil, Mahony, Andrews 2005).

Details, in coordinates with a diagonal design `D`, `A` the target, `ΠW = W_N…W_1`, `Δ_j = c_j + … + c_{N−1}`:

    ‖C_j‖_2 ≤ c_j (at the start, plus 2η(L(0) − L*)),   ‖ΠW‖_2 ≤ R = (‖A‖_2 + √(2L(0)))/σ_min(D),
    g = ‖W_N‖_2²,   ‖W_j‖_2² ≤ g + Δ_j,   g^N − E(g) ≤ ‖ΠW‖_2² ≤ R²,
    E(g) = Σ_{m=1}^{N−1} [∏_{j>m}(g + Δ_j)]·[(g + Δ_{m+1} + c_m)^m − (g + Δ_{m+1})^m].

`E` has degree `N − 1` and no negative coefficients, so `g` is at most the only positive root. With `r_j² = g + Δ_j`,

    ⟨u, ∇²L u⟩ ≤ σ_max(D)²(Σ_j P_j‖u_j‖)² + 2σ_max(D)√(2L(0)) Σ_{i<j} P_ij‖u_i‖‖u_j‖,

`P_j` and `P_ij` the products of all `r` but those of the layers `j`, or `i` and `j`. At a balanced minimum with loss zero the
bound is attained.

Near a minimum with loss zero less is needed. Let `μ ≤ Σ_j σ_min(W_{>j})² σ_min(W_{<j}D)²`, where `W_{>j} = W_N…W_{j+1}` and
`W_{<j} = W_{j−1}…W_1`, and `β ≥ ‖∇²L‖`, both on the ball of radius `ρ` around the state. Then `‖∇L‖² ≥ 2μL` there (the inequality
of Polyak and Łojasiewicz), and if `ηβ < 2`, descent of the roots of the losses gives `Σ_t η‖∇L(t)‖ ≤ √(2L(0)/μ)/(1 − ηβ/2)`. If
that is less than `ρ`, gradient descent never leaves the ball, and its loss tends to zero.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from gdflow.checks import check_number, is_traced
from gdflow.invariants import conserved
from gdflow.losses import LOSS_BOUNDS, SquaredError
from gdflow.network import LayerTuple, check_layer_tuple, matmul
from gdflow.objective import LinearObjective, NetworkObjective, Objective
from gdflow.problem import Problem, check_problem, critical_values

#: Halvings of the interval, in logarithms, that holds the root `g`, and how far above the largest number in its equation it is
#: looked for.
_HALVINGS, _ABOVE = 48, 2.0**20
#: For the round-off of all that is computed.
_MARGIN = 1e-9
#: Steps of the power method.
_POWERS = 100


class DataSizes(eqx.Module):
    """What bounds of the Hessian need of the data, in coordinates with a diagonal design: see above.

    **Arguments:** `problem` with the squared error and levels; `widths`: `(d_0, …, d_N)`.

    Fields: `target`, `‖A‖_2`; `least` and `greatest`, the extreme singular values of `D`; `lowest`, the lowest level `L*`.

    **Raises:** `ValueError` for losses without levels and widths that do not fit.
    """

    target: Float[Array, ""]
    least: Float[Array, ""]
    greatest: Float[Array, ""]
    lowest: Float[Array, ""]

    def __init__(self, problem: Problem, widths: tuple[int, ...]):
        isometric = check_problem(problem).isometric()
        diagonal = jnp.abs(jnp.diagonal(isometric.design))
        levels = critical_values(problem, problem.max_rank(widths), lowest=1, num_layers=len(widths) - 1)
        self.target = jnp.linalg.norm(isometric.target, 2)
        self.least, self.greatest = jnp.min(diagonal), jnp.max(diagonal)
        self.lowest = jnp.asarray(levels.values[0], self.target.dtype)


def _spectral_norm(C: Float[Array, "d d"]) -> Float[Array, ""]:
    """A bound of the spectral norm of a symmetric matrix, at most `d^{1/8}` times as large: `‖C⁴‖_F^{1/4}`."""
    size = jnp.max(jnp.abs(C))
    unit = jnp.where(size > 0, size, 1.0)
    square = matmul(C / unit, C / unit)
    total = jnp.sum(jnp.square(matmul(square, square)))
    return (1 + _MARGIN) * unit * jnp.where(total > 0, total, 1.0) ** 0.125 * (total > 0)


def layer_bounds(
    sizes: DataSizes, net: LayerTuple, loss: Float[Array, ""], step: Float[Array, ""] | float
) -> Float[Array, " N"]:
    """Bounds `r_j` of the spectral norms of all layers, wherever gradient descent with a step of at most `step` goes. Traceable.

    **Arguments:** `net`: in coordinates with a diagonal design; `loss`: its effective loss; `step`: with which the loss is known
    to fall; 0 for the flow.
    """
    N = net.depth
    moved = 2 * step * jnp.maximum(loss - sizes.lowest, 0.0)
    c = [_spectral_norm(C) + moved for C in conserved(net)]
    R = (sizes.target + jnp.sqrt(2 * loss)) / sizes.least
    Delta = [sum(c[j:], start=jnp.zeros_like(loss)) for j in range(N)]
    # Powers in units in which all numbers are at most one.
    unit = jnp.max(jnp.stack([R ** (2 / N), *Delta]))
    unit = jnp.where(unit > 0, unit, 1.0)
    c, Delta, square = [x / unit for x in c], [x / unit for x in Delta], (R / unit ** (N / 2)) ** 2

    def is_above(g):
        """Whether `g` lies above the root."""
        excess = square
        for m in range(1, N):
            outer = jnp.ones_like(g)
            for j in range(m, N):
                outer = outer * (g + Delta[j])
            excess = excess + outer * ((g + Delta[m] + c[m - 1]) ** m - (g + Delta[m]) ** m)
        return g**N >= (1 + _MARGIN) * excess

    low, high = jnp.log(jnp.maximum(square, 1e-60)) / N - _MARGIN, jnp.zeros_like(loss) + math.log(_ABOVE)
    found = is_above(jnp.exp(high))

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        above = is_above(jnp.exp(middle))
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    g = jnp.where(found, jnp.exp(high), jnp.inf)
    return (1 + _MARGIN) * jnp.sqrt(unit * (g + jnp.stack(Delta)))


def hessian_bound(
    sizes: DataSizes, net: LayerTuple, loss: Float[Array, ""], step: Float[Array, ""] | float
) -> Float[Array, ""]:
    """`β ≥ ‖∇²L‖_2` wherever gradient descent with a step of at most `step`, and at most `1/β`, goes. Traceable.

    **Arguments:** as for `layer_bounds`.
    """
    r = layer_bounds(sizes, net, loss, step)
    N = net.depth
    others = [math.prod([r[k] for k in range(N) if k != j], start=jnp.ones_like(loss)) for j in range(N)]
    second = _second_part([r[j] for j in range(N)], sizes.greatest, loss)
    beta = (1 + _MARGIN) * (sizes.greatest**2 * sum(x**2 for x in others) + second)
    return jnp.where(jnp.isfinite(beta), beta, jnp.inf)


def _second_part(r: list[Array], greatest: Float[Array, ""], loss: Float[Array, ""]) -> Float[Array, ""]:
    """Of the bound, what the residual contributes: the largest sum of a row bounds the largest eigenvalue of `(P_ij)`."""
    N, one = len(r), jnp.ones_like(loss)
    rows = [
        sum(math.prod([r[k] for k in range(N) if k not in (i, j)], start=one) for i in range(N) if i != j) * one
        for j in range(N)
    ]
    return jnp.max(jnp.stack(rows)) * greatest * jnp.sqrt(2 * loss)


def settles(
    objective: LinearObjective, net: LayerTuple, loss: Float[Array, ""], step: Array | float
) -> Bool[Array, ""]:
    """Whether gradient descent with this step certainly ends at loss zero, near this network: the end of the above. Traceable.

    It can hold only where no hidden layer is narrower than both `d_y` and the design, and in the last stretch: the network must
    be close to a minimum at which `step` is below `2/‖∇²L‖`.

    **Arguments:** `net`: one network, in coordinates with a diagonal design; `loss`: its effective loss.
    """
    N, D = net.depth, objective.design
    after, before = [jnp.eye(net.widths[-1], dtype=D.dtype)], [D]
    for w in net.weights[:0:-1]:
        after.append(matmul(after[-1], w))
    for w in net.weights[:-1]:
        before.append(matmul(w, before[-1]))
    after = after[::-1]
    r = [_extreme_singular_values(w)[1] for w in net.weights]
    greatest = jnp.max(jnp.abs(jnp.diagonal(D)))
    least_after, most_after = zip(*map(_extreme_singular_values, after), strict=True)
    least_before, most_before = zip(*(_extreme_singular_values(w.T) for w in before), strict=True)
    most = list(zip(most_after, most_before, strict=True))

    def product(factors):
        return math.prod(factors, start=jnp.ones_like(loss))

    def on_ball(rho):
        """`μ` and `β`."""
        mu, beta = jnp.zeros_like(loss), jnp.zeros_like(loss)
        for j in range(N):
            moved_after = product([x + rho for x in r[j + 1 :]]) - product(r[j + 1 :])
            moved_before = greatest * (product([x + rho for x in r[:j]]) - product(r[:j]))
            least = jnp.maximum(least_after[j] - moved_after, 0.0) * jnp.maximum(least_before[j] - moved_before, 0.0)
            mu, beta = mu + least**2, beta + ((most[j][0] + moved_after) * (most[j][1] + moved_before)) ** 2
        return mu, (1 + _MARGIN) * (beta + _second_part([x + rho for x in r], greatest, loss))

    first, _ = on_ball(jnp.zeros_like(loss))
    first = jnp.where(first > 0, first, 1.0)
    held = jnp.zeros(loss.shape, bool)
    for share in (1.5, 4.0, 16.0):  # of the way that it takes where β is small beside 1/η
        rho = share * jnp.sqrt(2 * loss / first)
        mu, beta = on_ball(rho)
        slack = 1 - 0.5 * step * beta
        good = (mu > 0) & (slack > 0)
        way = jnp.sqrt(2 * loss / jnp.where(good, mu, 1.0)) / jnp.where(good, slack, 1.0)
        held = held | (good & ((1 + _MARGIN) * way <= rho))
    return held


def _extreme_singular_values(W: Float[Array, "d e"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Below the `d`-th singular value, 0 if there is none, and above the largest, both by more than round-off."""
    wide = W.shape[0] <= W.shape[1]
    values = jnp.linalg.eigvalsh(matmul(W, W.T) if wide else matmul(W.T, W))
    most = values[-1]
    least = jnp.maximum(values[0] - _MARGIN * most, 0.0) if wide else jnp.zeros_like(most)
    return jnp.sqrt(least), jnp.sqrt((1 + _MARGIN) * jnp.maximum(most, 0.0))


def sublevel_bound(objective: NetworkObjective, net: LayerTuple) -> float:
    """`β ≥ ‖∇²L‖_2` on the whole sublevel set of a network with weight decay, `{L ≤ L(w)}`; infinite where none is known.

    There `½κ‖w‖² ≤ L(w)`, so the norm of every layer is at most `r = √(2L(w)/κ)`. First and second derivatives of the outputs go
    from layer to layer by product and chain rule, with the bounds of the activations' derivatives, as in `gdflow.attraction`. A
    coarse bound: it grows like a power of `r`, twice the number of layers. On the host.
    """
    o, loss, kappa = objective, float(objective.effective_loss(net)), float(objective.decay)
    known = type(o.loss) in LOSS_BOUNDS and all(activation.bounds is not None for activation in o.activations)
    if not (kappa > 0 and known and np.isfinite(loss)):
        return math.inf
    r, X = math.sqrt(2 * loss / kappa), np.asarray(o.design, dtype=np.float64)
    m = X.shape[1]
    # Bounds of the k-th derivative of a layer's outputs as a form in the weights: B_k in the norm of all samples, c_k of any one.
    B, c = [float(np.linalg.norm(X, 2)), 0.0, 0.0], [float(np.linalg.norm(X, axis=0).max()), 0.0, 0.0]
    for w, activation in zip(net.weights, o.layer_activations(net.depth), strict=True):
        assert activation.bounds is not None
        s1, s2 = activation.bounds[:2]
        z, b = ([r * a[0], r * a[1] + a[0], r * a[2] + 2 * a[1]] for a in (c, B))
        rest = abs(float(activation.both(jnp.zeros((), float))[0])) * math.sqrt(w.shape[0]) + o.biases
        c = [rest + s1 * z[0], s1 * z[1], s2 * z[1] ** 2 + s1 * z[2]]
        B = [rest * math.sqrt(m) + s1 * b[0], s1 * b[1], s2 * z[1] * b[1] + s1 * b[2]]
    slope = math.sqrt(2 * loss) if isinstance(o.loss, SquaredError) else math.sqrt(2 * m)
    beta = LOSS_BOUNDS[type(o.loss)][0] * B[1] ** 2 + slope * B[2] + kappa
    return (1 + _MARGIN) * beta


@eqx.filter_jit
def _bound_here(problem: Problem, sizes: DataSizes, net: LayerTuple, step: Array) -> Array:
    return hessian_bound(sizes, net, problem.effective_loss(net), step)


def smoothness_bound(problem: Problem, net: LayerTuple, step: float = 0.0) -> float:
    """`β ≥ ‖∇²L‖_2` wherever gradient descent goes from a network, if its steps are at most `step` and at most `1/β`.

    For the squared error of linear networks as the module's first lines say, for smooth networks with weight decay on the whole
    sublevel set (`sublevel_bound`, far more coarse). An estimate, for comparison, is the sharpness at a network,
    `gdflow.landscape.sharpness`.

    **Arguments:** `net`: one network in the problem's coordinates; `step`: by default 0, for the gradient flow; larger steps let
    the conserved quantities of linear networks drift, so that the bound grows with them.

    **Returns:** the bound; infinite where it overflows. On the host.

    **Raises:** `ValueError` for problems of which no bound is known, networks that do not fit, steps below zero; `TypeError`
    where traced: `gdflow.smoothness.hessian_bound` can be.

    ```python
    >>> problem = Problem.from_singular_values([3.0, 2.0])
    >>> smoothness_bound(problem, LayerTuple([jnp.diag(jnp.sqrt(problem.singular_values))] * 2))  # = 2·s_1, at a minimum
    6.0
    ```
    """
    step = check_number("step", step)
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    if (beta := _of_sublevel_set(problem, net)) is not None:
        return beta
    reduced, sizes, isometric = _prepared(problem, net)
    return float(_bound_here(isometric, sizes, reduced, jnp.asarray(step, reduced.weights[0].dtype)))


def largest_safe_step(problem: Problem, net: LayerTuple) -> float:
    """The largest `η` found with `η·β(η) ≤ 1`, `β` the `smoothness_bound`: with it, or less, gradient descent certainly descends.

    From there on the loss falls by at least `(η/2)‖∇L‖²` in every step, and the iterates converge to a critical point. Found to
    a part in 10³ by bisection. On the host.

    **Raises:** as `smoothness_bound`.
    """
    if (known := _of_sublevel_set(problem, net)) is not None:
        return 1 / known
    reduced, sizes, isometric = _prepared(problem, net)
    dtype = reduced.weights[0].dtype

    def beta(step):
        return float(_bound_here(isometric, sizes, reduced, jnp.asarray(step, dtype)))

    flow = beta(0.0)
    if not 0 < flow < math.inf:
        return 0.0 if flow else math.inf
    low, high = 0.0, 1 / flow
    while high - low > 1e-3 * high and high > 1e-12 / flow:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if middle * beta(middle) <= 1 else (low, middle)
    return low


def _of_sublevel_set(problem: Problem, net: LayerTuple) -> float | None:
    """`sublevel_bound`, of networks that are not linear; `None` for linear ones.

    **Raises:** `ValueError` where no bound is known.
    """
    objective = check_problem(problem).objective
    if not isinstance(objective, NetworkObjective) or is_traced(problem, net):
        return None
    problem.check_network(check_layer_tuple(net))
    beta = sublevel_bound(objective, net)
    if beta == math.inf:
        raise ValueError(
            "no bound of the Hessian is known here: of networks that are not linear one is for weight decay (without it sublevel "
            "sets are unbounded), smooth activations and the squared, logistic or softmax loss"
        )
    return beta


def _prepared(problem: Problem, net: LayerTuple) -> tuple[LayerTuple, DataSizes, Problem]:
    if is_traced(problem, net):
        raise TypeError("this runs on the host; gdflow.smoothness.hessian_bound can be traced by jax.jit, vmap or grad")
    check_problem(problem).check_network(check_layer_tuple(net))
    sizes = DataSizes(problem, net.widths)
    isometric = problem.isometric().without_info()
    return problem.convert(net, problem.coordinates, isometric.coordinates), sizes, isometric


def largest_curvature(objective: Objective, point: Any) -> Float[Array, ""]:
    """The size of the eigenvalue of `∇²L` of the largest size, by steps of the power method: from below. Traceable.

    **Arguments:** `point`: any pytree of arrays.
    """
    flat, back = ravel_pytree(point)

    def product(v):
        return jax.jvp(lambda x: ravel_pytree(objective.gradient(back(x)))[0], (flat,), (v,))[1]

    def improve(_, v):
        w = product(v)
        return w / jnp.maximum(jnp.linalg.norm(w), jnp.finfo(w.dtype).tiny)

    v = jax.lax.fori_loop(0, _POWERS, improve, jnp.cos(1.0 + jnp.arange(flat.size)) / jnp.sqrt(flat.size))
    return jnp.linalg.norm(product(v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)))
