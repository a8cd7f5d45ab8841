"""Losses: values against NumPy in the textbook form, closed-form gradients against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy, SquaredError

EPS = 2.0**-52
SHAPE = (3, 5)


def one_hot(rng):
    return np.eye(SHAPE[0])[:, rng.integers(0, SHAPE[0], SHAPE[1])]


def mixed(rng):
    target = rng.uniform(size=SHAPE)
    return target / target.sum(axis=0)


def numpy_softmax(F):
    return np.exp(F) / np.exp(F).sum(axis=0)


def numpy_huber(delta):
    def value(F, A):
        r = np.abs(A - F)
        return np.sum(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)))

    return value


CASES = {
    "squared": (SquaredError(), lambda rng: rng.normal(size=SHAPE), lambda F, A: np.sum((A - F) ** 2) / 2),
    "logistic": (
        Logistic(),
        lambda rng: rng.choice([-1.0, 1.0], size=SHAPE),
        lambda F, A: np.sum(np.log(1 + np.exp(-A * F))),
    ),
    "one-hot": (SoftmaxCrossEntropy(), one_hot, lambda F, A: -np.sum(A * np.log(numpy_softmax(F)))),
    "mixed": (SoftmaxCrossEntropy(), mixed, lambda F, A: -np.sum(A * np.log(numpy_softmax(F)))),
    "huber": (Huber(), lambda rng: 2 * rng.normal(size=SHAPE), numpy_huber(1.0)),
    "huber-small": (Huber(0.25), lambda rng: rng.normal(size=SHAPE), numpy_huber(0.25)),
}


@pytest.mark.parametrize("case", CASES)
def test_value_is_the_sum_of_the_textbook_form(case, rng):
    loss, draw, formula = CASES[case]
    output, target = rng.normal(size=SHAPE), draw(rng)
    loss.check_target(target)
    # Fifteen terms of size one, in another order and with other elementary functions.
    assert float(loss.value(jnp.asarray(output), jnp.asarray(target))) == pytest.approx(
        formula(output, target), rel=1e-14
    )


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_derivative_of_the_value(case, rng):
    """Random residuals lie off Huber's kinks; both of its branches occur."""
    loss, draw, _ = CASES[case]
    output, target = jnp.asarray(rng.normal(size=SHAPE)), jnp.asarray(draw(rng))
    if isinstance(loss, Huber):
        small = np.abs(target - output) < loss.delta
        assert small.any()
        assert not small.all()
    # Entries are at most a few units and both sides round a handful of times.
    np.testing.assert_allclose(loss.gradient(output, target), jax.grad(loss.value)(output, target), rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_hessian_form_is_the_second_derivative(case, rng):
    """Random residuals lie off Huber's kinks, on both sides."""
    loss, draw, _ = CASES[case]
    output, target = jnp.asarray(rng.normal(size=SHAPE)), jnp.asarray(draw(rng))
    H = jax.hessian(lambda F: loss.value(F.reshape(SHAPE), target))(output.ravel())
    for _ in range(5):
        direction = jnp.asarray(rng.normal(size=SHAPE))
        form = float(loss.hessian_form(output, target, direction))
        # Entries of H are at most one: the sum of its 225 terms rounds like the square of the direction.
        assert form == pytest.approx(
            float(direction.ravel() @ H @ direction.ravel()), abs=1e-14 * float(jnp.sum(direction**2))
        )
    zero = jnp.zeros(SHAPE)
    assert float(loss.hessian_form(output, target, zero)) == 0.0


@pytest.mark.parametrize("case", CASES)
def test_losses_are_convex(case, rng):
    """The form is a sum of squares and not even round-off below zero, nor for outputs of any size."""
    loss, draw, _ = CASES[case]
    target = jnp.asarray(draw(rng))
    for size in (0.1, 1.0, 30.0, 1e3):
        for _ in range(5):
            output, direction = size * jnp.asarray(rng.normal(size=SHAPE)), jnp.asarray(rng.normal(size=SHAPE))
            form = float(loss.hessian_form(output, target, direction))
            assert form >= 0.0
            assert np.isfinite(form)


def test_softmax_has_no_curvature_along_a_shift_of_a_column(rng):
    output, target = jnp.asarray(rng.normal(size=SHAPE)), jnp.asarray(one_hot(rng))
    shift = jnp.broadcast_to(jnp.asarray(rng.normal(size=(1, SHAPE[1]))), SHAPE)
    # The square of round-off.
    assert float(SoftmaxCrossEntropy().hessian_form(output, target, shift)) < 1e-28


@pytest.mark.parametrize("case", ["logistic", "one-hot", "huber"])
def test_large_outputs_give_finite_values_and_gradients(case, rng):
    """The textbook form would overflow at e¹⁰⁰⁰; the asymptotes are linear."""
    loss, draw, _ = CASES[case]
    target = draw(rng)
    output = 1000.0 * rng.choice([-1.0, 1.0], size=SHAPE)
    value, gradient = (
        loss.value(jnp.asarray(output), jnp.asarray(target)),
        loss.gradient(jnp.asarray(output), jnp.asarray(target)),
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    if case == "logistic":  # log(1 + e^{1000}) = 1000 for each misclassified entry, e^{−1000} = 0 for the others
        assert float(value) == pytest.approx(1000.0 * np.sum(output != 1000 * target), rel=4 * EPS)


def test_softmax_ignores_a_shift_of_a_column(rng):
    output, target = rng.normal(size=SHAPE), one_hot(rng)
    shift = rng.normal(size=(1, SHAPE[1]))
    values = [float(SoftmaxCrossEntropy().value(jnp.asarray(F), jnp.asarray(target))) for F in (output, output + shift)]
    assert values[0] == pytest.approx(values[1], rel=1e-14)  # shifts of size one round like the outputs


def test_huber_is_once_differentiable_at_its_kink():
    loss, target = Huber(0.5), jnp.zeros((1, 1))
    for sign in (1.0, -1.0):
        inside, outside = (jnp.full((1, 1), sign * 0.5 * (1 + d)) for d in (-1e-9, 1e-9))
        # The gradient moves by at most the step, 1e-9, across the kink.
        assert float(loss.gradient(outside, target)[0, 0]) == pytest.approx(
            float(loss.gradient(inside, target)[0, 0]), abs=1.1e-9
        )
        assert float(loss.value(outside, target)) == pytest.approx(float(loss.value(inside, target)), abs=1.1e-9)


def test_wide_huber_is_the_squared_error(rng):
    output, target = jnp.asarray(rng.normal(size=SHAPE)), jnp.asarray(rng.normal(size=SHAPE))
    # The same fifteen squares, at most differently summed.
    assert float(Huber(1e3).value(output, target)) == pytest.approx(
        float(SquaredError().value(output, target)), rel=1e-15
    )


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_huber_needs_a_positive_delta(delta):
    with pytest.raises(ValueError, match="delta must be positive"):
        Huber(delta)


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (Logistic(), [[1, -1, 0.5]], r"labels -1 or 1.*0\.5"),
        (Logistic(), [[0, 1, 1]], "labels -1 or 1.* 0"),
        (SoftmaxCrossEntropy(), [[1.5, 0.5], [-0.5, 0.5]], r"probabilities.*-0\.5"),
        (SoftmaxCrossEntropy(), [[0.5, 0.5, 0.2], [0.5, 0.6, 0.8]], r"column 1 .*sums to 1\.1"),
        (SoftmaxCrossEntropy(), [[0.0, 1.0], [0.0, 0.0]], "column 0 .*sums to 0"),
        (SoftmaxCrossEntropy(), [[1.0, 1.0]], "two classes at least"),
    ],
)
def test_targets_a_loss_does_not_admit(loss, target, message):
    with pytest.raises(ValueError, match=message):
        loss.check_target(np.array(target, dtype=float))


def test_targets_a_loss_admits(rng):
    SquaredError().check_target(rng.normal(size=SHAPE))
    Huber().check_target(rng.normal(size=SHAPE))
    Logistic().check_target(np.array([[1.0, -1.0]]))
    SoftmaxCrossEntropy().check_target(mixed(rng))
    SoftmaxCrossEntropy().check_target(np.full((3, 2), 0.333333333))  # probabilities printed with nine digits
