"""The tube of the fused program: against the exact flow to fifty digits, against XLA's bounds, and piece by piece."""

import ctypes
import dataclasses
import functools
from fractions import Fraction

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import random_net

import gdflow as gf
from gdflow.basins import make_plan
from gdflow.basins.fused import build, engine, source, why_not_fused
from gdflow.basins.path_bounds import bound_piece
from gdflow.basins.tube import Radius, advance
from gdflow.layouts import LanesFirst

LANES = source.LANES


def pointer(x: np.ndarray) -> ctypes.c_void_p:
    return x.ctypes.data_as(ctypes.c_void_p)


def numbers_of(**values) -> np.ndarray:
    return np.array([float(values.get(name, 0.0)) for name in source.NUMBERS])


def in_lanes(x: np.ndarray) -> np.ndarray:
    """Vectors of lanes from an array whose first axis counts the lanes, at an address that vectors need."""
    x = np.moveaxis(np.asarray(x, float), 0, -1)
    room = np.empty(x.size + LANES)
    first = (-room.ctypes.data // 8) % LANES
    result = room[first : first + x.size].reshape(x.shape)
    result[...] = x
    return result


@functools.cache
def functions(widths, solver, order):
    text = f"#define V {LANES}\n"
    text += source.fused_source(source.Shape(widths, solver, order, levels=1, crossings=0, proof=True))
    text += """
    void exponentials(v *x) { *x = exponential(*x); }
    void paths(const v *y, const v *y1, const v (*k)[P], const v *h, v (*c)[P]) { path(y, y1, k, *h, c); }
    void advance_tube(const v (*c)[P], const v *h, v *tube, const double *target, const double *design, const double *numbers) {
        follow(c, *h, tube, tube + 1, target, design, numbers);
    }
    double ends_error(void) { return ENDS_ERROR; }
    """
    program = build.program(text)
    program.ends_error.restype = ctypes.c_double
    return program


def test_exponentials():
    """To a few units in the last place where they are used; beyond, nothing that could pass for a bound."""
    program = functions((2, 2), diffrax.Tsit5(), 5)

    def exponential(x):
        x = in_lanes(x)
        program.exponentials(pointer(x))
        return np.array(x)

    rng = np.random.default_rng(0)
    for scale in (1e-300, 1e-12, 1e-3, 1.0, 40.0, 699.0):
        for sign in (1, -1):
            x = sign * rng.uniform(0, scale, LANES)
            np.testing.assert_allclose(exponential(x), np.exp(x), rtol=4e-16)
    special = exponential(np.array([0.0, 1e4, np.inf, np.nan, -np.inf, -1e4, 701.0, 1.0]))
    np.testing.assert_allclose(special, [1, np.inf, np.inf, np.inf, 0, 0, np.inf, np.e], rtol=1e-15)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Dopri8(), diffrax.Bosh3()])
def test_ends_of_paths_are_bounded(solver):
    """In exact arithmetic the path's ends are as close to the states as is said, whatever states and stages are."""
    widths = (3, 2, 2)
    size, program = 10, functions(widths, solver, 3)
    rng, stages = np.random.default_rng(1), len(solver.tableau.b_sol)
    worst = 0.0
    for scale in (1e-8, 1.0, 1e8):
        y, k = rng.normal(size=(LANES, size)), scale * rng.normal(size=(LANES, stages, size))
        h = rng.uniform(0, 1, LANES)
        y1 = y + h[:, None] * np.einsum("i,lip->lp", solver.tableau.b_sol, k)
        degree = len(source.path_weights(solver)) - 1
        out = in_lanes(np.zeros((LANES, degree + 1, size)))
        arguments = [in_lanes(x) for x in (y, y1, k, h)]
        program.paths(*map(pointer, arguments), pointer(out))
        norms = np.linalg.norm(out, axis=1)
        bound = program.ends_error() * np.sum(np.arange(1, degree + 2)[:, None] * norms, axis=0)
        for lane in range(LANES):
            apart = 0.0
            for sign, end in ((-1, y), (1, y1)):
                rests = [
                    float(sum(Fraction(c) * sign**i for i, c in enumerate(out[:, p, lane])) - Fraction(end[lane, p]))
                    for p in range(size)
                ]
                apart += np.linalg.norm(rests)
            assert apart <= bound[lane]
            worst = max(worst, apart / bound[lane])
    assert worst > 1e-3  # the bound is not idle


@pytest.mark.parametrize(
    "widths",
    [
        (3, 2),
        (4, 3, 5, 2),
        *(pytest.param(w, marks=pytest.mark.slow) for w in ((2, 4, 3), (8, 7, 6), (3, 1, 3), (2, 3, 2, 3, 2))),
    ],
)
@pytest.mark.parametrize("solver", [diffrax.Tsit5(), pytest.param(diffrax.Dopri8(), marks=pytest.mark.slow)])
def test_tubes_grow_as_by_the_bounds_in_xla(widths, solver):
    """Random polynomials that are no solutions: all sums, tails and margins tell; the bounds agree but for round-off's part."""
    rng = np.random.default_rng(sum(widths))
    k = min(widths[0], widths[-1])
    problem = gf.Problem.from_singular_values(np.sort(rng.uniform(0.5, 3, k))[::-1], widths[0], widths[-1]).isometric()
    objective = dataclasses.replace(problem.objective, data_error=jnp.asarray(1e-3))
    degree = len(source.path_weights(solver)) - 1
    radius, h = 10 ** rng.uniform(-9, -3, LANES), 10 ** rng.uniform(-4, -2, LANES)
    coefficients = [
        [np.asarray(w) * 0.5 * (0.03 * 0.3**i if i else 1.0) for w in random_net(rng, widths, batch=(LANES,)).weights]
        for i in range(degree + 1)
    ]
    layout = LanesFirst()
    stacked = [layout.pack([jnp.stack([c[j] for c in coefficients])])[0] for j in range(len(widths) - 1)]
    ends = [[sum((-1) ** (i * (1 - e)) * c[j] for i, c in enumerate(coefficients)) for j in range(len(widths) - 1)]
            for e in (0, 1)]  # fmt: skip
    packed = tuple(layout.pack([jnp.asarray(w) for w in end]) for end in ends)
    piece = bound_piece(layout, objective, jnp.asarray(h), stacked, packed)
    expected = advance(objective, piece, Radius(jnp.asarray(radius), jnp.zeros(LANES)))

    flat = np.stack([np.concatenate([w.reshape(LANES, -1) for w in c], axis=1) for c in coefficients], axis=1)
    tube = in_lanes(np.stack([radius, np.zeros(LANES)], axis=1))
    numbers = numbers_of(d_norm=jnp.max(jnp.diagonal(objective.design)), a_norm=jnp.linalg.norm(objective.target),
                         data_error=1e-3)  # fmt: skip
    target, design = (np.array(x, order="C") for x in (objective.target, jnp.diagonal(objective.design)))
    program = functions(widths, solver, 5)
    program.advance_tube(*map(pointer, (in_lanes(flat), in_lanes(h), tube, target, design, numbers)))
    assert np.isfinite(expected.radius).sum() >= LANES // 2
    np.testing.assert_allclose(tube[0], expected.radius, rtol=1e-8)
    np.testing.assert_allclose(tube[1], expected.exponent, rtol=1e-8)


def process_of(problem, law, **options):
    (process, *_) = make_plan(problem, law, key=jax.random.key(5), proof=True, **options).processes
    assert why_not_fused(process) is None
    return process


CASES = [
    (gf.Problem.from_singular_values([2.0, 1.0], 3), gf.initialization.Gaussian((3, 2, 2), 0.7)),
    (gf.Problem.from_singular_values([2.0, 1.0]), gf.initialization.Gaussian((2, 2, 2, 2), 0.7)),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Dopri8()])
def test_the_exact_flow_is_in_the_tube(case, solver):
    """At its end a start is as close to the exact flow, to fifty digits, as its radius says, and that is not far more."""
    from taylor_flow import taylor_flow  # needs python-flint

    problem, law = CASES[case]
    process = process_of(problem, law, method=gf.integrator(solver, 1e-7, 1e-10))
    fused, num = engine.Fused(process), 12
    words = jnp.zeros(num, jnp.uint32), jnp.arange(num, dtype=jnp.uint32)
    starts = np.ascontiguousarray(engine._draw(process, *words))
    end = fused.end(starts)
    widths = engine.widths_run(process)
    cuts = np.cumsum([0, *(a * b for a, b in zip(widths[1:], widths[:-1], strict=True))])
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    A, D = np.asarray(process.objective.target), np.asarray(process.objective.design)
    ratios = []
    for i in np.flatnonzero((end["steps"] > 0) & (end["proved"] > 0)):
        start = [starts[a:b, i].reshape(s) for a, b, s in zip(cuts[:-1], cuts[1:], shapes, strict=True)]
        exact = taylor_flow(start, A, D, np.array([0.0, end["t"][i]]))[-1]
        apart = np.linalg.norm(exact - end["y"][i])
        assert apart <= end["radius"][i] + 1e-14
        ratios.append(apart / end["radius"][i])
    assert len(ratios) >= 8
    assert max(ratios) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "law"),
    [
        *CASES,
        (gf.Problem.from_singular_values([3, 2, 1], 6), gf.initialization.Gaussian((6, 5, 5, 3))),
        (gf.Problem.from_singular_values([1.0]), gf.initialization.Gaussian((1, 1))),
        (gf.Problem.from_singular_values([3.0, 2.0, 1.0]), gf.initialization.Gaussian((3, 1, 3), 0.7)),
        (gf.Problem(*np.random.default_rng(3).normal(size=(2, 3, 30))), gf.initialization.Gaussian((3, 4, 3))),
        (gf.Problem.from_singular_values([2.0, 1.0]), gf.initialization.UniformBall((2, 2, 2), 1e-3)),
    ],
    ids=["two", "three", "A", "one", "bottleneck", "data", "small"],
)
def test_both_engines_prove_the_same(problem, law, monkeypatch):
    """All columns of all attempts, but for the part of round-off in the radii."""
    plan, num = make_plan(problem, law, key=jax.random.key(2), proof=True), 120
    rows = []
    for name in ("fused", "xla"):
        monkeypatch.setenv("GDFLOW_ENGINE", name)
        table = plan.collect(range(num))
        rows.append({name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names})
    fused, lanes = rows
    for name in ("id", "status", "limit", "highest", "proved", "attempt"):
        np.testing.assert_array_equal(fused[name], lanes[name], err_msg=name)
    assert fused["proved"].mean() >= 0.9 or "Ball" in type(law).__name__
    same = fused["steps"] == lanes["steps"]
    assert same.mean() >= 0.9
    np.testing.assert_allclose(fused["time"][same], lanes["time"][same], rtol=1e-7, atol=1e-12)
    proved = same & (lanes["proved"] == 1)
    np.testing.assert_allclose(fused["exponent"][proved], lanes["exponent"][proved], rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(fused["radius"][proved], lanes["radius"][proved], rtol=0.5, atol=1e-12)


def test_proofs_that_cannot_close_end_early():
    """Where the tube is wider than the level is low, a start that is decided is not carried on in vain."""
    problem, law = CASES[1]
    process = process_of(problem, law, method=gf.integrator(rtol=1e-2, atol=1e-3))
    words = jnp.zeros(64, jnp.uint32), jnp.arange(64, dtype=jnp.uint32)
    rows = engine.Fused(process).run(np.ascontiguousarray(engine._draw(process, *words)))
    assert np.all(rows["status"] == gf.basins.Status.CERTIFIED)
    assert np.any(rows["proved"] == 0)
    assert rows["steps"].max() < 200


def test_which_paths_are_taken():
    """Those of Diffrax's solvers; not a line, nor a cubic with other slopes."""
    solvers = (diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Dopri8(), diffrax.Bosh3(), diffrax.Heun(), diffrax.Midpoint())
    assert all(source.joins_smoothly(solver) for solver in (*solvers, diffrax.Ralston(), gf.RKC(5)))

    class Line(diffrax.AbstractLocalInterpolation):
        t0: jax.Array
        t1: jax.Array
        y0: jax.Array
        y1: jax.Array
        k: jax.Array

        def evaluate(self, t0, t1=None, left=True):
            share = (t0 - self.t0) / (self.t1 - self.t0)
            return self.y0 + share * (self.y1 - self.y0)

    class Bent(Line):
        def evaluate(self, t0, t1=None, left=True):
            share = (t0 - self.t0) / (self.t1 - self.t0)
            return self.y0 + share**3 * (self.y1 - self.y0)

    for kind in (Line, Bent):
        solver = type("Own", (diffrax.Tsit5,), {"interpolation_cls": kind})()
        assert not source.joins_smoothly(solver)
