"""Closed forms against DOP853 at tight tolerance, an mpmath integration, the oracle of the tests, and finite differences."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import systems

import gdflow as gf
from gdflow.dynamics import exact
from gdflow.manifold import balanced_factors


def integrate(weights, target, t):
    shapes = [w.shape for w in weights]
    cuts = np.cumsum([w.size for w in weights])[:-1]

    def split(x):
        return [part.reshape(shape) for part, shape in zip(np.split(x, cuts), shapes, strict=True)]

    def field(_, x):
        return np.concatenate([w.ravel() for w in systems.velocity(split(x), target)])

    start = np.concatenate([np.ravel(w) for w in weights])
    return split(scipy.integrate.solve_ivp(field, (0, t), start, "DOP853", rtol=3e-14, atol=1e-15).y[:, -1])


@pytest.mark.parametrize("s", [2.0, 0.3, 0.0, -1.5])
@pytest.mark.parametrize("h", [1, 3])
@pytest.mark.parametrize("t", [0.1, 1.0, 10.0])
def test_width_h_against_integration(s, h, t):
    a, b = np.random.default_rng(h).normal(size=(2, h))
    W1, W2 = integrate([a[:, None], b[None, :]], np.array([[s]]), t)
    got = exact.width_h(jnp.asarray(a), jnp.asarray(b), s, t)
    # DOP853 holds about 1e-13 a unit of time here.
    np.testing.assert_allclose(got[0], W1[:, 0], atol=1e-11)
    np.testing.assert_allclose(got[1], W2[0], atol=1e-11)


def test_width_h_at_degenerate_starts():
    zero = jnp.zeros(2)
    for state in exact.width_h(zero, zero, 1.0, 5.0):
        np.testing.assert_array_equal(state, zero)
    a = jnp.array([1.0, -0.5])
    # a = −b lies on the stable manifold of the saddle at zero: Q = Q_0 e^{-2st}/(1 + Q_0(1 − e^{-2st})/(2s)).
    u, v = exact.width_h(a, -a, 1.0, 8.0)
    Q = 2 * 1.25 * math.exp(-16) / (1 + 2 * 1.25 * (1 - math.exp(-16)) / 2)
    np.testing.assert_allclose(jnp.sum((u - v) ** 2) / 2, Q, rtol=1e-12)
    np.testing.assert_allclose(u + v, 0.0, atol=1e-16)
    gradient = jax.grad(lambda a, b: jnp.sum(exact.width_h(a, b, 1.0, 2.0)[0]), argnums=(0, 1))(zero, zero)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_hitting_time_and_its_derivatives(seed):
    a, b = map(jnp.asarray, np.random.default_rng(seed).normal(size=(2, 3)))
    s = 4.0
    u = 0.5 * (float(a @ b) + s)
    t = exact.width_h_hitting_time(a, b, s, u)
    x, y = exact.width_h(a, b, s, t)
    np.testing.assert_allclose(x @ y, u, rtol=1e-12)
    np.testing.assert_allclose(t, systems.hitting_time_width_h(np.asarray(a), np.asarray(b), s, u), rtol=1e-10)
    assert exact.width_h_hitting_time(a, b, s, s + 1.0) == np.inf
    # The same derivative from the state: du/da = −u̇ dt/da.
    rate = jax.jvp(lambda t: jnp.dot(*exact.width_h(a, b, s, t)), (t,), (1.0,))[1]
    moved = jax.grad(lambda a: jnp.dot(*exact.width_h(a, b, s, t)))(a)
    np.testing.assert_allclose(jax.grad(exact.width_h_hitting_time)(a, b, s, u), -moved / rate, rtol=1e-9)


def hitting_time(a, b, s, u):
    """The closed form as it stands in the literature, in 700 digits, of the numbers that the floats are."""
    with mpmath.workdps(700):
        a, b, s, u = mpmath.mpf(a), mpmath.mpf(b), mpmath.mpf(s), mpmath.mpf(u)
        p, q = (a + b) ** 2 / 2, (a - b) ** 2 / 2
        if p == 0:  # the flow of (a, −b) towards −s
            p, q, s, u = q, p, -s, -u
        delta, x = mpmath.sqrt(s**2 + p * q), u + mpmath.sqrt(u**2 + p * q)
        high, low = s + delta, s - delta
        if p == 0 or not (x - p) / (high - x) > 0:
            return mpmath.inf
        if delta == 0:
            return 1 / x - 1 / p
        return mpmath.log((x - low) * (high - p) / ((high - x) * (p - low))) / (2 * delta)


HITS = [
    (3.0, -3 + 1e-8, 2.0, -4.0),  # 16 digits of x lost
    (3.0, -3 + 1e-7, 2.0, -4.0),
    (3.0, -3 + 1e-15, 2.0, 1.9),
    (3.0, -3.0, 2.0, -4.0),  # on the stable manifold of the saddle, which it approaches
    (3.0, 3.0, -2.0, 4.0),
    (0.2, 0.1, 2.0, 2 - 1e-13),
    (0.2, 0.1, 2.0, 0.02 + 1e-9),
    (2.0, 1.5, 1.0, 1 + 1e-10),  # falling
    (2.0, 1.5, -1.0, 1.0),
    (2.0, -1.5, -5.0, -4.999),
    (1e-9, 2e-9, 1e-3, 5e-4),
    (1e-160, 3e-161, 1.0, 0.5),
    (1e-170, -1e-170, -1.0, -0.5),
    (1e-200, 0.0, 1.0, 0.5),
    (-1e-200, 1e-220, 3.0, 1e-3),
    (1e80, -1e80, 1e160, -1e159),
    (1e5, -1e-5, 3.0, 0.0),
    (1.0, -1.0, 1e-12, -0.5),
    (1e-6, 4.0, 1e-9, 1e-7),
    (1.0, 1.0, 0.0, 0.25),
    (2.0, 1.0, 0.0, 0.25),
    (0.3, -1.1, 1e6, 9e5),
]


@pytest.mark.parametrize(("a", "b", "s", "u"), HITS)
def test_hitting_times_in_high_precision(a, b, s, u):
    """Of starts and values where differences cancel, squares under- or overflow, or a direction is missing."""
    found = float(exact.width_h_hitting_time(jnp.array([a]), jnp.array([b]), s, u))
    expected = hitting_time(a, b, s, u)
    assert mpmath.isfinite(expected)
    # A rounding error of a·b counts as much as one of u − a·b does.
    tolerance = 2e-15 * (10 + abs(a * b) / abs(u - a * b))
    np.testing.assert_allclose(found, float(expected), rtol=tolerance)


@pytest.mark.parametrize(
    ("a", "b", "s", "u"), [(3.0, -3.0, 2.0, 0.5), (3.0, -3.0, 2.0, 0.0), (1.0, 0.5, 2.0, 0.3), (1.0, 0.5, 2.0, 2.0),
                           (0.0, 0.0, 2.0, 1.0), (1.0, 1.0, -2.0, 0.0), (1.0, 1.0, -2.0, -1.0), (1.0, 0.5, -1.0, -1.5)]
)  # fmt: skip
def test_values_that_are_never_reached_have_infinite_hitting_times(a, b, s, u):
    assert exact.width_h_hitting_time(jnp.array([a]), jnp.array([b]), s, u) == np.inf
    gradient = jax.grad(exact.width_h_hitting_time, argnums=(0, 1, 2, 3))(jnp.array([a]), jnp.array([b]), s, u)
    assert np.all(np.isfinite(np.concatenate([np.ravel(g) for g in gradient])))


@pytest.mark.parametrize(
    ("a", "b", "s", "u"), [h for h in HITS if h[2] != 0 and abs(h[0]) > 1e-10 and abs(h[1]) < 1e50]
)
def test_derivatives_of_hitting_times_in_high_precision(a, b, s, u):
    found = jax.grad(exact.width_h_hitting_time, argnums=(0, 1, 2, 3))(jnp.array([a]), jnp.array([b]), s, u)
    point = (a, b, s, u)
    with mpmath.workdps(700):
        for k, g in enumerate(found):
            h = mpmath.mpf(10) ** -200
            up, down = ([mpmath.mpf(x) + sign * h * (i == k) for i, x in enumerate(point)] for sign in (1, -1))
            expected = float((hitting_time(*up) - hitting_time(*down)) / (2 * h))
            # Conditions: those of the differences of the arguments.
            condition = 10 + abs(a * b) / abs(u - a * b) + max(abs(s), abs(u)) / abs(s - u)
            size = abs(expected) + float(hitting_time(*point)) / max(abs(point[k]), 1e-3)
            np.testing.assert_allclose(np.ravel(g)[0], expected, rtol=0, atol=2e-14 * condition * size)


@pytest.mark.parametrize("s", [1.0, -1.0])
def test_width_h_after_long_times(s):
    """On the way out of the saddle, at the saddle and on its stable manifold, for times at which e^{2δt} is infinite."""
    for a, b in ((jnp.array([1.0, -0.5]), jnp.array([0.3, 0.2])), (jnp.zeros(2), jnp.zeros(2))):
        u, v = exact.width_h(a, b, s, 1e3)
        np.testing.assert_allclose(u @ v, s if np.any(a) else 0.0, rtol=1e-12)
        gradient = jax.grad(lambda a, b=b: exact.width_h(a, b, s, 1e3)[0] @ jnp.ones(2))(a)
        assert np.all(np.isfinite(gradient))
    a = jnp.array([1.0, -0.5])
    for state in exact.width_h(a, -np.sign(s) * a, s, 1e3):
        np.testing.assert_allclose(state, 0.0, atol=1e-150)


@pytest.mark.slow
def test_derivatives_of_crossing_times_agree_with_the_closed_form():
    problem = gf.Problem.from_singular_values([2.0])
    a, b = jnp.array([0.3, -0.2]), jnp.array([1.1, 0.4])
    level = 0.5 * 0.7**2  # a·b = 1.3

    def time(a):
        net = gf.LayerTuple([a[:, None], b[None, :]])
        stop = gf.AtEvent(lambda t, net: problem.effective_loss(net) - level)
        return gf.simulate(problem, net, 10.0, stop=stop, rtol=1e-11, atol=1e-13).final_time

    np.testing.assert_allclose(time(a), exact.width_h_hitting_time(a, b, 2.0, 1.3), rtol=1e-9)
    expected = jax.grad(exact.width_h_hitting_time)(a, b, 2.0, 1.3)
    np.testing.assert_allclose(jax.grad(time)(a), expected, rtol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10])
@pytest.mark.parametrize(("s", "u_0"), [(2.0, 0.3), (2.0, 1.9), (2.0, 3.5), (2.0, -0.7), (-1.0, 0.8), (0.0, 1.2)])
def test_balanced_chains_against_integration(depth, s, u_0):
    for t in (0.05, 0.5, 3.0):
        power = 2 - 2 / depth

        def field(_, u, power=power):
            return depth * np.abs(u) ** power * (s - u)

        expected = scipy.integrate.solve_ivp(field, (0, t), [u_0], "DOP853", rtol=3e-14, atol=1e-16).y[0, -1]
        np.testing.assert_allclose(exact.balanced_chain(s, u_0, depth, t), expected, rtol=1e-10, atol=1e-12)


def chain_time(s, u_0, u, depth):
    """When the chain is at `u`: the antiderivative of `1/(N|u|^{2−2/N}(s − u))`, hypergeometric, in 150 digits."""
    with mpmath.workdps(150):
        sign = 1 if u_0 > 0 else -1
        c, m = sign * mpmath.mpf(s), 1 - mpmath.mpf(2) / depth

        def antiderivative(v):
            v = sign * mpmath.mpf(v)
            if depth == 2:
                return mpmath.log(v / abs(c - v)) / c
            return -mpmath.re(mpmath.hyp2f1(1, -m, 1 - m, v / c)) / (m * c * v**m)

        return (antiderivative(u) - antiderivative(u_0)) / depth


CHAINS = [
    (2.0, 1e-300, 1e-299), (2.0, 1e-4, 1.0), (2.0, 0.3, 2 - 1e-9), (2.0, 1.9, 1.95), (1e-8, 1e-12, 9e-9),
    (2.0, 1e6, 2.1), (2.0, 3.5, 2 + 1e-9), (1e-9, 1.0, 1e-8), (1e-30, 1.0, 1e-9),
    (2.0, -0.7, -0.69), (2.0, -0.7, -1e-4), (2.0, -0.7, -1e-12), (1e3, -1e-6, -1e-9), (-1e-7, 3.0, 1e-9), (2.0, -1e5, -1e-3),
]  # fmt: skip


@pytest.mark.parametrize("depth", [2, 3, 7, 1000])
@pytest.mark.parametrize(("s", "u_0", "u"), CHAINS)
def test_balanced_chains_in_high_precision(depth, s, u_0, u):
    """Tiny starts, long times, great depth and the wrong side, each at a value whose time is an integral."""
    t = float(chain_time(s, u_0, u, depth))
    assert 0 < t < math.inf
    found = exact.balanced_chain(s, u_0, depth, t)
    # A relative error of t by round-off moves u by t·u̇ times that.
    moved = t * depth * abs(u) ** (2 - 2 / depth) * abs(s - u)
    np.testing.assert_allclose(found, u, rtol=0, atol=1e-14 * (20 * abs(u) + 10 * moved))


@pytest.mark.parametrize("depth", [3, 5, 20])
def test_chains_on_the_wrong_side_after_long_times(depth):
    """Where `|u|^{−m}`, `m = 1 − 2/N`, has grown at the rate `(N − 2)(|s| + |u|)` for so long that `|u|` no longer counts."""
    m = 1 - 2 / depth
    for t in (400.0, 1e6, 1e12):
        found = exact.balanced_chain(2.0, -0.7, depth, t)
        grown = (abs(found) ** -m - 0.7**-m) / ((depth - 2) * t)
        # Between the rates at the end and at the start; the integral of |u| over time grows like t^{1 − 1/m} or ln t at most.
        assert 2 * (1 - 1e-12) <= grown <= 2 + 0.7
        assert t < 1e6 or grown == pytest.approx(2, rel=1e-3)
    assert exact.balanced_chain(2.0, -0.7, depth, math.inf) == 0
    assert exact.balanced_chain(2.0, 1e-300, depth, math.inf) == 2


def test_chains_at_the_ends_of_the_range_of_doubles():
    for depth in (2, 3, 50):
        assert exact.balanced_chain(2.0, 1e-300, depth, 1.0) == pytest.approx(
            1e-300 * math.exp(4.0) if depth == 2 else 1e-300, rel=1e-12
        )
        assert exact.balanced_chain(2.0, 0.3, depth, 1e9) == 2.0
        assert exact.balanced_chain(2.0, 5.0, depth, 1e300) == 2.0
        # Towards zero from s = 0: v̇ = −Nv^{1+2(1−1/N)} moves nothing below 1e-300, and forgets where it began.
        assert exact.balanced_chain(0.0, 1e-300, depth, 1.0) == 1e-300
        power = 2 - 2 / depth
        assert exact.balanced_chain(0.0, 1e200, depth, 1.0) == pytest.approx((power * depth) ** (-1 / power), rel=1e-12)
    assert exact.balanced_chain(2.0, -0.7, 2, 1e6) == 0.0


@pytest.mark.parametrize(("widths", "lam"), [((3, 2, 4), 0.0), ((3, 2, 4), 0.6), ((4, 2, 2), 0.6), ((4, 3, 2), -0.5)])
@pytest.mark.parametrize("t", [3.0, pytest.param(0.3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_lambda_balanced_against_integration(widths, lam, t):
    problem = gf.Problem.from_singular_values([2.0, 1.0], d_x=widths[0], d_y=widths[2])
    net = gf.initialization.LambdaBalanced(widths, lam=lam).sample(jax.random.key(1), 0)
    W1, W2 = integrate([np.asarray(w) for w in net.weights], np.asarray(problem.target), t)
    np.testing.assert_allclose(exact.lambda_balanced(problem, net, t), W2 @ W1, atol=1e-11)


@pytest.mark.parametrize("scaled", [1.0, 10.0, 100.0])
@pytest.mark.slow
def test_lambda_balanced_against_high_precision(scaled):
    """The closed form in one step in 120 digits, in which nothing is lost."""
    problem = gf.Problem.from_singular_values([2.0, 1.0], d_x=3, d_y=2)
    net = gf.initialization.LambdaBalanced((3, 2, 2), lam=0.4).sample(jax.random.key(2), 0)
    t = scaled / 2.0
    with mpmath.workdps(120):
        target = mpmath.matrix(np.asarray(problem.target).tolist())
        Q = mpmath.matrix(np.concatenate([np.asarray(net.weights[0]).T, np.asarray(net.weights[1])]).tolist())
        F = mpmath.zeros(5)
        for i in range(5):
            F[i, i] = mpmath.mpf("-0.2") if i < 3 else mpmath.mpf("0.2")
        for i in range(2):
            for j in range(3):
                F[3 + i, j] = F[j, 3 + i] = target[i, j]
        values, vectors = mpmath.eigsy(F)
        diagonal = mpmath.diag([mpmath.exp(v * t) for v in values])
        integral = mpmath.diag([mpmath.expm1(2 * v * t) / (2 * v) for v in values])
        growth, phi = vectors * diagonal * vectors.T, vectors * integral * vectors.T
        gram = growth * Q * mpmath.inverse(mpmath.eye(2) + Q.T * phi * Q) * Q.T * growth
        expected = np.array([[float(gram[3 + i, j]) for j in range(3)] for i in range(2)])
    np.testing.assert_allclose(exact.lambda_balanced(problem, net, t), expected, atol=1e-9)


@pytest.mark.slow
def test_lambda_balanced_is_differentiable():
    problem = gf.Problem.from_singular_values([2.0, 2.0], d_x=3, d_y=2)
    net = gf.initialization.Balanced((3, 2, 2), singular_values=0.5).sample(jax.random.key(3), 0)
    K = jnp.asarray(np.random.default_rng(4).normal(size=(2, 2)))
    K = K - K.T  # a rotation keeps the start balanced

    def f(e):
        R = jax.scipy.linalg.expm(e * K)
        moved = gf.LayerTuple([net.weights[0], R @ net.weights[1]])
        return jnp.sum(jnp.sin(exact.lambda_balanced(problem, moved, 1.0, tolerance=1e-6)))

    e = 1e-5
    with pytest.raises(ValueError, match="not λ-balanced"):
        exact.lambda_balanced(problem, gf.LayerTuple([net.weights[0], net.weights[1].at[0].multiply(2.0)]), 1.0)
    expected = (f(e) - f(-e)) / (2 * e)
    np.testing.assert_allclose(jax.jvp(f, (0.0,), (1.0,))[1], expected, rtol=1e-7)


def test_errors():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    net = gf.initialization.Balanced((2, 2, 2)).sample(jax.random.key(0), 0)
    with pytest.raises((ValueError, TypeError)):  # TypeError where the shapes of signatures are checked, as here
        exact.width_h(jnp.ones(2), jnp.ones(3), 1.0, 1.0)
    with pytest.raises(ValueError, match="depth must be a positive integer"):
        exact.balanced_chain(1.0, 0.5, 0, 1.0)
    with pytest.raises(ValueError, match="t must not be negative"):
        exact.balanced_chain(1.0, 0.5, 2, -1.0)
    with pytest.raises(ValueError, match="s and u_0 must be finite, got nan"):
        exact.balanced_chain(math.nan, 0.5, 3, 1.0)
    with pytest.raises(ValueError, match="whitened coordinates are needed"):
        exact.lambda_balanced(problem.in_coordinates("data"), net, 1.0)
    with pytest.raises(ValueError, match="t must be finite"):
        exact.lambda_balanced(problem, net, math.inf)
    deep = gf.initialization.Balanced((2, 2, 2, 2)).sample(jax.random.key(0), 0)
    with pytest.raises(ValueError, match="two layers, got 3"):
        exact.lambda_balanced(problem, deep, 1.0)


@pytest.mark.parametrize("depth", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.slow
def test_aligned_modes_of_networks(depth):
    """Rectangular, with a mode on the wrong side and one that is zero, against an integration of the factors."""
    problem = gf.Problem.from_singular_values([2.0, 1.0, 0.5], d_x=4)
    W0 = jnp.zeros((3, 4)).at[jnp.arange(3), jnp.arange(3)].set(jnp.array([0.3, -0.4, 0.0]))
    rng = np.random.default_rng(depth)
    factors = list(balanced_factors(W0, depth, 2).weights)
    for j in range(depth - 1):  # hidden units turned: the product stays
        Q = np.linalg.qr(rng.normal(size=(2, 2)))[0]
        factors[j], factors[j + 1] = Q @ factors[j], factors[j + 1] @ Q.T
    net = gf.LayerTuple(factors)
    for t in (0.0, 0.7, 3.0):
        expected = W0 if t == 0 else gf.simulate(problem, net, t, ts=[t], rtol=1e-12, atol=1e-14).final.end_to_end
        np.testing.assert_allclose(exact.aligned_modes(problem, net, t), expected, atol=1e-10)
    mixed = gf.initialization.Balanced((4, 2, 3)).sample(jax.random.key(0), 0)
    for refused, message in (
        ((problem, mixed, 1.0), "not aligned with the target: W"),
        (
            (problem, 2.0 * gf.LayerTuple([net.weights[0], *net.weights[1:-1], 3 * net.weights[-1]]), 1.0),
            "not balanced",
        ),
        ((problem, net, -1.0), "must not be negative"),
        ((problem.in_coordinates("reduced"), net, 1.0), "whitened coordinates are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            exact.aligned_modes(*refused)
