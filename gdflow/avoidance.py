"""Which starts can reach no non-strict saddle: from their conserved quantities, two and three layers.

Derived for this project from the classification of Achour, Malgouyres and Gerchinovitz (2024); in none of the sources.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from rich.console import RenderableType

from gdflow.binomial import clopper_pearson_lower, clopper_pearson_upper
from gdflow.factorizations import symmetric_eigen
from gdflow.invariants import conserved
from gdflow.landscape import NormalForm
from gdflow.network import LayerTuple
from gdflow.problem import Problem
from gdflow.ranks import UNCERTAIN_FACTOR, zero_threshold
from gdflow.tables import Printable, key_value_table


def excludes_non_strict_saddles(problem: Problem, net: LayerTuple) -> Bool[Array, ""]:
    """Whether the conserved quantities of this start prove that its limit is no non-strict saddle; depth 2 or 3.

    Derived for this project from the classification of Achour, Malgouyres and Gerchinovitz (2024); in none of the sources.
    At a non-strict saddle of rank `r < r_max` every pivot is tightened. For `N = 3`, where `r < d_1, d_2, d_y`: pivot (3,1)
    gives `rank W_2 = r`, pivot (2,1) `rank Σ_YᵀW_3 = rank W_3 = r`, pivot (3,2) `rank W_1Σ_Yᵀ = rank W_{1,1} = r`, so
    `rank W_1 ≤ r + d_x − d_y`. The `C_j` are constant along the flow and continuous, so at the start already, with `n_±`
    the numbers of positive and negative eigenvalues,

        n_±(C_2) ≤ r,   n_+(C_1) ≤ r,   n_−(C_1) ≤ r + d_x − d_y      for some r < r_max,

    because `C_2 = W_3ᵀW_3 − W_2W_2ᵀ` is a difference of two positive semidefinite matrices of rank `r`, and likewise `C_1`.
    It is enough to look at `r = r_max − 1`. A start that violates one of these inequalities is excluded from all non-strict
    saddles; the others may or may not reach one. Only eigenvalues that stand ten thresholds (`gdflow.ranks.zero_threshold`)
    above round-off are counted. For `N = 2` every saddle is strict. Needs distinct `s_i > 0` (`ValueError` otherwise, and
    for deeper networks, for which no such certificate is known).

    Traceable: `jax.vmap` it over batches, or see `saddle_avoidance`.
    """
    layers = _flow_coordinates(problem, net)
    if net.depth == 2:
        return jnp.array(True)
    widths = layers.widths
    r = min(widths) - 1
    C1, C2 = conserved(layers)
    # Of the layers as given: where W_1 is large on the null directions of X, its round-off remains without them.
    norms = NormalForm(problem).transpose(net).layer_norms() ** 2

    def signs(C, scale):
        eigenvalues, _ = symmetric_eigen(C)
        least = UNCERTAIN_FACTOR * zero_threshold(1.0, C.shape[0], float(jnp.finfo(C.dtype).eps)) * scale
        return jnp.sum(eigenvalues > least), jnp.sum(eigenvalues < -least)

    (p1, n1), (p2, n2) = signs(C1, jnp.maximum(norms[0], norms[1])), signs(C2, jnp.maximum(norms[1], norms[2]))
    reachable = (p2 <= r) & (n2 <= r) & (p1 <= r) & (n1 <= r + widths[0] - widths[-1])
    return ~reachable


def _flow_coordinates(problem: Problem, net: LayerTuple) -> LayerTuple:
    """The network in isometric coordinates of the problem's flow with at least as many inputs as outputs."""
    _check_avoidance(problem, net.widths)
    isometric = problem.convert(net, problem.coordinates, problem.isometric().coordinates)
    return NormalForm(problem).transpose(isometric)


def _check_avoidance(problem: Problem, widths: Iterable[int]) -> None:
    widths = problem.check_widths(widths)
    if not 3 <= len(widths) <= 4:
        raise ValueError(
            f"which starts avoid non-strict saddles is known for two and three layers, not for {len(widths) - 1}"
        )
    NormalForm(problem).check_distinct("the exclusion of non-strict saddles")


def widths_exclude_non_strict_saddles(problem: Problem, widths: Iterable[int]) -> bool:
    """Whether almost every start with these widths is excluded from all non-strict saddles, depth 2 or 3.

    For `N = 3` that is so if `d_2 ≥ 2r_max − 1` or `d_1 ≥ 2r_max + d_x − d_y − 1` (`d_x ≥ d_y`, else of the transposed
    network): for almost every start `C_2` has rank `min(d_2, rank W_2 + rank W_3) ≥ 2r_max − 1`, more than the
    `2r ≤ 2r_max − 2` that `excludes_non_strict_saddles` allows; likewise `C_1`. Derived for this project. `False` claims
    nothing.
    """
    _check_avoidance(problem, widths)
    d_x, *hidden, d_y = NormalForm(problem).widths(widths)
    if len(hidden) == 1:
        return True
    r_max = min(d_x, *hidden, d_y)
    return hidden[1] >= 2 * r_max - 1 or hidden[0] >= 2 * r_max + d_x - d_y - 1


@dataclasses.dataclass(frozen=True, repr=False)
class SaddleAvoidance(Printable):
    """How many of a batch of starts are excluded from all non-strict saddles.

    - `excluded`: start by start; `num`, `count`, `share`.
    - `interval`: exact (Clopper–Pearson), at `confidence`, for the probability of an excluded start.
    - `by_widths`: whether the widths alone exclude almost every start.
    """

    excluded: np.ndarray
    interval: tuple[float, float]
    confidence: float
    by_widths: bool

    @property
    def num(self) -> int:
        return int(self.excluded.size)

    @property
    def count(self) -> int:
        return int(self.excluded.sum())

    @property
    def share(self) -> float:
        return self.count / self.num

    def __rich__(self) -> RenderableType:
        low, high = self.interval
        rows = [
            ("excluded starts", f"{self.count} of {self.num} ({self.share:.4g}), "
                f"{100 * self.confidence:g} % interval [{low:.4g}, {high:.4g}]"),
            ("by the widths", "almost every start" if self.by_widths else "no claim"),
        ]  # fmt: skip
        return key_value_table("Non-strict saddles that no such start can reach", rows)


def saddle_avoidance(problem: Problem, starts: LayerTuple, *, confidence: float = 0.95) -> SaddleAvoidance:
    """`excludes_non_strict_saddles` for a batch of starts (leading axis), with the share of those excluded.

    ```python
    >>> print(saddle_avoidance(problem, law.sample_batch(key, np.arange(1000))))
    ```
    """
    problem.check_network(starts, batch=True)
    if len(starts.batch_shape) != 1:
        raise ValueError(f"a batch of starts has one leading axis, got batch shape {starts.batch_shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    excluded = np.asarray(jax.vmap(lambda net: excludes_non_strict_saddles(problem, net))(starts))
    count, num, tail = int(excluded.sum()), excluded.size, (1 - confidence) / 2
    interval = clopper_pearson_lower(count, num, tail), clopper_pearson_upper(count, num, tail)
    return SaddleAvoidance(excluded, interval, confidence, widths_exclude_non_strict_saddles(problem, starts.widths))
