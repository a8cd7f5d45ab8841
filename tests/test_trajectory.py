"""A trajectory looked at from all sides: saved states, dense output, batches, what is printed, what can go wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_flow
from random_cases import flat, row
from small_flow import END, PROBLEM, START, STARTS, TOLERANCES

import gdflow as gf


@pytest.fixture(scope="module")
def flow() -> gf.Trajectory:
    return small_flow.flow()


@pytest.fixture(scope="module")
def flows() -> gf.Trajectory:
    return small_flow.flows()


def test_every_step_is_saved_from_start_to_end(flow):
    ts = np.asarray(flow.ts)
    assert flow.status == "reached t1"
    assert (ts[0], ts[-1], float(flow.final_time)) == (0.0, END, END)
    assert np.all(np.diff(ts) > 0)
    assert 10 < len(ts) - 1 <= int(flow.num_steps)
    np.testing.assert_array_equal(flat(row(flow.networks, 0)), flat(START))
    np.testing.assert_array_equal(flat(row(flow.networks, -1)), flat(flow.final))


def test_losses_and_gradients_along_the_trajectory(flow):
    target, design = np.asarray(PROBLEM.target), np.asarray(PROBLEM.design)
    first, second = (np.asarray(w) for w in flow.networks.weights)
    residual = target - second @ first @ design
    losses = 0.5 * np.sum(residual**2, axis=(1, 2))
    gradients = np.sum((second.mT @ residual @ design.T) ** 2, axis=(1, 2))
    gradients += np.sum((residual @ design.T @ first.mT) ** 2, axis=(1, 2))
    np.testing.assert_allclose(flow.losses, losses, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(flow.gradient_norms, np.sqrt(gradients), rtol=1e-10, atol=1e-13)
    assert np.all(np.diff(np.asarray(flow.losses)) < 0)


def test_the_loss_that_is_lost_is_the_integral_of_the_squared_gradient(flow):
    # dL/dt = −‖∇L‖², integrated by Gauss's rule between the steps. The interpolant is right to about 1e-7.
    ts = np.asarray(flow.ts)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    half = np.diff(ts)[:, None] / 2
    times = (ts[:-1, None] + half * (1 + nodes)).ravel()
    networks = jax.vmap(flow.evaluate)(jnp.asarray(times))
    squares = np.asarray(jax.vmap(lambda net: PROBLEM.gradient(net).norm())(networks)) ** 2
    lost = np.sum(half * weights * squares.reshape(-1, 5))
    np.testing.assert_allclose(lost, float(flow.losses[0] - flow.losses[-1]), rtol=1e-6)


def test_conserved_quantities_do_not_drift(flow, flows):
    # Local errors of 1e-8 over fewer than a hundred steps.
    for trajectory in (flow, flows):
        assert trajectory.drift.shape == trajectory.ts.shape
        assert np.nanmax(trajectory.drift) < 1e-6
        assert np.all(np.asarray(trajectory.drift)[..., 0] == 0)
    # And the measure is the one of the definition.
    a, b = (np.asarray(w[-1]) for w in flow.networks.weights)
    c, d = (np.asarray(w[0]) for w in STARTS.weights)
    moved = np.linalg.norm((b.T @ b - a @ a.T) - (d.T @ d - c @ c.T))
    expected = moved / max(np.linalg.norm(w) for w in (a, b, c, d)) ** 2
    np.testing.assert_allclose(flow.drift[-1], expected, rtol=1e-5)  # of numbers near 1e-9, from a difference of ones


def test_singular_values_of_the_product(flow, flows):
    product = np.asarray(flow.networks.weights[1]) @ np.asarray(flow.networks.weights[0])
    expected = np.linalg.svd(product, compute_uv=False)
    np.testing.assert_allclose(flow.singular_values, expected, rtol=0, atol=1e-12)
    assert flows.singular_values.shape == (*flows.ts.shape, 2)
    rows = len(flow.ts)
    np.testing.assert_allclose(flows.singular_values[0, :rows], expected, rtol=0, atol=1e-9)  # as for batches below


def test_evaluate_passes_through_the_saved_states(flow):
    for k in (0, 1, len(flow.ts) // 2, -2, -1):
        # At the ends of a step the interpolant gives the states up to rounding.
        np.testing.assert_allclose(flat(flow.evaluate(flow.ts[k])), flat(row(flow.networks, k)), rtol=0, atol=1e-12)


def test_evaluate_between_the_steps_is_as_accurate_as_the_solver(flow):
    times = np.array([0.137, 1.0, 2.71, 5.5])
    accurate = gf.simulate(PROBLEM, START, END, ts=[*times, END], rtol=1e-11, atol=1e-13, dense=False)
    for k, t in enumerate(times):
        # Tsit5's interpolant has one order less than its steps of local error 1e-8.
        np.testing.assert_allclose(flat(flow.evaluate(t)), flat(row(accurate.networks, k)), rtol=0, atol=1e-6)


def test_a_batch_is_its_single_runs(flows):
    assert flows.status == ["reached t1"] * 4
    lengths = np.sum(np.isfinite(np.asarray(flows.ts)), axis=1)
    assert len(set(lengths.tolist())) > 1  # so that there is padding to look at
    assert flows.ts.shape == (4, max(lengths))
    middle = flows.evaluate(1.3)
    for i in range(4):
        single = gf.simulate(PROBLEM, row(STARTS, i), END, **TOLERANCES)
        assert len(single.ts) == lengths[i]
        assert int(single.num_steps) == int(flows.num_steps[i])
        for a, b in (
            (flat(row(flows.final, i)), flat(single.final)),
            (flat(row(middle, i)), flat(single.evaluate(1.3))),
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)  # rounding in another order
        # The error estimate, 1e-8 of the state, has lost eight digits to cancellation: steps agree to the rest.
        np.testing.assert_allclose(flows.ts[i, : lengths[i]], single.ts, rtol=0, atol=1e-6)
        np.testing.assert_allclose(flows.losses[i, : lengths[i]], single.losses, rtol=1e-5)
        for padding in (flows.ts, flows.losses, flows.gradient_norms, *flows.networks.weights):
            assert np.all(np.isnan(padding[i, lengths[i] :]))


def test_the_flow_does_not_know_the_time(flow):
    later = gf.simulate(PROBLEM, START, 2.0 + END, t0=2.0, **TOLERANCES)
    np.testing.assert_allclose(flat(later.final), flat(flow.final), rtol=0, atol=1e-10)  # rounding of the times
    np.testing.assert_allclose(later.ts - 2.0, flow.ts, rtol=0, atol=1e-6)  # as for the steps of batches above


@pytest.mark.slow
def test_equidistant_times(flow):
    trajectory = gf.simulate(PROBLEM, START, END, ts=5, **TOLERANCES, dense=False)
    np.testing.assert_allclose(trajectory.ts, [0, 1.5, 3, 4.5, 6], rtol=1e-15)
    for k in range(5):
        np.testing.assert_allclose(
            flat(row(trajectory.networks, k)), flat(flow.evaluate(float(trajectory.ts[k]))), rtol=0, atol=1e-12
        )


def test_trajectories_print_well_whatever_they_hold(flow, flows):
    for trajectory in (flow, flows):
        assert repr(trajectory) == str(trajectory)
        assert len(repr(trajectory)) < 1500
    # Without numbers: inside a transformation, as shapes, and as a tree of something else.
    shown = []

    def final_loss(net):
        trajectory = gf.simulate(PROBLEM, net, END, ts=2)
        shown.extend([repr(trajectory), str(trajectory), trajectory._repr_html_()])
        return trajectory

    shown.append(repr(eqx.filter_eval_shape(final_loss, START)))
    shown.append(repr(jax.tree.map(lambda _: None, flow)))
    assert all("Trajectory" in text and len(text) < 5000 for text in shown[:2] + shown[3:])


def test_a_batch_of_batches_has_statuses_too(flows):
    assert jax.tree.map(lambda x: x[None], flows).status == ["reached t1"] * 4


def test_a_trajectory_prints_what_happened(flow, flows):
    shown = str(flow)
    for part in ("3-3-2", "reached t1", "drift of C_j", f"{float(flow.losses[0]):.6g}"):
        assert part in shown
    assert "reached t1" in str(flows)
    assert " 4" in str(flows)


def test_dense_output_is_needed_for_what_needs_it():
    trajectory = gf.simulate(PROBLEM, START, END, ts=5, **TOLERANCES, dense=False)
    for refused in (lambda: trajectory.evaluate(1.0), trajectory.crossing_times):
        with pytest.raises(ValueError, match=r"dense output: simulate\(\.\.\., dense=True\)"):
            refused()


# What can go wrong during an integration.


def test_a_step_limit_is_reported():
    trajectory = gf.simulate(PROBLEM, START, END, **TOLERANCES, max_steps=7)
    assert trajectory.status == "step limit"
    assert int(trajectory.num_steps) == 7
    assert 0 < float(trajectory.final_time) < END
    assert len(trajectory.ts) <= 8
    assert float(trajectory.ts[-1]) == float(trajectory.final_time)


@pytest.mark.slow
def test_rows_after_a_step_limit_are_not_numbers():
    # The first start has converged already and takes longer steps: it alone gets to the end.
    nets = jax.tree.map(lambda w: w.at[0].multiply(0.0), STARTS)
    trajectories = gf.simulate(
        PROBLEM, nets, 1.0, ts=[0.01, 0.5, 1.0], rtol=1e-9, atol=1e-12, dense=False, max_steps=14
    )
    assert trajectories.status == ["reached t1", "step limit", "step limit", "step limit"]
    for padded in (trajectories.ts, trajectories.losses, trajectories.gradient_norms, *trajectories.networks.weights):
        assert np.all(np.isnan(padded[1, -1]))


def test_divergence_of_a_fixed_step_is_reported():
    trajectory = gf.simulate(PROBLEM, 4.0 * START, 20.0, step=1.0, ts=[20.0], dense=False)
    assert not bool(trajectory.finite)
    assert trajectory.status == "not finite"


def test_a_critical_start_stays():
    trajectory = gf.simulate(PROBLEM, 0.0 * START, END, **TOLERANCES)
    assert trajectory.status == "reached t1"
    assert np.all(flat(trajectory.final) == 0)
