"""Activations against numerical derivatives, quadrature and their own claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from gdflow.activations import (
    GELU,
    NAMED,
    AbstractActivation,
    Arctan,
    Custom,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Tanh,
    as_activation,
)

ALL = [Identity(), Tanh(), Arctan(), Sigmoid(), GELU(), ReLU(), LeakyReLU(0.1)]
#: Not at zero, where kinks are.
GRID = np.linspace(-6, 6, 1201) + 1e-4


@pytest.mark.parametrize("activation", ALL, ids=lambda a: a.name)
def test_derivatives_and_claims(activation):
    x = jnp.asarray(GRID)
    step = 1e-6
    numerical = (activation.value(x + step) - activation.value(x - step)) / (2 * step)
    # The difference quotient errs by ε/step ≈ 2e-10 and step².
    np.testing.assert_allclose(activation.derivative(x), numerical, atol=2e-9)
    value, slope = activation.both(x)
    np.testing.assert_array_equal(value, activation.value(x))
    np.testing.assert_allclose(slope, activation.derivative(x), atol=1e-15)
    assert activation.at_zero == (0.5 if isinstance(activation, Sigmoid) else 0.0)
    if activation.odd:
        np.testing.assert_allclose(activation.value(-x), -activation.value(x), atol=1e-15)
    else:
        assert np.max(np.abs(activation.value(-x) + activation.value(x))) > 0.1
    doubled = np.max(np.abs(activation.value(2 * x) - 2 * activation.value(x)))
    assert doubled < 1e-14 if activation.homogeneous else doubled > 0.1
    if activation.slopes_at_kink is not None:
        left, right = activation.slopes_at_kink
        np.testing.assert_array_equal(activation.derivative(jnp.array([-1.0, 1.0])), [left, right])
    assert activation.smooth is (activation.slopes_at_kink is None)


@pytest.mark.parametrize("activation", [a for a in ALL if a.bounds is not None], ids=lambda a: a.name)
def test_bounds_of_derivatives_hold_and_are_sharp(activation):
    derivative = activation.value
    for bound in activation.bounds:
        derivative = jax.grad(derivative)
        largest = float(jnp.max(jnp.abs(jax.vmap(derivative)(jnp.linspace(-8.0, 8.0, 40_001)))))
        assert largest <= bound * (1 + 1e-12)
        assert largest >= 0.99 * bound


@pytest.mark.parametrize("activation", [Identity(), Tanh(), Arctan(), Sigmoid(), LeakyReLU(0.2)], ids=lambda a: a.name)
def test_the_integral_of_the_ratio(activation):
    def ratio(s):
        return float(activation.value(jnp.asarray(s)) / activation.derivative(jnp.asarray(s)))

    for x in (-2.5, -0.3, 0.015, 0.7, 3.0):
        exact, _ = scipy.integrate.quad(ratio, 0, x, epsabs=1e-13)
        assert float(activation.ratio_integral(jnp.asarray(x))) == pytest.approx(exact, rel=1e-9, abs=1e-14)


def test_the_series_of_arctan_meets_its_closed_form():
    """On either side of the change, 1e-7 apart, values differ by the slope `Σ' = (1 + x²) arctan x` times that."""
    x = jnp.array([0.02 - 5e-8, 0.02 + 5e-8])
    below, above = Arctan().ratio_integral(x)
    assert float(above - below) == pytest.approx(1e-7 * 1.0004 * np.arctan(0.02), rel=1e-5)


def test_an_activation_of_your_own_is_checked():
    sine = Custom(jnp.sin, jnp.cos, is_odd=True)
    assert sine.odd
    assert sine.smooth
    assert sine.name == "sin"
    np.testing.assert_allclose(Custom(jnp.sin).derivative(jnp.asarray(GRID)), np.cos(GRID), atol=1e-14)
    with pytest.raises(ValueError, match=r"derivative given is .* but that of the function is"):
        Custom(jnp.sin, jnp.sin)
    with pytest.raises(ValueError, match="not odd"):
        Custom(jnp.cos, is_odd=True)
    with pytest.raises(ValueError, match="not positively homogeneous"):
        Custom(jnp.sin, is_homogeneous=True)
    with pytest.raises(ValueError, match="acts entry by entry"):
        Custom(lambda x: jnp.sum(x))
    with pytest.raises(ValueError, match="not known for GELU"):
        GELU().ratio_integral(jnp.ones(2))


def test_names():
    for name, kind in NAMED.items():
        assert isinstance(as_activation(name), kind)
        assert isinstance(as_activation(kind), kind)
    with pytest.raises(ValueError, match="no activation 'softmax': one of identity, tanh"):
        as_activation("softmax")
    with pytest.raises(TypeError, match=r"Custom\(function, derivative\)"):
        as_activation(jnp.tanh)
    with pytest.raises(ValueError, match=r"at least 0 and below 1, got 1\.5"):
        LeakyReLU(1.5)
    assert issubclass(Tanh, AbstractActivation)
