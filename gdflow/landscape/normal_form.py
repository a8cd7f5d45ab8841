"""The coordinates in which the papers describe the critical set: whitened, and with at least as many inputs as outputs.

There the loss is `½‖Σ_Y − W_N…W_1‖²` with `Σ_Y = [S_Y 0]`, `S_Y = diag(s_1, …, s_{d_y})`. Every problem with the squared
error gets there by a linear change of coordinates of the layers, which keeps critical points, critical values and the signs
of the Hessian's eigenvalues, though not their sizes. Where the range of the data has fewer dimensions than there are
outputs, the network is transposed: `W_1, …, W_N` becomes `W_Nᵀ, …, W_1ᵀ`.
"""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.network import LayerTuple
from gdflow.problem import Problem
from gdflow.ranks import decide_rank, zero_threshold


class NormalForm:
    """The way into the papers' coordinates and back.

    - `target`: `Σ_Y = [S_Y 0]`, with at least as many columns as rows.
    - `transposed`: whether networks are transposed on the way.
    - `rank_bound`: the number of rows of `Σ_Y`, `min(ρ, d_y)`.
    """

    def __init__(self, problem: Problem):
        self._coordinates = problem.coordinates
        self._problem = problem
        target = problem.decomposition.Sigma_Y
        self.transposed = target.shape[0] > target.shape[1]
        self.target: Float[Array, "p q"] = target.T if self.transposed else target
        self.rank_bound = self.target.shape[0]

    @property
    def singular_values(self) -> np.ndarray:
        """`s_1, …, s_{d_y}`, zeros included."""
        # Not the diagonal of `target`, which is an abstract value inside jax.jit.
        return np.asarray(self._problem.singular_values, dtype=np.float64)

    def transpose(self, net: LayerTuple) -> LayerTuple:
        return LayerTuple(w.T for w in reversed(net.weights)) if self.transposed else net

    def into(self, net: LayerTuple) -> LayerTuple:
        """A network or a variation in these coordinates."""
        return self.transpose(self._problem.convert(net, self._coordinates, "whitened"))

    def back(self, net: LayerTuple) -> LayerTuple:
        """A network or a variation in the problem's coordinates; there `W_1` vanishes on the null directions of `X`."""
        return self._problem.convert(self.transpose(net), "whitened", self._coordinates)

    def widths(self, widths: Iterable[int]) -> tuple[int, ...]:
        """The widths here of networks with given widths in the problem's coordinates."""
        _, *hidden, _ = self._problem.check_widths(widths)
        p, q = self.target.shape
        return (q, *(reversed(hidden) if self.transposed else hidden), p)

    def max_rank(self, widths: Iterable[int]) -> int:
        """`r_max` of networks with given widths in the problem's coordinates."""
        return min(self.widths(widths))

    def gradient_norm(self, layers: list[np.ndarray]) -> float:
        """`‖∇L‖` of a network in these coordinates, which differ from the problem's by a change of scale."""
        net = as_jax(layers)
        return float(net.pullback(net.end_to_end - self.target).norm())

    def degeneracy(self) -> str | None:
        """Why the `s_i` are not positive and pairwise distinct (assumption (A3) of the papers); `None` if they are."""
        s = self.singular_values
        scale = float(s.max(initial=0.0))
        # Squares of the ratios: those of the singular values themselves may overflow or vanish.
        unit = s / scale if scale > 0 else s
        if decide_rank(s).rank < len(s):
            return f"s_{int(np.argmin(s)) + 1} = {s.min():.3g} is zero: it is in no subset, and enlarges the Hessian's kernel"
        gaps = unit[:-1] ** 2 - unit[1:] ** 2
        if decide_rank(np.append(gaps, 1.0)).rank <= gaps.size:
            i = int(np.argmin(gaps))
            return (
                f"s_{i + 1} = {s[i]:.10g} and s_{i + 2} = {s[i + 1]:.10g} are equal: subsets that exchange them belong to one "
                "connected critical set"
            )
        return None

    def positive_subset(self) -> tuple[int, ...]:
        """The indices of all singular values that are not zero: `S` of a perfect fit."""
        return tuple(range(1, decide_rank(self.singular_values).rank + 1))

    def is_nested(self, subset: tuple[int, ...]) -> bool:
        """Whether no exchange lowers the loss: no singular value outside exceeds one inside, ties allowed."""
        s = self.singular_values
        inside, outside = subset_indices(subset, len(s))
        if not (inside.size and outside.size and s.max() > 0):
            return True
        unit = s / s.max()
        return bool(unit[outside].max() ** 2 - unit[inside].min() ** 2 <= zero_threshold(1.0))

    def check_distinct(self, purpose: str) -> None:
        """`ValueError` unless the `s_i` are positive and pairwise distinct."""
        reason = self.degeneracy()
        if reason:
            raise ValueError(
                f"{purpose} needs distinct positive singular values of the target, but {reason}. "
                "gdflow.critical_values and gdflow.inertia still work"
            )

    def check_subset(self, subset: Iterable[int], widths: Iterable[int]) -> tuple[int, ...]:
        """`subset` as a sorted tuple of indices from 1, or a `ValueError` that names the culprit. `widths`: here."""
        given = tuple(subset)
        for i in given:
            if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 1 <= i <= self.rank_bound:
                raise ValueError(
                    f"subsets hold indices of singular values, 1 to {self.rank_bound}; got {i!r} in {given}"
                )
        if len(set(given)) < len(given):
            raise ValueError(f"an index occurs twice in the subset {given}")
        if len(given) > min(widths):
            raise ValueError(
                f"the subset {given} has {len(given)} elements, more than the narrowest of the widths {tuple(widths)}: "
                f"no product has rank above {min(widths)}"
            )
        return tuple(sorted(int(i) for i in given))


def subset_indices(subset: tuple[int, ...], bound: int) -> tuple[np.ndarray, np.ndarray]:
    """0-based indices in and outside a subset of `{1, …, bound}`."""
    inside = np.zeros(bound, bool)
    inside[[i - 1 for i in subset]] = True
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def count_exchanges(subset: tuple[int, ...], singular_values: np.ndarray) -> int:
    """`#{(i∈S, j∉S) : s_j > s_i}`: the exchanges that lower the loss."""
    inside, outside = subset_indices(subset, len(singular_values))
    return int(np.sum(singular_values[outside][None, :] > singular_values[inside][:, None]))


def hidden_product(layers: list[np.ndarray]) -> np.ndarray:
    """`Z = (ΠW)_2^H`, the product of all layers but the first and the last."""
    return np.linalg.multi_dot([np.eye(layers[-1].shape[1]), *layers[-2:0:-1], np.eye(layers[0].shape[0])])


def as_jax(matrices: Iterable[np.ndarray]) -> LayerTuple:
    """Matrices as a network."""
    return LayerTuple(jnp.asarray(m) for m in matrices)
