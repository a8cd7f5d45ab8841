"""How many quantities the gradient flow conserves at a point, known or not.

The count is that of parameters less the rank of the Lie algebra that the fields generate which the flow is made of. The known
laws are those of `gdflow.conservation`.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from rich.console import RenderableType

from gdflow.checks import check_count
from gdflow.conservation import conservation_laws
from gdflow.losses import SoftmaxCrossEntropy
from gdflow.network import LayerTuple, check_layer_tuple, matmul
from gdflow.objective import LinearObjective, NetworkObjective
from gdflow.problem import Problem, check_problem
from gdflow.ranks import RankDecision, decide_rank
from gdflow.tables import Printable, key_value_table

#: Singular values below this, relative to the largest, count as zero among brackets: their columns have length one or
#: less and round-off of some 1e-15, a nested bracket of order five included; those kept were above 1e-6 in all cases
#: tried.
BRACKET_THRESHOLD = 1e-11
#: A count forms dense matrices of this many columns at most.
MAX_COUNTED = 4096


@dataclasses.dataclass(frozen=True, repr=False)
class ConservedCount(Printable):
    """How many independent quantities are conserved, from `gdflow.lie_algebra.count_conserved`; prints as a table.

    - `count`: parameters less the rank of the Lie algebra; at least the number conserved, whatever `settled` says.
    - `known`: how many independent ones the laws of `gdflow.conservation.conservation_laws` make.
    - `num_parameters`: `Σ_j d_jd_{j-1}`.
    - `ranks`: the rank of the brackets of order 1, of orders 1 and 2, and so on, as far as was looked.
    - `decision`: on the last of them, with its margin.
    - `settled`: whether more orders are not expected to change the count: it equals `known`, which is a proof up to the
      decisions on ranks, or two further orders have added nothing.
    """

    count: int
    known: int
    num_parameters: int
    ranks: tuple[int, ...]
    decision: RankDecision
    settled: bool

    def __rich__(self) -> RenderableType:
        d = self.decision
        order = "order" if len(self.ranks) == 1 else f"orders 1–{len(self.ranks)}"
        rows = [
            ("conserved", f"{'' if self.settled else 'at most '}{self.count} of {self.num_parameters} dimensions"),
            ("known laws", f"{self.known} independent" + (", which are all" if self.known == self.count else "")),
            ("rank of the Lie algebra", f"{', '.join(map(str, self.ranks))} ({order})"),
            ("margin", f"kept ≥ {d.smallest_kept:.1e}, dropped ≤ {d.largest_dropped:.1e}, threshold {d.threshold:.1e}"),
        ]
        return key_value_table("conserved quantities at a point", rows)


def count_conserved(
    problem: Problem, net: LayerTuple, *, max_order: int = 6, key: PRNGKeyArray | None = None
) -> ConservedCount:
    """The number of independent quantities that the flow conserves near a network, for every target of the loss.

    The flow is `Ẇ = −Σ_ik (∂ℓ/∂F_ik) ∇F_ik(W) − κW`, `F` the outputs for the samples, with coefficients that the
    targets may make anything. What is conserved for all of them is constant along the Lie algebra that the fields
    `∇F_ik` generate, and their number is that of the parameters less the rank of the algebra at the point: Marcotte,
    Gribonval, Peyré, "Abide by the law and follow the flow: conservation laws for gradient flows" (NeurIPS 2023), who
    count so for linear and ReLU networks. Brackets are `[f,g](W) = Dg(W)[f] − Df(W)[g]`, formed of functions by nested
    forward derivatives.

    The algebra is spanned by the brackets `[f_r,[…,[f_2,f_1]]]` of its generators. Each is linear in every `f_i`, so
    those of as many random combinations as dimensions are missing span the same with probability one. Orders are added
    until the rank leaves no room beside the known laws, or until two orders have added nothing; else, at `max_order`,
    the count is an upper bound. That two orders add nothing is strong evidence, not a proof.

    What a count depends on:

    - *Samples.* With few of them there are few fields, and more is conserved than for general data: a single output of
      a single sample leaves all but one dimension. Laws for every data set are seen from about as many samples as a
      layer has weights. `d_0 > rank X` leaves the `d_1(d_0 − rank X)` idle directions.
    - *Loss.* Cross-entropy has `Σ_i ∂ℓ/∂F_ik = 0`, and the fields are combined accordingly.
    - *Kinks.* For ReLU the count is that of the smooth piece around the point. Two units that are active on the same
      samples, or one that is active on fewer than it has inputs, conserve more as long as this lasts.
    - *Weight decay.* Laws are then functions of `W` and `t`. Time is a further coordinate, `Ẇ = −κW, ṫ = 1` a further
      field. Brackets with it have no component along `t`, and the count is again that of parameters less their rank.

    **Arguments:**

    - `problem`, `net`: of at most 4096 parameters, in double precision.
    - `max_order`: of the brackets. Each doubles or triples the time to compile.
    - `key`: of the random combinations.

    **Returns:** a `gdflow.lie_algebra.ConservedCount`.

    **Raises:** `ValueError` for networks that do not fit, are too large, or are of single precision.

    ```python
    >>> problem = gf.Problem(jnp.eye(2), jnp.eye(2))
    >>> count_conserved(problem, gf.LayerTuple([jnp.array([[1.0, 2.0], [3.0, 5.0]]), jnp.eye(2)])).count
    3
    ```
    """
    check_problem(problem).check_network(check_layer_tuple(net))
    max_order = check_count("max_order", max_order)
    num = net.num_parameters
    if num > MAX_COUNTED:
        raise ValueError(
            f"a count needs matrices as large as the parameters are many, {num} here: at most {MAX_COUNTED}"
        )
    if net.weights[0].dtype != jnp.float64:
        raise ValueError(
            f"the rank of brackets cannot be told in {net.weights[0].dtype}: first of all, "
            'jax.config.update("jax_enable_x64", True)'
        )
    objective = problem.objective
    assert isinstance(objective, LinearObjective | NetworkObjective)
    known = conservation_laws(problem, net.widths).num_independent(net)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.key(0) if key is None else key)))
    columns: list[np.ndarray] = []
    ranks: list[int] = []
    decision = decide_rank(np.zeros(0))
    for order in range(1, max_order + 1):
        count = num - known - decision.rank + 3  # as many as can be missing, and a few that should add nothing
        columns.append(_random_brackets(rng, objective, net, order, count))
        s = np.linalg.svd(np.concatenate(columns), compute_uv=False)
        decision = decide_rank(s, threshold=BRACKET_THRESHOLD * float(s.max(initial=0.0)))
        ranks.append(decision.rank)
        if _is_settled(ranks, num - known):
            break
    return ConservedCount(num - ranks[-1], known, num, tuple(ranks), decision, _is_settled(ranks, num - known))


def _is_settled(ranks: list[int], most: int) -> bool:
    return ranks[-1] >= most or (len(ranks) > 2 and ranks[-3] == ranks[-1])


def _random_brackets(
    rng: np.random.Generator, objective: LinearObjective | NetworkObjective, net: LayerTuple, order: int, count: int
) -> np.ndarray:
    """So many brackets `[f_r,[…,[f_2,f_1]]]` of random combinations `f_i` of the generators, one in each row."""
    c = rng.standard_normal((count, order, net.widths[-1], objective.design.shape[1]))
    if isinstance(objective.loss, SoftmaxCrossEntropy):
        c -= c.mean(axis=2, keepdims=True)
    shares = rng.standard_normal((count, order))
    shares[:, 0] = 0.0  # [W, W] = 0 and [f, W] = −[W, f]: the innermost field need not contain W
    if not isinstance(objective, NetworkObjective) or not objective.decay > 0:
        shares[:] = 0.0
    return np.asarray(_brackets(objective, net, jnp.asarray(c), jnp.asarray(shares)))


@eqx.filter_jit
def _brackets(
    objective: LinearObjective | NetworkObjective,
    net: LayerTuple,
    coefficients: Float[Array, "count order d_y m"],
    shares: Float[Array, "count order"],
) -> Float[Array, "count parameters"]:
    """Brackets `[f_r,[…,[f_2,f_1]]]` at a network, `f_i` the field `Σ c_i ∇F + share_i·W`.

    Each is divided by the size of what it is the difference of: brackets that vanish are then round-off of about 1e-16,
    also where their inner brackets vanish already.
    """
    flat, unflatten = ravel_pytree(net)

    def output(w: Array) -> Array:
        if isinstance(objective, NetworkObjective):
            return objective.output(unflatten(w))
        return matmul(unflatten(w).end_to_end, objective.design)

    def field(c: Array, share: Array) -> Callable[[Array], Array]:
        return lambda w: jax.vjp(output, w)[1](c)[0] + share * w

    def innermost(f: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, Array]]:
        def sized(w: Array) -> tuple[Array, Array]:
            value = f(w)
            return value, jnp.linalg.norm(value)

        return sized

    def bracket(c: Array, shares: Array) -> Array:
        nested = innermost(field(c[0], shares[0]))
        for i in range(1, len(c)):
            nested = _bracket(field(c[i], shares[i]), nested)
        value, size = nested(flat)
        return value / jnp.where(size > 0, size, 1.0)

    return jax.vmap(bracket)(coefficients, shares)


def _bracket(f: Callable[[Array], Array], g: Callable[[Array], tuple[Array, Array]]) -> Callable:
    """`[f,g]` as a field, with a size for its round-off to be compared with; `g` comes with its own."""

    def nested(w: Array) -> tuple[Array, Array]:
        along = f(w)
        value, forth, size = jax.jvp(g, (w,), (along,), has_aux=True)
        back = jax.jvp(f, (w,), (value,))[1]
        # Where g vanishes its value is round-off, and so are both terms: the size of g and the slope of f tell how
        # much.
        length = jnp.linalg.norm(value)
        slope = jnp.linalg.norm(back) / jnp.where(length > 0, length, 1.0)
        terms = jnp.linalg.norm(forth) + jnp.linalg.norm(back)
        return forth - back, jnp.maximum(terms, jnp.where(length > 0, slope * size, size))

    return nested
