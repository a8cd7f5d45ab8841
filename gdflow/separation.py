"""Samples that a network separates: the loss has no minimum, the flow runs to infinity, and its direction seeks a large margin.

Let the output be homogeneous of degree `N` in the weights: linear networks, ReLU and leaky ReLU, without decay or biases. With
the logistic or the softmax loss `L` (a sum over samples), once `L < log 2`

    ‖W(t)‖ → ∞,  L → 0,  and  γ̃ = −log(e^L − 1)/‖W‖^N does not fall,

so every margin that is reached stays: `γ̃` is at most the margin `min_k (margin of sample k)/‖W‖^N`, and the two come together
(Lyu and Li 2020, Theorem 4.1; Ji and Telgarsky 2020 prove that the direction `W/‖W‖` converges). The margin of a sample is
`y f(x)` for labels `y = ±1`, and the output of its class less the largest of the others for one-hot labels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdflow.losses import Logistic
from gdflow.network import LayerTuple, check_one_network
from gdflow.objective import DataObjective
from gdflow.problem import Problem


def normalized_margin(problem: Problem, net: LayerTuple) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The normalised margin of a network, and its smoothed lower bound, which does not fall along the flow.

    **Returns:** `min_k (margin of sample k)/‖W‖^N`, negative if a sample is on the wrong side; and `γ̃`, −∞ unless `L < log 2`.

    **Raises:** `ValueError` for problems to which the theory does not apply.

    ```python
    >>> margin, bound = normalized_margin(problem, net)
    ```
    """
    check_one_network(net)
    objective = problem.objective
    with jax.ensure_compile_time_eval():  # of the problem, not of the network
        applies = isinstance(objective, DataObjective) and bool(objective.vanishes_at_infinity())
    if not applies or not isinstance(objective, DataObjective):
        raise ValueError(
            "margins are of homogeneous networks (linear, ReLU, leaky ReLU) without weight decay or biases, with the logistic or "
            f"the softmax loss: {problem.why_no_levels or 'this problem has the squared error'}"
        )
    output, target = objective.features(net).reshape(objective.target.shape), objective.target
    if isinstance(objective.loss, Logistic):
        margins = jnp.min(target * output)
    else:
        own = jnp.sum(target * output, axis=0)
        margins = jnp.min(own - jnp.max(jnp.where(target > 0, -jnp.inf, output), axis=0))
    scale = net.norm() ** net.depth
    loss = objective.effective_loss(net)
    smoothed = jnp.where(loss < jnp.log(2.0), -jnp.log(jnp.expm1(loss)), -jnp.inf)
    return margins / scale, smoothed / scale
