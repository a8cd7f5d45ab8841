"""Steps that overflow are shortened, not the end of an integration."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.dynamics.step_control import step_control
from gdflow.experiments.riemannian.runs import Case


@pytest.mark.parametrize("solver", [diffrax.Heun(), diffrax.Tsit5()], ids=lambda solver: type(solver).__name__)
def test_a_step_that_overflows_is_tried_again(solver):
    """`ẏ = −y²¹`, `y(t) = (1 + 20t)^{−1/20}`, whose first trial step leads to infinity."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -(y**21)), solver, 0.0, 1e16, 1e16, jnp.ones(2),
        stepsize_controller=step_control(1e-6, 1e-9), max_steps=10_000, throw=False,
    )  # fmt: skip
    assert solution.result == diffrax.RESULTS.successful
    # What an early step gets wrong fades like y²¹: a few local errors are left.
    np.testing.assert_allclose(solution.ys[-1], (1 + 20e16) ** (-1 / 20), rtol=1e-5)


@pytest.mark.slow
def test_a_deep_network_does_not_stand_still():
    """Steps that grow tenfold overflow in five layers; with Diffrax's own norm this run stops on the way for good."""
    case = Case("supervised", 20, 2, 5, "fan-out", 100.0)
    problem, net = case.problem(0, 0), case.begin(0, 0)
    run = gf.simulate(problem, net, case.span, ts=2, solver=gf.RKC(20), rtol=1e-5, atol=1e-8, dense=False)
    assert run.status == "reached t1"
    assert run.losses[-1] < 1e-10 * run.losses[0]
