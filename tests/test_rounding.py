"""Round-off of the loss, and certificates that allow for it: against rational arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_points import as_floats, exact_critical_point, exact_gradient_vanishes, exact_loss, exact_residual

import gdflow as gf
from gdflow.basins import Limits, Status
from gdflow.rounding import coarse_is_enough, coarse_residual_error, gamma, residual_error
from gdflow.thresholds import Thresholds

KEY = jax.random.key(0)
TINY = 2.0**-21
#: Singular values (ties, coincidences 5² = 4² + 3², merges with zero and with each other) and widths, d_x ≥ d_y.
CASES = [
    ((1.0, 1.0), (2, 4, 2, 1, 2)),
    ((3.0, 2.0, 1.0), (4, 3, 5, 3)),
    ((2.0, 1.0, 1.0), (3, 3, 3)),
    ((5.0, 4.0, 3.0), (3, 4, 4, 4, 3)),
    ((1.0, TINY), (2, 2, 2)),
    ((1.0, TINY, TINY * (1 - 2.0**-10)), (3, 3, 4, 3)),
    ((1.0, 1.0 - 2.0**-44), (2, 1, 2, 2)),
]


def value_of(s, subset) -> Fraction:
    return sum((Fraction(float(v)) ** 2 for i, v in enumerate(s, 1) if i not in subset), Fraction(0)) / 2


def points(s, widths, rng, per_scale):
    """Exactly critical floating-point networks with entries of very different sizes, and their subsets."""
    d_y, r_max = widths[-1], min(widths)
    for size, spread in ((1, 0), (5, 3), (40, 8), (300, 10)):
        made = 0
        while made < per_scale:
            subset = sorted(rng.permutation(d_y)[: rng.integers(0, r_max + 1)] + 1)
            weights = [as_floats(w) for w in exact_critical_point(rng, s, widths, subset, size, spread)]
            made += 1
            if all(w is not None for w in weights):
                yield weights, tuple(int(i) for i in subset)


@pytest.mark.parametrize("per_scale", [8, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("s", "widths"), CASES)
def test_no_exactly_critical_point_has_a_false_certificate(s, widths, per_scale):
    """Weights from 1e-3 to beyond 1e6 that are saddles in rational arithmetic: nothing below their own level is claimed."""
    problem = gf.Problem.from_singular_values(list(s), widths[0], widths[-1])
    lowest = value_of(s, range(1, min(widths) + 1))
    certificates = [Thresholds(problem, widths, nested=nested) for nested in (False, True)]
    checked = certified = 0
    for weights, subset in points(s, widths, np.random.default_rng(5), per_scale):
        value = exact_loss(weights, problem.target, problem.design)
        assert value == value_of(s, subset)
        if checked % 20 == 0:
            assert exact_gradient_vanishes(weights, problem.target, problem.design)
        checked += 1
        net = gf.LayerTuple(weights)
        loss, error = problem.effective_loss(net), residual_error(problem, net)
        squares = [jnp.sum(w**2) for w in net.weights]
        for bound in (error, coarse_residual_error(problem, widths, squares)):
            # Almost surely means: not for the strict saddles, of which these are some.
            nested = subset == tuple(range(1, len(subset) + 1))
            for certificate in certificates if nested else certificates[:1]:
                claimed = int(certificate.level(loss, bound))
                # The limit is at the point's own value: it must be among the lowest `claimed + 1` levels.
                above = np.asarray(certificate.levels)[claimed + 1 :]
                assert all(value < Fraction(float(v)) for v in above)
                if bool(certificate.certified(loss, bound)):
                    certified += 1
                    assert not certificate.separated or value == lowest
    assert checked > 2 * per_scale
    assert certified > 0  # the test can see certificates: minima with small weights have them


@pytest.mark.parametrize(
    ("s", "widths"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in (CASES[1], CASES[4]))]
)
@pytest.mark.slow
def test_lanes_certify_no_exactly_critical_point_falsely(s, widths):
    """The same in the batch engine, where the coarse bound is used, by its own arithmetic."""
    from test_basins import fixed

    problem = gf.Problem.from_singular_values(list(s), widths[0], widths[-1])
    separated = Thresholds(problem, widths).separated
    lowest = value_of(s, range(1, min(widths) + 1))
    seen = 0
    for weights, subset in points(s, widths, np.random.default_rng(9), 5):
        try:
            estimate = gf.basin_sizes(
                problem,
                fixed(problem, weights),
                1,
                key=KEY,
                audit=0,
                progress=False,
                lanes=1,
                limits=Limits(max_steps=2),
            )
        except ValueError as error:
            if "are balanced" not in str(error):
                raise
            continue  # refused: by chance this one is balanced
        if estimate.statuses[Status.CERTIFIED] and value_of(s, subset) > lowest:
            # At most what is true is said: the lowest levels, which round-off cannot tell apart, include this one.
            assert not separated
            assert estimate.labels[0] == "lowest levels (merged)"
            assert value_of(s, subset) <= estimate.levels[0].value + 2 * estimate.levels[0].width
        seen += 1
    assert seen > 8


@pytest.mark.slow
def test_a_saddle_whose_computed_loss_is_below_its_level():
    """Singular values (1, 1), widths 2-4-2-1-2: as many as a quarter of such saddles seem to be below their own level."""
    problem = gf.Problem.from_singular_values([1.0, 1.0])
    fooled = 0
    rng = np.random.default_rng(1)
    for _ in range(200):
        net = gf.LayerTuple(_hidden_zero(rng))
        value = exact_loss(net.weights, problem.target, problem.design)
        assert value == 1  # the level of S = ∅, second-lowest for rank 1
        certificate = gf.certify(problem, net)
        fooled += float(problem.effective_loss(net)) < 1 - 100 * 2.0**-52 * 2
        assert not certificate.global_minimum
        assert certificate.level == 1
    assert fooled > 5  # without the bound these would be certified


def _hidden_zero(rng) -> list[np.ndarray]:
    """Layers of widths 2-4-2-1-2 whose product vanishes exactly, though not in floating point: W_1 lies in ker W_2.

    Products are made from the waist on, `W_3W_2` first, and that one is inexact.
    """
    size = 2.0**-40
    k = rng.integers(1, 30, 4) * 1.0
    kernel = np.array([[k[1], -k[0], 0, 0], [0, 0, k[3], -k[2]]])  # of k, in integers
    W2 = rng.integers(-(2**43), 2**43, (2, 2)) * size @ kernel
    row = rng.integers(-40, 41, 2) * 2.0**-2
    w3 = rng.integers(-(2**43), 2**43, (1, 2)) * size
    return [np.outer(k, row), W2, w3, rng.integers(-3, 4, (2, 1)) * 1.0]


@pytest.mark.parametrize("widths", [(2, 3, 2), (5, 4, 6, 3), (3, 3, 3, 3, 3, 3), (2, 12, 12, 2)])
@pytest.mark.parametrize("coordinates", ["data", "reduced", "whitened"])
def test_error_bounds_hold_and_are_not_idle(widths, coordinates, rng):
    """`‖M̂ − M‖` in rational arithmetic, for layers of very different sizes; and the bound is within 1e4 of what happens."""
    problem = gf.Problem(rng.normal(size=(widths[0], 9)), rng.normal(size=(widths[-1], 9)), coordinates=coordinates)
    ratios = []
    for scale in (1e-3, 1.0, 1e3):
        weights = [rng.normal(size=(b, a)) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        weights[0], weights[-1] = scale * weights[0], weights[-1] * 3.0
        net = gf.LayerTuple(weights)
        computed = problem.target - net.end_to_end @ problem.design
        exact = exact_residual(net.weights, problem.target, problem.design)
        pairs = zip(np.asarray(computed).ravel(), exact.ravel(), strict=True)
        error = float(np.linalg.norm([float(Fraction(float(c)) - e) for c, e in pairs]))
        squares = [jnp.sum(w**2) for w in net.weights]
        fine, coarse = float(residual_error(problem, net)), float(coarse_residual_error(problem, widths, squares))
        assert error <= fine
        assert error <= coarse
        ratios += [fine / max(error, 1e-300)]
    assert min(ratios) < 1e4


@pytest.mark.slow
def test_deep_networks_take_the_fine_bound():
    assert coarse_is_enough((10, 8, 8, 4))
    assert not coarse_is_enough((20,) * 21)
    # Orthogonal layers: products of norms grow like 20^{N/2}, partial products do not.
    law = gf.initialization.Orthogonal((20,) * 21)
    problem = gf.Problem.from_singular_values(np.linspace(3, 1, 20))
    net = law.sample(KEY, 0)
    squares = [jnp.sum(w**2) for w in net.weights]
    assert float(coarse_residual_error(problem, net.widths, squares)) > 1e-2
    assert float(residual_error(problem, net)) < 1e-9


def test_gamma():
    eps = 2.0**-52
    assert gamma(10, eps) == pytest.approx(10 * eps / 2, rel=1e-12)
    assert gamma(2**54, eps) == np.inf


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_a_bound_never_vanishes_where_squares_underflow(scale):
    """Weights whose squares leave the range, with a product of order one: the bound is infinite or large, never too small."""
    problem = gf.Problem.from_singular_values([1.0, 1.0])
    net = gf.LayerTuple([scale * np.eye(2), np.eye(2) / scale])
    assert not gf.certify(problem, 0.5 * net).global_minimum or float(residual_error(problem, net)) > 0
    assert not float(residual_error(problem, net)) < 1e-16
