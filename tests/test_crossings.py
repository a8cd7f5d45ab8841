"""The search for crossings, against roots in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from gdflow.dynamics.crossings import first_crossing

EPS = 2.0**-52

#: Falling functions with their roots: smooth, flat at the root, a jump, and a crossing late in a long bracket.
CASES = [
    (lambda t: 2.0 - t**2, np.sqrt(2.0), 3.0),
    (lambda t: jnp.exp(-t) - 0.25, np.log(4.0), 50.0),
    (lambda t: -((t - 0.5) ** 3), 0.5, 1.0),
    (lambda t: jnp.where(t < 1 / 3, 1.0, -1.0), 1 / 3, 1.0),
    (lambda t: 1 / (1 + jnp.exp(t - 900.0)) - 0.5, 900.0, 1e6),
]


def search(functions, ends, **options):
    def excess(t):
        return jnp.stack([f(t[k]) for k, f in enumerate(functions)])

    start, end = jnp.zeros(len(functions)), jnp.asarray(ends)
    return first_crossing(excess, start, excess(start), end, excess(end), **options)


def test_roots_of_many_lanes_are_found_together():
    functions, roots, ends = zip(*CASES, strict=True)
    found = np.asarray(jax.jit(lambda: search(functions, ends))())
    errors = np.abs(found - roots) / roots
    errors[2] = abs(float(CASES[2][0](found[2])))  # a triple root: all that can be asked is a function of zero
    assert errors.max() < 8 * EPS


def test_no_more_evaluations_than_bisection_and_far_fewer_for_smooth_functions():
    seen = []

    def smooth(t):
        jax.debug.callback(lambda _: seen.append(1), t)
        return jnp.exp(-t) - 0.25

    search([smooth], [50.0]).block_until_ready()
    jax.effects_barrier()
    assert len(seen) < 20  # two of them at the ends


def test_lanes_that_are_already_below_or_not_wanted():
    functions = [lambda t: -1.0 - t, lambda t: 1.0 - t, lambda t: jnp.nan * t]
    found = search(functions, [1.0, 4.0, 1.0], wanted=jnp.array([True, True, False]))
    assert found[0] == 0.0
    assert abs(float(found[1]) - 1.0) <= 4 * EPS


def test_the_search_hides_nothing_from_derivatives_that_do_not_pass_it():
    def time(level):
        fixed = jax.lax.stop_gradient(level)
        t = first_crossing(
            lambda t: jnp.exp(-t) - fixed, jnp.zeros(1), 1 - fixed, jnp.full(1, 9.0), jnp.exp(-9.0) - fixed
        )
        return level[0] * t[0]

    level = jnp.array([0.25])
    np.testing.assert_allclose(jax.grad(time)(level), [np.log(4.0)], rtol=1e-14)
