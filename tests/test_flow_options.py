"""Options of `simulate` that make no sense, and starts that do not fit, are refused with the reason."""

import inspect

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_flow import PROBLEM, START, STARTS

import gdflow as gf
from gdflow.network import LayerTuple


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t1": np.inf}, r"t1=inf needs a stop, e\.g\. stop=gf\.AtCertificate\(\)"),
        ({"t1": 0.0}, r"t1=0\.0 must be larger than t0=0\.0"),
        ({"t0": 2.0}, r"t1=1\.0 must be larger than t0=2\.0"),
        ({"t1": np.nan}, "t1=nan must be larger"),
        ({"ts": [0.1, 0.5, 0.5]}, r"save times must increase and lie in \[0\.0, 1\.0\]"),
        ({"ts": [0.5, 0.1]}, "save times must increase"),
        ({"ts": [-0.1, 0.5]}, r"lie in \[0\.0, 1\.0\], got -0\.1 … 0\.5"),
        ({"ts": [0.5, 1.5]}, r"lie in \[0\.0, 1\.0\], got 0\.5 … 1\.5"),
        ({"ts": 1}, "1 equidistant times .* at least 2"),
        ({"ts": 5, "t1": np.inf, "stop": gf.AtCertificate()}, "5 equidistant times up to t1=inf"),
        ({"step": -0.1}, r"the step must be positive, got -0\.1"),
        ({"step": 0.0}, r"the step must be positive, got 0\.0"),
        ({"step": 0.3}, r"a fixed step must divide t1 - t0: \(1\.0 - 0\.0\)/0\.3 = 3\.33"),
        ({"solver": gf.RK4()}, "RK4 has no error estimate: give a fixed step"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"max_steps": 2.5}, "max_steps must be an integer, got 2.5"),
        ({"max_steps": np.nan}, "max_steps must be an integer, got nan"),
        ({"rtol": 0.0}, "0 < rtol < 1, got rtol=0.0"),
        ({"rtol": 1e300}, "0 < rtol < 1, got"),
        ({"rtol": np.nan}, "rtol must be a finite number, got nan"),
        ({"atol": -1e-9}, "atol ≥ 0, got atol=-1e-09"),
        ({"atol": np.inf}, "atol must be a finite number, got inf"),
        ({"ts": 2.5}, "the number of save times ts must be an integer, got 2.5"),
        ({"solver": diffrax.KenCarp4()}, r"KenCarp4 is made for equations split into several terms .*Kvaerno5\(\)"),
        (
            {"solver": diffrax.Kvaerno3(), "step": 0.1},
            "Kvaerno3 solves its equations to the tolerances of the step control",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gf.simulate(PROBLEM, START, **{"t1": 1.0, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1e9},  # the interval is not a multiple of it: zero times is none
        {"step": np.inf},
        {"ts": [0.5, np.nan]},
        {"ts": [np.nan, 1.0]},
        {"ts": []},
        {"t0": -np.inf},
    ],
    ids=str,
)
def test_more_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=r"step|save times|t0"):
        gf.simulate(PROBLEM, START, **{"t1": 1.0, "dense": False, **options})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([np.array([[1.0, 0.0, np.nan]] * 3), np.ones((2, 3))], r"W_1 is nan at entry \(0, 2\); starts must be finite"),
        ([np.ones((3, 3)), np.full((2, 3), np.inf)], r"W_2 is inf at entry \(0, 0\)"),
        ([np.ones((3, 4)), np.ones((2, 3))], r"widths \(4, 3, 2\) do not fit the problem.*d_0 = 3 and d_N = 2"),
        ([np.ones((3, 3)), np.ones((1, 3))], r"widths \(3, 3, 1\) do not fit the problem"),
        ([np.ones((5, 4, 3, 3)), np.ones((5, 4, 2, 3))], r"one batch axis at most, .* leading axes \(5, 4\)"),
    ],
)
def test_networks_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        gf.simulate(PROBLEM, LayerTuple(layers), 1.0)


@pytest.mark.parametrize(
    "options", [{"max_steps": True}, {"ts": True}, {"ts": [True]}, {"ts": np.array([1j])}, {"rtol": True}], ids=str
)
def test_options_of_another_kind_are_refused(options):
    with pytest.raises(TypeError, match=r"must be (an integer|a number|real numbers), got"):
        gf.simulate(PROBLEM, START, **{"t1": 1.0, **options})


def test_a_list_of_matrices_is_no_network():
    """As a user calls it, without the type checks of the tests."""
    weights = [np.asarray(w) for w in START.weights]
    for refuses in (
        lambda: inspect.unwrap(gf.simulate)(PROBLEM, weights, 1.0),
        lambda: inspect.unwrap(gf.limit)(PROBLEM, weights),
        lambda: inspect.unwrap(gf.shoot_at_saddle)(PROBLEM, weights, weights),
    ):
        with pytest.raises(
            TypeError, match=r"must be a gdflow.LayerTuple, got list: gf.LayerTuple\(weights\) makes one"
        ):
            refuses()


def test_a_start_in_a_batch_that_is_not_finite_is_named():
    bad = jax.tree.map(lambda w: w.at[2, 0, 1].set(jnp.nan), STARTS)
    with pytest.raises(ValueError, match=r"W_1 is nan at entry \(2, 0, 1\)"):
        gf.simulate(PROBLEM, bad, 1.0)
