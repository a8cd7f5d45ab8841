"""A solution of the Riemannian gradient flow."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from rich.console import RenderableType
from rich.text import Text

from gdflow.dynamics.forms import Factored
from gdflow.dynamics.trajectory import is_concrete
from gdflow.problem import Problem
from gdflow.tables import Printable, key_value_table


class RiemannianTrajectory(Printable, eqx.Module):
    """A solution of the Riemannian gradient flow, from `gdflow.riemannian_flow`.

    - `ts`: saved times, `(T,)`; `factors`: `W = USVᵀ` there; `losses`: effective losses `L¹` there.
    - `final_time`, `last`: the end: `t1`, or where the boundary of `M_k` was met; saved times after it are NaN.
    - `at_boundary`: whether it ended where the smallest singular value fell below `LowRank.boundary` times the largest.
    - `num_steps`: accepted and rejected; `solved`: whether the solver got to its end, and that is finite.
    """

    problem: Problem
    depth: float = eqx.field(static=True)
    ts: Float[Array, " T"]
    factors: Factored
    losses: Float[Array, " T"]
    final_time: Float[Array, ""]
    last: Factored
    at_boundary: Bool[Array, ""]
    num_steps: Int[Array, ""]
    solved: Bool[Array, ""]

    @property
    def matrices(self) -> Float[Array, "T d_y d_x"]:
        """`W` at the saved times."""
        return self.factors.matrix

    @property
    def final(self) -> Float[Array, "d_y d_x"]:
        """`W` at the end."""
        return self.last.matrix

    @property
    def singular_values(self) -> Float[Array, "T k"]:
        """The `k` singular values of `W` at the saved times; small ones are accurate relative to themselves."""
        return jnp.linalg.svd(self.factors.S, compute_uv=False)

    @property
    def rank(self) -> int:
        """`k`."""
        return self.factors.S.shape[-1]

    def __rich__(self) -> RenderableType:
        if not is_concrete(self):
            return Text(eqx.tree_pformat(self))
        sigma = np.linalg.svd(np.asarray(self.last.S), compute_uv=False)
        end = "" if bool(self.solved) else ": NOT SOLVED to the end"
        if bool(self.at_boundary):
            end = f": STOPPED at the boundary, a singular value is {sigma[-1] / sigma[0]:.1e} of the largest"
        rows = [
            ("rank", str(self.rank)),
            ("depth N", f"{self.depth:g}"),
            ("time", f"{float(self.ts[0]):g} … {float(self.final_time):g}, {int(self.num_steps)} steps{end}"),
            ("effective loss", f"{float(self.losses[0]):.8g} → {float(self.problem.end_to_end_loss(self.final)):.8g}"),
            ("singular values", ", ".join(f"{s:.6g}" for s in sigma[:8]) + (" …" if len(sigma) > 8 else "")),
        ]  # fmt: skip
        values = np.zeros(0) if self.problem.spectrum is None else np.asarray(self.problem.singular_values)
        found = int(np.sum(values > 0))
        if 0 < found < self.rank:
            rows.append(("limit", f"of lower rank: the target has rank {found}, no minimum of rank {self.rank}"))
        return key_value_table("Riemannian gradient flow", rows)
