"""ReLU students and teachers: against quadrature, against 60 digits, at points where angles degenerate, in lanes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from raw_data import relative_error

import gdflow as gf
from gdflow.basins.methods import GradientDescent, Place
from gdflow.layouts import LanesFirst, LanesLast
from gdflow.network import LayerTuple
from gdflow.teacher import TeacherStudent, kernel_gradient, kernel_sum, sine_and_supplement

LAYOUTS = [LanesLast(), LanesFirst()]


def random_rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def network(W):
    return LayerTuple([jnp.asarray(W)])


def matrix(net):
    return np.asarray(net.weights[0])


# Compiled, and with few shapes: most of the time goes into compiling.


@eqx.filter_jit
def value(problem, W):
    return problem.effective_loss(LayerTuple([W]))


@eqx.filter_jit
def gradient(problem, W):
    return problem.gradient(LayerTuple([W])).weights[0]


@eqx.filter_jit
def hessian(problem, W):
    """By differentiating the gradient."""
    return jax.jacfwd(lambda x: gradient(problem, x.reshape(W.shape)).ravel())(W.ravel())


@eqx.filter_jit
def other_derivatives(problem, W):
    """The gradient by differentiating the value, the Hessian by differentiating it twice, and by pulling back the gradient."""
    x = W.ravel()
    return (
        jax.grad(lambda x: value(problem, x.reshape(W.shape)))(x).reshape(W.shape),
        jax.hessian(lambda x: value(problem, x.reshape(W.shape)))(x),
        jax.jacrev(lambda x: gradient(problem, x.reshape(W.shape)).ravel())(x),
    )


@eqx.filter_jit
def in_lanes(problem, W):
    """Gradients, and the losses in two ways, of a batch in both layouts."""
    found = []
    for layout in LAYOUTS:
        nets = layout.pack(LayerTuple([W]))
        packed, loss = problem.objective.lane_gradients(layout, nets)
        found.append((layout.unpack(packed).weights[0], loss, problem.objective.lane_losses(layout, nets)))
    return found


@eqx.filter_jit
def one_by_one(problem, W):
    return jax.vmap(lambda w: (gradient(problem, w), value(problem, w)))(W)


# -- without the closed form -------------------------------------------------------------------------------------------


def angular_integral(function, kinks):
    """`∫ function(φ) dφ` over the circle, smooth between the kinks."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    ends = np.sort(np.mod(kinks, 2 * np.pi))
    ends = np.append(ends, ends[0] + 2 * np.pi)
    total = 0.0
    for a, b in zip(ends[:-1], ends[1:], strict=True):
        total += 0.5 * (b - a) * np.sum(weights * function(0.5 * (a + b) + 0.5 * (b - a) * nodes))
    return total


def relu_sum(W, x):
    return np.sum(np.maximum(W @ x, 0), axis=0)


def quadrature_loss(W, V):
    """`½E(…)²` in the plane: the integrand is `r²` times one of the angle, and `E r² = 2`."""
    angles = [np.arctan2(w[1], w[0]) for w in (*W, *V) if np.any(w)]
    kinks = [angle + side * np.pi / 2 for angle in angles for side in (1, -1)]

    def square(phi):
        x = np.array([np.cos(phi), np.sin(phi)])
        return (relu_sum(W, x) - relu_sum(V, x)) ** 2

    return 0.5 * 2 * angular_integral(square, kinks) / (2 * np.pi)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 3), (5, 2)])
def test_the_loss_is_that_of_the_integral(n, k, rng):
    for scale in (1e-2, 1.0, 30.0):
        W, V = scale * rng.normal(size=(n, 2)), rng.normal(size=(k, 2))
        W[0] = 2 * V[0]  # parallel
        W[-1] = -0.5 * V[-1]  # opposite
        size = (np.sum(np.linalg.norm(W, axis=1)) + np.sum(np.linalg.norm(V, axis=1))) ** 2
        problem = TeacherStudent(V, n)
        assert abs(float(value(problem, W)) - quadrature_loss(W, V)) < 1e-14 * size


def test_more_dimensions_than_a_plane_change_nothing(rng):
    """In the span of students and teachers lies all that matters, whatever the dimension around it."""
    W, V = rng.normal(size=(3, 2)), rng.normal(size=(2, 2))
    frame = random_rotation(rng, 7)[:, :2]
    flat, high = TeacherStudent(V, 3), TeacherStudent(V @ frame.T, 3)
    assert float(value(high, W @ frame.T)) == pytest.approx(quadrature_loss(W, V), rel=1e-13)
    np.testing.assert_allclose(gradient(high, W @ frame.T), gradient(flat, W) @ frame.T, atol=1e-14)


# -- with 60 digits ----------------------------------------------------------------------------------------------------


def exact_kernel(w, v):
    a, b = (mpmath.sqrt(mpmath.fdot(x, x)) for x in (w, v))
    if a == 0 or b == 0:
        return mpmath.mpf(0)
    cosine = max(-1, min(1, mpmath.fdot(w, v) / (a * b)))
    theta = mpmath.acos(cosine)
    return a * b * (mpmath.sin(theta) + (mpmath.pi - theta) * cosine) / (2 * mpmath.pi)


def exact_loss(W, V):
    total = sum(exact_kernel(a, b) for a in W for b in W) / 2 + sum(exact_kernel(a, b) for a in V for b in V) / 2
    return total - sum(exact_kernel(a, b) for a in W for b in V)


def shifted(W, moves):
    rows = [list(row) for row in W]
    for (i, j), h in moves:
        rows[i][j] += h
    return rows


def exact_derivatives(W, V):
    """Gradient and Hessian by central differences; the rounding of 60 digits is far below their error."""
    with mpmath.workdps(60):
        W, V = ([[mpmath.mpf(float(x)) for x in row] for row in A] for A in (W, V))
        entries = [(i, j) for i in range(len(W)) for j in range(len(W[0]))]
        h, g = mpmath.mpf(10) ** -15, mpmath.mpf(10) ** -20

        def loss(*moves):
            return exact_loss(shifted(W, moves), V)

        gradient = [float((loss((e, g)) - loss((e, -g))) / (2 * g)) for e in entries]
        H = np.zeros((len(entries),) * 2)
        for a, e in enumerate(entries):
            for b, f in enumerate(entries[: a + 1]):
                corners = [s * t * loss((e, s * h), (f, t * h)) for s in (1, -1) for t in (1, -1)]
                H[a, b] = H[b, a] = float(mpmath.fsum(corners) / (4 * h * h))
        return np.array(gradient).reshape(len(W), -1), H


def close_students(gap, sign=1.0):
    """Two students and a teacher that differ by `gap` from one direction or its opposite."""

    def make(rng):
        W, V = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
        W[1] = sign * 1.7 * W[0] + gap * rng.normal(size=3)
        V[0] = sign * 0.6 * W[0] + gap * rng.normal(size=3)
        return W, V

    return make


CASES = {
    "random": lambda rng: (rng.normal(size=(2, 3)), rng.normal(size=(2, 3))),
    "scales": lambda rng: (rng.normal(size=(2, 3)) * [[1e-4], [30.0]], rng.normal(size=(2, 3)) * [[1.0], [1e-3]]),
    "close 1e-2": close_students(1e-2),
    "close 1e-6": close_students(1e-6),
    "close 1e-9": close_students(1e-9),
    "opposite 1e-3": close_students(1e-3, -1.0),
    "opposite 1e-7": close_students(1e-7, -1.0),
    "parallel": close_students(0.0),
    "antiparallel": close_students(0.0, -1.0),
    "minimum": lambda rng: (np.eye(2, 3), np.eye(2, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_derivatives_by_sixty_digits(case, rng):
    W, V = CASES[case](rng)
    problem = TeacherStudent(V, len(W))
    exact_gradient, H = exact_derivatives(W, V)
    size = np.sum(np.linalg.norm(W, axis=1)) + np.sum(np.linalg.norm(V, axis=1))
    by_value, twice, pulled_back = other_derivatives(problem, W)
    # A few dozen roundings relative to the terms of the sums.
    for found in (gradient(problem, W), by_value, *(lanes[0][0] for lanes in in_lanes(problem, W[None]))):
        np.testing.assert_allclose(found, exact_gradient, rtol=0, atol=4e-16 * size)
    # The Hessian scales with the quotients of the norms; close vectors are off by 1e-16 in their directions.
    scale = max(1.0, np.abs(H).max())
    for found in (hessian(problem, W), twice, pulled_back):
        np.testing.assert_allclose(found, H, rtol=0, atol=1e-13 * scale)


def test_the_polynomial_of_the_angle():
    near = 10.0 ** -np.arange(1, 17)
    grid = np.concatenate([np.linspace(-1, 1, 401), 1 - near, near - 1, 0.5 + near, 0.5 - near, near])
    sine, supplement = map(np.asarray, sine_and_supplement(jnp.asarray(grid)))
    with mpmath.workdps(40):
        exact = [mpmath.acos(mpmath.mpf(float(c))) for c in grid]
        sines = np.array([float(mpmath.sin(theta)) for theta in exact])
        supplements = np.array([float(mpmath.pi - theta) for theta in exact])
        # Small angles are exact relative to themselves, and so is π − θ near π.
        small = np.array([float(abs(theta)) for theta in exact]) < 1
        large = supplements < 1
    np.testing.assert_allclose(sine, sines, rtol=0, atol=3e-16)
    np.testing.assert_allclose(supplement, supplements, rtol=0, atol=5e-16)
    np.testing.assert_allclose(sine[small | large], sines[small | large], rtol=4e-16, atol=1e-30)
    np.testing.assert_allclose(supplement[large], supplements[large], rtol=4e-16, atol=1e-30)


# -- derivatives of other kinds ----------------------------------------------------------------------------------------


def test_derivatives_in_the_teacher(rng):
    """Of the loss, through the constant too, and of the gradient; against differences of fourth order."""
    W, V = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=(2, 3)))
    direction = jnp.asarray(rng.normal(size=(2, 3)))

    @jax.jit
    def along(t):
        problem = TeacherStudent(V + t * direction)
        return value(problem, W), gradient(problem, W)

    def difference(h):
        return jax.tree.map(lambda a, b: (a - b) / (2 * h), along(h), along(-h))

    h = 1e-3
    expected = jax.tree.map(lambda fine, coarse: (4 * fine - coarse) / 3, difference(h / 2), difference(h))
    _, found = jax.jvp(along, (0.0,), (1.0,))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-9)
    assert relative_error(found[1], expected[1]) < 1e-9


def test_third_derivatives_exist_apart_from_parallel_vectors(rng):
    W, v = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=(2, 3)))
    problem = TeacherStudent(rng.normal(size=(2, 3)))
    third = jax.jit(lambda W: jax.jvp(lambda t: hessian(problem, W + t * v), (0.0,), (1.0,))[1])
    difference = (hessian(problem, W + 1e-5 * v) - hessian(problem, W - 1e-5 * v)) / 2e-5
    assert relative_error(third(W), difference) < 1e-8
    assert np.all(np.isfinite(third(problem.teacher)))  # a choice: there is none


# -- degenerate points -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_nan_where_students_are_zero_or_parallel(rng):
    V = rng.normal(size=(3, 4))
    zero = np.zeros(4)
    points = [
        [zero, zero, zero],
        [zero, V[1], V[2]],
        [V[0], V[0], V[0]],
        [-V[0], V[1], 2 * V[1]],
        [V[0], -V[0], 1e-300 * V[0]],
        [1e-170 * V[0], -3 * V[1], V[2]],
    ]
    problem = TeacherStudent(V)
    for W in map(np.array, points):
        assert np.isfinite(value(problem, W))
        by_value, twice, pulled_back = other_derivatives(problem, W)
        np.testing.assert_allclose(by_value, gradient(problem, W), atol=1e-15)
        for H in (hessian(problem, W), twice, pulled_back):
            assert np.all(np.isfinite(H))
            np.testing.assert_allclose(H, H.T, atol=1e-14)


def test_at_zero_the_gradient_is_the_mean_of_opposite_limits(rng):
    V, W = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    problem = TeacherStudent(V)
    W[1] = 0
    expected = 0.25 * (W.sum(axis=0) - V.sum(axis=0))
    np.testing.assert_allclose(gradient(problem, W)[1], expected, atol=1e-15)
    for u in rng.normal(size=(4, 4)):
        limits = []
        for sign in (1, -1):
            near = W.copy()
            near[1] = sign * 1e-120 * u
            limits.append(np.asarray(gradient(problem, near))[1])
        assert relative_error(limits[0], limits[1]) > 1e-3  # a kink
        np.testing.assert_allclose(0.5 * (limits[0] + limits[1]), expected, atol=1e-14)


@pytest.mark.parametrize(("n", "k", "d"), [(3, 2, 4), (1, 1, 1), (1, 3, 2)])
def test_lanes_are_single_networks(n, k, d, rng):
    V, W = rng.normal(size=(k, d)), rng.normal(size=(7, n, d))
    W[0, 0] = 0
    W[1, 0] = V[0]
    W[2, -1] = -2 * V[-1]
    W[3] = W[3, 0]
    W[4] = 1e-3 * W[4]
    W[5, 0] = 1e-200 * W[5, 0]
    problem = TeacherStudent(V, n)
    gradients, losses = one_by_one(problem, W)
    size = np.abs(W).sum() + np.abs(V).sum()
    for found, loss, alone in in_lanes(problem, W):
        np.testing.assert_allclose(found, gradients, rtol=0, atol=1e-16 * size)
        np.testing.assert_allclose(loss, losses, rtol=0, atol=1e-16 * size**2)
        np.testing.assert_allclose(alone, losses, rtol=0, atol=1e-16 * size**2)


def test_a_lane_that_is_no_number_disturbs_no_other(rng):
    problem, W = TeacherStudent(rng.normal(size=(2, 4)), 3), rng.normal(size=(7, 3, 4))
    good = one_by_one(problem, W)[0][1:]
    for bad in (np.nan, np.inf, 1e200):
        W[0] = bad
        for found, loss, _ in in_lanes(problem, W):
            assert not np.isfinite(loss[0])
            np.testing.assert_allclose(found[1:], good, atol=1e-15)


def test_single_precision(rng):
    V, W = rng.normal(size=(2, 4)), rng.normal(size=(7, 3, 4))
    W[0, 0] = V[0]
    exact, _ = one_by_one(TeacherStudent(V, 3), W)
    with jax.enable_x64(False):
        problem, W = TeacherStudent(V, 3), jnp.asarray(W, jnp.float32)
        assert problem.dtype == jnp.float32
        problem.check_start(LayerTuple([W]), batch=True)
        for found, _, _ in in_lanes(problem, W):
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, exact, atol=5e-6)
        np.testing.assert_allclose(one_by_one(problem, W)[0], exact, atol=5e-6)


# -- symmetries --------------------------------------------------------------------------------------------------------


def test_permutations_and_rotations(rng):
    V, W = rng.normal(size=(2, 4)), rng.normal(size=(3, 4))
    problem, order, Q = TeacherStudent(V, 3), [2, 0, 1], random_rotation(rng, 4)
    rotated = TeacherStudent(V @ Q.T, 3)
    assert float(value(problem, W[order])) == pytest.approx(float(value(problem, W)), rel=1e-13)
    np.testing.assert_allclose(gradient(problem, W[order]), gradient(problem, W)[np.array(order)], atol=1e-14)
    np.testing.assert_allclose(gradient(rotated, W @ Q.T), gradient(problem, W) @ Q.T, atol=1e-14)
    canonical, features = problem.objective.canonical, problem.objective.features
    np.testing.assert_array_equal(canonical(network(W[order])).weights[0], canonical(network(W)).weights[0])
    np.testing.assert_allclose(features(network(W[order])), features(network(W)), atol=1e-14)
    np.testing.assert_allclose(rotated.objective.features(network(W @ Q.T)), features(network(W)), atol=1e-13)
    assert relative_error(features(network(W + 1e-3)), features(network(W))) > 1e-5


def test_permutations_of_orthonormal_teachers_are_symmetries(rng):
    problem, W = TeacherStudent.orthonormal(4), rng.normal(size=(4, 4))
    turned = W[:, [2, 0, 3, 1]]
    assert float(value(problem, turned)) == pytest.approx(float(value(problem, W)), rel=1e-13)
    features = problem.objective.features
    np.testing.assert_allclose(features(network(turned)), features(network(W)), atol=1e-14)


# -- minima ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 6])
def test_teachers_in_any_order_are_global_minima(k, rng):
    problem = TeacherStudent.orthonormal(k)
    W = np.eye(k)[rng.permutation(k)]
    assert abs(float(value(problem, W))) < 1e-16 * k**2
    assert np.abs(gradient(problem, W)).max() < 1e-16 * k
    eigenvalues = np.linalg.eigvalsh(hessian(problem, W))
    # ¼ − 1/2π belongs to every pair of neurons that turn towards each other.
    assert eigenvalues[0] == pytest.approx(0.5 if k == 1 else 0.25 - 1 / (2 * np.pi), rel=1e-12)


def test_more_students_than_teachers_share_a_direction(rng):
    """`(αv, (1 − α)v)` is a minimum for every `α` in (0, 1): the Hessian is singular along it."""
    V = rng.normal(size=(2, 4))
    problem = TeacherStudent(V, 3)
    W = np.array([0.3 * V[0], 0.7 * V[0], V[1]])
    assert abs(float(value(problem, W))) < 1e-14
    assert np.abs(gradient(problem, W)).max() < 1e-14
    H = hessian(problem, W)
    assert np.linalg.eigvalsh(H)[0] > -1e-14
    assert np.abs(H @ np.concatenate([V[0], -V[0], np.zeros(4)])).max() < 1e-13


def descend(problem, starts, step, num_steps):
    """Gradient descent in lanes."""
    method = GradientDescent(step).suited(starts.widths).traced()

    @eqx.filter_jit
    def run(method, objective, nets):
        y = method.layout.pack(nets)
        memory, t_next, control = method.begin(objective, y)
        place = Place(y, memory, jnp.zeros_like(t_next), t_next, objective.lane_losses(method.layout, y))

        def body(_, carry):
            place, control = carry
            step = method.attempt(objective, place)
            d = method.accept(objective, place, step, control)
            return Place(step.y, step.memory, d.t, d.t_next, step.loss), d.control

        place, _ = jax.lax.fori_loop(0, num_steps, body, (place, control))
        return method.layout.unpack(place.y), place.loss

    return run(method, problem.objective, starts)


def check_spurious(problem, W):
    """That a local minimum of positive loss is there, reached by Newton's method."""
    for _ in range(3):
        W = W - np.linalg.solve(hessian(problem, W), np.ravel(gradient(problem, W))).reshape(W.shape)
    assert float(value(problem, W)) > 0.01
    assert np.linalg.norm(gradient(problem, W)) < 1e-13
    assert np.linalg.eigvalsh(hessian(problem, W))[0] > 0.003
    return W


def test_gradient_descent_from_random_starts_finds_spurious_minima():
    """Of eight students about one start in nine ends at a local minimum that is not global (Safran, Shamir 2018)."""
    problem = TeacherStudent.orthonormal(8)
    law = gf.initialization.Gaussian(problem.widths())
    assert law.deviations == (pytest.approx(1 / np.sqrt(8)),)
    starts = law.sample_batch(jax.random.key(8), range(96))
    problem.check_start(starts, batch=True)
    nets, losses = descend(problem, starts, 0.1, 8000)
    spurious = np.flatnonzero(np.asarray(losses) > 1e-3)
    assert 1 <= len(spurious) <= 30
    assert np.all(np.abs(np.delete(np.asarray(losses), spurious)) < 1e-12)
    W = check_spurious(problem, matrix(nets)[spurious[0]])
    # One student is short: away from one teacher, equally towards the others. The others are a little too long.
    norms = np.sort(np.linalg.norm(W, axis=1))
    assert norms[0] < 0.8
    assert np.all(norms[1:] > 1.02)


def test_six_students_have_a_spurious_minimum():
    problem = TeacherStudent.orthonormal(6)
    W = np.eye(6)
    W[5] = 0.25
    W[5, 5] = -0.5
    nets, _ = descend(problem, network(W[None]), 0.1, 8000)
    check_spurious(problem, matrix(nets)[0])


def test_the_loss_of_a_trajectory_falls_as_the_gradient_says(rng):
    problem, start = TeacherStudent(rng.normal(size=(2, 4)), 3), network(rng.normal(size=(3, 4)))
    times = np.linspace(0, 3, 61)
    path = gf.simulate(problem, start, 3.0, ts=times, rtol=1e-9, atol=1e-11)
    gradients, losses = one_by_one(problem, path.networks.weights[0])
    squares = np.sum(np.square(gradients), axis=(1, 2))
    assert losses[0] - losses[-1] == pytest.approx(np.trapezoid(squares, times), rel=1e-2)


# -- kernels, programs and mistakes ------------------------------------------------------------------------------------


def test_kernels_of_one_vector(rng):
    w = jnp.asarray(rng.normal(size=(1, 5)))
    square = float(np.sum(w**2))
    assert float(kernel_sum(w, 3 * w)) == pytest.approx(1.5 * square, rel=1e-14)
    assert abs(float(kernel_sum(w, -w))) < 1e-15 * square
    np.testing.assert_allclose(kernel_gradient(w, 3 * w), 1.5 * w, rtol=1e-14)
    np.testing.assert_allclose(kernel_gradient(w, -w), 0 * w, atol=1e-15)


def test_teachers_of_one_size_share_their_programs(rng):
    traced = []

    @jax.jit
    def loss(objective, net):
        traced.append(net.widths)
        return objective.effective_loss(net)

    for _ in range(2):
        loss(TeacherStudent(rng.normal(size=(2, 3))).objective, network(rng.normal(size=(2, 3))))
    assert len(traced) == 1
    objective = TeacherStudent.orthonormal(3).objective
    assert objective.smooth
    assert objective.numbers(9) == 9 + 3 * 6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TeacherStudent([[1.0, 0.0], [0.0, 0.0]]), ValueError, "v_2 is zero"),
        (lambda: TeacherStudent([[1.0, np.nan]]), ValueError, r"nan at entry \(0, 1\)"),
        (lambda: TeacherStudent([[1.0, 2.0], [-np.inf, 0.0]]), ValueError, r"-inf at entry \(1, 0\)"),
        (lambda: TeacherStudent([[1e200, 0.0]]), ValueError, r"v_1 is 1e\+200, out of the range"),
        (lambda: TeacherStudent([[1.0, 0.0], [1e-90, 0.0]]), ValueError, r"v_2 is 1e-90, out of the range"),
        (lambda: TeacherStudent([1.0, 2.0]), ValueError, r"one teacher a row, got shape \(2,\)"),
        (lambda: TeacherStudent(np.zeros((0, 3))), ValueError, r"got shape \(0, 3\)"),
        (lambda: TeacherStudent([[1.0], [1.0, 2.0]]), ValueError, "no matrix"),
        (lambda: TeacherStudent([[1j, 1.0]]), TypeError, "complex128"),
        (lambda: TeacherStudent([["a", "b"]]), TypeError, "real numbers"),
        (lambda: TeacherStudent(np.ma.masked_less([[1.0, -1.0]], 0)), ValueError, "masked"),
        (lambda: TeacherStudent(np.eye(2), 0), ValueError, "num_students must be at least 1, got 0"),
        (lambda: TeacherStudent(np.eye(2), 1.5), (ValueError, TypeError), "must be an integer, got 1.5|'num_students'"),
        (lambda: TeacherStudent.orthonormal(0), ValueError, "k must be at least 1, got 0"),
    ],
)
def test_bad_teachers_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_starts_are_refused():
    problem = TeacherStudent.orthonormal(3, 2)
    assert problem.widths() == problem.check_widths([3, 2]) == (3, 2)
    assert repr(problem) == "TeacherStudent(num_teachers=3, num_students=2, d=3)"
    assert "not known beforehand" in problem.why_no_levels
    problem.check_start(network(np.ones((2, 3))))
    for net, message in [
        (network(np.ones((3, 3))), r"widths \(3, 3\) do not fit .* 2 students in dimension 3: .* widths \(3, 2\)"),
        (LayerTuple([jnp.ones((2, 3)), jnp.ones((1, 2))]), r"widths \(3, 2, 1\) do not fit"),
        (network(np.array([[1.0, np.nan, 0], [0, 0, 1.0]])), r"nan at entry \(0, 1\)"),
        (LayerTuple([jnp.ones((2, 3), jnp.float32)]), "the students are float32 but the problem is float64"),
        (network(np.ones((4, 2, 3))), "one network is needed here"),
    ]:
        with pytest.raises(ValueError, match=message):
            problem.check_start(net)
    problem.check_start(network(np.ones((4, 2, 3))), batch=True)
    with pytest.raises(TypeError, match=r"must be a gdflow\.LayerTuple, got list"):
        problem.check_start([np.ones((2, 3))])
