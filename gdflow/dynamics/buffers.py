"""Buffers as long as an integration needs: of compiled programs they have to be allocated before the steps are counted.

Outside `jax.jit` and derivatives an integration that saves every step begins with short buffers, and where these are too short
it is repeated, the same to the last bit, with longer ones. All repetitions together cost a seventh of the last one.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdflow.checks import is_traced
from gdflow.dynamics.trajectory import Trajectory

#: Dense output is kept by default while its buffers stay below this many bytes.
DENSE_BYTES = 2**29
#: No buffers become larger than this.
MOST_BYTES = 2**33
#: The first buffers are about this large, but for at least so many steps; the next ones are so many times as long.
_FIRST_BYTES, _FIRST_STEPS, _GROWTH = 2**24, 16, 8
#: What dense output keeps of a step: two states and seven stages.
_DENSE_STATES = 9


class Buffers:
    """The sizes of the buffers of a trajectory, or of a batch of them.

    **Arguments:** `every`: whether every step is saved; `dense`: whether dense output is kept, `None` where that is left to
    its size.
    """

    def __init__(self, net: Any, *, every: bool, dense: bool | None):
        self.state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(net))
        self.every = every
        self.dense = dense

    def size(self, steps: int, dense: bool) -> int:
        """Bytes for so many steps."""
        return self.state * steps * (self.every + (_DENSE_STATES if dense else 0))

    def keep_dense(self, steps: int) -> bool:
        """Whether dense output is kept of so many steps."""
        if self.dense is not None:
            return self.dense
        return self.state * steps * _DENSE_STATES <= DENSE_BYTES

    def check(self, steps: int, dense: bool) -> None:
        """`ValueError` for buffers that would not fit into memory."""
        needed = self.size(steps, dense)
        if needed > MOST_BYTES:
            raise ValueError(
                f"saving every step needs buffers of {needed / 2**30:.1f} GiB (max_steps={steps}): lower max_steps, give the "
                "times to save at (ts=…) or pass dense=False"
            )

    def fit(self, attempt: Callable[[int, bool], dict[str, Any]], max_steps: int, likely: int | None) -> dict[str, Any]:
        """The result of `attempt(steps, dense)`, an integration with buffers for so many steps, with as many as it needs.

        **Arguments:** `likely`: how many steps it will need, if that is known.
        """
        steps = likely or max(_FIRST_STEPS, _FIRST_BYTES // max(self.size(1, self.keep_dense(_FIRST_STEPS)), 1))
        steps = min(steps, max_steps)
        while True:
            dense = self.keep_dense(steps)
            if not self.size(1, dense):
                return attempt(max_steps, dense)
            self.check(steps, dense)
            parts = attempt(steps, dense)
            if is_traced(parts):
                # A stop of the user's carries a derivative: nothing can be seen of the number of steps.
                dense = bool(self.dense)
                self.check(max_steps, dense)
                return attempt(max_steps, dense)
            if steps == max_steps or not np.any(parts["exhausted"]):
                return parts
            longer = min(_GROWTH * steps, max_steps)
            dense = self.keep_dense(longer)
            longer = min(longer, MOST_BYTES // max(self.size(1, dense), 1)) if self.size(1, dense) else max_steps
            if longer <= steps:
                warnings.warn(
                    f"the integration was ended after {steps} steps, for saving more would need over {MOST_BYTES >> 30} GiB: "
                    "give the times to save at (ts=…) and pass dense=False",
                    stacklevel=3,
                )
                return parts
            steps = longer


def trim(trajectory: Trajectory) -> Trajectory:
    """Drops what buffers hold beyond the last step (of the longest trajectory, for a batch).

    Saved times end with the last one. Of dense output a power of two of steps is kept: every length would compile anew.
    """
    axis = trajectory.ts.ndim - 1

    def cut(tree: Any, length: int) -> Any:
        # On the host: a slice of a device array would be compiled for every length.
        index = (*[slice(None)] * axis, slice(0, length))
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]) if x.shape[axis] > length else x, tree)

    def saved(tr):
        return tr.ts, tr.networks, tr.losses, tr.gradient_norms

    rows = int(np.max(np.sum(np.isfinite(np.asarray(trajectory.ts)), axis=-1)))
    trajectory = eqx.tree_at(saved, trajectory, cut(saved(trajectory), rows))
    if trajectory.interpolation is None:
        return trajectory
    used = max(int(np.max(trajectory.interpolation.ts_size)) - 1, 1)
    steps = 2 ** math.ceil(math.log2(used))
    dense = trajectory.interpolation
    parts = cut(dense.ts, steps + 1), cut(dense.infos, steps)
    return eqx.tree_at(lambda tr: (tr.interpolation.ts, tr.interpolation.infos), trajectory, parts)
