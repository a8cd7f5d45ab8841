"""Data of any size: right, or refused with the reason before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.basins import Limits, Status

KEY = jax.random.key(2)
EXPONENTS = [-300, -154, -78, -76, -20, 20, 76, 78, 154, 300]


@pytest.mark.parametrize(
    ("power_x", "power_y"),
    [*((0, e) for e in EXPONENTS), *((e, 0) for e in EXPONENTS), (76, 76), (-76, -76), (76, -76)],
)
def test_problems_at_any_scale_are_right_or_refused(power_x, power_y):
    """`Q = YXᵀ(XXᵀ)^{-1/2}` is linear in `Y` and does not see the size of `X`: singular values, levels and reports follow."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(3, 7)), rng.normal(size=(2, 7))
    reference = gf.Problem(X, Y)
    if max(abs(power_x), abs(power_y)) > 76:  # the fourth root of the range of float64 lies between 1e76 and 1e78
        with pytest.raises(ValueError, match=r"leave the range of float64\. Divide"):
            gf.Problem(X * 10.0**power_x, Y * 10.0**power_y)
        return
    problem = gf.Problem(X * 10.0**power_x, Y * 10.0**power_y)
    unit = 10.0**power_y
    np.testing.assert_allclose(np.asarray(problem.singular_values) / unit, reference.singular_values, rtol=1e-12)
    values = gf.critical_values(problem, 2).values
    np.testing.assert_allclose(values / unit**2, gf.critical_values(reference, 2).values, rtol=1e-12, atol=1e-14)
    # The zero network is critical and no minimum, whatever the units.
    zero = gf.LayerTuple([jnp.zeros((3, 3)), jnp.zeros((2, 3))])
    assert not gf.certify(problem, zero).global_minimum
    # Near the minimum (a factorisation of least squares, up to 1 %) the certificate is there.
    W = np.asarray(problem.least_squares())
    near = gf.LayerTuple([jnp.asarray(1.001 * W), jnp.eye(2)])
    assert gf.certify(problem, near).global_minimum


@pytest.mark.parametrize("scale", [1e-170, 1e-100, 1e100, 1e154, 1e300])
def test_targets_whose_squares_vanish_or_overflow_are_refused(scale):
    with pytest.raises(ValueError, match=r"entries of Y are up to .* leave the range"):
        gf.Problem(np.eye(2), scale * np.eye(2))
    with pytest.raises(ValueError, match=r"entries of X are up to"):
        gf.Problem(scale * np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="leave the range"):
        gf.Problem.from_singular_values([scale, scale / 2])


def test_a_zero_target_is_no_matter_of_scale():
    assert gf.critical_values(gf.Problem(np.eye(2), np.zeros((2, 2))), 2).values.tolist() == [0.0]


@pytest.mark.parametrize("scale", [1e-70, *(pytest.param(s, marks=pytest.mark.slow) for s in (1e-8, 1e8, 1e70))])
@pytest.mark.slow
def test_the_flow_at_other_scales(scale):
    """`W_j → cW_j` maps flows to flows if `s → c²s`, `t → t/c²` (two layers): the same verdicts, and times in other units."""
    c = np.sqrt(scale)
    reference = gf.Problem.from_singular_values([2.0, 1.0])
    problem = gf.Problem.from_singular_values([2.0 * scale, scale])
    options = dict(key=KEY, audit=0, progress=False, method=gf.integrator(rtol=1e-8, atol=1e-200))
    first = gf.basin_sizes(reference, gf.initialization.Gaussian((2, 3, 2), 1.0), 30, **options)
    second = gf.basin_sizes(problem, gf.initialization.Gaussian((2, 3, 2), float(c)), 30, **options)
    assert first.certified == second.certified == 30
    assert first.outcomes["verdict"].to_pylist() == second.outcomes["verdict"].to_pylist()
    times = [e.outcomes["time"].to_numpy() for e in (first, second)]
    # Global errors at rtol 1e-8 are below 1e-6.
    np.testing.assert_allclose(times[1] * scale, times[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("size", [1e-200, pytest.param(1e-160, marks=pytest.mark.slow), 1e150, 1e200])
@pytest.mark.slow
def test_weights_of_extreme_size_are_never_certified_wrongly(size):
    """Tiny weights are next to a saddle, huge ones far from anything: undecided, with no false reason."""
    problem = gf.Problem.from_singular_values([1.0, 0.5])
    law = gf.initialization.Around(gf.LayerTuple([size * np.ones((2, 2)), size * np.ones((2, 2))]), 1e-3 * size)
    estimate = gf.basin_sizes(problem, law, 4, key=KEY, audit=0, progress=False, limits=Limits(max_steps=5))
    assert estimate.certified == 0
    if size < 1:
        assert estimate.statuses[Status.STATIONARY] + estimate.statuses[Status.STEP_LIMIT] == 4
