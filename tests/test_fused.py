"""The fused program against XLA's lanes: the same rows; what it leaves to them; compilers, caches and their failures."""

import ctypes
import dataclasses
import functools
import itertools
import os
import pathlib
import stat
import subprocess
import sys
import warnings

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.basins import Limits, engines
from gdflow.basins.fused import build, engine, matrices, source, why_not_fused
from gdflow.basins.fused.source import fused_source
from gdflow.basins.plan import Plan, make_plan
from gdflow.programs import VARIABLE


def collected(plan: Plan, ids, engine: str, monkeypatch, **options) -> dict[str, np.ndarray]:
    monkeypatch.setenv(engines.VARIABLE, engine)
    table = plan.collect(ids, **options)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def assert_alike(plan: Plan, ids, monkeypatch, *, steps: float = 1.0) -> dict[str, np.ndarray]:
    """Both engines give the same rows. **Arguments:** `steps`: the least part of the starts with equal numbers of steps."""
    fused, lanes = (collected(plan, ids, engine, monkeypatch) for engine in ("fused", "xla"))
    for name in ("id", "status", "limit", "highest"):
        np.testing.assert_array_equal(fused[name], lanes[name], err_msg=name)
    same = fused["steps"] == lanes["steps"]
    assert same.mean() >= steps
    for name in [name for name in fused if name == "time" or name.startswith("crossing")]:
        # When a level is crossed is a property of the solution, found to round-off. Where a step ends follows from estimates of
        # errors, differences of stages: of these round-off is a part of 1e-16 over the tolerance, about.
        certified = same & (lanes["status"] == "certified")
        np.testing.assert_allclose(fused[name][certified], lanes[name][certified], rtol=1e-9, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(fused[name][same], lanes[name][same], rtol=1e-6, atol=1e-12, err_msg=name)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(fused[name][same], lanes[name][same], rtol=1e-5, atol=1e-12, err_msg=name)
    if "drift" in fused:
        np.testing.assert_allclose(fused["drift"][same], lanes["drift"][same], rtol=1e-3, atol=1e-12)
    return fused


SOLVERS = (diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Dopri8(), diffrax.Bosh3(), gf.RKC(10), diffrax.Heun())


def random_plan(seed: int, proof: bool = False) -> Plan:
    """Widths, spectra, tolerances, solvers and laws at random, from a seed."""
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, 5))
    widths = tuple(int(d) for d in rng.integers(1, 9, depth + 1))
    rank = min(widths[0], widths[-1])
    s = np.sort(np.exp(rng.uniform(-1.5, 1.5, rank)))[::-1]
    problem = gf.Problem.from_singular_values(list(s), widths[0], widths[-1])
    tolerance = 10 ** rng.uniform(-8, -3)
    method = gf.integrator(SOLVERS[int(rng.integers(len(SOLVERS)))], rtol=tolerance, atol=1e-3 * tolerance)
    law = gf.initialization.Gaussian(widths, scale=float(np.exp(rng.uniform(-1, 0.5))))
    return make_plan(problem, law, key=jax.random.key(seed), method=method, limits=Limits(max_steps=3000), proof=proof)


#: How many random plans are run; more with this variable set.
PLANS = int(os.environ.get("GDFLOW_TEST_PLANS", "8"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(PLANS))
def test_random_plans_differ_by_round_off(seed, monkeypatch):
    """The engines differ as XLA does from itself where every entry of the starts is moved by a unit in its last place.

    Near saddles, and where steps are as long as stability allows, round-off grows: some starts then take other steps, and
    their times differ by more than 1e-9. Statuses and labels differ nowhere.
    """
    drawn, num = random_plan(seed), 60
    assert why_not_fused(drawn.processes[0]) is None
    words = jnp.zeros(num, jnp.uint32), jnp.arange(num, dtype=jnp.uint32)
    layers = [np.asarray(w) for w in drawn.starts.draw(*words).weights]
    rng = np.random.default_rng(seed)
    moved = [np.nextafter(w, rng.choice([-np.inf, np.inf], w.shape)) for w in layers]

    def rows(weights, engine):
        plan = make_plan(drawn.problem, gf.LayerTuple(weights), method=drawn.method, limits=drawn.limits)
        return collected(plan, range(num), engine, monkeypatch)

    expected = rows(layers, "xla")

    def differing(some):
        """How many starts take another number of steps, and how many have other times, beyond two bounds."""
        for name in ("status", "limit", "highest"):
            np.testing.assert_array_equal(some[name], expected[name], err_msg=name)
        apart = np.abs(some["time"] - expected["time"]) / np.maximum(expected["time"], 1e-300)
        return np.array([np.sum(some["steps"] != expected["steps"]), np.sum(apart > 1e-9), np.sum(apart > 1e-6)])

    # Two counts of the same mean: one is twice the other and six more with a probability below 1 %.
    assert np.all(differing(rows(layers, "fused")) <= 2 * differing(rows(moved, "xla")) + 6)


@pytest.fixture
def plan():
    return make_plan(
        gf.Problem.from_singular_values([3, 2, 1], 6), gf.initialization.Gaussian((6, 5, 5, 3)), key=jax.random.key(0)
    )


def test_many_starts_of_the_workload(plan, monkeypatch):
    rows = assert_alike(plan, range(5000), monkeypatch, steps=0.999)
    assert np.all(rows["status"] == "certified")
    assert rows["drift"].max() < 1e-4


@pytest.mark.slow
def test_data_with_a_design_of_their_own(monkeypatch):
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(5, 40)), rng.normal(size=(3, 40))
    problem = gf.Problem(X, Y)
    assert_alike(
        make_plan(problem, gf.initialization.Gaussian((5, 4, 3)), key=jax.random.key(2)), range(200), monkeypatch
    )


@pytest.mark.slow
def test_wide_layers(monkeypatch):
    """Products whose blocks are run through in loops, of two lengths."""
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0], 16, 11)
    law = gf.initialization.Gaussian((16, 13, 14, 11))
    assert_alike(make_plan(problem, law, key=jax.random.key(2)), range(40), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e20, 1e45, 1e50])
def test_starts_whose_scales_overflow(scale, monkeypatch):
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    rng = np.random.default_rng(0)
    nets = gf.LayerTuple([scale * rng.normal(size=(9, 2, 2)) for _ in range(3)])
    plan = make_plan(problem, nets, limits=Limits(largest=1e300, max_steps=300))
    fused, lanes = (collected(plan, range(9), engine, monkeypatch) for engine in ("fused", "xla"))
    for name in ("status", "limit", "highest"):
        np.testing.assert_array_equal(fused[name], lanes[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("law", [gf.initialization.Gaussian((3, 2, 3)), gf.initialization.Balanced((3, 3, 3))])
def test_data_of_lower_rank_have_fewer_inputs(law, monkeypatch):
    """The layers that are run are those of the reduced coordinates, smaller than those of the starts."""
    rng = np.random.default_rng(23)
    X = rng.normal(size=(3, 2)) @ rng.normal(size=(2, 10))
    plan = make_plan(gf.Problem(X, rng.normal(size=(3, 10))), law, key=jax.random.key(2))
    (process,) = plan.processes
    assert why_not_fused(process) is None
    assert engine.widths_run(process) == (2, *law.widths[1:])
    assert_alike(plan, range(50), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [
        Limits(t1=0.7), Limits(max_steps=9), Limits(gradient_tolerance=3.0, dwell=0.05),
        *(
            pytest.param(some, marks=pytest.mark.slow)
            for some in (Limits(largest=3.0), Limits(gradient_tolerance=3.0), Limits(t1=1e-9))
        ),
    ],
)  # fmt: skip
def test_limits_end_the_same_starts(limits, plan, monkeypatch):
    rows = assert_alike(dataclasses.replace(plan, limits=limits), range(300), monkeypatch)
    assert len(set(rows["status"])) >= 1
    assert set(rows["status"]) != {"certified"}


@pytest.mark.slow
def test_starts_that_are_over_at_once(monkeypatch):
    """At a saddle, at a minimum, and where entries overflow."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    layers = np.zeros((5, 2, 2, 2))
    layers[1] = np.diag(np.sqrt([2.0, 1.0]))
    layers[2] = 1e200
    layers[3] = 0.3 * np.eye(2)
    layers[4, 0, 0, 0] = layers[4, 1, 0, 0] = 1e5
    nets = gf.LayerTuple([layers[:, 0], layers[:, 1]])
    rows = assert_alike(make_plan(problem, nets), range(5), monkeypatch)
    assert [rows["status"][k] for k in (0, 1, 3)] == ["stationary", "certified", "certified"]
    assert rows["status"][2] in ("non finite", "diverging")
    assert rows["steps"][0] == rows["steps"][1] == rows["time"][1] == 0


def test_rows_depend_on_no_other_start(plan, monkeypatch):
    """Bit by bit the same, whatever runs beside it, in however many threads."""
    whole = collected(plan, range(700), "fused", monkeypatch)
    part = collected(plan, range(300, 311), "fused", monkeypatch, threads=1)
    again = collected(plan, range(700), "fused", monkeypatch, threads=3, lanes=5)
    for name in whole:
        np.testing.assert_array_equal(whole[name], again[name])
        np.testing.assert_array_equal(whole[name][300:311], part[name])


def test_rows_are_the_same_in_blocks_of_any_size(plan, monkeypatch):
    """The machine's registers decide but on round-off: which sums of products are rounded once."""
    head, rows = source._HEAD, []
    for lanes in (2, 4, 8):
        monkeypatch.setattr(source, "_HEAD", f"#define V {lanes}\n{head}")
        engine._program.cache_clear()
        rows.append(collected(plan, range(100), "fused", monkeypatch))
    engine._program.cache_clear()
    for other in rows[1:]:
        for name, column in rows[0].items():
            if column.dtype.kind == "f":
                np.testing.assert_allclose(column, other[name], rtol=1e-9, atol=1e-12)
            else:
                np.testing.assert_array_equal(column, other[name])


def orders(j: int, k: int):
    """All ways to multiply layers `j` to `k`, as the places where each product is split."""
    if j == k:
        yield {}
    for s in range(j, k):
        for below, above in itertools.product(orders(j, s), orders(s + 1, k)):
            yield {(j, k): s, **below, **above}


@pytest.mark.parametrize(
    "widths", [(6, 5, 5, 3), (3, 5, 5, 6), (10, 2, 7, 3, 4), (4, 1, 4, 9, 2, 5), (3, 3, 3, 3, 3), (2, 3)]
)
def test_the_order_of_products_is_the_cheapest(widths):
    def cost(order):
        return sum(widths[k + 1] * widths[s + 1] * widths[j] for (j, k), s in order.items())

    chosen = matrices.cheapest_order(widths)
    every = list(orders(0, len(widths) - 2))
    assert chosen in every
    assert cost(chosen) == min(map(cost, every))
    if len(set(widths)) == 1:  # a network is evaluated from the right
        assert all(s == k - 1 for (_, k), s in chosen.items())


@pytest.mark.parametrize("widths", [(6, 5, 5, 3), (3, 2, 4), (10, 2, 7, 3, 4), (4, 1, 4, 9, 2, 5), (2, 3)])
def test_derivatives_in_products_of_layers(widths):
    """Of `⟨G, W_N…W_1⟩` in every `W_k … W_j`: `(W_N…W_{k+1})ᵀ G (W_{j−1}…W_1)ᵀ`, from whatever they are computed."""
    depth, rng = len(widths) - 1, np.random.default_rng(0)
    pairs = [(j, k) for j in range(depth) for k in range(j, depth)]
    places = np.concatenate([[0], np.cumsum([widths[k + 1] * widths[j] for j, k in pairs])])
    where = {layers: f"(out + {place})" for layers, place in zip(pairs, places, strict=False)}
    whole, size = where[0, depth - 1], widths[-1] * widths[0]
    forward, products = matrices.partial_products(widths, matrices.layer_offsets(widths))
    lines = [*forward, f"for (int p = 0; p < {size}; ++p) {whole}[p] = g[p];"]
    lines += matrices.derivatives(widths, products, where)
    code = [f"#define V 1\n{source._HEAD}{source._BASICS}", "void all(const v *y, const v *g, v *out) {", *lines, "}"]
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(widths)]
    g, out = rng.normal(size=(widths[-1], widths[0])), np.empty(places[-1])
    y = np.concatenate([w.ravel() for w in weights])
    build.program("\n".join(code)).all(*(x.ctypes.data_as(ctypes.c_void_p) for x in (y, g, out)))
    for (j, k), found in zip(pairs, np.split(out, places[1:-1]), strict=True):
        above = functools.reduce(lambda p, w: w @ p, weights[k + 1 :], np.eye(widths[k + 1]))
        below = functools.reduce(lambda p, w: w @ p, weights[:j], np.eye(widths[0]))
        np.testing.assert_allclose(found.reshape(widths[k + 1], -1), above.T @ g @ below.T, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_other_verdicts_and_riders(monkeypatch):
    problem = gf.Problem.from_singular_values([3, 2, 1])
    law = gf.initialization.Gaussian((3, 2, 3))
    verdict = gf.verdicts.AlmostSure(problem, law.widths)
    some = make_plan(problem, law, key=jax.random.key(1), verdict=verdict, riders=())
    assert why_not_fused(some.processes[0]) is None
    assert_alike(some, range(100), monkeypatch)
    thin = gf.initialization.Balanced((3, 2, 2, 3))
    assert_alike(make_plan(problem, thin, key=jax.random.key(1)), range(50), monkeypatch)


def test_what_is_left_to_xla(plan, monkeypatch):
    problem = plan.problem
    law, key = gf.initialization.Gaussian((6, 5, 5, 3)), jax.random.key(0)

    def reason(problem=problem, law=law, **options):
        return why_not_fused(make_plan(problem, law, key=key, **options).processes[0])

    assert reason() is None
    assert "Runge–Kutta" in reason(method=gf.integrator(diffrax.Kvaerno3()))
    deep = gf.initialization.Gaussian((6, *[12] * 8, 3))
    assert "too large for the stack" in reason(law=deep, method=gf.integrator(diffrax.Dopri8()))
    assert "wider than" in reason(law=gf.initialization.Gaussian((6, 20, 3)))
    assert reason(proof=True) is None
    long = gf.initialization.Gaussian((6, *[3] * engine.MOST_PROVED, 3))
    assert reason(law=long) is None
    assert "takes long to compile" in reason(law=long, proof=True)
    assert "rider" in reason(riders=(gf.basins.Imbalance(),))
    square = gf.Problem.from_singular_values([2, 1])
    assert "verdicts" in reason(square, gf.initialization.Balanced((2, 2, 2)))
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4, 20)), rng.normal(size=(2, 20))
    assert "squared error" in reason(gf.Problem(*data, activations="tanh"), gf.initialization.Gaussian((4, 3, 2)))
    monkeypatch.setenv(engines.VARIABLE, "fused")
    with pytest.raises(ValueError, match="GDFLOW_ENGINE=fused, but the fused program cannot run this plan: a rider"):
        make_plan(problem, law, key=key, riders=(gf.basins.Imbalance(),)).collect(range(2))


def test_engines_that_are_none_are_refused(plan, monkeypatch):
    monkeypatch.setenv(engines.VARIABLE, "warp")
    with pytest.raises(ValueError, match="GDFLOW_ENGINE must be one of auto, fused, xla, got 'warp'"):
        plan.collect(range(2))


@pytest.mark.parametrize("n", range(1, source.LARGEST_ORDER + 1))
def test_roots_of_eight_numbers_at_once(n):
    """To a few units in the last place, over all magnitudes; what is out of range comes out tiny or huge."""
    code = f"#define V {source.LANES}\n{source._HEAD}" + source._BASICS + source._nth_root(n)
    code += "void roots(const double *x, double *r) { v y; EACH(i) y[i] = x[i]; y = nth_root(y); EACH(i) r[i] = y[i]; }"
    function = build.program(code).roots
    rng = np.random.default_rng(n)

    def roots(x):
        x, r = np.ascontiguousarray(x), np.empty(source.LANES)
        function(x.ctypes.data_as(ctypes.c_void_p), r.ctypes.data_as(ctypes.c_void_p))
        return r

    for _ in range(200):
        x = 10 ** rng.uniform(-270, 270, source.LANES)
        np.testing.assert_allclose(roots(x) ** n, x, rtol=1e-15 * (n + 2))
    few = roots(np.array([0.0, np.inf, 1.0, 1e-300, 1e300, 2.0**n, 0.5**n, 3.0**n]))
    assert few[0] <= 1e-34
    assert few[1] >= 1e34
    np.testing.assert_allclose(few[[2, 5, 6, 7]], [1, 2, 0.5, 3], rtol=1e-15)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache of its own, with nothing known of compilers and programs."""

    def forget():
        for function in (build.find_compiler, build._machine, build._program, engine._program, engines._say_once):
            function.cache_clear()

    monkeypatch.setenv(VARIABLE, str(tmp_path))
    forget()
    yield forget
    forget()


SOURCE = "int answer(void) { return 42; }"


def programs(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    return sorted((tmp_path / "programs").glob("*.so"))


def test_programs_are_kept_for_the_user_alone(fresh, tmp_path):
    assert build.program(SOURCE).answer() == 42
    (kept,) = programs(tmp_path)
    assert stat.S_IMODE((tmp_path / "programs").stat().st_mode) == 0o700
    before = kept.stat().st_mtime_ns
    fresh()
    assert build.program(SOURCE).answer() == 42
    assert kept.stat().st_mtime_ns == before  # not made again


@pytest.mark.parametrize("damage", [b"", b"\x7fELF nonsense", None])
def test_damaged_programs_are_made_again(damage, fresh, tmp_path):
    build.program(SOURCE)
    (kept,) = programs(tmp_path)
    if damage is None:
        kept.with_suffix(".sha256").unlink()
    else:
        kept.unlink()  # written over, the one that is loaded would be damaged
        kept.write_bytes(damage)
    fresh()
    assert build.program(SOURCE).answer() == 42
    assert len(programs(tmp_path)) == 1
    assert build._is_sound(kept)


def test_folders_that_others_can_write_are_not_used(fresh, tmp_path):
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs").chmod(0o777)
    assert build.program(SOURCE).answer() == 42
    assert programs(tmp_path) == []


def test_folders_that_cannot_be_made_are_done_without(fresh, tmp_path):
    (tmp_path / "programs").write_text("a file")
    assert build.program(SOURCE).answer() == 42


@pytest.mark.slow
def test_without_a_compiler_xla_runs_and_says_so_once(fresh, plan, monkeypatch, tmp_path):
    expected = collected(plan, range(20), "xla", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.warns(
        engines.EngineWarning, match="there is no C compiler.*install gcc or clang, or set GDFLOW_ENGINE=xla"
    ):
        rows = collected(plan, range(20), "auto", monkeypatch)
    np.testing.assert_array_equal(rows["time"], expected["time"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collected(plan, range(20), "auto", monkeypatch)
    with pytest.raises(ValueError, match="GDFLOW_ENGINE=fused, but there is no C compiler"):
        collected(plan, range(20), "fused", monkeypatch)


def test_nothing_is_kept_where_no_folder_is_wanted(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")
    assert build.program(SOURCE).answer() == 42
    assert list(tmp_path.iterdir()) == []


def test_programs_that_cannot_be_loaded_are_none_and_are_made_once(fresh, monkeypatch, tmp_path):
    fake, log = tmp_path / "fake-cc", tmp_path / "log"
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho made >> {log}\n'
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo junk > "$2"; shift; done\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    for _ in range(3):
        with pytest.raises(build.NoCompiler, match="of no use"):
            build.program(SOURCE)
    assert log.read_text().count("made") <= 2  # for the folder, and for a temporary one


def test_a_compiler_that_fails_is_no_compiler(fresh, monkeypatch, tmp_path):
    fake = tmp_path / "fake-cc"
    fake.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'no can do' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    with pytest.raises(build.NoCompiler, match="no can do"):
        build.program(SOURCE)


@pytest.mark.slow
def test_processes_may_make_the_same_program_at_once(fresh, tmp_path):
    code = f"from gdflow.basins.fused.build import program; assert program({SOURCE!r}).answer() == 42"
    environment = os.environ | {VARIABLE: str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    (kept,) = programs(tmp_path)
    assert build._is_sound(kept)
    assert len(list((tmp_path / "programs").iterdir())) == 2  # nothing is left of the writing


def test_a_run_can_be_halted(plan, monkeypatch):
    """A sink that fails ends the run: other threads stop inside their pools."""
    monkeypatch.setenv(engines.VARIABLE, "fused")

    def fails(ids, columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.run(range(20_000), fails, threads=2)


_HARNESS = """
#include <stdio.h>
#include <stdlib.h>
static void *get(FILE *file, size_t count) {
    double *x = malloc(8 * count);
    if (fread(x, 8, count, file) != count) exit(2);
    return x;
}
static void *room(size_t count) { return malloc(8 * count); }
int main(int n, char **names) {
    FILE *file = fopen(names[1], "rb");
    const int64_t num = atol(names[2]), in = atol(names[3]), out = atol(names[4]);
    int64_t *halt = calloc(1, 8), *status = room(num);
    double *start = get(file, P * num), *y = room(P * num), *crossings = get(file, CROSSINGS), *target = get(file, in * out);
    double *design = get(file, in), *numbers = get(file, atol(names[5])), *levels = get(file, LEVELS);
    double *next = calloc(MARKS * num + 1, 8), *begun = calloc(MARKS * num + 1, 8);
    double *radius = room(num), *exponent = room(num), *proved = room(num);
    run(num, start, y, room(P * num), room(num), room(num), room(num), room(num), room(num), status, room(num),
        room(MARKS * P * num), begun, next, room(MARKS * num), room(num), room(num), room(num), room(CROSSINGS * num),
        radius, exponent, proved, calloc(1, 8), halt, crossings, target, design, numbers, levels);
    for (int64_t i = 0; i < num; ++i) printf("%d ", (int)status[i]);
    return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("proof", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_sanitizers_find_nothing(seed, proof, monkeypatch, tmp_path):
    """Addresses and undefined behaviour, over random plans whose numbers of starts fill no whole vectors; the same statuses."""
    plan, num = random_plan(seed, proof), 37
    process = plan.processes[0]
    fused = engine.Fused(process)
    high, low = jnp.zeros(num, jnp.uint32), jnp.arange(num, dtype=jnp.uint32)
    starts = np.ascontiguousarray(engine._draw(process, high, low))
    (tmp_path / "data").write_bytes(b"".join(x.tobytes() for x in (starts, *fused.constants)))
    _, target, design, numbers, _ = fused.constants
    text = fused_source(fused.shape)
    (tmp_path / "fused.c").write_text(text + _HARNESS)
    flags = [flag for flag in build.FLAGS if flag not in ("-O3", "-shared", "-fPIC")]
    checks = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["gcc", *flags, *checks, str(tmp_path / "fused.c"), "-o", str(tmp_path / "fused"), "-lm"]
    subprocess.run(command, check=True)
    sizes = map(str, (num, design.size, target.shape[0], numbers.size))
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    arguments = [str(tmp_path / "fused"), str(tmp_path / "data"), *sizes]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = fused.run(starts)
    assert [int(engine.ENDS[int(x)]) for x in done.stdout.split()] == list(rows["status"])
