"""Conservation laws of problems: which hold, along the field and along flows; which do not; and how many there are."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import flat, random_net
from scipy.integrate import quad, solve_ivp
from scipy.special import expit, softmax

from gdflow import invariants
from gdflow.activations import Arctan, Custom, LeakyReLU, Sigmoid, Tanh
from gdflow.conservation import (
    ConservationLaws,
    Imbalance,
    SampleIntegral,
    UnitImbalance,
    conservation_laws,
    drift,
)
from gdflow.dynamics import simulate
from gdflow.lie_algebra import count_conserved
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.network import LayerTuple
from gdflow.objective import NetworkObjective
from gdflow.problem import Potential, Problem

# Rates are compared with ‖∇q‖‖Ẇ‖ (or more); sums of a few dozen terms leave rounding far below this.
ROUNDING = 1e-13
# An integration of order 8 at rtol 1e-10: errors of some 1e-13 were measured, relative to the weights.
INTEGRATED = 1e-9
LOSSES = {"squared": SquaredError(), "softmax": SoftmaxCrossEntropy(), "logistic": Logistic(), "huber": Huber(0.5)}


def targets(rng, loss: str, shape: tuple[int, int]) -> np.ndarray:
    if loss == "softmax":
        return np.eye(shape[0])[:, rng.integers(0, shape[0], shape[1])]
    return rng.choice([-1.0, 1.0], shape) if loss == "logistic" else rng.standard_normal(shape)


def orthogonal_samples(rng, d: int, m: int) -> np.ndarray:
    """`m ≤ d` orthogonal columns of lengths from 1 to 2."""
    return np.linalg.qr(rng.standard_normal((d, m)))[0] * np.linspace(1, 2, m)


def make(rng, activations, widths, m=6, *, loss="squared", orthogonal=False, **options) -> tuple[Problem, LayerTuple]:
    """A problem with data for networks of widths, constant units not counted, and a random start."""
    shape = (widths[0], m)
    X = orthogonal_samples(rng, *shape) if orthogonal else rng.standard_normal(shape)
    problem = Problem(X, targets(rng, loss, (widths[-1], m)), LOSSES[loss], activations=activations, **options)
    return problem, random_net(rng, problem.widths(widths[1:-1]))


def names(laws: ConservationLaws) -> list[str]:
    return [law.name for law in laws]


# The flow in NumPy, integrated by SciPy: nothing to compile, and nothing of the library in it but the data.

#: `σ` and `σ'`.
FUNCTIONS = {
    "Identity": (lambda z: z, lambda z: np.ones_like(z)),
    "Tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "Arctan": (np.arctan, lambda z: 1 / (1 + z**2)),
    "Sigmoid": (expit, lambda z: expit(z) * expit(-z)),
    "ReLU": (lambda z: np.maximum(z, 0), lambda z: 1.0 * (z > 0)),
    "LeakyReLU": (lambda z: np.where(z > 0, z, 0.2 * z), lambda z: np.where(z > 0, 1.0, 0.2)),
}
#: `∂ℓ/∂F`.
SLOPES = {
    SquaredError: lambda F, Y: F - Y,
    SoftmaxCrossEntropy: lambda F, Y: softmax(F, axis=0) - Y,
    Logistic: lambda F, Y: -Y * expit(-Y * F),
    Huber: lambda F, Y: np.clip(F - Y, -0.5, 0.5),
}


def velocity(problem: Problem, weights: list[np.ndarray]) -> list[np.ndarray]:
    """`−∇L` by the chain rule, from the last layer to the first."""
    objective, N = problem.objective, len(weights)
    layers, decay, biases = ("Identity",) * N, 0.0, False
    if isinstance(objective, NetworkObjective):
        layers = [activation.name for activation in objective.layer_activations(N)]
        decay, biases = float(objective.decay), objective.biases
    a, z = [np.asarray(objective.design)], []
    for j, (W, name) in enumerate(zip(weights, layers, strict=True), 1):
        z.append(W @ a[-1])
        a.append(FUNCTIONS[name][0](z[-1]))
        if biases and j < N:
            a[-1][-1] = 1.0
    error, parts = SLOPES[type(objective.loss)](a[-1], np.asarray(objective.target)), []
    for j in range(N, 0, -1):
        delta = error * FUNCTIONS[layers[j - 1]][1](z[j - 1])
        if biases and j < N:
            delta[-1] = 0.0
        parts.append(-delta @ a[j - 1].T - decay * weights[j - 1])
        error = weights[j - 1].T @ delta
    return parts[::-1]


def split(entries: np.ndarray, net: LayerTuple) -> list[np.ndarray]:
    parts = np.split(entries, np.cumsum([w.size for w in net.weights])[:-1])
    return [part.reshape(w.shape) for part, w in zip(parts, net.weights, strict=True)]


def pack(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in parts])


def runge_kutta_step(f, w, h):
    """The classical step of order 4."""
    a = f(w)
    b = f(w + h / 2 * a)
    c = f(w + h / 2 * b)
    return w + h / 6 * (a + 2 * b + 2 * c + f(w + h * c))


def flow(problem: Problem, start: LayerTuple, t1: float) -> LayerTuple:
    """Where the flow is at `t1`; it must have led somewhere."""

    def field(t, w):
        return pack(velocity(problem, split(w, start)))

    w = flat(start)
    end = solve_ivp(field, (0, t1), w, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    assert np.linalg.norm(end - w) > 0.1 * np.linalg.norm(w)
    return LayerTuple(split(end, start))


def integrated_drift(laws: ConservationLaws, problem: Problem, start: LayerTuple, t1: float) -> float:
    return float(drift(laws, flow(problem, start, t1), start, t1))


@eqx.filter_jit
def _rates(laws: ConservationLaws, net: LayerTuple, velocity: LayerTuple) -> list:
    found = []
    for law in laws:
        value, change = jax.jvp(law.value, (net,), (velocity,))
        masks = np.eye(net.depth)
        alone = [LayerTuple([c * v for c, v in zip(mask, velocity.weights, strict=True)]) for mask in masks]
        parts = [jnp.linalg.norm(jnp.ravel(jax.jvp(law.value, (net,), (v,))[1])) for v in alone]
        size = sum(parts) + law.rate * jnp.linalg.norm(jnp.ravel(value)) + velocity.norm() * net.norm()
        found.append(jnp.linalg.norm(jnp.ravel(change + law.rate * value)) / size)
    return found


def rates(laws: ConservationLaws, problem: Problem, net: LayerTuple) -> list:
    """`‖q̇ + rate·q‖` of every law along the flow, relative to what the layers contribute and to `‖W‖‖Ẇ‖`."""
    return _rates(laws.without_refusals(), net, LayerTuple(velocity(problem, [np.asarray(w) for w in net.weights])))


# The laws that hold.


CASES = {
    "linear": (dict(activations=None, widths=(3, 4, 2)), ["imbalance 1"]),
    "linear, cross-entropy": (
        dict(activations=None, widths=(3, 2, 4, 3), loss="softmax"),
        ["imbalance 1", "imbalance 2", "sums over outputs"],
    ),
    "linear, cross-entropy, decay": (
        dict(activations=None, widths=(3, 2, 4, 3), loss="softmax", weight_decay=0.2),
        ["imbalance 1", "imbalance 2", "sums over outputs"],
    ),
    "linear, few samples, Huber": (
        dict(activations=None, widths=(5, 3, 2), m=3, loss="huber"),
        ["imbalance 1", "idle directions"],
    ),
    "linear, biases, decay": (
        dict(activations="identity", widths=(3, 4, 3, 2), biases=True, weight_decay=0.1),
        ["imbalance 1", "idle row 1", "imbalance 2", "idle row 2"],
    ),
    "ReLU": (dict(activations="relu", widths=(3, 5, 2)), ["imbalance 1, unit by unit"]),
    "ReLU, deep, biases": (
        dict(activations="relu", widths=(3, 5, 4, 2), biases=True),
        ["imbalance 1, unit by unit", "idle row 1", "imbalance 2, unit by unit", "idle row 2"],
    ),
    "leaky ReLU, three hidden layers, cross-entropy, decay": (
        dict(activations=LeakyReLU(0.2), widths=(3, 5, 4, 4, 3), loss="softmax", weight_decay=0.05),
        [*(f"imbalance {j}, unit by unit" for j in (1, 2, 3)), "sums over outputs"],
    ),
    "mixed, with an output": (
        dict(activations=["tanh", "relu", "identity", "sigmoid"], widths=(3, 3, 4, 3, 2)),
        ["imbalance 2, unit by unit", "imbalance 3"],
    ),
    "tanh": (dict(activations="tanh", widths=(4, 5, 2), m=4, orthogonal=True), ["integral over samples"]),
    "arctan with an output": (
        dict(activations=["arctan", "sigmoid"], widths=(4, 5, 2), m=4, orthogonal=True),
        ["integral over samples"],
    ),
    "sigmoid, few samples, logistic": (
        dict(activations="sigmoid", widths=(4, 5, 2), m=3, orthogonal=True, loss="logistic"),
        ["integral over samples", "idle directions"],
    ),
    "tanh, deep": (
        dict(activations="tanh", widths=(4, 5, 3, 2), m=4, orthogonal=True, loss="huber"),
        ["integral over samples"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_laws_and_their_rates_along_the_field(case, rng):
    options, expected = CASES[case]
    problem, net = make(rng, **options)
    laws = conservation_laws(problem, net.widths)
    assert names(laws) == expected
    for law, rate in zip(laws, rates(laws, problem, net), strict=True):
        assert rate < ROUNDING, law.name


@pytest.mark.parametrize(
    ("case", "t1"),
    [
        ("linear, cross-entropy", 2.0),
        ("linear, cross-entropy, decay", 10.0),
        ("tanh", 4.0),
        ("arctan with an output", 4.0),
        ("sigmoid, few samples, logistic", 4.0),
        ("tanh, deep", 4.0),
    ],
)
def test_no_drift_along_an_exact_flow(case, t1, rng):
    problem, start = make(rng, **CASES[case][0])
    assert integrated_drift(conservation_laws(problem, start.widths), problem, start, t1) < INTEGRATED


#: Seeds of flows that cross kinks but never slide along one, where the step would shrink for ever.
CROSSING = {
    "one hidden layer": (3, 1.0, 0.5, dict(activations="relu", widths=(3, 5, 2))),
    "two, biases": (14, 0.7, 0.3, dict(activations="relu", widths=(3, 5, 4, 2), m=3, biases=True)),
    "three, leaky, cross-entropy, decay": (
        *(9, 0.7, 2.0),
        dict(activations=LeakyReLU(0.2), widths=(3, 5, 4, 4, 3), m=3, loss="softmax", weight_decay=0.05),
    ),
}


@pytest.mark.parametrize("case", CROSSING)
def test_no_drift_over_kinks(case):
    seed, scale, t1, options = CROSSING[case]
    problem, start = make(np.random.default_rng(seed), **options)
    start = scale * start
    end = flow(problem, start, t1)
    signs = [[z > 0 for z in problem.objective.preactivations(net)[:-1]] for net in (start, end)]
    assert all(jnp.any(a != b) for a, b in zip(*signs, strict=True))
    assert float(drift(conservation_laws(problem, start.widths), end, start, t1)) < INTEGRATED


def test_laws_hold_where_a_flow_slides_along_a_kink(rng):
    # The input of a unit for one sample is pushed to zero from both sides and stays there. Velocities on both sides keep
    # the laws, so their mean does. A step that reaches over the kink is of order one: the drift falls with its length.
    problem, start = make(rng, **CASES["ReLU"][0])
    laws, X, drifts = conservation_laws(problem, start.widths), np.asarray(problem.design), []
    for h in (1e-2, 1e-3):
        w = flat(start)
        for _ in range(round(0.5 / h)):
            w = runge_kutta_step(lambda w: pack(velocity(problem, split(w, start))), w, h)
        drifts.append(float(drift(laws, LayerTuple(split(w, start)), start)))
    W1, W2 = split(w, start)
    unit, k = np.unravel_index(np.argmin(abs(W1 @ X)), (5, 6))
    sides = []
    for z in (1e-3, -1e-3):
        moved = W1.copy()
        moved[unit] += (z - W1[unit] @ X[:, k]) * X[:, k] / (X[:, k] @ X[:, k])
        sides.append((velocity(problem, [moved, W2])[0] @ X)[unit, k])
    assert sides[0] < -0.1 < 0.1 < sides[1]  # it does slide
    assert drifts[0] < 2e-3
    assert drifts[1] < 0.3 * drifts[0]


@pytest.mark.slow
def test_no_drift_along_a_trajectory_of_the_library(rng):
    problem, start = make(rng, **CASES["tanh"][0])
    laws = conservation_laws(problem, start.widths)
    end = simulate(problem, start, 4.0, rtol=1e-10, atol=1e-12, dense=False).final
    np.testing.assert_allclose(flat(end), flat(flow(problem, start, 4.0)), rtol=0, atol=1e-7)
    assert float(drift(laws, end, start, 4.0)) < 1e-7  # of order 5, with the tolerances that users choose


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax, decay", "orthogonal samples", "ReLU, decay"])
def test_trajectories_know_the_drift_of_their_laws(name, rng):
    X, Y = rng.normal(size=(3, 6)), np.eye(2)[:, rng.integers(0, 2, 6)]
    problem = {
        "softmax, decay": Problem(X, Y, SoftmaxCrossEntropy(), weight_decay=0.3),
        "orthogonal samples": Problem(np.linalg.qr(X[:, :3])[0], Y[:, :3], activations="tanh"),
        "ReLU, decay": Problem(X, Y, activations="relu", weight_decay=0.3),
    }[name]
    starts = jax.tree.map(lambda *w: jnp.stack(w), *(random_net(rng, (3, 4, 2)) for _ in range(2)))
    # Not so far that a ReLU flow slides along a kink, which would take as many steps as there is time.
    t1 = 0.02 if "ReLU" in name else 0.1
    run = simulate(problem, starts, t1, ts=9, rtol=1e-10, atol=1e-12, shortest=1e-6 if "ReLU" in name else 0.0)
    assert run.drift.shape == (2, 9)
    np.testing.assert_allclose(run.drift[:, 0], 0.0, atol=1e-15)
    assert float(run.drift.max()) < 1e-7
    laws = conservation_laws(problem, (3, 4, 2))
    ends, first = (jax.tree.map(lambda w: w[1], nets) for nets in (run.final, starts))
    assert float(run.drift[1, -1]) == pytest.approx(float(drift(laws, ends, first, t1)))


@pytest.mark.slow
def test_trajectories_without_laws_say_so(rng):
    problem = Problem(rng.normal(size=(3, 6)), rng.normal(size=(2, 6)), activations="tanh", weight_decay=0.1)
    with pytest.raises(ValueError, match=r"no conservation law that is known.*weight decay"):
        _ = simulate(problem, random_net(rng, (3, 4, 2)), 0.1).drift
    with pytest.raises(ValueError, match="networks that fit data"):
        _ = simulate(Potential(lambda x: x**2), jnp.ones(()), 0.1).drift


POOL = {
    "relu": dict(activations="relu", widths=(3, 4, 3, 2), loss="logistic"),
    "biases": dict(activations=LeakyReLU(0.2), widths=(2, 3, 2), biases=True, weight_decay=0.3),
    "tanh": dict(activations="tanh", widths=(3, 4, 2), m=3, orthogonal=True),
}


@given(st.sampled_from(sorted(POOL)), st.integers(0, 2**32 - 1), st.floats(-2, 1))
def test_laws_hold_at_starts_of_every_size(case, seed, magnitude):
    rng = np.random.default_rng(seed)
    problem, net = make(rng, **POOL[case])
    # With large weights sinh² would drown the other terms, and 1 − tanh² cancels.
    net = 10**magnitude * net * (0.05 if case == "tanh" else 1.0)
    laws = conservation_laws(problem, net.widths)
    assert max(map(float, rates(laws, problem, net))) < ROUNDING


# Values against arithmetic of their own.


@pytest.mark.parametrize("activation", [Tanh(), Arctan(), Sigmoid()], ids=lambda a: a.name)
def test_value_of_the_integral_over_samples(activation, rng):
    problem, net = make(rng, activation, (4, 2, 3), m=3, orthogonal=True)
    law, _ = conservation_laws(problem, net.widths)
    W1, W2 = map(np.asarray, net.weights)
    X = np.asarray(problem.design)

    def ratio(s):
        return float(activation.value(jnp.asarray(s)) / activation.derivative(jnp.asarray(s)))

    expected = [
        sum(W2[:, j] ** 2) - 2 * sum(quad(ratio, 0, W1[j] @ x, epsabs=1e-12)[0] / (x @ x) for x in X.T) for j in (0, 1)
    ]
    np.testing.assert_allclose(law.value(net), expected, rtol=1e-10)  # of the quadrature


def test_values_of_quadratic_laws_with_biases(rng):
    problem, net = make(rng, ["relu", "identity", "identity"], (2, 3, 2, 2), biases=True)
    laws = conservation_laws(problem, net.widths)
    values = dict(zip(names(laws), laws.values(net), strict=True))
    W1, W2, W3 = map(np.asarray, net.weights)
    assert W1.shape == (4, 3)
    expected = {
        # The weights into a unit with its bias, those out of it into the constant unit too: they do not move.
        "imbalance 1, unit by unit": [sum(W2[:, j] ** 2) - sum(W1[j] ** 2) for j in range(3)],
        "imbalance 2": (W3.T @ W3 - W2 @ W2.T)[:2, :2],
        "idle row 1": W1[3],
        "idle row 2": W2[2],
    }
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-12, err_msg=name)  # sums of few squares


def test_a_zero_sample_is_left_out_where_it_may_be(rng):
    X = np.concatenate([orthogonal_samples(rng, 4, 3), np.zeros((4, 1))], axis=1)
    Y = rng.standard_normal((2, 4))
    net = random_net(rng, (4, 3, 2))
    problem = Problem(X, Y, activations="tanh")
    assert integrated_drift(conservation_laws(problem, net.widths), problem, net, 3.0) < INTEGRATED
    # With σ(0) = ½ it moves the output layer, and nothing in the first layer makes up for that.
    problem = Problem(X, Y, activations="sigmoid")
    laws = conservation_laws(problem, net.widths)
    assert names(laws) == ["idle directions"]
    assert "sample 3 is zero, and σ(0) = 0.5" in laws.refused[-1].reason
    assert integrated_drift(forced_integral(Sigmoid(), X[:, :3], net.widths), problem, net, 3.0) > 1e-2


# The laws that do not hold.


def forced(law, widths) -> ConservationLaws:
    return ConservationLaws((law,), (), tuple(widths))


def forced_integral(activation, X, widths) -> ConservationLaws:
    return forced(SampleIntegral(jnp.zeros(()), activation, jnp.asarray(X), widths[1]), widths)


def test_whitened_data_are_not_orthogonal_samples(rng):
    X = np.linalg.qr(rng.standard_normal((6, 3)))[0].T
    np.testing.assert_allclose(X @ X.T, np.eye(3), atol=1e-14)
    problem, start = Problem(X, rng.standard_normal((2, 6)), activations="tanh"), random_net(rng, (3, 4, 2))
    laws = conservation_laws(problem, start.widths)
    assert names(laws) == []
    unit = X / np.linalg.norm(X, axis=0)
    cosines = np.triu(unit.T @ unit, 1)
    i, k = np.unravel_index(np.argmax(abs(cosines)), cosines.shape)
    assert laws.refused[-1].reason == f"samples {i} and {k} are not orthogonal: cosine {cosines[i, k]:.3g}"
    assert integrated_drift(forced_integral(Tanh(), X, start.widths), problem, start, 4.0) > 1e-2


def test_weight_decay_breaks_the_integral_over_samples_and_biases_that_of_the_constant_unit(rng):
    problem, start = make(rng, "tanh", (4, 5, 2), m=4, orthogonal=True, weight_decay=0.3)
    laws = conservation_laws(problem, start.widths)
    assert names(laws) == []
    assert "weight decay 0.3" in laws.refused[-1].reason
    X = problem.design
    for rate in (0.0, 0.6):
        law = SampleIntegral(jnp.asarray(rate), Tanh(), X, 5)
        assert integrated_drift(forced(law, start.widths), problem, start, 2.0) > 1e-2
    problem, start = make(rng, "identity", (2, 3, 2), biases=True)
    laws = conservation_laws(problem, start.widths)
    assert any(refusal.name == "imbalance 1, constant unit" for refusal in laws.refused)
    whole = Imbalance(jnp.zeros(()), 1, 4)
    assert integrated_drift(laws, problem, start, 1.0) < INTEGRATED
    assert integrated_drift(forced(whole, start.widths), problem, start, 1.0) > 1e-2


def test_off_the_diagonal_relu_conserves_nothing_and_tanh_nowhere(rng):
    seed, _, t1, options = CROSSING["one hidden layer"]
    problem, start = make(np.random.default_rng(seed), **options)
    laws = conservation_laws(problem, start.widths)
    assert [(r.name, r.reason) for r in laws.refused] == [
        ("imbalance 1, all of it", "σ_1 = ReLU is homogeneous, not linear")
    ]
    assert integrated_drift(forced(Imbalance(jnp.zeros(()), 1, 5), start.widths), problem, start, t1) > 1e-2
    problem, start = make(rng, "tanh", (3, 5, 2), m=6)
    assert integrated_drift(forced(UnitImbalance(jnp.zeros(()), 1, 5), start.widths), problem, start, 4.0) > 1e-2


def test_refusals_name_their_reasons(rng):
    def reasons(problem, hidden):
        return [refusal.reason for refusal in conservation_laws(problem, problem.widths(hidden)).refused]

    problem, _ = make(rng, "gelu", (4, 5, 2), m=4, orthogonal=True)
    assert reasons(problem, [5])[-1] == "the integral of σ/σ' is not known in closed form for GELU"
    problem, _ = make(rng, "tanh", (4, 5, 5, 2), m=4, orthogonal=True)
    assert reasons(problem, [5, 5]) == [
        "σ_1 = Tanh is not homogeneous",
        "σ_2 = Tanh is not homogeneous, and what enters it moves, so no integral over samples takes its place",
    ]
    problem, _ = make(rng, ["identity", "sigmoid"], (3, 4, 3), loss="softmax")
    assert reasons(problem, [4]) == ["the output has an activation, σ_2 = Sigmoid"]
    # An integral of one's own is taken: σ = sin, Σ = −log cos.
    sine = Custom(jnp.sin, jnp.cos, is_odd=True)
    problem, _ = make(rng, sine, (4, 5, 2), m=4, orthogonal=True)
    assert "not known in closed form for sin" in reasons(problem, [5])[-1]


def test_tables(rng):
    problem, net = make(rng, ["identity", "tanh", "identity"], (3, 4, 2, 2), weight_decay=0.25)
    text = str(conservation_laws(problem, net.widths))
    assert "e^(0.5t) times the quantity" in text
    assert "no: σ_2 = Tanh is not homogeneous" in text
    text = str(conservation_laws(Problem(np.eye(2), np.eye(2)), (2, 3, 2)))
    assert "C_1 = W_2ᵀW_2 − W_1W_1ᵀ" in text
    assert "no:" not in text


# Drift.


def test_drift_of_a_linear_network_is_that_of_the_invariants(rng):
    problem, start = make(rng, None, (3, 2, 4, 2))
    laws, moved = conservation_laws(problem, start.widths), random_net(rng, start.widths)
    np.testing.assert_allclose(drift(laws, moved, start), invariants.drift(moved, start), rtol=1e-14)
    assert float(drift(laws, start, start, 3.0)) == 0.0  # without decay time does not matter
    assert float(drift(laws, 0 * start, 0 * start)) == 0.0  # and not 0/0


def test_drift_with_decay_is_relative_to_what_is_left():
    # q = ‖W_2‖² − ‖W_1‖² = 3, with κ = ½ after time 2 in truth 3e^{−2}. Found: 3e^{−2}·1.01 with weights of that size.
    problem = Problem(np.eye(1), np.eye(1), activations="relu", weight_decay=0.5)
    laws = conservation_laws(problem, (1, 1, 1))
    start = LayerTuple([[[1.0]], [[2.0]]])
    moved = float(np.exp(-1)) * LayerTuple([[[1.0]], [[np.sqrt(4.03)]]])
    np.testing.assert_allclose(drift(laws, moved, start, 2.0), 0.03 / 4.03, rtol=1e-12)
    assert float(drift(laws, float(np.exp(-1)) * start, start, 2.0)) < 1e-15


def test_drift_along_a_trajectory_by_vmap_and_jit(rng):
    problem, start = make(rng, "tanh", (3, 4, 2), m=3, orthogonal=True)
    laws = conservation_laws(problem, start.widths)
    nets = [random_net(rng, start.widths) for _ in range(3)]
    batch, times = jax.tree.map(lambda *w: jnp.stack(w), *nets), jnp.arange(3.0)
    found = jax.jit(jax.vmap(functools.partial(drift, laws), in_axes=(0, None, 0)))(batch, start, times)
    np.testing.assert_allclose(found, [drift(laws, net, start) for net in nets], rtol=1e-12)
    # Laws are data: those of other samples need no new program once the reasons are left out.
    other = conservation_laws(make(rng, "tanh", (3, 4, 2), m=3, orthogonal=True)[0], start.widths)
    structures = [jax.tree.structure(x.without_refusals()) for x in (laws, other)]
    assert structures[0] == structures[1]


# How many.


def check_count(problem, net, expected: int, known: int | None = None) -> None:
    count = count_conserved(problem, net)
    assert (count.count, count.known) == (expected, expected if known is None else known)
    assert count.settled
    assert count.decision.certain


@pytest.mark.parametrize("widths", [(3, 4, 2), (2, 2, 3, 2), (2, 5, 1), (2, 2, 2, 2, 2), (3, 2)])
def test_linear_networks_conserve_what_the_closed_form_says(widths, rng):
    problem, net = make(rng, None, widths)
    check_count(problem, net, invariants.num_independent_laws(widths))


def test_count_of_idle_directions_and_of_cross_entropy(rng):
    # On the range of X, of dimension 2, the network is one of widths (2, 3, 2); W_1 is idle on the other two directions.
    problem, net = make(rng, None, (4, 3, 2), m=2, loss="huber")
    check_count(problem, net, invariants.num_independent_laws((2, 3, 2)) + 3 * 2)
    # The sums over outputs are two more, independent of the three entries of C_1.
    problem, net = make(rng, None, (3, 2, 3), loss="softmax")
    check_count(problem, net, 3 + 2)


def test_one_law_for_each_homogeneous_unit(rng):
    problem, net = make(rng, LeakyReLU(0.1), (3, 4, 2), m=30)
    assert general_patterns(problem, net, 4)
    check_count(problem, net, 4)
    problem, net = make(rng, "relu", (3, 3, 1), m=30)
    assert general_patterns(problem, net, 3)
    check_count(problem, net, 3)
    # Two units with one pattern also conserve (W_2ᵀW_2 − W_1W_1ᵀ)_{12}, as long as they keep it.
    W1, W2 = net.weights
    twin = LayerTuple([W1.at[1].set(2 * W1[0] + 1e-3 * W1[1]), W2])
    assert not general_patterns(problem, twin, 3)
    count = count_conserved(problem, twin, max_order=2)
    assert (count.count, count.known) == (4, 3)


def general_patterns(problem: Problem, net: LayerTuple, units: int) -> bool:
    """Whether no two of the first hidden units are active on the same samples, and each on more than it has inputs."""
    on = np.asarray(problem.objective.preactivations(net)[0][:units]) > 0
    return len({tuple(row) for row in on}) == units and bool(np.all(np.sum(on, axis=1) > net.widths[0]))


def test_count_with_biases_and_decay(rng):
    # Of three units of a hidden layer one each, and four weights into the constant unit; all of it with decay too.
    problem, net = make(rng, "relu", (3, 3, 1), m=30, biases=True, weight_decay=0.1)
    net = LayerTuple([net.weights[0].at[:, -1].multiply(0.3), net.weights[1]])
    assert general_patterns(problem, net, 3)
    check_count(problem, net, 3 + 4)


@pytest.mark.slow
def test_tanh_conserves_one_quantity_a_unit_if_the_samples_are_orthogonal_and_else_nothing(rng):
    problem, net = make(rng, "tanh", (3, 4, 2), m=8)
    check_count(problem, net, 0)
    # In deep networks one about the first hidden layer only; for one hidden layer see the random controls below.
    problem, net = make(rng, "tanh", (3, 2, 2, 2), m=3, orthogonal=True)
    check_count(problem, net, 2)
    # With decay no function of the weights and time is left.
    problem, net = make(rng, "tanh", (2, 2, 2), m=2, orthogonal=True, weight_decay=0.1)
    check_count(problem, net, 0)


def test_one_field_alone_leaves_all_dimensions_but_one(rng):
    # All brackets vanish, their round-off must not be taken for directions.
    problem, net = make(rng, "tanh", (2, 3, 1), m=1)
    check_count(problem, net, 9 - 1, known=3 + 3)
    count = count_conserved(problem, net, max_order=2)
    assert not count.settled
    assert "at most 8 of 9" in str(count)


def reachable(output, w, key, pieces: int = 12) -> int:
    """The dimension of what random controls reach: rank of the end point of `ẇ = Σ c_i(t)∇F_i`, `c` piecewise constant.

    The orbit of the fields has this dimension (Sussmann 1973), which is that of their Lie algebra where they are analytic.
    """
    k = output(w).size
    c = jax.random.normal(key, (pieces, k))

    def controlled(w, c):
        return jax.vjp(output, w)[1](c.reshape(output(w).shape))[0]

    def end(c):
        return jax.lax.scan(
            lambda w, c: (runge_kutta_step(lambda w: controlled(w, c), w, 0.01), None), w, jnp.repeat(c, 60, axis=0)
        )[0]

    s = np.linalg.svd(jax.jit(jax.jacfwd(end))(c).reshape(w.size, -1), compute_uv=False)
    rank = int(np.sum(s > 1e-6 * s[0]))
    # What steps of 0.01 leave of a dimension that is not reached is far below what is kept.
    assert s[rank - 1] > 1e-4 * s[0]
    assert np.all(s[rank:] < 1e-8 * s[0])
    return rank


@pytest.mark.slow
def test_count_is_what_random_controls_cannot_reach(rng, key):
    problem, net = make(rng, "tanh", (2, 2, 1), m=2, orthogonal=True)
    X = problem.design

    def output(w):
        return w[None, 4:] @ jnp.tanh(w[:4].reshape(2, 2) @ X)

    assert 6 - reachable(output, jnp.asarray(flat(net)), key) == count_conserved(problem, net).count == 2


# Errors.


def test_errors_name_the_culprit(rng):
    problem, net = make(rng, "tanh", (3, 4, 2))
    laws = conservation_laws(problem, net.widths)
    with pytest.raises(ValueError, match=r"\(4, 4, 2\)"):
        conservation_laws(problem, (4, 4, 2))
    with pytest.raises(TypeError, match="Potential"):
        conservation_laws(Potential(jnp.sum), (3, 4, 2))
    with pytest.raises(ValueError, match=r"\(3, 4, 2\), but the network has widths \(3, 5, 2\)"):
        drift(laws, net, random_net(rng, (3, 5, 2)))
    with pytest.raises(ValueError, match="max_order must be at least 1, got 0"):
        count_conserved(problem, net, max_order=0)
    with pytest.raises(ValueError, match="5000 here: at most 4096"):
        count_conserved(problem, random_net(rng, (3, 1000, 2)))
    with pytest.raises(TypeError, match=r"not inside jax\.jit"):
        eqx.filter_jit(lambda p: conservation_laws(p, (3, 4, 2)).laws)(problem)
