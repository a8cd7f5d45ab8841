"""Proves one start: integrates it, carries the tube along, tries tighter tolerances and the sharper bound, or says why not."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdflow.basins.methods import AbstractMethod, Place
from gdflow.basins.path_bounds import Piece, bound_piece, gradient_of_target
from gdflow.basins.tube import Radius, Tube, advance, arrival_error, default_methods
from gdflow.checks import check_count
from gdflow.layouts import LanesFirst
from gdflow.network import LayerTuple, check_layer_tuple, count_parameters
from gdflow.objective import LinearObjective
from gdflow.problem import Problem, check_problem
from gdflow.proofs.proof import Proof
from gdflow.proofs.sharp import MOST_PARAMETERS, PARTS, SharpBound, split
from gdflow.rounding import residual_error
from gdflow.thresholds import Thresholds, residual_bound
from gdflow.verdicts import AbstractLevelVerdict, LevelVerdict

#: Where a ball of starts or the sharper bound is asked for, the path goes on to this part of the threshold.
_DEEP = 1e-3
#: A gradient of this norm or less moves nothing.
_VANISHING = 1e-150
#: Radii that are tried for a ball of starts, in each of two rounds.
_RADII = 128
#: Of the one lane.
_LAYOUT = LanesFirst()


def prove(
    problem: Problem,
    net: LayerTuple,
    *,
    verdict: AbstractLevelVerdict | None = None,
    methods: AbstractMethod | Sequence[AbstractMethod] | None = None,
    sharp: bool = True,
    ball: bool = False,
    max_steps: float = 10_000,
) -> Proof:
    """Proves that the exact flow from a start ends at the lowest level, or says why it cannot.

    The mathematics is that of `gdflow.basins.tube`: a ball round the computed path that holds the exact flow.

    **Arguments:**

    - `problem`: with the squared error, in float64; `net`: one network in its coordinates.
    - `verdict`: what is to be proved, by default `gf.verdicts.LevelVerdict`.
    - `methods`: tried one after the other, by default Dopri8 at rtol 1e-7, 1e-9 and 1e-12. Explicit
      Runge–Kutta methods, whose interpolant is a polynomial.
    - `sharp`: where that fails, try the Hessian's eigenvalues on quarters of the steps (`gdflow.proofs.sharp`), for networks
      of at most 400 parameters.
    - `ball`: also look for the largest ball of starts, round `Proof.start`, that these inequalities prove. The basin may be
      far larger.
    - `max_steps`: of each attempt.

    **Returns:** a `gdflow.proofs.Proof`; without a proof it says what failed and has the path of the last attempt.

    **Raises:** `ValueError` or `TypeError` for networks that do not fit or are not finite, losses without levels, float32, and
    methods without a polynomial interpolant.

    ```python
    >>> proof = gf.prove(problem, net)
    >>> proof.check().accepted  # the same in ball arithmetic
    True
    ```
    """
    check_problem(problem)
    check_layer_tuple(net)
    if net.batch_shape:
        raise ValueError(
            f"one start is needed, got a batch of shape {net.batch_shape}: basin_sizes(…, proof=True) takes many"
        )
    problem.check_widths(net.widths)
    problem.check_network(net)
    max_steps = check_count("max_steps", max_steps)
    verdict = LevelVerdict(problem, net.widths) if verdict is None else verdict
    rider = Tube(verdict, problem.coordinates == "data")
    if not verdict.of_every_start:
        raise ValueError(
            f"{type(verdict).__name__} speaks of almost every start or of balanced ones, and a proof is about one: take "
            "gdflow.verdicts.LevelVerdict; balanced starts are proved by basin_sizes(…, proof=True)"
        )
    if methods is not None and not isinstance(methods, AbstractMethod | Sequence):
        raise TypeError(f"methods are made by gdflow.integrator(solver, rtol, atol); got {methods!r}")
    if methods is None:
        first, again = default_methods(None)
        methods = (first, *again)
    if isinstance(methods, AbstractMethod):
        methods = (methods,)
    if not methods:
        raise ValueError("no methods: give at least one, or leave them out")
    for method in methods:
        if not isinstance(method, AbstractMethod):
            raise TypeError(f"methods are made by gdflow.integrator(solver, rtol, atol); got {method!r}")
        rider.check(problem, verdict, net.widths, method)
    isometric = problem.isometric()
    start = problem.convert(net, problem.coordinates, isometric.coordinates)
    run = _Prover(isometric.linear, verdict.thresholds, start, float(rider.first_radius(start)), max_steps)
    widest = count_parameters(net.widths)
    attempts: list[str] = []
    last: _Result | None = None
    for method in methods:
        last = run.plain(method, deep=ball)
        attempts.append(f"{method.name}: {last.outcome}")
        if last.proved or not run.is_open:
            break
    if last is not None and not last.proved and run.is_open and sharp and widest <= MOST_PARAMETERS:
        for method in methods[1:] or methods:  # smaller pieces
            last = run.sharp(method)
            attempts.append(f"{method.name}, sharper bound: {last.outcome}")
            if last.proved:
                break
    assert last is not None
    radius = run.ball(last) if ball and last.proved else None
    return run.proof(last, verdict.minimum, tuple(attempts), problem.coordinates, radius)


@dataclasses.dataclass
class _Result:
    """An attempt: the path and the tube at its joints, up to arrival or to where the attempt ended."""

    proved: bool
    outcome: str
    pieces: list[Piece]
    coefficients: list[list[np.ndarray]]  # piece by piece, layer by layer
    sharp: list[SharpBound | None]
    ends: list[list[np.ndarray]]  # states at the joints
    radius: list[float]
    exponent: list[float]
    loss: list[float]
    residual: list[float]  # round-off of the computed √(2L) …
    change: list[float]  # … and how far the exact flow's may be from it besides


@eqx.filter_jit
def _stride(objective: LinearObjective, method: AbstractMethod, place: Place, control: Any, tube: Radius) -> tuple:
    """One step of one lane: what it leads to, and the bounds of its piece of path."""
    step = method.attempt(objective, place)
    decision = method.accept(objective, place, step, control)
    path, terms = method.path(objective, place, step)
    ends = jax.tree.leaves(place.y), jax.tree.leaves(step.y)
    piece = bound_piece(method.layout, objective, place.t_next - place.t, path, ends, terms=terms)
    return step, decision, [c[:, 0] for c in path], piece, advance(objective, piece, tube), _measure(objective, step.y)


def _measure(objective: LinearObjective, y: LayerTuple) -> tuple:
    """Loss, error of the residual and norm of the gradient of the only lane."""
    net = jax.tree.map(lambda w: w[0], y)
    return objective.effective_loss(net), residual_error(objective, net), objective.gradient(net).norm()


@eqx.filter_jit
def _changes(objective: LinearObjective, y: LayerTuple, radii: Any) -> Any:
    """`Δ` at one state, for radii."""
    return jax.vmap(lambda radius: arrival_error(_LAYOUT, objective, y, radius[None])[0])(radii)


_advance = eqx.filter_jit(advance)
_gradient_of_target = eqx.filter_jit(gradient_of_target)
_measured = eqx.filter_jit(_measure)


class _Prover:
    """What the attempts at one start have in common."""

    def __init__(
        self, objective: LinearObjective, thresholds: Thresholds, start: LayerTuple, radius: float, max_steps: int
    ):
        self.objective, self.thresholds, self.start = objective, thresholds, start
        self.first_radius, self.max_steps = float(radius), max_steps
        #: Certified is a state whose `√(2L)`, errors included, is below this.
        self.reach = float(residual_bound(thresholds.threshold(), thresholds.num_entries))
        self.is_open = True

    def certified(self, loss: float, error: float) -> bool:
        return math.sqrt(2 * loss) + error < self.reach

    def plain(self, method: AbstractMethod, deep: bool = False) -> _Result:
        """The bound by products of layers, along the steps; `deep`: go on past arrival."""
        objective, traced = self.objective, method.traced()
        y = jax.tree.map(lambda w: w[None], self.start)
        loss, residual, slope = map(float, _measured(objective, y))
        tube = Radius(jnp.full(1, self.first_radius), jnp.zeros(1))
        result = _Result(
            False, "", [], [], [], [[np.asarray(w) for w in self.start.weights]], [self.first_radius], [0.0], [loss], [residual],
            _changes(objective, y, tube.radius).tolist(),
        )  # fmt: skip
        if self.certified(loss, residual + result.change[0]):
            result.proved, result.outcome, self.is_open = True, "the start is below the level already", False
        elif slope <= _VANISHING:
            result.outcome, self.is_open = (
                "the gradient vanishes (below 1e-150): the start is critical, or too near to be told apart",
                False,
            )
        if not self.is_open:
            return result
        memory, t_next, control = eqx.filter_jit(type(traced).begin)(traced, objective, y)
        t_next = jnp.where(jnp.isfinite(t_next) & (t_next > 0), t_next, 0.01)
        place = Place(y, memory, jnp.zeros(1), t_next, jnp.full(1, loss))
        threshold = float(self.thresholds.threshold())
        arrival: int | None = None
        for _ in range(self.max_steps):
            step, decision, stacked, piece, reached, measured = _stride(objective, traced, place, control, tube)
            control = decision.control
            if not bool(decision.keep[0]):
                place = eqx.tree_at(lambda p: p.t_next, place, decision.t_next)
                if float(decision.t_next[0] - place.t[0]) <= 1e-15 * float(place.t[0]):
                    result.outcome = "the steps shrank to nothing"
                    break
                continue
            place = Place(step.y, step.memory, decision.t, decision.t_next, step.loss)
            tube = reached
            loss, residual, slope = map(float, measured)
            change = float(_changes(objective, step.y, tube.radius)[0])
            error = residual + change
            result.pieces.append(jax.tree.map(np.asarray, piece))
            result.coefficients.append([np.asarray(c) for c in stacked])
            result.sharp.append(None)
            result.ends.append([np.asarray(w[0]) for w in step.y.weights])
            result.radius.append(float(tube.radius[0]))
            result.exponent.append(float(tube.exponent[0]))
            result.loss.append(loss)
            result.residual.append(residual)
            result.change.append(change)
            if arrival is None and self.certified(loss, error):
                arrival = len(result.pieces)
                result.proved, result.outcome = True, f"proved after {arrival} steps"
            broken = arrival is None and not self.certified(0.0, error)
            if (broken or arrival is not None) and not deep:
                result.outcome = result.outcome or self._why_broken(result)
                break
            if loss <= _DEEP * threshold or slope <= _VANISHING:
                result.outcome = result.outcome or self._why_broken(result)
                break
        else:
            result.outcome = result.outcome or f"not below the level after {self.max_steps} steps"
        result.outcome = result.outcome or "not below the level"
        return self._cut(result, arrival) if not deep else result

    def _why_broken(self, result: _Result) -> str:
        if math.isinf(result.radius[-1]):
            k = int(np.argmax(np.isinf(result.radius)))
            return (
                f"the tube broke at step {k}, t = {self._time(result, k):.4g}, with radius {result.radius[k - 1]:.2g}"
            )
        return f"the tube got as wide as the level is deep: radius {result.radius[-1]:.2g}, exponent {result.exponent[-1]:.2f}"

    @staticmethod
    def _time(result: _Result, joints: int) -> float:
        return float(sum(piece.h[0] for piece in result.pieces[:joints]))

    @staticmethod
    def _cut(result: _Result, joint: int | None) -> _Result:
        """The result up to a joint."""
        if joint is None:
            return result
        names = ("pieces", "coefficients", "sharp")
        values: dict[str, Any] = {name: getattr(result, name)[:joint] for name in names}
        values |= {
            name: getattr(result, name)[: joint + 1]
            for name in ("ends", "radius", "exponent", "loss", "residual", "change")
        }
        return dataclasses.replace(result, **values)

    def sharp(self, method: AbstractMethod) -> _Result:
        """The better of both bounds, on parts of the steps."""
        objective = self.objective
        path = self.plain(method, deep=True)
        result = dataclasses.replace(
            path, proved=False, outcome="", pieces=[], coefficients=[], sharp=[], ends=path.ends[:1], radius=path.radius[:1],
            exponent=[0.0], loss=path.loss[:1], residual=path.residual[:1], change=path.change[:1],
        )  # fmt: skip
        for coefficients, piece, end in zip(path.coefficients, path.pieces, path.ends[1:], strict=True):
            parts = split(coefficients)
            for part, last in zip(parts, [False] * (PARTS - 1) + [True], strict=True):
                joint = end if last else [c.sum(axis=0) for c in part]
                h = float(piece.h[0]) / PARTS
                bounds = _bound_part(objective, jnp.full(1, h), part, result.ends[-1], joint)
                bound = SharpBound(objective, part, h)
                tube, exponent = _best(objective, bounds, bound, result.radius[-1], result.exponent[-1])
                y = LayerTuple([jnp.asarray(w)[None] for w in joint])
                loss, residual, _ = map(float, _measured(objective, y))
                change = float(_changes(objective, y, jnp.full(1, tube.radius))[0])
                error = residual + change
                result.pieces.append(jax.tree.map(np.asarray, bounds))
                result.coefficients.append(part)
                result.sharp.append(bound if tube.sharp else None)
                result.ends.append(joint)
                result.radius.append(tube.radius)
                result.exponent.append(exponent)
                result.loss.append(loss)
                result.residual.append(residual)
                result.change.append(change)
                if self.certified(loss, error):
                    result.proved, result.outcome = True, f"proved after {len(result.pieces)} parts of steps"
                    return result
                if not self.certified(0.0, error):
                    result.outcome = self._why_broken(result)
                    return result
        result.outcome = path.outcome if not path.proved else "not below the level"
        return result

    def ball(self, result: _Result) -> float:
        """The largest radius of a ball of starts whose tube arrives somewhere on the path, by search."""
        low, high = max(self.first_radius, 1e-16), 1e3
        best = 0.0
        for _ in range(2):
            radii = np.geomspace(low, high, _RADII)
            good = self._arrive(result, radii)
            if not good.any():
                return best
            k = int(np.flatnonzero(good).max())
            best = float(radii[k])
            low, high = best, float(radii[min(k + 1, _RADII - 1)])
        return best

    def _arrive(self, result: _Result, radii: np.ndarray) -> np.ndarray:
        """Which balls of starts are proved."""
        tube = Radius(jnp.asarray(radii), jnp.zeros(len(radii)))
        done = self._below(result, 0, tube)
        for k, (piece, bound) in enumerate(zip(result.pieces, result.sharp, strict=True)):
            if bound is None:
                wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (*x.shape[:-1], len(radii))), piece)
                tube = _advance(self.objective, wide, tube)
            else:
                both = [_best(self.objective, piece, bound, float(r), 0.0)[0].radius for r in np.asarray(tube.radius)]
                tube = Radius(jnp.asarray(both), tube.exponent)
            done = done | self._below(result, k + 1, tube)
        return done

    def _below(self, result: _Result, joint: int, tube: Radius) -> np.ndarray:
        y = LayerTuple([jnp.asarray(w)[None] for w in result.ends[joint]])
        error = result.residual[joint] + _changes(self.objective, y, tube.radius)
        return np.sqrt(2 * result.loss[joint]) + np.asarray(error) < self.reach

    def proof(
        self, result: _Result, verdict: str, attempts: tuple[str, ...], coordinates: str, ball: float | None
    ) -> Proof:
        if result.proved:  # what was done past arrival is no part of it
            errors = map(sum, zip(result.residual, result.change, strict=True))
            first = next(
                k for k, (loss, e) in enumerate(zip(result.loss, errors, strict=True)) if self.certified(loss, e)
            )
            result = self._cut(result, first)
        depth = self.start.depth
        empty = [np.zeros((0, 1, *np.shape(w))) for w in self.start.weights]
        path = [
            np.stack([c[j] for c in result.coefficients]) if result.coefficients else empty[j] for j in range(depth)
        ]
        return Proof(
            proved=result.proved,
            verdict=verdict,
            reason="" if result.proved else result.outcome,
            A=np.asarray(self.objective.target),
            D=np.asarray(self.objective.design),
            start=LayerTuple([np.asarray(w) for w in self.start.weights]),
            durations=np.array([float(piece.h[0]) for piece in result.pieces]),
            path=tuple(path),
            sharp=np.array([bound is not None for bound in result.sharp], bool),
            radius=np.array(result.radius),
            exponents=np.array(result.exponent),
            losses=np.array(result.loss),
            errors=np.array(result.residual) + np.array(result.change),
            threshold=float(self.thresholds.threshold()),
            target_error=float(self.objective.data_error),
            attempts=attempts,
            coordinates=coordinates,
            ball=ball,
        )


@dataclasses.dataclass(frozen=True)
class _Reached:
    radius: float
    sharp: bool


@eqx.filter_jit
def _bound_part(objective: LinearObjective, h: Any, part: list, begin: list, end: list) -> Piece:
    ends = [jnp.asarray(w)[None] for w in begin], [jnp.asarray(w)[None] for w in end]
    return bound_piece(_LAYOUT, objective, h, [jnp.asarray(c)[:, None] for c in part], ends)


def _best(
    objective: LinearObjective, piece: Piece, bound: SharpBound, radius: float, exponent: float
) -> tuple[_Reached, float]:
    """The tube after a piece by the better of both bounds."""
    tube = _advance(objective, piece, Radius(jnp.full(1, radius), jnp.zeros(1)))
    plain, plain_exponent = float(tube.radius[0]), float(tube.exponent[0])
    entry = radius + float(piece.defect[0]) + float(piece.gap[0])
    best, grown, is_sharp = plain, plain_exponent, False
    for margin in (1.05, 1.5):
        E = margin * max(1.0, math.exp(min(bound(margin * entry), 100.0))) * entry
        mu = bound(E)
        if not mu < 100:
            continue
        sizes = jnp.asarray(bound.a + bound.rho + E)[:, None]
        forced = float(piece.h[0]) * float(_gradient_of_target(objective, sizes)[0])
        growth = math.exp(mu) * (1 + 1e-13)
        inside = float(piece.defect[0]) + float(piece.gap[0]) + forced
        if max(1.0, growth) * (radius + inside) * (1 + 1e-12) < E:
            reached = (growth * radius + max(1.0, growth) * inside) * (1 + 1e-12)
            if reached < best:
                best, grown, is_sharp = reached, mu, True
    return _Reached(best, is_sharp), exponent + grown
