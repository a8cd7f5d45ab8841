"""The methods that Diffrax lacks: orders, stability limits and error estimates against exact solutions."""

import inspect

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.basins import Limits
from gdflow.dynamics.runge_kutta import check_solver
from gdflow.dynamics.step_control import step_control


def step(solver, field, y, h):
    """One step of a method for `ẏ = field(y)`: the new state and the error estimate."""
    term = diffrax.ODETerm(lambda t, y, args: field(y))
    memory = solver.init(term, 0.0, h, y, None)
    y1, error, *_ = solver.step(term, 0.0, h, y, None, memory, made_jump=False)
    return y1, error


@pytest.mark.parametrize("stages", [3, 10, *(pytest.param(s, marks=pytest.mark.slow) for s in (6, 20, 30))])
def test_rkc_is_of_order_two_and_knows_its_error(stages):
    """Logistic growth `ẏ = y(1 − y)`, solved exactly: local errors shrink by 2³ with the step, and so does the estimate."""
    solver = gf.RKC(stages)

    def exact(t):
        return 0.25 * np.exp(t) / (1 + 0.25 * (np.exp(t) - 1))

    errors, estimates = [], []
    for h in (0.02, 0.01):
        y1, estimate = step(solver, lambda y: y * (1 - y), jnp.array([0.25]), h)
        errors.append(float(y1[0]) - exact(h))
        estimates.append(float(estimate[0]))
    # Both are h³·(const + O(h)), and for an h of 0.01 the second term is a few per cent of the first.
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)
    assert estimates[0] / estimates[1] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("stages", [3, *(pytest.param(s, marks=pytest.mark.slow) for s in (6, 10, 20, 30))])
@pytest.mark.slow
def test_rkc_is_stable_as_far_as_its_authors_say(stages):
    """`ẏ = −λy`: damped up to `hλ = ⅔(s² − 1)(1 − 2ε/15)`, `ε = 2/13` (their equation (2.7)), unstable 25 % beyond."""
    limit = 2 / 3 * (stages**2 - 1) * (1 - 2 / 15 * 2 / 13)
    factors = np.array(
        [step(gf.RKC(stages), lambda y, z=z: -z * y, jnp.ones(1), 1.0)[0][0] for z in np.linspace(0.05, 1, 40) * limit]
    )
    assert np.all(abs(factors) < 1)
    assert abs(step(gf.RKC(stages), lambda y: -1.25 * limit * y, jnp.ones(1), 1.0)[0][0]) > 1


@pytest.mark.slow
def test_rkc_takes_fewer_steps_where_the_flow_is_stiff():
    """s = (3, 0.03, 0.003), depth three: certificate times as of Tsit5 at tight tolerance, in a fraction of the steps."""
    problem = gf.Problem.from_singular_values([3, 0.03, 0.003])
    law = gf.initialization.Gaussian((3, 3, 3, 3))
    options = dict(key=jax.random.key(1), limits=Limits(max_steps=100_000), riders=(), audit=0, progress=False)
    tight = gf.basin_sizes(problem, law, 10, **options, method=gf.integrator(rtol=1e-8, atol=1e-11))
    loose = gf.basin_sizes(problem, law, 10, **options, method=gf.integrator(gf.RKC(), rtol=1e-4, atol=1e-7))
    assert tight.certified == loose.certified == 10
    # Local errors of 1e-4 relative to the state over some hundred steps.
    np.testing.assert_allclose(loose.outcomes["time"].to_numpy(), tight.outcomes["time"].to_numpy(), rtol=0.05)
    # Stability allows steps 66/3.3 times as long; at the start accuracy asks for more.
    assert loose.tally.steps < tight.tally.steps / 3
    assert loose.plan.method.name.startswith("RKC10, ")


@pytest.mark.parametrize("stages", [2, 31])
def test_rkc_stage_numbers_out_of_range_are_refused(stages):
    with pytest.raises(ValueError, match=f"3 to 30 stages, got {stages}"):
        gf.RKC(stages)


@pytest.mark.parametrize("most", [2, 1001, 10.0])
def test_automatic_stage_numbers_out_of_range_are_refused(most):
    with pytest.raises(ValueError, match=f"from 3 to 1000 for its most stages, got {most}"):
        gf.AutomaticRKC(most)


@pytest.mark.parametrize("stages", [3, 30])
def test_automatic_steps_are_those_of_as_many_stages(stages):
    """A linear flow whose stiffness asks for this many: its step is that of the tableau of `RKC(stages)`, to round-off."""
    rates = jnp.array([0.3, 1.0, 50.0])
    y, h = jnp.array([1.0, -2.0, 0.5]), (stages**2 - 1) / 84.5
    fixed = step(gf.RKC(stages), lambda y: -rates * y, y, h)
    automatic = step(gf.AutomaticRKC(stages), lambda y: -rates * y, y, h)
    for one, other in zip(fixed, automatic, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_automatic_rkc_goes_to_a_limit_along_slow_directions():
    """`s = (3, 0.03)`, two balanced factors: `ȧ_i = 2a_i(s_i − a_i)`, so `a_i = s_i/(1 + (s_i/a_i(0) − 1)e^{−2s_it})`."""
    problem, s, a0 = gf.Problem.from_singular_values([3, 0.03]), np.array([3, 0.03]), np.array([0.5, 0.001])
    net = gf.LayerTuple([np.diag(np.sqrt(a0))] * 2)
    ts = np.geomspace(0.1, 1000, 15)
    flow = gf.simulate(problem, net, ts[-1], ts=ts, solver=gf.AutomaticRKC(), rtol=1e-4, atol=1e-8, dense=False)
    exact = s / (1 + (s / a0 - 1) * np.exp(-2 * s * ts[:, None]))
    # Order 2, local errors of 1e-4 relative to the state; the growth of a_2 by 30 amplifies the first of them.
    ends = jax.vmap(lambda net: jnp.diagonal(net.end_to_end))(flow.networks)
    np.testing.assert_allclose(ends, exact, rtol=2e-2)
    # Stability would ask Tsit5 for steps of 3.3/λ, λ = 6: some 1800.
    assert int(flow.num_steps) < 200


def all_solvers():
    """Every solver of Diffrax and ours, and some of them halved."""
    names = [n for n, c in vars(diffrax).items() if inspect.isclass(c) and issubclass(c, diffrax.AbstractSolver)]
    names = [n for n in names if not n.startswith("Abstract") and n != "HalfSolver"]
    solvers = {n: getattr(diffrax, n)() for n in names} | {
        "RK4": gf.RK4(),
        "RKC": gf.RKC(),
        "AutomaticRKC": gf.AutomaticRKC(),
        "Gauss": gf.GaussLegendre(2),
    }
    inside = ("Euler", "Tsit5", "ImplicitEuler", "KenCarp4", "EulerHeun", "RK4")
    return solvers | {f"Half{n}": diffrax.HalfSolver(solvers[n]) for n in inside}


@pytest.mark.parametrize("name", sorted(all_solvers()))
def test_solvers_are_refused_exactly_where_diffrax_cannot_use_them(name):
    solver = all_solvers()[name]

    def works(controller):
        def solve(y):
            term = diffrax.ODETerm(lambda t, y, args: -y)
            return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.1, y, stepsize_controller=controller).ys

        try:
            eqx.filter_eval_shape(solve, jnp.ones(2))  # traced, not compiled
        except Exception:
            return False
        return True

    def accepted(adaptive):
        try:
            check_solver(solver, adaptive=adaptive)
        except ValueError:
            return False
        return True

    assert accepted(False) == works(diffrax.ConstantStepSize())
    # Diffrax takes the error of RK4, which has no estimate, for zero.
    assert accepted(True) == (works(step_control(1e-6, 1e-9)) and name != "RK4")


def test_what_stands_for_no_solver_is_refused():
    with pytest.raises(TypeError, match=r"must be an instance, not a class: Tsit5\(\) in place of Tsit5"):
        check_solver(diffrax.Tsit5)
    for other in ("Tsit5", None, 5):
        with pytest.raises(TypeError, match="must be one of Diffrax's or gdflow's"):
            check_solver(other)
    for solver in (diffrax.KenCarp4(), diffrax.Sil3()):
        with pytest.raises(ValueError, match=r"diffrax\.Kvaerno5\(\), Kvaerno4\(\), Kvaerno3\(\) or gdflow\.RKC\(\)"):
            check_solver(solver)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in sorted(all_solvers()) if n not in ("LeapfrogMidpoint",)])
def test_accepted_solvers_solve_the_flow(name):
    """From `ab = 0.1`, `a = b`, towards 2: `u = 2/(1 + 19e^{−4t})`. The coarsest method, of order 1, has h/2 per unit of time."""
    solver, problem = all_solvers()[name], gf.Problem.from_singular_values([2.0])
    net = np.sqrt(0.1) * gf.LayerTuple([np.ones((1, 1)), np.ones((1, 1))])
    for step in (None, 1e-3):
        try:
            check_solver(solver, adaptive=step is None)
        except ValueError:
            continue
        run = gf.simulate(problem, net, 0.5, ts=[0.5], solver=solver, step=step, rtol=1e-5, atol=1e-8, dense=False)
        assert run.status == "reached t1"
        np.testing.assert_allclose(run.final.end_to_end, 2 / (1 + 19 * np.exp(-2.0)), rtol=1e-2)
