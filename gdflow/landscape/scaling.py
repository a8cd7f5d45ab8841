"""Sizes of order one: a problem and a network brought there by powers of two, which change no digit.

The loss is homogeneous: `L(c_1W_1, …, c_NW_N)` with the target times `∏c_j` is `∏c_j²` times as large. Critical points,
subsets, ranks and the signs of the Hessian's eigenvalues (Sylvester) are those of the network as given, while thresholds
mean the same whatever the units of the data are and however the norms of the layers are shared out.
"""

import dataclasses
import math

import equinox as eqx
import numpy as np

from gdflow.network import LayerTuple
from gdflow.objective import LinearObjective
from gdflow.problem import Problem

#: Norms of layers are levelled where that multiplies one of them by this power of two or its inverse, or more: up to there the
#: Hessian's blocks differ by a factor of a million, which its small eigenvalues survive, and it is the given network's own.
LEVEL_FROM = 5


def weight_exponent(singular_values: np.ndarray, depth: int) -> int:
    """The power of two at or below `s_1^{1/N}`, the size of the layers that fit a target; 0 for a target that vanishes."""
    s = float(np.max(singular_values, initial=0.0))
    return math.floor(math.log2(s) / depth) if s > 0 else 0


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A problem and a network of sizes of order one.

    - `problem`: with target `2^{N·uniform}A`, and inputs times a power of two where norms were levelled.
    - `net`: layers `2^{uniform + levels_j}W_j`.
    - `uniform`, `levels`: the exponents; the levels are zero but for layers of very unequal norms.
    """

    problem: Problem
    net: LayerTuple
    uniform: int
    levels: tuple[int, ...]

    def back(self, direction: LayerTuple) -> LayerTuple:
        """A unit direction at the given network from one at the scaled one."""
        # The largest factor is one, so that nothing overflows.
        least = min(self.levels)
        moved = LayerTuple(w * 2.0 ** (least - e) for w, e in zip(direction.weights, self.levels, strict=True))
        return moved / float(moved.norm())

    @property
    def factors(self) -> tuple[float, ...]:
        """`2^{levels_j}`."""
        return tuple(2.0**e for e in self.levels)

    def unscaled(self, value: float, degree: int) -> float:
        """A number at the network with levelled norms from one here, homogeneous of a degree in all layers together."""
        return float(np.ldexp(value, -degree * self.uniform))


def scaled(problem: Problem, net: LayerTuple) -> Scaled:
    """A problem with the squared error and a network, brought to sizes of order one."""
    N = net.depth
    uniform = -weight_exponent(np.asarray(problem.singular_values, dtype=np.float64), N)
    inputs, levels = _levels(problem, [_norm(w) for w in net.weights], 2.0**-uniform)
    f = problem.decomposition
    target = N * uniform

    def times(x, exponent):
        return x * 2.0**exponent

    # The offset plays no part in the effective loss.
    spectrum = eqx.tree_at(
        lambda f: (f.S_X, f.Y_bar, f.s), f, (times(f.S_X, inputs), times(f.Y_bar, target), times(f.s, target))
    )
    return Scaled(
        problem.replace(
            objective=LinearObjective(
                times(problem.target, target),
                times(problem.design, inputs),
                problem.loss,
                times(problem.data_error, target),
                problem.linear.diagonal,
            ),
            offset=0.0 * problem.offset,
            spectrum=spectrum,
            neglected=times(problem.neglected, target),
        ),
        LayerTuple(times(w, uniform + e) for w, e in zip(net.weights, levels, strict=True)),
        uniform,
        levels,
    )


def _norm(matrix) -> float:
    """Frobenius norm without overflow or underflow of its squares."""
    largest = float(np.max(np.abs(np.asarray(matrix))))
    return largest * float(np.linalg.norm(np.asarray(matrix) / largest)) if largest > 0 else 0.0


def _levels(problem: Problem, norms: list[float], size: float) -> tuple[int, tuple[int, ...]]:
    """Exponents for the inputs and for the layers, of sum zero, that even out norms; all zero where these are not far apart.

    Layers above `size` give to those below it. Where they have enough all end equal, else the small ones stay smaller, each
    in proportion: a layer that ought to vanish is not blown up. Layers that do vanish take what is too much for the others.
    """
    none = 0, (0,) * len(norms)
    inputs = 0 if problem.coordinates == "whitened" else -round(math.log2(_norm(problem.design) or 1.0))
    logs = np.array([math.log2(n / size) if n > 0 else 0.0 for n in norms])
    alive = np.array([n > 0 for n in norms])
    if not alive.any():
        return none
    logs[0] -= inputs if alive[0] else 0
    above, below = logs[logs > 0].sum(), -logs[logs < 0].sum()
    if above >= below:
        wanted = np.full(len(norms), (above - below) / alive.size if alive.all() else 0.0)
    else:
        wanted = np.where(logs < 0, logs * (1 - above / below), 0.0)
    # Whole numbers of the same sum, zero.
    exact = np.where(alive, wanted - logs, 0.0)
    exact[np.argmin(alive)] -= exact.sum()
    levels = np.floor(np.cumsum(exact) + 0.5)
    levels = np.diff(np.concatenate([[0.0], levels])).astype(int)
    levels[0] -= inputs
    # The inputs' exponent counts, what a vanishing layer takes does not.
    if np.max(abs(levels[alive | (np.arange(alive.size) == 0)])) < LEVEL_FROM:
        return none
    return inputs, tuple(int(e) for e in levels)
