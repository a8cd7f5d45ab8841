"""Perturbed gradient descent: plain descent, and a little noise wherever the gradient is small (Jin et al. 2017).

Gradient descent that starts at a strict saddle, or on its stable manifold, does not get away from it. With noise it does, and
fast. Let `L` be `β`-smooth, `‖∇²L‖ ≤ β`, with a Hessian of Lipschitz constant `ρ`, and `Δ_f ≥ L(w_0) − inf L`. A point is
*second-order stationary* to the tolerance `ε` if

    ‖∇L(w)‖ ≤ ε   and   λ_min(∇²L(w)) ≥ −√(ρε).

With `d` weights, a probability of failure `δ` and a constant `c`

    χ = 3 max{ln(dβΔ_f/(cε²δ)), 4},   η = c/β,   ρ_b = (√c/χ²) ε/β,
    g_thr = (√c/χ²) ε,   f_thr = (c/χ³) √(ε³/ρ),   t_thr = ⌈(χ/c²) β/√(ρε)⌉,

and at `t = 0, 1, …` from `t_noise = −t_thr − 1`

1. if `‖∇L(w_t)‖ ≤ g_thr` and `t − t_noise > t_thr`: store `w̃ = w_t`, set `t_noise = t`, and add to `w_t` noise that is uniform
   in the ball of radius `ρ_b` of the space of all weights;
2. if `t − t_noise = t_thr` and `L(w_t) − L(w̃) > −f_thr`: the noise did not help, so return `w̃`, the point *before* it;
3. `w_{t+1} = w_t − η∇L(w_t)`.

Theorem (Jin, Ge, Netrapalli, Kakade, Jordan 2017; Theorem 6.9 of Cohen's lecture): there is an absolute constant `c_max` such
that for `ε ≤ β²/ρ` and `c ≤ c_max` the point returned is second-order stationary with probability `1 − δ` or more, after
`O(βΔ_f/ε² log⁴(dβΔ_f/(ε²δ)))` steps. What `c_max` is they do not say. (The lecture compares a number of steps with a `t_thr` that
is no integer; it is rounded up here.)

What is found need not be a minimum. A saddle whose negative eigenvalues are not below `−√(ρε)` is second-order stationary and may
be returned: to leave one with the eigenvalue `−α` the tolerance must be less than `α²/ρ`. Where the Hessian has no negative
eigenvalue, as at the origin of a linear network with three layers, no tolerance is small enough.
"""

import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key
from rich.console import RenderableType

from gdflow.checks import check_count, check_number, check_positive, is_traced
from gdflow.dynamics.lipschitz import estimate_constants
from gdflow.ids import check_key
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.network import LayerTuple, check_layer_tuple
from gdflow.objective import DataObjective, Objective
from gdflow.points import count_numbers, point_norm
from gdflow.problem import AbstractProblem, Problem, check_any_problem, critical_values
from gdflow.programs import forget_old_programs
from gdflow.tables import Printable, key_value_table
from gdflow.teacher import TeacherObjective

#: Hessians of more parameters than this are not computed.
MOST_PARAMETERS = 4096
#: Where a result is printed, the Hessians are computed if their eigenvalues cost no more than about so many operations.
_CHEAP = 1e9
#: Keys are derived from that of the user by this number, so that they are not those of starts drawn with the same key.
_OURS = 0x9E3779B9
#: Losses that are nowhere negative.
_NOT_NEGATIVE = (SquaredError, Logistic, SoftmaxCrossEntropy, Huber)
#: A threshold must be so many times as large as round-off.
_RESOLVED = 4.0


@dataclasses.dataclass(frozen=True)
class DescentThresholds:
    """The constants of perturbed gradient descent, and the thresholds that follow from them.

    - `tolerance`, `smoothness`, `hessian_lipschitz`, `gap`, `failure`, `c`: `ε`, `β`, `ρ`, `Δ_f`, `δ`, `c`.
    - `num_parameters`: `d`, the number of weights.
    - `estimated`: which of `"smoothness"` and `"hessian_lipschitz"` are estimates; they are no bounds.
    """

    tolerance: float
    smoothness: float
    hessian_lipschitz: float
    gap: float
    failure: float
    c: float
    num_parameters: int
    estimated: tuple[str, ...] = ()

    @property
    def chi(self) -> float:
        """`χ = 3 max{ln(dβΔ_f/(cε²δ)), 4}`."""
        if self.gap == 0:
            return 12.0
        above = math.log(self.num_parameters) + math.log(self.smoothness) + math.log(self.gap)
        below = math.log(self.c) + 2 * math.log(self.tolerance) + math.log(self.failure)
        return 3 * max(above - below, 4.0)

    @property
    def step(self) -> float:
        """`η = c/β`."""
        return self.c / self.smoothness

    @property
    def gradient_norm(self) -> float:
        """`g_thr = (√c/χ²) ε`: at this gradient norm noise is added."""
        return math.sqrt(self.c) / self.chi**2 * self.tolerance

    @property
    def radius(self) -> float:
        """`ρ_b = g_thr/β`, of the ball from which the noise is drawn."""
        return self.gradient_norm / self.smoothness

    @property
    def decrease(self) -> float:
        """`f_thr = (c/χ³) √(ε³/ρ)`: by so much the loss must have fallen `wait` steps after the noise."""
        return self.c / self.chi**3 * self.tolerance * math.sqrt(self.tolerance / self.hessian_lipschitz)

    @property
    def wait(self) -> int:
        """`t_thr = ⌈(χ/c²) β/√(ρε)⌉`, the steps from the noise to the decision."""
        return math.ceil(self.chi / self.c**2 * (self.smoothness / self.curvature))

    @property
    def curvature(self) -> float:
        """`√(ρε)`: an eigenvalue of the Hessian below `−√(ρε)` is too negative for a second-order stationary point."""
        return math.sqrt(self.hessian_lipschitz) * math.sqrt(self.tolerance)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class PerturbedDescent(Printable):
    """Where perturbed gradient descent ended, from `gdflow.perturbed_gradient_descent`.

    For a batch of starts all arrays have a leading axis.

    - `point`: what was returned, `w̃`; where nothing was, the last iterate that is finite.
    - `loss`, `gradient_norm`: effective loss and `‖∇L‖` there.
    - `num_steps`: gradient steps, those after the last noise included; `num_perturbations`: how often noise was added.
    - `returned`: whether the rule of return applied; `finite`: whether all iterates were finite. See `status`.
    - `seen_smoothness`: the largest `‖∇L(w_{t+1}) − ∇L(w_t)‖/‖w_{t+1} − w_t‖` of all steps from gradients above `g_thr`. Where it
      is larger than `thresholds.smoothness`, that was not the smoothness, and the theorem says nothing.
    - `thresholds`: the constants, the thresholds, and which of the constants are estimates.
    """

    problem: AbstractProblem
    point: Any
    loss: Float[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    num_perturbations: Int[Array, "*batch"]
    returned: Bool[Array, "*batch"]
    finite: Bool[Array, "*batch"]
    seen_smoothness: Float[Array, "*batch"]
    thresholds: DescentThresholds

    @property
    def status(self) -> str | list[str]:
        """How it ended: `"returned"`, `"step limit"` or `"not finite"`; a list for a batch."""
        words = np.where(self.returned, "returned", np.where(self.finite, "step limit", "not finite"))
        return words.tolist()

    @functools.cached_property
    def smallest_eigenvalue(self) -> Float[Array, "*batch"]:
        """`λ_min(∇²L)` at `point`, from the dense Hessian by automatic differentiation; computed when asked for.

        **Raises:** `ValueError` above 4096 parameters.
        """
        size = self.thresholds.num_parameters
        if size > MOST_PARAMETERS:
            raise ValueError(
                f"the smallest eigenvalue comes from the dense Hessian: {size} parameters are too many (at most "
                f"{MOST_PARAMETERS}); for networks gf.extreme_eigenpairs finds it by Lanczos's method"
            )
        points = self.point if self.loss.ndim else _batch_of_one(self.point)
        values = _smallest_eigenvalues(self.problem.objective, points)
        return values if self.loss.ndim else values[0]

    @property
    def is_second_order(self) -> Bool[Array, "*batch"]:
        """Whether `‖∇L‖ ≤ ε` and `λ_min(∇²L) ≥ −√(ρε)` at `point`, whatever the status; with an estimated `ρ` to that estimate.

        **Raises:** `ValueError` above 4096 parameters.
        """
        least = -self.thresholds.curvature
        return (self.gradient_norm <= self.thresholds.tolerance) & (self.smallest_eigenvalue >= least)

    def __rich__(self) -> RenderableType:
        t, count = self.thresholds, self.loss.size
        known = "smallest_eigenvalue" in self.__dict__ or count * t.num_parameters**3 <= _CHEAP
        constants = [("smoothness", "β", t.smoothness), ("hessian_lipschitz", "ρ", t.hessian_lipschitz)]
        texts = [f"{s} = {value:.4g}" + " (estimated)" * (name in t.estimated) for name, s, value in constants]
        rows = [
            *(self._rows_of_many(known) if self.loss.ndim else self._rows_of_one(known)),
            ("constants", ", ".join([*texts, f"Δ_f = {t.gap:.4g}, δ = {t.failure:g}, c = {t.c:g}"])),
            ("thresholds", f"step {t.step:.3g}; noise of {t.radius:.3g} at gradient norm {t.gradient_norm:.3g}, return unless "
                f"the loss falls by {t.decrease:.3g} in {t.wait} steps"),
        ]  # fmt: skip
        too_large = int(np.sum(np.asarray(self.seen_smoothness) > t.smoothness))
        if too_large:
            which = f", at {too_large} of {count} starts" if self.loss.ndim else ""
            rows.append(("WARNING", f"β is too small: {float(jnp.max(self.seen_smoothness)):.4g} was seen{which}"))
        return key_value_table("Perturbed gradient descent", rows)

    def _rows_of_one(self, known: bool) -> list[tuple[str, str]]:
        t, verdict = self.thresholds, "not computed: see is_second_order"
        if known:
            verdict = ("yes" if bool(self.is_second_order) else "NO") + (
                f": gradient norm {float(self.gradient_norm):.3g} (at most {t.tolerance:g}), smallest eigenvalue "
                f"{float(self.smallest_eigenvalue):.3g} (at least {-t.curvature:.3g})"
            )
        return [
            ("status", str(self.status)),
            ("second-order stationary", verdict),
            ("effective loss", f"{float(self.loss):.6g}"),
            ("steps", f"{int(self.num_steps)}, noise added {int(self.num_perturbations)} times"),
        ]

    def _rows_of_many(self, known: bool) -> list[tuple[str, str]]:
        words = list(self.status)
        rows = [("starts", str(len(words))), *((word, str(words.count(word))) for word in dict.fromkeys(words))]
        if known:
            rows.append(("second-order stationary", str(int(jnp.sum(self.is_second_order)))))
        for name, counts, unit in (("steps", self.num_steps, ""), ("noise added", self.num_perturbations, " times")):
            rows.append((name, f"{int(jnp.min(counts))} … {int(jnp.max(counts))}{unit}"))
        return rows


def perturbed_gradient_descent(
    problem: AbstractProblem,
    net: Any,
    *,
    tolerance: float,
    key: Key[Array, ""],
    smoothness: float | None = None,
    hessian_lipschitz: float | None = None,
    gap: float | None = None,
    failure: float = 0.1,
    c: float = 1.0,
    max_steps: float = 1_000_000,
) -> PerturbedDescent:
    """Gradient descent with noise where the gradient is small, to a second-order stationary point.

    The algorithm, the constants and what is proved of it stand at the head of `gdflow.dynamics.perturbed_descent`.

    **Arguments:**

    - `problem`, `net`: a `gdflow.Problem` and a network in its coordinates, or another problem and a point of its own. A leading
      batch axis in all layers of a `gdflow.LayerTuple` makes a batch of starts, which run together, until the last has ended.
    - `tolerance`: `ε`.
    - `key`: of the noise, a typed random key. Start `i` of a batch has the same noise whatever the size of the batch.
    - `smoothness`, `hessian_lipschitz`: `β` and `ρ`, on the region that the iterates visit. What is not given is *estimated*, by
      twice the largest `‖∇²L v‖` and `‖D³L[u, u, ·]‖` seen on descents from the start (or from up to 64 of the starts), slightly
      moved, with unit vectors that power iterations turn. An estimate is no bound, and the result says that it is one. It costs
      about as much as 1000 steps of every start, and of four at least.
    - `gap`: `Δ_f`, an upper bound of `L(w_0) − inf L`. By default the exact difference for problems with known critical values,
      and `L(w_0)` for losses that are nowhere negative; needed for all others, such as a `gdflow.Potential`. A batch has one for
      all, by default that of the start with the largest loss.
    - `failure`: `δ`.
    - `c`: less than 2, since steps of `2/β` do not even settle at minima. The theorem holds up to a `c_max` that is not known, so
      the default is no theorem but tested: its steps are `1/β`, the longest that are sure to lower the loss. With `c` = ¼, ½
      and 1 all of 400 starts succeeded at each of nine saddles: of a double well in 2 and 50 dimensions, and of functions with
      an eigenvalue barely below `−√(ρε)` and the least decrease that `ρ` allows, in 1 and 10 dimensions, down to `χ = 12`. So did
      all of some 100 starts at each of four strict saddles of linear networks of two and three layers, with estimated constants
      and `c = 1`. At the smallest `χ` 17 of 400 starts failed with `c = 1.5`, and 85 with 1.9.
    - `max_steps`: gradient steps.

    **Returns:** a `PerturbedDescent`. It never raises for what happens on the way: see its `status` and `is_second_order`.

    **Raises:** `ValueError` or `TypeError` for networks that do not fit or are not finite; options out of their range;
    `ε > β²/ρ`; a missing `gap`; a `gap` smaller than `L(w_0) − min L` where that is known; `β` and `ρ` that cannot be estimated,
    of activations or losses that are not smooth, or of a quadratic function, whose `ρ` is zero; a `t_thr` above `max_steps`, with
    which nothing could ever be returned; thresholds that round-off hides, as in single precision most do; and arrays traced by
    `jax.jit`, `grad` or `vmap`: the thresholds are computed on the host.

    ```python
    >>> saddle = gf.sample_critical_point(problem, widths, (2,), key=key)
    >>> print(perturbed_gradient_descent(problem, saddle, tolerance=0.01, key=key))
    ```
    """
    check_any_problem(problem)
    if is_traced(problem, net, key):
        raise TypeError(
            "perturbed_gradient_descent computes its thresholds on the host and cannot be transformed by jax.jit, grad or vmap: "
            "many starts run together as a batch, a leading axis of all layers of a LayerTuple"
        )
    check_key(key)
    tolerance, c = check_positive("tolerance", tolerance), check_positive("c", c)
    if c >= 2:
        raise ValueError(
            f"c must be less than 2, got {c:g}: descent with steps c/β of 2/β or more does not settle at minima"
        )
    failure = check_number("failure", failure)
    if not 0 < failure < 1:
        raise ValueError(f"failure is a probability between 0 and 1, got {failure}")
    max_steps = check_count("max_steps", max_steps)
    most = int(jnp.iinfo(jnp.result_type(int)).max) - 1
    if max_steps > most:
        raise ValueError(f"max_steps must be at most {most}, got {max_steps}")
    if smoothness is not None:
        smoothness = check_positive("smoothness", smoothness)
    if hessian_lipschitz is not None:
        hessian_lipschitz = check_positive("hessian_lipschitz", hessian_lipschitz)

    nets, batched = _as_batch(problem, net)
    forget_old_programs(pause=1.0)
    objective = problem.objective
    losses = np.asarray(_measure(objective, nets)[0], dtype=np.float64)
    if not np.all(np.isfinite(losses)):
        raise ValueError(f"the loss at the start is {losses[~np.isfinite(losses)][0]}: it must be finite")
    gap = _largest_gap(problem, nets, float(losses.max()), gap)
    starts_key, probe_key = jax.random.split(jax.random.fold_in(key, _OURS))
    estimated: tuple[str, ...] = ()
    if smoothness is None or hessian_lipschitz is None:
        guesses = estimate_constants(problem, nets, probe_key, wanted=hessian_lipschitz is None)
        given = dict(smoothness=smoothness, hessian_lipschitz=hessian_lipschitz)
        estimated = tuple(name for name, value in given.items() if value is None)
        smoothness = guesses[0] if smoothness is None else smoothness
        hessian_lipschitz = guesses[1] if hessian_lipschitz is None else hessian_lipschitz
    size = count_numbers(nets) // len(losses)
    thresholds = DescentThresholds(tolerance, smoothness, hessian_lipschitz, gap, failure, c, size, estimated)
    _check_thresholds(thresholds, max_steps)
    _check_resolution(thresholds, nets, float(abs(losses).max()))

    numbers = (thresholds.step, thresholds.radius, thresholds.gradient_norm, thresholds.decrease)
    counts = (thresholds.wait, max_steps)
    limits = _Limits(*(jnp.asarray(x, float) for x in numbers), *(jnp.asarray(x, int) for x in counts))
    parts = _descend(objective, nets, jax.random.split(starts_key, len(losses)), limits)
    parts["loss"], parts["gradient_norm"] = _measure(objective, parts["point"])
    if not batched:
        parts = jax.tree.map(lambda x: x[0], parts)
    return PerturbedDescent(problem=problem, thresholds=thresholds, **parts)


# -- before the descent ------------------------------------------------------------------------------------------------


def _batch_of_one(net: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x)[None], net)


def _as_batch(problem: AbstractProblem, net: Any) -> tuple[Any, bool]:
    """The starts with a batch axis, checked, and whether they had one."""
    if isinstance(problem, Problem):
        check_layer_tuple(net)
    if not isinstance(net, LayerTuple):
        net = jax.tree.map(jnp.asarray, net)
        problem.check_start(net)
        return _batch_of_one(net), False
    if len(net.batch_shape) > 1:
        raise ValueError(f"one batch axis at most, got weights with leading axes {net.batch_shape}")
    if net.batch_shape == (0,):
        raise ValueError("a batch needs at least one start")
    problem.check_start(net, batch=bool(net.batch_shape))
    return (net, True) if net.batch_shape else (_batch_of_one(net), False)


@eqx.filter_jit
def _measure(objective: Objective, nets: Any) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Effective losses and gradient norms."""
    return jax.vmap(lambda net: (objective.effective_loss(net), point_norm(objective.gradient(net))))(nets)


def _largest_gap(problem: AbstractProblem, nets: Any, loss: float, gap: float | None) -> float:
    """`Δ_f` for the start with the largest loss."""
    if gap is not None:
        gap = check_positive("gap", gap)
    if isinstance(problem, Problem) and problem.why_no_levels is None:
        widths = nets.widths
        lowest = critical_values(problem, problem.max_rank(widths), lowest=1, num_layers=len(widths) - 1)
        exact = max(loss - float(lowest.values[0]), 0.0)
        if gap is not None and gap < exact - problem.level_tolerance:
            raise ValueError(
                f"gap={gap:g} is no upper bound: L(w_0) − min L = {exact:.6g} at the start (that of the largest loss)"
            )
        return exact if gap is None else gap
    if gap is not None:
        return gap
    objective = problem.objective
    known = isinstance(objective, DataObjective) and type(objective.loss) in _NOT_NEGATIVE
    if not (known or isinstance(objective, TeacherObjective)):
        what = type(objective.loss).__name__ if isinstance(objective, DataObjective) else type(problem).__name__
        raise ValueError(f"gap is needed, an upper bound of L(w_0) − inf L: how low a {what} can get is not known")
    return max(loss, 0.0)


def _check_thresholds(t: DescentThresholds, max_steps: int) -> None:
    """`ValueError` where the theorem does not apply, or nothing could be returned."""
    whose = " (estimated)" * bool(t.estimated)
    largest = t.smoothness / t.hessian_lipschitz * t.smoothness
    if t.tolerance > largest:
        raise ValueError(
            f"the tolerance must be at most β²/ρ = {largest:.4g}, with smoothness β = {t.smoothness:.4g} and hessian_lipschitz "
            f"ρ = {t.hessian_lipschitz:.4g}{whose}, got {t.tolerance:g}"
        )
    wait = t.chi / t.c**2 * (t.smoothness / t.curvature) if t.c**2 > 0 and t.curvature > 0 else math.inf
    if wait > max_steps:
        raise ValueError(
            f"after the noise t_thr = (χ/c²) β/√(ρε) = {wait:.4g} steps are waited, more than max_steps = {max_steps}, so "
            f"nothing could be returned: take more steps, a larger tolerance ({t.tolerance:g}) or a larger c ({t.c:g}); "
            f"χ = {t.chi:.3g}, β = {t.smoothness:.4g}, ρ = {t.hessian_lipschitz:.4g}{whose}"
        )


def _check_resolution(t: DescentThresholds, nets: Any, loss: float) -> None:
    """`ValueError` where round-off at the start hides a threshold."""
    leaves = [np.asarray(x, dtype=np.float64) for x in jax.tree.leaves(nets)]
    dtype = jnp.result_type(*jax.tree.leaves(nets))
    eps = float(jnp.finfo(dtype).eps)
    largest = max(float(abs(x).max(initial=0.0)) for x in leaves)
    # Where the noise is not hidden, g_thr = βρ_b isn't either: round-off of the weights makes one of eps·β‖w‖ in the gradient.
    hidden = [
        ("the noise in one weight, ρ_b/√d", t.radius / math.sqrt(t.num_parameters), eps * largest),
        ("the decrease of the loss that counts, f_thr", t.decrease, eps * loss),
    ]
    for what, threshold, round_off in hidden:
        if threshold < _RESOLVED * round_off:
            double = "" if dtype == jnp.float64 else ', or double precision, jax.config.update("jax_enable_x64", True)'
            raise ValueError(
                f"{what} = {threshold:.3g}, cannot be told from round-off in {dtype}, {round_off:.3g} at the start: take a "
                f"larger tolerance (it is {t.tolerance:g}){double}"
            )


# -- the descent -------------------------------------------------------------------------------------------------------


class _Limits(eqx.Module):
    """The thresholds as the compiled program takes them."""

    step: Float[Array, ""]
    radius: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    decrease: Float[Array, ""]
    wait: Int[Array, ""]
    max_steps: Int[Array, ""]


class _State(eqx.Module):
    """All starts: `x` is `w_t`, `kept` is `w̃`, `age` is `t − t_noise` up to `t_thr + 1`, `last` the gradient of the last step.

    Vectors are raveled points. `last` is zero where the last thing that happened was no step.
    """

    x: Float[Array, "n P"]
    last: Float[Array, "n P"]
    kept: Float[Array, "n P"]
    kept_loss: Float[Array, " n"]
    age: Int[Array, " n"]
    steps: Int[Array, " n"]
    noises: Int[Array, " n"]
    seen: Float[Array, " n"]
    running: Bool[Array, " n"]
    returned: Bool[Array, " n"]
    finite: Bool[Array, " n"]


def ball_noise(key: Key[Array, ""], size: int, dtype: Any = float) -> Float[Array, " size"]:
    """A vector that is uniform in the unit ball of `R^d`: all but two coordinates of a uniform point of the sphere in `R^{d+2}`.

    (Archimedes' theorem of the sphere and the cylinder, one dimension up and for any `d`.)
    """
    on_sphere = jax.random.normal(key, (size + 2,), dtype)
    return on_sphere[:size] / jnp.linalg.norm(on_sphere)


@eqx.filter_jit
def _descend(objective: Objective, nets: Any, keys: Key[Array, " n"], limits: _Limits) -> dict:
    """The fields of the result but what is measured at the end, for all starts together.

    One turn of the loop is a gradient step, or the noise: then the gradient is needed anew. Losses and noise are computed only
    in turns in which some start needs them, which is why the loop is over all starts and not mapped over them.
    """
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], nets))
    flat = jax.vmap(lambda net: ravel_pytree(net)[0])(nets)
    n, size = flat.shape
    dtype = flat.dtype
    step, radius, gradient_norm, decrease = (
        x.astype(dtype) for x in (limits.step, limits.radius, limits.gradient_norm, limits.decrease)
    )

    def gradients(x):
        return jax.vmap(lambda y: ravel_pytree(objective.gradient(unravel(y)))[0])(x)

    def losses(x):
        return jax.vmap(lambda y: objective.effective_loss(unravel(y)))(x).astype(dtype)

    def act(s: _State, shaken: Array, due: Array) -> _State:
        """Noise where it is `shaken`, and the decision whether to return where that is `due`."""
        value = losses(s.x)
        noise_keys = jax.vmap(jax.random.fold_in)(keys, s.noises)
        noise = radius * jax.vmap(lambda key: ball_noise(key, size, dtype))(noise_keys)
        return dataclasses.replace(
            s,
            x=jnp.where(shaken[:, None], s.x + noise, s.x),
            kept=jnp.where(shaken[:, None], s.x, s.kept),
            kept_loss=jnp.where(shaken, value, s.kept_loss),
            age=jnp.where(shaken, 0, s.age),
            noises=s.noises + shaken,
            returned=s.returned | (due & (value - s.kept_loss > -decrease)),
        )

    def turn(s: _State) -> _State:
        g = gradients(s.x)
        norm = jnp.linalg.norm(g, axis=1)
        last = jnp.linalg.norm(s.last, axis=1)
        counts = s.running & (last > gradient_norm)
        change = jnp.linalg.norm(g - s.last, axis=1) / (step * jnp.where(counts, last, 1.0))
        seen = jnp.where(counts & jnp.isfinite(change), jnp.maximum(s.seen, change), s.seen)
        left = s.running & (s.steps < limits.max_steps)
        shaken = left & (norm <= gradient_norm) & (s.age > limits.wait)
        due = s.running & (s.age == limits.wait)
        s = jax.lax.cond(jnp.any(shaken | due), act, lambda s, *_: s, s, shaken, due)
        x = s.x - step * g
        sound = jnp.isfinite(norm) & jnp.all(jnp.isfinite(x), axis=1)
        moves = left & ~shaken & ~s.returned & sound
        return dataclasses.replace(
            s,
            x=jnp.where(moves[:, None], x, s.x),
            last=jnp.where(moves[:, None], g, 0.0),
            age=jnp.where(moves, jnp.minimum(s.age + 1, limits.wait + 1), s.age),
            steps=s.steps + moves,
            seen=seen,
            running=moves | shaken,
            finite=s.finite & (sound | s.returned | ~s.running),
        )

    none, zeros = jnp.zeros(n, bool), jnp.zeros(n, int)
    begin = _State(
        x=flat,
        last=jnp.zeros_like(flat),
        kept=flat,
        kept_loss=jnp.zeros(n, dtype),
        age=jnp.broadcast_to(limits.wait + 1, (n,)),
        steps=zeros,
        noises=zeros,
        seen=jnp.zeros(n, dtype),
        running=~none,
        returned=none,
        finite=~none,
    )
    s = jax.lax.while_loop(lambda s: jnp.any(s.running), turn, begin)
    flat = jnp.where(s.returned[:, None], s.kept, s.x)
    return dict(
        point=jax.vmap(unravel)(flat),
        num_steps=s.steps,
        num_perturbations=s.noises,
        returned=s.returned,
        finite=s.finite,
        seen_smoothness=s.seen,
    )


@eqx.filter_jit
def _smallest_eigenvalues(objective: Objective, points: Any) -> Float[Array, " n"]:
    """`λ_min(∇²L)` at every point."""

    def one(point):
        flat, unravel = ravel_pytree(point)

        def gradient(x):
            return ravel_pytree(objective.gradient(unravel(x)))[0]

        basis = jnp.eye(flat.size, dtype=flat.dtype)
        H = jax.lax.map(lambda v: jax.jvp(gradient, (flat,), (v,))[1], basis, batch_size=256)
        return jnp.linalg.eigvalsh(0.5 * (H + H.T))[0]

    # One at a time: large batches of LAPACK calls inside a compiled program can hang on a CPU.
    return jax.lax.map(one, points)
