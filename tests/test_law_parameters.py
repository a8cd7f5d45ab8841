"""Parameters of laws: numbers of any kind are taken, what makes no law is refused by name."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from gdflow.initialization import (
    Around,
    Balanced,
    Gaussian,
    LambdaBalanced,
    Orthogonal,
    Pyramidal,
    UniformBall,
)
from gdflow.network import LayerTuple


@pytest.mark.parametrize("bad", [0.0, -0.25, np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("scale", lambda x: Gaussian((2, 2), scale=x)),
        ("radius", lambda x: UniformBall((2, 2), radius=x)),
        ("scale", lambda x: Orthogonal((2, 2), scale=x)),
        ("singular_values", lambda x: Balanced((2, 2), singular_values=x)),
        ("singular_values", lambda x: Balanced((2, 2), singular_values=(1.0, x))),
        ("scale", lambda x: LambdaBalanced((2, 2, 2), lam=1.0, scale=x)),
        ("margin", lambda x: Pyramidal((2, 2, 2), margin=x)),
        ("scale", lambda x: Pyramidal((2, 2, 2), scale=x)),
        ("scale", lambda x: Around(LayerTuple([np.ones((2, 2))]), scale=x)),
    ],
)
def test_numbers_that_must_be_positive(name, make, bad):
    with pytest.raises(ValueError, match=rf"{name} must be positive and finite, got .*{bad}"):
        make(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian((2, 0, 2)), "positive integers, got 0"),
        (lambda: Gaussian((2,)), "at least an input and an output"),
        (lambda: Gaussian((2, 2), scale=lambda d_in, d_out: 0.0), r"scale\(2, 2\) must be positive and finite, got 0"),
        (lambda: Balanced((3, 2, 3), rank=0), "between 1 and the smallest width 2, got 0"),
        (lambda: Balanced((3, 2, 3), rank=3), "between 1 and the smallest width 2, got 3"),
        (lambda: Balanced((3, 2, 3), singular_values=(1.0, 2.0, 3.0)), "rank 2 needs 2 singular values or one, got 3"),
        (lambda: LambdaBalanced((2, 2, 2), lam=np.nan), "λ must be a finite number, got nan"),
        (lambda: LambdaBalanced((2, 2, 2), lam=-np.inf), "λ must be a finite number, got -inf"),
        (lambda: Pyramidal((2, 2, 3)), r"d_1 ≥ … ≥ d_N, got widths \(2, 2, 3\)"),
        (
            lambda: Around(LayerTuple([np.ones((5, 2, 2))]), scale=1.0),
            r"must be one network, got a batch of shape \(5,\)",
        ),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Gaussian((2, 2), scale=x),
        lambda x: UniformBall((2, 2), radius=x),
        lambda x: Orthogonal((2, 2), scale=x),
        lambda x: Balanced((1, 1), singular_values=[[x]]),
        lambda x: Balanced((2, 2), singular_values=(1.0, x)),
        lambda x: LambdaBalanced((2, 2), lam=x),
        lambda x: Pyramidal((2, 2), margin=x),
        lambda x: Around(LayerTuple([np.ones((2, 2))]), scale=x),
    ],
)
@pytest.mark.parametrize("bad", [True, [1.0, 2.0], np.ones(3), 1j, None], ids=str)
def test_one_number_is_one_number(make, bad, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    with pytest.raises(TypeError, match="must be a number"):
        make(bad)


@pytest.mark.slow
def test_numbers_of_any_kind_and_size(key):
    # NumPy's and JAX's scalars will do, and make the same law; extreme ones stay finite.
    assert (
        Gaussian((2, 2), scale=np.float64(0.5))
        == Gaussian((2, 2), scale=jnp.asarray(0.5))
        == Gaussian((2, 2), scale=0.5)
    )
    assert Balanced((2, 2), singular_values=np.array([2.0, 1.0])) == Balanced((2, 2), singular_values=(2, 1))
    for scale in (1e-150, 1e150):
        for law in (LambdaBalanced((2, 2, 2), lam=1.0, scale=scale), Pyramidal((2, 2, 2), scale=scale)):
            assert all(np.all(np.isfinite(w)) for w in law.sample(key, 0).weights)


def test_widths_must_be_a_sequence(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    for widths in (5, None):
        with pytest.raises(TypeError, match=rf"a sequence \(d_0, …, d_N\), such as \(3, 5, 2\); got {widths}"):
            Gaussian(widths)
    with pytest.raises(TypeError, match="the centre must be a network"):
        Around((3, 2), 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Gaussian((2, 2), scale="fan_in"),
            r"number, or a function of \(d_in, d_out\) such as .*fan_in.*got 'fan_in'",
        ),
        (
            lambda: Balanced((2, 2), singular_values="gaussian"),
            r"got 'gaussian'; .*gdflow\.initialization\.BalancedGaussian",
        ),
    ],
)
def test_what_was_a_string_is_named(make, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    with pytest.raises(TypeError, match=message):
        make()
