"""The tube round a computed path that holds the exact flow: a proof, carried along with every lane.

*From a state to a theorem.* A certificate says what the exact flow does from a computed state; how far that is from the exact
flow of the start, the tube says. Let `W(t)` be the exact flow from the float64 start, `p(t)` the computed path, a polynomial on
each step, and `e = W − p`. Then

    d/dt ½‖e‖² = −∫_0^1⟨∇²L(p + se)e, e⟩ds − ⟨e, r⟩ ≤ μ‖e‖² + ‖r‖‖e‖,   r = ṗ + ∇L(p),

where `μ(t) ≥ −λ_min∇²L` on the ball of radius `‖e(t)‖` round `p(t)`. So, on a step on which `μ` holds within a radius `E`,

    ε_new = e^{∫μ}(ε + ∫‖r‖)   if that is below `E`,

and where the computed states and the ends of the polynomials differ by round-off their distance is added
(`gdflow.basins.path_bounds` has `∫‖r‖` and `∫μ`). At the end of a step the exact flow's `√(2L)` exceeds the computed one by at
most `Δ(ε)`, the change of `W_N…W_1D` for layers that move by `ε`. As soon as it is below a threshold (`gdflow.thresholds`), the
limit of the *exact flow from the start* is proved to lie at the lowest level.

*Balanced starts.* Where the sign of `det W` decides (`gdflow.verdicts.Balanced`), an exactly balanced start on the wrong side
reaches no limit of full rank. Floating-point starts are balanced up to round-off only; the flow from them reaches it after a very
long time. What is proved then is about an exactly balanced start on the same side, as close as `gdflow.basins.nearly_balanced`
says: the tube begins with that radius.

*What it is about.* The objective with the float64 arrays `A` and `D` of the problem's isometric coordinates, every target within
`problem.data_error` of `A` included, and the float64 start in these coordinates. Rank decisions of the data are assumed
(`problem.report()` names them); so are singular values of the target that were taken for zero. Every inequality is evaluated
with a bound of its own round-off; none is an estimate.
"""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gdflow.basins.methods import AbstractMethod, Place, integrator
from gdflow.basins.methods.adaptive import AbstractIntegrator
from gdflow.basins.nearly_balanced import distance_to_balanced
from gdflow.basins.path_bounds import Piece, bound_piece, gradient_of_target, product_change, widening
from gdflow.basins.riders import AbstractRider, Stride
from gdflow.initialization import AbstractInitialization, Support
from gdflow.layouts import AbstractLayout, LanesFirst
from gdflow.network import LayerTuple, count_parameters
from gdflow.objective import LinearObjective, Objective, check_linear
from gdflow.problem import AbstractProblem, Problem, check_problem
from gdflow.rounding import frobenius
from gdflow.thresholds import certificate_threshold
from gdflow.verdicts import AbstractLevelVerdict, AbstractVerdict, Balanced, LevelVerdict, Moment

#: Radii `E` that are tried, as multiples of the radius that the tube would have if `μ` were that on the path itself.
MARGINS = (1.25, 2.5)
#: Sums and products of a few bounds.
INFLATION = 1 + 1e-12


class Radius(eqx.Module):
    """How far the exact flow may be from the path.

    - `radius`: `ε`; infinite where the inequalities broke.
    - `exponent`: `∫μ` so far.
    """

    radius: Float[Array, " lanes"]
    exponent: Float[Array, " lanes"]


def advance(objective: LinearObjective, piece: Piece, tube: Radius) -> Radius:
    """The tube at the end of a piece; its radius is infinite if no radius `E` was found that the tube stays below."""
    entry = tube.radius + piece.defect + piece.gap
    guess = jnp.exp(piece.expansion) * entry
    radius = jnp.full_like(entry, jnp.inf)
    exponent = piece.expansion
    for margin in reversed(MARGINS):
        E = margin * guess
        mu = (piece.expansion + widening(objective, piece, E)) * INFLATION
        forced = piece.h * gradient_of_target(objective, piece.sizes + E[None])
        reached = jnp.exp(mu) * (entry + forced) * INFLATION
        holds = reached < E  # never of what is not a number
        radius = jnp.where(holds, reached, radius)
        exponent = jnp.where(holds, mu, exponent)
    return Radius(radius, tube.exponent + exponent)


def arrival_error(
    layout: AbstractLayout, objective: LinearObjective, y: Any, radius: Float[Array, " lanes"]
) -> Float[Array, " lanes"]:
    """`Δ`: by how much the exact flow's `√(2L)` may exceed that of the computed state."""
    squares = jnp.stack(layout.squares(y))
    sizes = frobenius(squares, squares.dtype)
    d_norm = jnp.max(jnp.abs(jnp.diagonal(objective.design)))
    return product_change(sizes, radius, d_norm)


class _State(eqx.Module):
    tube: Radius
    ground: Int[Array, " lanes"]
    proved: Bool[Array, " lanes"]
    open: Bool[Array, " lanes"]


class Tube(AbstractRider):
    """Proves the verdict of a level for the exact flow from the start: a lane goes on until its proof closes or cannot.

    **Arguments:** `verdict`: the one that is to be proved; `rotated`: whether starts are drawn in other coordinates than the
    flow is integrated in, so that they are off by round-off from the beginning.
    """

    verdict: AbstractLevelVerdict
    rotated: bool = eqx.field(static=True)

    def __init__(self, verdict: AbstractVerdict, rotated: bool = False):
        if not isinstance(verdict, AbstractLevelVerdict):
            raise TypeError(
                f"what is proved are verdicts by levels, gdflow.verdicts.LevelVerdict for one; got {verdict!r}"
            )
        if not (verdict.of_every_start or isinstance(verdict, Balanced)):
            raise ValueError(
                f"{type(verdict).__name__} speaks of almost every start, and a proof is about one: take "
                "gdflow.verdicts.LevelVerdict, or leave the proof out"
            )
        self.verdict = verdict.without_info()
        self.rotated = rotated

    @property
    def columns(self) -> dict[str, str]:
        return {
            "proved": "1 if the verdict is proved for the exact flow from the start (from a balanced one close to it), else 0",
            "radius": "bound of the distance between the exact flow and the computed state at the end; infinite if none",
            "exponent": "integral of the bound of the rate at which the flow spreads: the radius has grown by its exponential",
        }

    @property
    def wants_dense(self) -> bool:
        return True

    def check(
        self, problem: AbstractProblem, verdict: AbstractVerdict, widths: tuple[int, ...], method: AbstractMethod
    ) -> None:
        if problem.dtype != jnp.float64:
            raise ValueError(
                f"proofs need float64 but the problem is {problem.dtype}: call "
                'jax.config.update("jax_enable_x64", True) before anything else'
            )
        own, threshold = self.verdict.thresholds, float(self.verdict.thresholds.threshold())
        other = verdict.thresholds if isinstance(verdict, AbstractLevelVerdict) else None
        if other is None or not np.array_equal(other.values, own.values):
            raise ValueError("the verdict that is to be proved is not that of the run")
        if threshold > float(certificate_threshold(check_problem(problem), widths)):
            raise ValueError(
                f"the verdict's threshold {threshold:.6g} is not that of this problem and of widths {tuple(widths)}: make the "
                "verdict from these"
            )
        if problem.coordinates == "data" and not self.rotated:
            raise ValueError(
                "starts in data coordinates are rotated before they are integrated: Tube(verdict, rotated=True)"
            )
        if self._of_balanced and len(set(widths)) > 1:
            raise ValueError(
                "starts in floating point are balanced up to round-off only, and how far the nearest exactly balanced one is, "
                f"is known for square layers only, not for widths {tuple(widths)}: leave the proof out"
            )
        if method.path_degree is None:
            raise ValueError(
                f"a proof follows the method's interpolant, and that of {method.name} is no polynomial that is known here: take "
                "an explicit Runge–Kutta method, e.g. gdflow.integrator(diffrax.Tsit5()) or diffrax.Dopri8()"
            )

    @property
    def _of_balanced(self) -> bool:
        """Whether the verdict is about exactly balanced starts only."""
        return not self.verdict.of_every_start

    def begin(self, objective: Objective, now: Moment, place: Place) -> _State:
        objective, nets = check_linear(objective), now.networks
        zero = jnp.zeros_like(now.loss)
        radius = self.first_radius(nets) + zero
        if self._of_balanced:
            radius = radius + jax.vmap(distance_to_balanced)(nets)
        tube = Radius(radius, zero)
        ground = jnp.broadcast_to(self.verdict.ground(objective, nets), zero.shape)
        change = arrival_error(LanesFirst(), objective, nets, tube.radius)
        proved = self.verdict.thresholds.certified(now.loss, now.residual_error + change, ground)
        return _State(tube, ground, proved, ~proved)

    def first_radius(self, nets: LayerTuple) -> Float[Array, "*lanes"] | float:
        """Of the rotation into the coordinates of the flow: two products for the first and the last layer."""
        if not self.rotated:
            return 0.0
        squares = [jnp.sum(jnp.square(w), axis=(-2, -1)) for w in (nets.weights[0], nets.weights[-1])]
        ends = [frobenius(x, x.dtype) for x in squares]
        return self.rotation(nets.widths, ends[0].dtype) * sum(ends)

    def rotation(self, widths: tuple[int, ...], dtype: jnp.dtype) -> float:
        """What the rotation costs in units of the norms of the first and the last layer."""
        return 64 * (widths[0] + widths[-1]) * float(jnp.finfo(dtype).eps) if self.rotated else 0.0

    def after(self, objective: Objective, state: _State, stride: Stride) -> _State:
        objective = check_linear(objective)
        method, place, step = stride.method, stride.place, stride.step
        layout = method.layout
        path, terms = method.path(objective, place, step)
        ends = (jax.tree.leaves(place.y), jax.tree.leaves(step.y))
        piece = bound_piece(layout, objective, place.t_next - place.t, path, ends, terms=terms)
        tube = advance(objective, piece, state.tube)
        change = arrival_error(layout, objective, step.y, tube.radius)
        thresholds, end = self.verdict.thresholds, stride.end
        arrived = thresholds.certified(end.loss, end.residual_error + change, state.ground)
        # Once the change alone is more than the threshold, no loss is small enough.
        hopeless = ~thresholds.certified(jnp.zeros_like(end.loss), end.residual_error + change, state.ground)
        moved = stride.kept & state.open
        tube = jax.tree.map(lambda new, old: jnp.where(moved, new, old), tube, state.tube)
        return _State(
            tube,
            state.ground,
            state.proved | (moved & arrived),
            state.open & ~(moved & (arrived | hopeless)),
        )

    def holds(self, objective: Objective, state: _State) -> Bool[Array, " lanes"]:
        return state.open

    def failed(self, columns: dict[str, np.ndarray]) -> Bool[np.ndarray, " num"]:
        return columns["proved"] == 0

    def rows(
        self, objective: Objective, state: _State, now: Moment, times: Sequence[Float[Array, " lanes"]]
    ) -> dict[str, Array]:
        objective, real = check_linear(objective), now.loss.dtype
        # What strayed to the other side of det W = 0 has no verdict.
        stayed = self.verdict.ground(objective, now.networks) == state.ground
        return {
            "proved": (state.proved & stayed).astype(real),
            "radius": state.tube.radius,
            "exponent": state.tube.exponent,
        }


#: Proofs are the command line's default up to this many parameters (benchmarks/proofs.py).
_CHEAP = 500


def proves_by_default(
    problem: Problem, law: AbstractInitialization, method: AbstractMethod | None, verdict: AbstractVerdict | None
) -> bool:
    """Whether the command line proves verdicts unless told otherwise.

    So it does where a proof costs a small multiple of the run: for small networks, by methods of order five at least, and where
    what is claimed holds for floating-point starts, that is not by almost-sure verdicts and not for balanced laws.
    """
    explicit = method is None or (
        isinstance(method, AbstractIntegrator) and method.path_degree is not None and method.order >= 5
    )
    plain = (verdict is None and law.invariant_set is not Support.BALANCED) or isinstance(verdict, LevelVerdict)
    return explicit and plain and count_parameters(law.widths) <= _CHEAP and problem.target.dtype == jnp.float64


#: Relative tolerances of the attempts, a thousandth of them absolute.
_TOLERANCES = (1e-7, 1e-9, 1e-12)


def default_methods(method: AbstractMethod | None) -> tuple[AbstractMethod, tuple[AbstractMethod, ...]]:
    """The method of the first attempt and those of the later ones, all of them Dopri8 unless the first is given.

    What a proof costs goes with the number of steps, of which a method of high order has fewer; and all attempts share one
    compiled program. On all workloads of `benchmarks/proofs.py --methods` the time per proved start is within a tenth of the
    least of eight solvers and tolerances.
    """
    attempts = [integrator(diffrax.Dopri8(), rtol, 1e-3 * rtol) for rtol in _TOLERANCES]
    if method is None:
        return attempts[0], tuple(attempts[1:])
    return method, tuple(later for later in attempts[1:] if later.rtol < getattr(method, "rtol", 1.0))
