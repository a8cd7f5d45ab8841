"""Shooting at saddles: a start whose trajectory passes as close to a saddle as wished, by derivatives of the simulator.

The trajectory through `W` runs into the saddle `W_s` if it lies on its stable manifold, i.e. if for large `T` nothing of
`Φ_T(W) − W_s` is left along the eigenvectors `E` of the Hessian at `W_s` whose eigenvalues are not positive: along negative
ones the flow leaves the saddle, along zero ones it ends at another critical point of the stratum. So

    F_T(W) = Eᵀ(Φ_T(W) − W_s) = 0,   as many equations as there are such directions,

is solved by Gauss–Newton steps of least change, `W ← W − J⁺F`, with `J` by differentiating the simulator, for growing `T`
beginning from `T = 0`, where it is linear.

Meanwhile round-off grows like `e^{μT}` with the fastest unstable rate `μ`, and what shrinks like `e^{−λT}` with `λ < μ` would
still be large when that takes over. So such slowly stable directions count among `E`, too: the start found is on the fast part
of the stable manifold.
"""

import dataclasses
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from rich.console import RenderableType

from gdflow.checks import check_number
from gdflow.dynamics.gradient_flow import simulate
from gdflow.dynamics.options import check_tolerances
from gdflow.landscape import hessian, inertia
from gdflow.network import LayerTuple, check_layer_tuple, matmul
from gdflow.problem import Problem
from gdflow.tables import Printable, key_value_table

#: Growth of the time horizon from one solution to the next.
_GROWTH = 1.4
#: Most Gauss–Newton steps per horizon.
_STEPS = 8


@dataclasses.dataclass(frozen=True, repr=False)
class Shot(Printable):
    """A start near the stable manifold of a saddle, from `gdflow.shoot_at_saddle`.

    - `start`: the start found; `moved`: its distance from the one given.
    - `time`, `distance`: when its trajectory passes the saddle, and how far from it (Frobenius norm, all layers).
    - `reached`: whether that is as close as was asked for.
    - `index`, `nullity`: negative and zero eigenvalues of the Hessian at the saddle.
    - `history`: time horizons and distances on the way, `(steps, 2)`.
    """

    start: LayerTuple
    moved: float
    time: float
    distance: float
    reached: bool
    index: int
    nullity: int
    history: np.ndarray

    def __rich__(self) -> RenderableType:
        rows = [
            ("saddle", f"index {self.index}, nullity {self.nullity}"),
            ("passes it", f"at distance {self.distance:.3g}, t = {self.time:.4g}" + ("" if self.reached else ": NOT REACHED")),
            ("start moved by", f"{self.moved:.4g}"),
        ]  # fmt: skip
        return key_value_table("Shot at a saddle", rows)


def shoot_at_saddle(
    problem: Problem,
    start: LayerTuple,
    saddle: LayerTuple,
    *,
    distance: float = 1e-6,
    rtol: float = 1e-13,
    atol: float = 1e-15,
    max_steps: float = 4096,
) -> Shot:
    """Moves a start, as little as a few Newton steps do, until its trajectory passes within `distance` of a saddle.

    Round-off limits how close it can get, to about `eps^{λ/(λ+μ)}` with a stable rate `λ ≥ μ` and the fastest unstable one `μ`
    (where no stable rate is that large, the largest one): the nearer the start, the closer it passes.

    **Arguments:** `saddle`: a critical point, e.g. from `gdflow.sample_critical_point`; `rtol`, `atol`, `max_steps`: of the
    integrations, by `diffrax.Dopri8`.

    **Returns:** a `Shot`; if the saddle is not reached, its `reached` says so and it holds the best start found.

    **Raises:** `ValueError` for networks that do not fit, and a `saddle` that is not critical or has no negative eigenvalue.

    ```python
    >>> saddle = gf.sample_critical_point(problem, widths, (1, 3), key=key)
    >>> print(shoot_at_saddle(problem, law.sample(key, 0), saddle))
    ```
    """
    for net in (start, saddle):
        problem.check_network(check_layer_tuple(net))
    if start.widths != saddle.widths:
        raise ValueError(f"the start has widths {start.widths}, the saddle {saddle.widths}")
    max_steps = check_tolerances(rtol, atol, max_steps)
    if not check_number("distance", distance) > 0:
        raise ValueError(f"the distance must be positive, got {distance}")
    H = np.asarray(hessian(problem, saddle))
    scale = float(np.linalg.norm(H, 2))
    slope = float(problem.gradient(saddle).norm())
    if slope > 1e-8 * scale * max(float(saddle.norm()), 1.0):
        raise ValueError(f"the saddle is not a critical point: ‖∇L‖ = {slope:.3g}")
    values, vectors = np.linalg.eigh(H)
    decision = inertia(problem, saddle)
    if decision.negative == 0:
        raise ValueError("the Hessian has no negative eigenvalue there: this is no strict saddle")
    center, unravel = ravel_pytree(saddle)
    unstable = -float(values[0])
    # Not counting on directions slower than the unstable ones, unless there are no others.
    kept = values > (unstable if values[-1] > unstable else 0.99 * values[-1])
    E = jnp.asarray(vectors[:, ~kept])
    slowest = float(values[kept][0])
    problem = problem.without_info()

    def end(flat: Array, T: Array) -> Array:
        run = simulate(
            problem,
            unravel(flat),
            T,
            ts=T[None],
            solver=diffrax.Dopri8(),
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            dense=False,
        )
        return ravel_pytree(run.final)[0] - center

    @eqx.filter_jit
    def aim(flat: Array, T: Array) -> tuple[Array, Array]:
        """The step of least change, and how far the trajectory ends from the saddle."""
        miss, pull = jax.vjp(lambda x: end(x, T), flat)
        (J,) = jax.vmap(pull)(E.T)
        step = jnp.linalg.lstsq(J, -matmul(E.T, miss))[0]
        return step, jnp.linalg.norm(miss)

    flat = ravel_pytree(start)[0]
    first = flat
    flat = flat - matmul(E, matmul(E.T, flat - center))  # T = 0
    horizon = 0.5 / scale
    best = (math.inf, flat, 0.0)
    history: list[tuple[float, float]] = []
    while True:
        T = jnp.asarray(horizon)
        previous = math.inf
        for _ in range(_STEPS):
            step, miss = aim(flat, T)
            if not math.isfinite(float(miss)):
                break
            if float(miss) < best[0]:
                best = (float(miss), flat, horizon)
            size = float(jnp.linalg.norm(step))
            if float(miss) <= distance or not size < previous:
                break
            previous = size
            flat = flat + step
        history.append((horizon, float(miss)))
        # Round-off has taken over, or would have in any case.
        if best[0] <= distance or not float(miss) < 100 * best[0] or horizon * max(unstable, slowest) > 80.0:
            break
        horizon *= _GROWTH
    miss_best, flat, time = best
    return Shot(
        start=unravel(flat),
        moved=float(jnp.linalg.norm(flat - first)),
        time=time,
        distance=miss_best,
        reached=miss_best <= distance,
        index=decision.negative,
        nullity=decision.zero,
        history=np.array(history),
    )
