"""Guarantees of gradient descent: never violated, how tight they are, and what happens at integers, saddles and minima."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.guarantees import (
    descent_excess,
    escape_coordinates,
    escape_steps,
    measured_escape,
    stability_edge,
    steps_to_stationary,
)
from gdflow.network import LayerTuple

EPS = float(np.finfo(np.float64).eps)
STEPS = 256


# Far from critical points: Theorem 6.7. Families of functions with a known β and a known minimum, starts of shape (n, d).


def quadratics(rng, n):
    """`½Σλ_ix_i²`: `β = max λ`."""
    values = 10.0 ** rng.uniform(-2, 0, (n, 5))
    x = rng.normal(size=(n, 5)) * 10.0 ** rng.uniform(-2, 2, (n, 1))
    return (lambda x: 0.5 * np.sum(values * x**2, axis=1)), (lambda x: values * x), x, np.max(values, axis=1), 0.0


def ridges(profile, slope, curvature):
    """`Σ_k c_kφ(a_k·x)` with `|φ″| ≤ curvature`, so that `β = curvature·‖Σ_k c_ka_ka_kᵀ‖`; zero at `x = 0`, the minimum."""

    def family(rng, n):
        a, c = rng.normal(size=(n, 7, 4)), rng.uniform(0.1, 1, (n, 7))
        beta = curvature * np.linalg.norm(np.einsum("nk,nki,nkj->nij", c, a, a), ord=2, axis=(1, 2))
        loss = lambda x: np.sum(c * profile(np.einsum("nki,ni->nk", a, x)), axis=1)  # noqa: E731
        gradient = lambda x: np.einsum("nk,nki->ni", c * slope(np.einsum("nki,ni->nk", a, x)), a)  # noqa: E731
        return loss, gradient, 2 * rng.normal(size=(n, 4)), beta, 0.0

    return family


# ln cosh, convex; u²/(1 + u²), not convex, with second derivative (2 − 6u²)/(1 + u²)³ between −½ and 2.
log_cosh = ridges(lambda u: np.logaddexp(u, -u) - np.log(2), np.tanh, 1.0)
wells = ridges(lambda u: u**2 / (1 + u**2), lambda u: 2 * u / (1 + u**2) ** 2, 2.0)


def networks(rng, n):
    """`½‖A − W_2W_1‖²`, 3-2-3.

    On the ball of radius `R` the Hessian is at most `‖W_2w_1 + w_2W_1‖² + 2‖A − W_2W_1‖_2‖w_1‖‖w_2‖ ≤ R² + ‖A‖_2 + R²/2` in size,
    for a unit vector `w`. That the iterates stay in this ball, and with it the segments between them, is checked.
    """
    target = rng.normal(size=(n, 3, 3))
    s = np.linalg.svd(target, compute_uv=False)
    x = 0.7 * rng.normal(size=(n, 12))
    square = np.sum(x**2, axis=1) + 3 * np.sum(s, axis=1)

    def split(x):
        assert np.all(np.sum(x**2, axis=1) <= square)
        return x[:, :6].reshape(n, 2, 3), x[:, 6:].reshape(n, 3, 2)

    def loss(x):
        W1, W2 = split(x)
        return 0.5 * np.sum((target - W2 @ W1) ** 2, axis=(1, 2))

    def gradient(x):
        W1, W2 = split(x)
        M = W2 @ W1 - target
        return np.concatenate([(W2.mT @ M).reshape(n, 6), (M @ W1.mT).reshape(n, 6)], axis=1)

    return loss, gradient, x, 1.5 * square + s[:, 0], 0.5 * s[:, 2] ** 2


def descend(loss, gradient, x, step, num):
    """Losses and gradient norms at the first `num + 1` iterates, shape `(n, num + 1)`."""
    losses, norms = [], []
    for _ in range(num + 1):
        g = gradient(x)
        losses.append(loss(x))
        norms.append(np.linalg.norm(g, axis=1))
        x = x - step[:, None] * g
    return np.stack(losses, axis=1), np.stack(norms, axis=1)


@pytest.mark.parametrize(
    "family", [quadratics, log_cosh, wells, networks], ids=["quadratic", "log cosh", "wells", "net"]
)
def test_theorem_6_7_and_the_descent_inequality(family, rng):
    n = 200  # four families, 800 cases
    loss, gradient, x, beta, lowest = family(rng, n)
    step = np.where(rng.uniform(size=n) < 0.5, 1.0, rng.uniform(0.1, 1, n)) / beta
    losses, norms = descend(loss, gradient, x, step, STEPS)
    gap = losses[:, 0] - lowest
    # The least gradient so far at some step, so that the first one as small is known exactly.
    least = np.minimum.accumulate(norms, axis=1)
    tolerance = least[np.arange(n), np.round(STEPS ** rng.uniform(size=n)).astype(int)]
    bounds = np.array([steps_to_stationary(*case) for case in zip(gap, step, tolerance, strict=True)])
    taken = np.argmax(norms <= tolerance[:, None], axis=1)
    assert np.all(taken <= bounds)
    assert np.mean(taken > 0) > 0.5  # and it is not that all are small at once
    # The same for all tolerances at once: if all ‖∇f(w_t)‖ > ε for t < T, then T < 2(f(w_0) − f*)/(ηε²).
    used = np.arange(1, STEPS + 2) * step[:, None] * least**2 / (2 * gap[:, None])
    assert np.max(used) <= 1 + 50 * EPS
    assert np.max(used) > 0.3  # tight to a factor of about three in some case of every family
    # Sums of at most nine terms of the size of the first loss, whose value is rounded in every term.
    excess = np.asarray(jax.vmap(descent_excess)(jnp.asarray(losses), jnp.asarray(norms), jnp.asarray(step)))
    assert excess.shape == (n, STEPS)
    assert np.all(excess <= 50 * EPS * losses[:, :1])


@pytest.mark.parametrize("teeth", [0, 1, 2, 7, 100])
def test_the_slowest_function_needs_two_thirds_of_the_steps(teeth):
    """A gradient that dips to ½ between the integers, where it is 1: `β = η = 1`, and every step lowers `f` by ¾ only."""

    def slope(x):
        return np.where(x >= 0, 1 - abs(x - np.round(x)), 1 + x)

    points = np.linspace(-1, teeth, 50 * (teeth + 1) + 1)
    assert np.max(abs(np.diff(slope(points)) / np.diff(points))) < 1 + 1e-9  # round-off over differences of 0.02
    x, losses, norms = float(teeth), [], []
    while True:
        # The integral from the minimum, −1; at integers.
        losses.append(0.75 * x + 0.5 if x >= 0 else 0.5 * (1 + x) ** 2)
        norms.append(float(slope(x)))
        if norms[-1] < 1:
            break
        x -= norms[-1]
    taken, bound = len(norms) - 1, steps_to_stationary(losses[0], 1.0, 1 - 2.0**-20)
    assert taken == teeth + 1
    assert taken <= bound <= 1.5 * taken
    assert bound == math.floor(1.5 * teeth + 1)  # attained without a tooth and with one
    np.testing.assert_array_equal(descent_excess(losses, norms, 1.0), [-0.25] * teeth + [0.0])


def test_the_number_of_steps_is_exact(rng):
    """The largest `t` with `t < 2(f − f*)/(ηε²)`, in fractions: in floating point the quotient may round across an integer."""
    assert steps_to_stationary(1.0, 0.5, 1.0) == 3  # t < 4
    assert steps_to_stationary(0.5, 1.0, 1.0) == 0  # t < 1
    assert steps_to_stationary(np.nextafter(0.5, 1), 1.0, 1.0) == 1
    assert steps_to_stationary(0.0, 1.0, 1.0) == steps_to_stationary(0.1, 1.0, 9.0) == 0
    assert steps_to_stationary(1e300, 1e-300, 1e-300) > 10**1199
    wrong = 0
    for _ in range(300):
        step, tolerance = rng.uniform(0.1, 1, 2)
        gap = float(0.5 * int(rng.integers(1, 1000)) * step * tolerance**2)
        bound = steps_to_stationary(gap, step, tolerance)

        def allowed(t, gap=gap, step=step, tolerance=tolerance):
            return t * Fraction(step) * Fraction(tolerance) ** 2 < 2 * Fraction(gap)

        assert allowed(bound)
        assert not allowed(bound + 1)
        wrong += math.ceil(2 * gap / (step * tolerance**2)) - 1 != bound
    assert wrong > 30


def test_longer_steps_have_an_excess(rng):
    """Along the steepest direction of a quadratic a step of `h/β` takes `L` to `(1 − h)²L`: the excess is `h(h − 1)L`."""
    for h in (0.5, 1.0, 1.1, 1.9):
        x = np.cumprod([3.0] + [1 - h] * 4)
        expected = h * (h - 1) * 0.5 * x[:-1] ** 2
        # Differences of losses that are rounded each.
        np.testing.assert_allclose(descent_excess(0.5 * x**2, abs(x), h), expected, rtol=1e-13, atol=10 * EPS * 4.5)


# Near a strict saddle: the quadratic model.


def saddles(rng, n, d=6):
    """Random quadratic saddles of every size and signature, starts, steps and tolerances."""
    values = np.where(rng.uniform(size=(n, d)) < 0.4, -1.0, 1.0) * 10.0 ** rng.uniform(-2, 1, (n, d))
    values[:, 0] = -abs(values[:, 0])
    values[:, 1:] *= rng.uniform(size=(n, d - 1)) < 0.8
    theta = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-6, 0, (n, 1)) * 10.0 ** rng.uniform(-2, 2, (n, d))
    theta[:, 1:] *= rng.uniform(size=(n, d - 1)) < 0.9
    largest = np.max(abs(values), axis=1)
    step = np.where(rng.uniform(size=n) < 0.3, 1.0, rng.uniform(0.1, 1, n)) / largest
    # Also such as are below the gradient at the start, which then falls before it grows.
    return values, theta, step, np.linalg.norm(values * theta, axis=1) * 10.0 ** rng.uniform(-2, 3, n)


def simulated_escape(values, theta, step, tolerance, most):
    """The first steps at which the iterates themselves have escaped, `most + 1` where they have not."""
    found = np.full(len(values), most + 1)
    for t in range(most + 1):
        below = np.sum(values * theta**2, axis=1) < 0
        steep = np.linalg.norm(values * theta, axis=1) > tolerance
        found = np.where(below & steep, np.minimum(found, t), found)
        theta = theta * (1 - step[:, None] * values)
    return found


def test_no_quadratic_saddle_holds_longer_than_the_bound(rng):
    values, theta, step, tolerance = saddles(rng, 600)
    cases = list(zip(values, theta, step, tolerance, strict=True))
    bounds = np.array([escape_steps(*case) for case in cases])
    measured = np.array([int(measured_escape(*case, most=1e5)) for case in cases])
    assert np.all(measured >= 0)
    assert np.all(measured <= bounds)
    # What the closed form says is what the iterates do.
    most = 1500
    with np.errstate(over="ignore"):  # long after the escape
        simulated = simulated_escape(values, theta, step, tolerance, most)
    assert np.sum(simulated <= most) > 500
    np.testing.assert_array_equal(simulated, np.minimum(measured, most + 1))
    # With several negative eigenvalues it is the least of their bounds, each of them valid alone.
    for case, bound in zip(cases[:50], bounds[:50], strict=True):
        v, *rest = case
        others = v < 0
        alone = [np.where(others & (np.arange(v.size) != i), 0.0, v) for i in np.flatnonzero(others)]
        assert bound == min(escape_steps(one, *rest) for one in alone)
    # Tight: attained in most cases, and where it is not, mostly more than a third of it is needed.
    late = bounds > 0
    assert np.mean(late) > 0.7
    assert np.mean(measured[late] == bounds[late]) > 0.7
    assert np.quantile(measured[late] / bounds[late], 0.1) > 0.35
    # The printed count is negative where the start has escaped already: no number of steps.
    printed = np.array([escape_steps(*case, printed=True) for case in cases])
    assert np.sum(printed < measured) == np.sum(printed < 0) > 50


def test_with_one_negative_eigenvalue_alone_the_bound_is_what_happens(rng):
    """`α(1 + ηα)^t|θ| > ε` is all there is to it, also where `θ` and `ε` are almost out of range."""
    for _ in range(200):
        alpha, theta, tolerance = 10.0 ** rng.uniform([-3, -300, -300], [1, 290, 290])
        step = rng.uniform(0.01, 1) / alpha
        case = [-alpha, 0.0], [theta, 7.0], step, tolerance
        assert escape_steps(*case) == int(measured_escape(*case, most=10**7))


#: Growth factors 1 + ηα and exponents k for which (1 + ηα)^k is a floating-point number.
POWERS = [(1 + j / 8, k) for j in range(1, 9) for k in range(-3, 13) if k >= 0 or j == 8]


def exactly_escaped(values, theta, step, tolerance, t):
    """Whether the model has escaped after `t` steps, in fractions."""
    v, x = ([Fraction(float(a)) for a in array] for array in (values, theta))
    moved = [a * (1 - Fraction(float(step)) * b) ** t for a, b in zip(x, v, strict=True)]
    loss = sum(b * a**2 for a, b in zip(moved, v, strict=True))
    return loss < 0 and sum((a * b) ** 2 for a, b in zip(moved, v, strict=True)) > Fraction(float(tolerance)) ** 2


@pytest.mark.parametrize("scale", [1.0, 2.0**30])
def test_at_integers_the_printed_count_is_one_too_small(scale):
    """`ε = α(1 + ηα)^k|θ|`: at `t = k` the gradient is of size `ε`, not above. The lecture's `⌈x⌉ = k` fails, `⌊x⌋ + 1` holds."""
    for growth, k in POWERS:
        alpha, theta = 0.25 * scale, 2.0**-20
        # A positive eigenvalue and one of zero, which take no part.
        values, start = [-alpha, 0.5 * alpha, 0.0], [theta, 0.0, 1.0]
        case = values, start, (growth - 1) / alpha, alpha * growth**k * theta
        assert escape_steps(*case, printed=True) == k
        assert escape_steps(*case) == max(0, k + 1)
        assert int(measured_escape(*case, most=100)) == max(0, k + 1)
        if k >= 0:
            assert not exactly_escaped(*case, k)
        assert exactly_escaped(*case, max(0, k + 1))


def test_at_integers_where_the_loss_decides():
    """`λ_2 = α`, `θ_2 = (1 + ηα)^kθ_1`: at `k = 0` the start is level with the saddle. Later the positive part has decayed."""
    for growth, k in POWERS:
        alpha, theta = 2.0**-9, 2.0**-20
        case = [-alpha, alpha], [theta, growth**k * theta], (growth - 1) / alpha, 1e-12 * alpha * theta
        assert escape_steps(*case, printed=True) == k
        assert escape_steps(*case) == max(0, k + 1)
        assert exactly_escaped(*case, max(0, k + 1))
        assert int(measured_escape(*case, most=100)) <= max(0, k + 1)
        if k == 0:
            assert not exactly_escaped(*case, k)
            assert int(measured_escape(*case, most=100)) == 1


def test_round_off_makes_no_bound_too_small(rng):
    """`ε` a few units in the last place from `α(1 + ηα)^k|θ|`: in plain floating point `⌊x⌋ + 1` is then too small at times."""
    plain_fails = 0
    for _ in range(300):
        alpha, theta, growth = rng.uniform(0.1, 1, 3)
        step, k = growth / alpha, int(rng.integers(1, 25))
        exact = Fraction(alpha) * (1 + Fraction(step) * Fraction(alpha)) ** k * Fraction(theta)
        tolerance = float(exact) * (1 + int(rng.integers(-1, 2)) * EPS)
        case = [-alpha], [theta], step, tolerance
        needed = next(t for t in range(k - 1, k + 2) if exactly_escaped(*case, t))
        assert escape_steps(*case) in (needed, needed + 1)  # x is an integer but for round-off, and rounded upward
        plain = math.floor(0.5 * math.log(tolerance**2 / (alpha * theta) ** 2) / math.log(1 + step * alpha)) + 1
        plain_fails += plain < needed
    assert plain_fails > 30


def test_what_never_escapes():
    for case in (
        ([-1.0, 1.0], [0.0, 1.0], 0.5, 0.1),
        ([0.0, 1.0], [1.0, 1.0], 0.5, 0.1),
        ([-1e-200, 1e-200], [1.0, 1.0], 1e-150, 0.1),  # no growth that float64 could hold
    ):
        assert escape_steps(*case) == escape_steps(*case, printed=True) == math.inf
        assert int(measured_escape(*case, most=10**12)) == -1
    # Nearly never: more steps than integers of 64 bits hold.
    assert 10**302 < escape_steps([-1e-299], [1e-200], 1.0, 1e300) < 10**303
    assert escape_steps([-1e-299], [1e300], 1.0, 1e-200) == 0
    case = [-1.0, 1.0], [0.25, 0.5], 1.0, 1.0
    assert [int(measured_escape(*case, most=most)) for most in (0, 2, 3, 2**53)] == [-1, -1, 3, 3]


def test_many_starts_at_one_saddle(rng):
    values, theta = np.array([-0.5, 0.0, 1.0, -0.1]), rng.normal(size=(3, 5, 4))
    found = measured_escape(values, theta, 0.9, 2.0, 1000)
    assert found.shape == (3, 5)
    assert found.dtype == np.int64
    for i in np.ndindex(3, 5):
        assert found[i] == measured_escape(values, theta[i], 0.9, 2.0, 1000)
        assert found[i] <= escape_steps(values, theta[i], 0.9, 2.0)


def test_small_rates_are_not_rounded_away():
    """`ηα = 1e-10`: a growth factor rounded to 1 + 1.00000008e-10 would be 80 000 steps off in 10¹²."""
    case = [-1e-10, 1.0], [1e-20, 0.0], 1.0, 1e12
    steps = escape_steps(*case)
    assert steps == pytest.approx(math.log(1e42) / math.log1p(1e-10), rel=1e-12)
    # Errors of the exponent, t·ln(1 + ηα) ≈ 97, times 1/ηα.
    assert abs(int(measured_escape(*case, most=10**13)) - steps) <= 100 * 4 * EPS / 1e-10 + 1


# Real saddles.


def products(weights, target):
    """Losses and gradients of `½‖A − W_3W_2W_1‖²`, for a batch, in NumPy."""
    W1, W2, W3 = weights
    M = W3 @ W2 @ W1 - target
    loss = 0.5 * np.sum(M**2, axis=(1, 2))
    return loss, ((W3 @ W2).mT @ M @ np.eye(M.shape[-1]), W3.mT @ M @ W1.mT, M @ (W2 @ W1).mT)


def norms(layers):
    return np.sqrt(sum(np.sum(w**2, axis=(1, 2)) for w in layers))


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([3.0, 2.0, 1.0])


WIDTHS = (3, 4, 4, 3)


@pytest.mark.parametrize(("subset", "seed"), [((1,), 0), ((2,), 1), ((1, 3), 2), ((2, 3), 3), ((3,), 4)])
def test_escape_from_real_saddles(problem, subset, seed, rng):
    """Plain gradient descent on the true loss, from distances of 1e-6 to 1e-4."""
    saddle = gf.sample_critical_point(problem, WIDTHS, subset, key=jax.random.key(seed), kind="strict")
    n = 24
    shifts = [rng.normal(size=(n, *w.shape)) for w in saddle.weights]
    distance = 10.0 ** rng.uniform(-6, -4, n)
    shifts = [(distance / norms(shifts))[:, None, None] * w for w in shifts]
    weights = [np.asarray(w) + shift for w, shift in zip(saddle.weights, shifts, strict=True)]
    starts = [LayerTuple([w[i] for w in weights]) for i in range(n)]
    found = [escape_coordinates(problem, saddle, start) for start in starts[:2]]
    values = found[0][0]
    H = np.asarray(gf.hessian(problem, saddle))
    vectors = np.linalg.eigh(H)[1]
    theta = np.stack([np.concatenate([w[i].ravel() for w in shifts]) for i in range(n)]) @ vectors
    for (v, x), expected, length in zip(found, theta, distance, strict=False):
        np.testing.assert_array_equal(v, values)
        # Round-off of weights of order one that differ by 1e-6 and more.
        np.testing.assert_allclose(x, expected, atol=1e-14)
        assert np.linalg.norm(x) == pytest.approx(length, rel=1e-8)
    step, alpha = 1 / values[-1], -values[0]
    tolerance = 1e-3 * alpha
    bounds = np.array([escape_steps(values, x, step, tolerance) for x in theta])
    model = measured_escape(values, theta, step, tolerance, most=10**6)
    assert np.all((model > 0) & (model <= bounds))
    target, level = np.asarray(problem.target), float(problem.effective_loss(saddle))
    taken, t = np.full(n, -1), 0
    change = 0.0
    while np.any(taken < 0):
        assert t < 2 * np.max(bounds)
        loss, gradient = products(weights, target)
        news = (taken < 0) & (loss < level) & (norms(gradient) > tolerance)
        for i in np.flatnonzero(news)[:1]:
            there = LayerTuple([w[i] for w in weights])
            change = max(change, float(np.linalg.norm(np.asarray(gf.hessian(problem, there)) - H, 2)))
        taken = np.where(news, t, taken)
        weights = [w - step * g for w, g in zip(weights, gradient, strict=True)]
        t += 1
    # At the end of the way the Hessian has changed by a small part of α. The distance grows geometrically, so the changes along
    # the way add up to change/α in the logarithm of the amplitude. So many steps make up for it (twice, to be safe), and one
    # more since steps are whole.
    assert change < 0.02 * alpha
    slack = 1 + 2 * (change / alpha) / np.log1p(step * alpha)
    assert np.all(taken <= bounds + slack)
    assert np.all(abs(taken - model) <= slack)
    assert np.median(taken / bounds) > 0.9
    assert np.max(bounds) > 1.9 * np.min(bounds)  # and it is no constant: distances differ by a factor of a hundred


def test_the_model_is_the_loss_to_second_order(problem, rng):
    saddle = gf.sample_critical_point(problem, WIDTHS, (2,), key=jax.random.key(5), kind="strict")
    direction = LayerTuple([rng.normal(size=w.shape) for w in saddle.weights])
    direction = direction / float(direction.norm())
    errors = []
    for size in (1e-2, 1e-3):
        values, theta = escape_coordinates(problem, saddle, saddle + size * direction)
        change = float(problem.effective_loss(saddle + size * direction) - problem.effective_loss(saddle))
        errors.append(abs(change - 0.5 * np.sum(values * theta**2)))
        slope = float(problem.gradient(saddle + size * direction).norm())
        # The terms of third order: third derivatives are products of one weight.
        assert abs(slope - np.linalg.norm(values * theta)) < 100 * size**2
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.5)  # third order, and fourth


def test_saddles_without_a_direction_of_escape(problem, rng):
    """Round-off of eigenvalues that are zero is no negative curvature."""
    for kind, subset in (("zero-hessian", ()), ("non-strict", (1,)), ("minimum", (1, 2, 3))):
        point = gf.sample_critical_point(problem, WIDTHS, subset, key=jax.random.key(6), kind=kind)
        start = point + LayerTuple([1e-3 * rng.normal(size=w.shape) for w in point.weights])
        values, theta = escape_coordinates(problem, point, start)
        assert np.min(values) == 0
        assert np.all(theta != 0)
        assert escape_steps(values, theta, 1e-3, 1e-6) == math.inf


# Near a minimum.


@pytest.mark.parametrize("depth", [2, 3])
def test_beyond_the_stability_edge_minima_are_left(depth, rng):
    """Gradient descent from a point 1e-6 beside a balanced minimum, with steps of 0.95 and 1.05 times the edge."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    widths = (2, *[3] * (depth - 1), 2)
    net = gf.sample_critical_point(problem, widths, (1, 2), key=jax.random.key(depth), kind="balanced")
    edge = stability_edge(problem, net)
    assert edge == pytest.approx(2 / (depth * 2.0 ** (2 - 2 / depth)), rel=1e-12)  # eigenvalues of order one
    away = LayerTuple([rng.normal(size=w.shape) for w in net.weights])
    start = net + away * (1e-6 / float(away.norm()))

    @jax.jit
    def descend(step):
        def one(w, _):
            gradient = problem.gradient(w)
            return w - step * gradient, ((w - net).norm(), gradient.norm())

        return jax.lax.scan(one, start, length=400)[1]

    distances, slopes = map(np.asarray, descend(0.95 * edge))
    # The factor along the sharpest direction is −0.9, the others are smaller: 0.9^400 = 5e-19. Beside the minimum lies another.
    assert np.max(distances) < 2e-6
    assert slopes[-1] < 1e-12  # it was above 1e-7; round-off of weights of order one, times curvature, is left
    assert slopes[0] > 1e-7
    distances, _ = map(np.asarray, descend(1.05 * edge))
    # A factor of −1.1: ten thousandfold in a hundred steps, and half as many more if a hundredth starts in this direction.
    assert np.max(distances) > 1e-2


def test_stability_edges_of_every_size():
    one = gf.Problem.from_singular_values([5.0])
    assert stability_edge(one, LayerTuple([[[5.0]]])) == 2.0  # a single parameter: L = ½(5 − w)²
    assert stability_edge(one, LayerTuple([[[0.0]]] * 3)) == math.inf
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0])
    flat = gf.sample_critical_point(problem, WIDTHS, (), key=jax.random.key(0), kind="zero-hessian")
    assert stability_edge(problem, flat) == math.inf


@pytest.mark.slow
def test_the_stability_edge_of_a_wide_network():
    """By Lanczos: 1 440 parameters."""
    wide = gf.Problem.from_singular_values(np.linspace(4.0, 1.0, 12))
    net = gf.sample_critical_point(wide, (12, 60, 12), range(1, 13), key=jax.random.key(1), kind="balanced")
    assert stability_edge(wide, net) == pytest.approx(2 / 8, rel=1e-12)


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(gap=-1.0), "gap must not be negative, got -1.0"),
        (dict(gap=np.nan), "gap must be a finite number, got nan"),
        (dict(gap=np.inf), "gap must be a finite number, got inf"),
        (dict(step=0.0), "step must be positive and finite, got 0.0"),
        (dict(step=-2.0), "step must be positive and finite, got -2.0"),
        (dict(step=np.nan), "step must be positive and finite, got nan"),
        (dict(tolerance=0.0), "tolerance must be positive and finite, got 0.0"),
        (dict(tolerance=np.inf), "tolerance must be positive and finite, got inf"),
    ],
)
def test_bad_gaps_steps_and_tolerances(change, message):
    with pytest.raises(ValueError, match=message):
        steps_to_stationary(**{**dict(gap=1.0, step=0.1, tolerance=0.1), **change})


@pytest.mark.parametrize("function", [escape_steps, lambda **model: measured_escape(**model, most=10)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(eigenvalues=[[-1.0, 1.0]]), r"eigenvalues must be one list, of shape \(d,\), got shape \(1, 2\)"),
        (dict(eigenvalues=[]), "eigenvalues must not be empty"),
        (dict(eigenvalues=[-1.0, np.nan]), r"eigenvalues must be finite, got nan at entry \(1,\)"),
        (dict(theta=[1.0]), r"theta needs one entry for each of the 2 eigenvalues, got shape \(1,\)"),
        (dict(theta=1.0), r"theta needs one entry for each of the 2 eigenvalues, got shape \(\)"),
        (dict(theta=[np.inf, 1.0]), r"theta must be finite, got inf at entry \(0,\)"),
        (dict(step=0.6), r"step must be at most 1/max\|λ\| = 0.5, got 0.6"),
        (dict(step=0.0), "step must be positive and finite, got 0.0"),
        (dict(tolerance=-1.0), "tolerance must be positive and finite, got -1.0"),
    ],
)
def test_bad_models(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(**{**dict(eigenvalues=[-1.0, 2.0], theta=[1.0, 1.0], step=0.5, tolerance=0.1), **change})


def test_other_bad_options():
    with pytest.raises(ValueError, match=r"theta must be one start, of shape \(2,\), got shape \(1, 2\)"):
        escape_steps([-1.0, 1.0], [[1.0, 1.0]], 0.5, 0.1)
    with pytest.raises(TypeError, match="theta must be real numbers, got dtype complex128"):
        escape_steps([-1.0, 1.0], np.array([1j, 1.0]), 0.5, 0.1)
    for most, message in ((-1, "at least 0"), (2.5, "an integer"), (2**54, r"at most 2\*\*53")):
        with pytest.raises(ValueError, match=f"most must be {message}"):
            measured_escape([-1.0], [1.0], 0.5, 0.1, most)
    for losses, slopes in (([1.0, 2.0], [1.0]), (1.0, 1.0)):
        with pytest.raises(ValueError, match="losses and gradient_norms must have one shape"):
            descent_excess(losses, slopes, 0.1)
    with pytest.raises(ValueError, match=r"step must be positive and finite, got -1\.0"):
        descent_excess([1.0, 2.0], [1.0, 1.0], -1.0)
    # The rounding of 1/β by one who computes it otherwise is no error.
    assert escape_steps([-3.0], [1.0], (1 / 3) * (1 + 1e-12), 0.1) == 0


def test_bad_saddles(problem, rng):
    saddle = gf.sample_critical_point(problem, WIDTHS, (1,), key=jax.random.key(0))
    other = LayerTuple([rng.normal(size=(a, b)) for a, b in zip((5, 5, 3), (3, 5, 5), strict=True)])
    with pytest.raises(ValueError, match=r"the saddle has widths \(3, 4, 4, 3\), the network \(3, 5, 5, 3\)"):
        escape_coordinates(problem, saddle, other)
    with pytest.raises(ValueError, match=r"the saddle is not a critical point: ‖∇L‖ = "):
        escape_coordinates(problem, other, other)
    nowhere = LayerTuple([np.nan * w for w in saddle.weights])
    with pytest.raises(ValueError, match="W_1 is nan at entry"):
        escape_coordinates(problem, saddle, nowhere)
    with pytest.raises(ValueError, match="W_1 is nan at entry"):
        stability_edge(problem, nowhere)
    for net in (LayerTuple([np.eye(2)]), LayerTuple([np.ones((5, 3, 3))])):
        with pytest.raises(ValueError, match=r"widths|one network is needed"):
            stability_edge(problem, net)
