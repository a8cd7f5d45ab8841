"""The check of proofs in ball arithmetic, on paths made here: no path, no gradient and no level is the library's own."""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from gdflow.proofs import balls
from gdflow.proofs.balls import Check, check_record

flint = pytest.importorskip("flint")

Record = dict[str, np.ndarray]


# -- paths -------------------------------------------------------------------------------------------------------------


def gradient(A, D, weights):
    result = []
    for j in range(len(weights)):
        before = functools.reduce(lambda x, w: w @ x, weights[:j], D)
        after = functools.reduce(lambda x, w: w @ x, weights[j + 1 :], np.eye(weights[j].shape[0]))
        residual = A - functools.reduce(lambda x, w: w @ x, weights, D)
        result.append(-after.T @ residual @ before.T)
    return result


def packed(weights):
    return np.concatenate([w.ravel() for w in weights])


def unpacked(y, like):
    ends = np.cumsum([w.size for w in like])[:-1]
    return [x.reshape(w.shape) for x, w in zip(np.split(y, ends), like, strict=True)]


def loss(A, D, weights):
    return 0.5 * np.sum((A - functools.reduce(lambda x, w: w @ x, weights, D)) ** 2)


def field(A, D, like):
    return lambda t, y: -packed(gradient(A, D, unpacked(y, like)))


def flow(A, D, start, t):
    end = solve_ivp(field(A, D, start), (0, t), packed(start), method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
    return unpacked(end, start)


def fitted(A, D, start, t1, pieces, degree, longest=0.004) -> tuple[np.ndarray, np.ndarray]:
    """Durations and coefficients: polynomials through states of the classical Runge–Kutta method at Chebyshev–Lobatto nodes."""
    f = field(A, D, start)
    nodes = -np.cos(np.pi * np.arange(degree + 1) / degree)
    durations = np.diff(t1 * np.linspace(0, 1, pieces + 1) ** 2)
    y, rows = packed(start), []
    for h in durations:
        row = [y]
        for gap in h * np.diff(nodes) / 2:
            steps = max(2, int(np.ceil(gap / longest)))
            e = gap / steps
            for _ in range(steps):
                a = f(0, y)
                b = f(0, y + e / 2 * a)
                c = f(0, y + e / 2 * b)
                y = y + e / 6 * (a + 2 * b + 2 * c + f(0, y + e * c))
            row.append(y)
        rows.append(row)
    return durations, np.linalg.solve(nodes[:, None] ** np.arange(degree + 1), np.array(rows))


def record_of(A, D, start, durations, coefficients, threshold, sharp=False, radius=0.0, target_error=0.0) -> Record:
    n = durations.size
    record = {
        "format": np.array("gdflow proof 1"),
        "A": A,
        "D": D,
        "durations": durations,
        "sharp": np.full(n, sharp),
        "radius": np.full(n + 1, float(radius)),
        "target_error": np.array(float(target_error)),
        "threshold": np.array(float(threshold)),
    }
    ends = np.cumsum([w.size for w in start])[:-1]
    for j, (w, c) in enumerate(zip(start, np.split(coefficients, ends, axis=2), strict=True), 1):
        record[f"start_{j}"] = w
        record[f"path_{j}"] = c.reshape(n, coefficients.shape[1], *w.shape)
    return record


def lowest_levels(A, widths):
    s = np.linalg.svd(A, compute_uv=False)
    r = min(*widths, len(s))
    values = {
        0.5 * np.sum(np.delete(s, S) ** 2) for k in range(r + 1) for S in itertools.combinations(range(len(s)), k)
    }
    return sorted(values)[:2] if len(widths) > 2 else [min(values), np.inf]


#: Widths, bound by the Hessian, pieces, degree, time, scale of the start, seed.
CASES = {
    "one layer": ((3, 2), False, 10, 4, 4.0, 0.5, 0),
    "two layers": ((3, 3, 2), False, 20, 5, 4.0, 0.5, 1),
    "two layers, Hessian": ((3, 3, 2), True, 20, 5, 4.0, 0.5, 1),
    "three layers": ((3, 4, 4, 2), False, 24, 6, 3.0, 0.45, 2),
    "three layers, Hessian": ((2, 3, 3, 2), True, 30, 6, 3.0, 0.45, 3),
    "four layers": ((2, 3, 2, 3, 2), False, 18, 6, 3.0, 0.55, 8),
    "bottleneck": ((4, 3, 1, 3), False, 20, 6, 4.0, 0.4, 4),
    "more outputs": ((2, 3, 4), False, 20, 5, 4.0, 0.5, 6),
}


@functools.cache
def made(name: str) -> Record:
    widths, sharp, pieces, degree, t1, scale, seed = CASES[name]
    rng = np.random.default_rng(seed)
    turn = [np.linalg.qr(rng.normal(size=(d, d)))[0] for d in (widths[-1], widths[0])]
    s = np.eye(widths[-1], widths[0]) * np.array([2.0, 1.4, 0.7, 0.5])[: widths[0]]
    A, D = turn[0] @ s @ turn[1].T, np.diag(rng.uniform(0.8, 1.2, widths[0]))
    start = [scale * rng.normal(size=shape) for shape in zip(widths[1:], widths, strict=False)]
    threshold = lowest_levels(A, widths)[1] - 1e-12
    return record_of(A, D, start, *fitted(A, D, start, t1, pieces, degree), threshold, sharp)


def case(name: str, **changes) -> Record:
    return made(name) | {key: np.asarray(value) for key, value in changes.items()}


def weights_of(record: Record, prefix: str = "start") -> list[np.ndarray]:
    return [record[f"{prefix}_{j}"] for j in range(1, sum(key.startswith("start") for key in record) + 1)]


def end_of(record: Record) -> list[np.ndarray]:
    return [path[-1].sum(axis=0) for path in weights_of(record, "path")]


def distance(a, b):
    return np.linalg.norm(packed(a) - packed(b))


# -- proofs that hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_holds(name):
    record = case(name)
    check = check_record(record)
    assert check.accepted, check.reason
    assert (check.reason, check.failed_piece, check.separated, check.num_values) == ("", None, True, 1)
    A, D, end = record["A"], record["D"], end_of(record)
    assert check.loss[0] <= check.loss[1] <= check.bound
    np.testing.assert_allclose(check.loss, loss(A, D, end), rtol=1e-9)
    assert np.isfinite(check.exponent)
    assert distance(flow(A, D, weights_of(record), record["durations"].sum()), end) <= check.radius + 1e-10
    np.testing.assert_allclose(check.level, lowest_levels(A, CASES[name][0])[1], rtol=1e-12)
    assert len(CASES[name][0]) == 2 or check.bound < record["threshold"] <= check.level[0] <= check.level[1]


@pytest.mark.parametrize("name", ["two layers", "three layers", "three layers, Hessian"])
def test_ball_of_starts(name, rng):
    size = 1e-7 if "Hessian" in name else 1e-5
    record = case(name, radius=np.full_like(case(name)["radius"], size))
    check = check_record(record)
    assert check.accepted, check.reason
    A, D, start = record["A"], record["D"], weights_of(record)
    for _ in range(3):
        step = rng.normal(size=packed(start).size)
        moved = unpacked(packed(start) + size * step / np.linalg.norm(step), start)
        end = flow(A, D, moved, record["durations"].sum())
        assert distance(end, end_of(record)) <= check.radius
        assert loss(A, D, end) <= check.bound


@pytest.mark.parametrize("name", ["two layers", "two layers, Hessian", "three layers"])
def test_target_error(name, rng):
    record = case(name, target_error=1e-5)
    check = check_record(record)
    assert check.accepted, check.reason
    assert check.radius > 2 * check_record(case(name)).radius
    A, D = record["A"], record["D"]
    for _ in range(3):
        step = rng.normal(size=A.shape)
        other = A + 1e-5 * step / np.linalg.norm(step)
        end = flow(other, D, weights_of(record), record["durations"].sum())
        assert distance(end, end_of(record)) <= check.radius
        assert loss(other, D, end) <= check.bound


def test_target_error_at_the_end():
    """It counts twice: for the loss, and for the levels."""
    start = [np.diag([2.0, 0.5]), np.diag([1.0, 2.0])]
    end, none = np.diag([2.0, 1.25]), np.zeros((0, 1, 8))  # √(2L) is ¼
    for threshold, proved in ((0.5 * 0.4**2, False), (0.5 * 0.44**2, False), (0.5 * 0.46**2, True)):
        check = check_record(record_of(end, np.eye(2), start, np.zeros(0), none, threshold, target_error=0.1))
        assert check.accepted == proved
        np.testing.assert_allclose(check.bound, 0.5 * 0.35**2, rtol=1e-12)


def without_pieces(record: Record, keep) -> Record:
    result = dict(record)
    for key in record:
        if key.startswith("path") or key in ("durations", "sharp"):
            result[key] = record[key][keep]
    return result | {"radius": record["radius"][: result["durations"].size + 1]}


def test_no_pieces():
    record = case("two layers")
    near = {f"start_{j}": w for j, w in enumerate(end_of(record), 1)}
    near |= {"radius": np.array([1e-3])}
    check = check_record(without_pieces(record, slice(0, 0)) | near)
    assert check.accepted
    assert (check.radius, check.exponent) == (1e-3, 0.0)
    far = check_record(without_pieces(record, slice(0, 0)))
    assert not far.accepted
    assert "threshold" in far.reason


def test_path_that_rests(rng):
    """A constant path has no coefficients but one, and no defect at a critical point: the radius is zero."""
    start = [np.diag([2.0, 0.5]), np.diag([1.0, 2.0])]
    constant = packed(start)[None, None]
    record = record_of(np.diag([2.0, 1.0]), np.eye(2), start, np.ones(1), constant, 0.4)
    for sharp in (False, True):
        check = check_record(record | {"sharp": np.array([sharp])})
        assert check.accepted, check.reason
        assert check.radius == check.bound == 0


def test_files(tmp_path):
    record = case("two layers")
    np.savez(tmp_path / "proof.npz", **record)
    with np.load(tmp_path / "proof.npz", allow_pickle=False) as stored:
        assert check_record(stored) == check_record(record)
    np.savez(tmp_path / "bad.npz", **record | {"A": np.array([[None]], dtype=object)})
    with (
        np.load(tmp_path / "bad.npz", allow_pickle=False) as stored,
        pytest.raises(ValueError, match=r"^A cannot be read"),
    ):
        check_record(stored)


def test_precision():
    record = case("two layers")
    before = flint.ctx.prec
    fine, finer = check_record(record), check_record(record, precision=256)
    assert flint.ctx.prec == before
    assert (fine.precision, finer.precision) == (128, 256)
    np.testing.assert_allclose(fine.radius, finer.radius, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 53"):
        check_record(record, precision=24)


def test_needs_flint(monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(ImportError, match=r"pip install 'gdflow\[proofs\]'"):
        check_record(case("two layers"))


# -- proofs that do not hold -------------------------------------------------------------------------------------------


def saddle(depth: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """A start whose exact flow stays diagonal, with a zero: it ends at the rank-1 saddle, of loss ½, of the target diag(2, 1)."""
    return np.diag([2.0, 1.0]), np.diag([1.0, 0.75]), [np.diag([0.9, 0.0])] * depth


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.5 + 1e-12, 0.5 + 1e-7, 3.0, np.inf])
@pytest.mark.parametrize(("depth", "sharp"), [(2, False), (2, True), (3, False), (3, True)])
def test_a_start_on_a_stable_manifold_is_never_proved(threshold, depth, sharp):
    A, D, start = saddle(depth)
    path = _saddle_path(depth, 0.0)
    check = check_record(record_of(A, D, start, *path, threshold, sharp))
    assert not check.accepted
    assert "threshold" in check.reason


@functools.cache
def _saddle_path(depth, off):
    A, D, start = saddle(depth)
    moved = [w + off * np.diag([0.0, 1.0]) for w in start]
    return fitted(A, D, moved, 8.0 if off else 2.0, 30 if off else 8, 5, longest=0.02)


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("off", [0.1, 0.02])
def test_a_path_that_leaves_the_stable_manifold_is_no_proof(off, sharp):
    """The path ends at the minimum, the flow from the start does not: the jump at the beginning has to tell."""
    A, D, start = saddle(2)
    path = _saddle_path(2, off)
    moved = [w + off * np.diag([0.0, 1.0]) for w in start]
    assert check_record(record_of(A, D, moved, *path, 0.4, sharp)).accepted
    assert not check_record(record_of(A, D, start, *path, 0.4, sharp)).accepted
    assert not check_record(record_of(A, D, moved, *path, 0.4, sharp, radius=off * 1.4143)).accepted


@functools.cache
def tight(name: str) -> Record:
    """A proof that only just closes: its threshold is hardly above what the flow is proved to reach."""
    record = case(name)
    return record | {"threshold": np.array(check_record(record).bound * (1 + 1e-9))}


def at(key: str, index, change: Callable) -> Callable[[Record], Record]:
    def apply(record: Record) -> Record:
        array = record[key].copy()
        array[index] = change(array[index])
        return record | {key: array}

    return apply


def each(change: Callable[[np.ndarray], np.ndarray], *prefixes: str) -> Callable[[Record], Record]:
    return lambda record: record | {key: change(record[key]) for key in record if key.startswith(prefixes)}


def swapped(record: Record) -> Record:
    order = np.arange(record["durations"].size)
    order[[3, 4]] = [4, 3]
    return without_pieces(record, order)


#: Well-formed records that prove nothing, and a word of the reason.
BROKEN = {
    "a coefficient": (at("path_1", (3, 2, 0, 0), lambda x: x + 1e-4), ""),
    "a constant coefficient": (at("path_2", (7, 0, 1, 1), lambda x: x + 1e-4), ""),
    "the last coefficient": (at("path_2", (-1, -1, 0, 1), lambda x: x - 1e-4), ""),
    "a coefficient, slightly": (at("path_1", (5, 1, 0, 0), lambda x: x * (1 + 1e-7)), ""),
    "a huge coefficient": (at("path_1", (2, 1, 0, 0), lambda x: 1e300), "no radius"),
    "the largest coefficients": (each(lambda x: np.full_like(x, 1.7e308), "path"), "no radius"),
    "a duration": (at("durations", 4, lambda h: h * (1 + 1e-3)), ""),
    "every duration": (at("durations", slice(None), lambda h: h * (1 - 1e-3)), ""),
    "a huge duration": (at("durations", 6, lambda h: 1e308), "no radius"),
    "a tiny duration": (at("durations", 6, lambda h: 5e-324), ""),
    "the first piece gone": (lambda r: without_pieces(r, slice(1, None)), ""),
    "a piece gone": (lambda r: without_pieces(r, np.arange(r["durations"].size) != 5), ""),
    "the last piece gone": (lambda r: without_pieces(r, slice(0, -1)), "threshold"),
    "all pieces gone": (lambda r: without_pieces(r, slice(0, 0)), "threshold"),
    "pieces swapped": (swapped, ""),
    "pieces in reverse": (lambda r: without_pieces(r, slice(None, None, -1)), ""),
    "a layer negated": (each(lambda x: -x, "path_1"), ""),
    "the start": (at("start_1", (0, 0), lambda x: x + 1e-3), ""),
    "the start, slightly": (at("start_2", (1, 0), lambda x: x + 1e-6), ""),
    "a huge start": (at("start_1", (0, 0), lambda x: 1e200), "no radius"),
    "a larger ball": (at("radius", 0, lambda x: 1e-6), ""),
    "a ball far too large": (at("radius", 0, lambda x: 1e9), "no radius"),
    "an uncertain target": (lambda r: r | {"target_error": np.array(1e-6)}, ""),
    "a target unknown": (lambda r: r | {"target_error": np.array(1e200)}, ""),
    "threshold lower": (lambda r: r | {"threshold": np.array(r["threshold"] * (1 - 1e-6))}, "threshold"),
    "threshold zero": (lambda r: r | {"threshold": np.array(0.0)}, "threshold"),
    "threshold negative": (lambda r: r | {"threshold": np.array(-1.0)}, "threshold"),
    "threshold above a level": (lambda r: r | {"threshold": np.array(1.5)}, "above a critical value"),
    "threshold infinite": (lambda r: r | {"threshold": np.array(np.inf)}, "above a critical value"),
    "the target": (at("A", (0, 0), lambda x: x + 1e-3), ""),
    "a huge target": (at("A", (0, 0), lambda x: 1e308), ""),
    "no target": (each(np.zeros_like, "A"), ""),
    "the design": (at("D", (0, 0), lambda x: x * (1 + 1e-3)), ""),
    "a design that is not diagonal": (at("D", (0, 1), lambda x: 1e-300), "diagonal"),
    "a negative design": (at("D", (1, 1), lambda x: -x), "diagonal"),
    "a singular design": (at("D", (1, 1), lambda x: 0.0), "diagonal"),
    "a design that is not square": (
        lambda r: r | {key: np.hstack([r[key], r[key][:, :1]]) for key in ("A", "D")},
        "square",
    ),
}


@pytest.mark.parametrize("name", ["two layers", "two layers, Hessian"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken(name, kind):
    change, reason = BROKEN[kind]
    check = check_record(change(tight(name)))
    assert not check.accepted
    assert check.reason
    assert reason in check.reason
    assert ("no radius" in check.reason) == (check.failed_piece is not None)
    assert check.radius == np.inf or check.failed_piece is None


@pytest.mark.parametrize("name", ["two layers", "two layers, Hessian"])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_accepted_is_true(name, seed):
    """Records with an array shaken: accepted or not, the flow of what is written in them has to be where the check says."""
    rng = np.random.default_rng(seed)
    record = case(name)
    key = ["A", "D", "start_1", "start_2", "durations", "path_1", "path_2", "path_2"][seed]
    size = 10.0 ** rng.uniform(-6, -4)
    record[key] = record[key] * (1 + size * rng.normal(size=record[key].shape))
    record["radius"] = record["radius"] + size
    check = check_record(record | {"threshold": np.array(0.2)})
    assert check.failed_piece is None  # else nothing is said
    A, D = record["A"], record["D"]
    end = flow(A, D, weights_of(record), record["durations"].sum())
    assert distance(end, end_of(record)) <= check.radius
    assert loss(A, D, end) <= check.bound


@pytest.mark.parametrize("name", ["two layers", "two layers, Hessian", "three layers"])
def test_tight_proofs_hold(name):
    assert check_record(tight(name)).accepted


def replaced(**arrays) -> Callable[[Record], Record]:
    return lambda record: record | arrays


def without(key: str) -> Callable[[Record], Record]:
    return lambda record: {other: value for other, value in record.items() if other != key}


KEYS = ["format", "A", "D", "start_2", "durations", "path_1", "sharp", "radius", "target_error", "threshold"]
#: Malformed records, and what the message begins with.
MALFORMED = {
    **{f"no {key}": (without(key), f"{key} is missing") for key in KEYS},
    "an extra array": (replaced(extra=np.zeros(2)), "extra is not a part"),
    "another layer": (replaced(start_3=np.zeros((2, 2))), "path_3 is missing"),
    "layers from zero": (replaced(start_0=np.zeros((3, 3))), "path_3 is missing"),
    "another format": (replaced(format=np.array("gdflow proof 2")), "format"),
    "format in bytes": (replaced(format=np.array(b"gdflow proof 1")), "format"),
    "format in a list": (replaced(format=np.array(["gdflow proof 1"])), "format"),
    **{f"{key} in single precision": (each(np.float32, key), key) for key in ("A", "start_1", "path_2", "radius")},
    "bytes in another order": (each(lambda x: x.astype(">f8"), "A"), "A must be"),
    "complex": (each(lambda x: x + 0j, "start_1"), "start_1 must be"),
    "objects": (each(lambda x: x.astype(object), "durations"), "durations must be"),
    "a list": (each(lambda x: x.tolist(), "durations"), "durations must be"),
    "a number": (replaced(threshold=0.5), "threshold must be"),
    "whole numbers": (each(lambda x: x.astype(int), "radius"), "radius must be"),
    "numbers for booleans": (each(lambda x: x.astype(np.uint8), "sharp"), "sharp must be"),
    **{f"{key} not a number": (at(key, 0, lambda x: x * np.nan), key) for key in ("A", "D", "start_2", "path_1")},
    **{f"{key} infinite": (at(key, 0, lambda x: x + np.inf), key) for key in ("A", "path_2", "durations", "radius")},
    "one entry not a number": (at("path_2", (-1, -1, -1, -1), lambda x: np.nan), "path_2"),
    "target_error not a number": (replaced(target_error=np.array(np.nan)), "target_error"),
    "threshold not a number": (replaced(threshold=np.array(np.nan)), "threshold"),
    "no duration": (at("durations", 2, lambda h: 0.0), "durations"),
    "a negative duration": (at("durations", 2, lambda h: -h), "durations"),
    "a negative radius": (at("radius", 0, lambda x: -1e-9), "radius"),
    "a negative error": (replaced(target_error=np.array(-1e-9)), "target_error"),
    "a duration gone": (each(lambda x: x[1:], "durations"), "path_1 has shape"),
    "a radius gone": (each(lambda x: x[1:], "radius"), "radius has shape"),
    "a bound gone": (each(lambda x: x[1:], "sharp"), "sharp has shape"),
    "a coefficient gone": (each(lambda x: x[:, 1:], "path_2"), "path_2 has shape"),
    "no coefficients": (each(lambda x: x[:, :0], "path"), "path_1"),
    "widths that do not chain": (each(lambda x: x[:2], "start_1"), "start_2 has shape"),
    "another number of outputs": (each(lambda x: x[:1], "start_2"), "start_2 has shape"),
    "another number of inputs": (each(lambda x: x[:, :2], "start_1"), "start_1 has shape"),
    "a layer transposed": (each(lambda x: np.swapaxes(x, 2, 3), "path_2"), "path_2 has shape"),
    "more samples": (each(lambda x: x[:, :2], "A"), "D has shape"),
    "a flat target": (each(np.ravel, "A"), "A has shape"),
    "an empty target": (each(lambda x: x[:0], "A", "start_2"), "A, D or a layer is empty"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed(kind):
    change, message = MALFORMED[kind]
    with pytest.raises(ValueError, match=f"^{message}"):
        check_record(change(case("two layers")))


# -- the inequalities --------------------------------------------------------------------------------------------------


def piece_of(name: str, k: int, sharp: bool):
    record = balls._read(case(name, sharp=np.full(CASES[name][2], sharp)))
    return balls._Piece(balls._Objective(record), record, k)


def values_on(record: Record, k: int, s: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Layers of a piece and their derivatives at many `s`."""
    powers = s[:, None] ** np.arange(record["path_1"].shape[1])
    slopes = np.hstack([np.zeros((len(s), 1)), powers[:, :-1] * np.arange(1, powers.shape[1])])
    paths = weights_of(record, "path")
    return [np.tensordot(powers, p[k], 1) for p in paths], [np.tensordot(slopes, p[k], 1) for p in paths]


def crosses(A, D, weights):
    """`‖X_jk‖_2` for all `j < k`."""
    chain = functools.partial(functools.reduce, lambda x, w: w @ x)
    residual = A - chain(weights, D)
    return {
        (j, k): np.linalg.norm(chain(weights[:j], D) @ residual.T @ chain(weights[k + 1 :], np.eye(len(weights[k]))), 2)
        for j, k in itertools.combinations(range(len(weights)), 2)
    }


@pytest.mark.parametrize("name", ["two layers", "three layers", "four layers"])
@pytest.mark.parametrize("k", [0, 5, 17])
def test_integrals(name, k):
    """Not below the integrals themselves; the defect is, by Cauchy–Schwarz, exactly what it says."""
    record = case(name)
    A, D, h = record["A"], record["D"], record["durations"][k]
    with flint.ctx.workprec(128):
        defect, products = piece_of(name, k, False).integrals()
        other, none = piece_of(name, k, True).integrals()
    nodes, weights = np.polynomial.legendre.leggauss(60)
    layers, slopes = values_on(record, k, nodes)
    at_nodes = [[w[i] for w in layers] for i in range(60)]
    rest = [
        packed([x[i] for x in slopes]) + h / 2 * packed(gradient(A, D, at_nodes[i])) for i in range(60)
    ]  # the defect times h/2
    sizes = np.linalg.norm(rest, axis=1)
    np.testing.assert_allclose(float(defect), np.sqrt(2 * weights @ sizes**2), rtol=1e-4)
    np.testing.assert_allclose(float(other), float(defect), rtol=1e-12)
    assert not none
    assert float(defect) >= weights @ sizes * (1 - 1e-6)
    found = [crosses(A, D, w) for w in at_nodes]
    for pair, bound in products.items():
        exact = weights @ np.array([x[pair] for x in found]) ** 2
        assert exact * (1 - 1e-12) <= float(bound) <= 2 * exact


def hessian_of(A, D, weights):
    y = packed(weights)
    step = 1e-5

    def slope(x):
        return packed(gradient(A, D, unpacked(x, weights)))

    return np.array([(slope(y + step * e) - slope(y - step * e)) / (2 * step) for e in np.eye(y.size)])


@pytest.mark.parametrize("name", ["one layer", "two layers", "three layers", "four layers", "more outputs"])
def test_hessian(name):
    record = case(name)
    start = weights_of(record)
    with flint.ctx.workprec(128):
        H = balls._Objective(balls._read(record)).hessian([balls._exact(w) for w in start])
    n = packed(start).size
    found = np.array([float(x) for x in H.entries()]).reshape(n, n)
    np.testing.assert_allclose(found, hessian_of(record["A"], record["D"], start), atol=1e-7)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("name", ["one layer", "two layers", "three layers", "four layers", "bottleneck"])
def test_one_sided_bound(name, sharp, rng):
    """`∫μ` is at least that of the largest `−λ_min` found near the path; the Hessian's bound is sharp for small pieces."""
    record = case(name)
    A, D = record["A"], record["D"]
    for k, E in ((1, 1e-3), (9, 0.05)):
        h = record["durations"][k]
        with flint.ctx.workprec(128):
            piece = piece_of(name, k, sharp)
            exponent = piece.by_hessian() if sharp else piece.by_products(piece.integrals()[1])
            bounds = [float(exponent(flint.arb(x))) for x in (0.0, E)]
        assert bounds[0] <= bounds[1]
        s = np.linspace(-1, 1, 9)
        layers, _ = values_on(record, k, s)
        worst = []
        for i in range(len(s)):
            here = [w[i] for w in layers]
            found = []
            for share in (0.0, 1.0, 1.0):
                step = rng.normal(size=packed(here).size)
                q = unpacked(packed(here) + share * E * step / np.linalg.norm(step), here)
                found.append(-np.linalg.eigvalsh(hessian_of(A, D, q))[0])
            worst.append(max(found))
        slack = 1e-7 * h
        mean = h * np.trapezoid(worst, s) / 2
        if sharp:
            assert max(worst) * h <= bounds[1] + slack
            assert len(weights_of(record)) > 1 or abs(bounds[1] - max(worst) * h) < 1e-6
        else:
            assert bounds[1] >= mean * (1 - 1e-3) - slack
            assert bounds[0] >= 0


def test_adversarial_direction(rng):
    """For scalar layers the change of the Hessian is the largest where all of them grow: the bound has to hold there, too."""
    A, D, start = np.array([[3.0]]), np.array([[1.0]]), [np.array([[0.5]])] * 3
    for sharp, E in itertools.product([False, True], [0.01, 0.1, 0.5]):
        record = balls._read(record_of(A, D, start, np.ones(1), packed(start)[None, None], 1.0, sharp))
        with flint.ctx.workprec(128):
            piece = balls._Piece(balls._Objective(record), record, 0)
            exponent = piece.by_hessian() if sharp else piece.by_products(piece.integrals()[1])
            bound = float(exponent(flint.arb(E)))
        for signs in itertools.product([-1, 0, 1], repeat=3):
            step = np.array(signs) / max(1, np.linalg.norm(signs))
            q = [w + E * x for w, x in zip(start, step, strict=True)]
            assert -np.linalg.eigvalsh(hessian_of(A, D, q))[0] <= bound + 1e-7


@pytest.mark.parametrize("name", ["two layers", "three layers", "four layers"])
def test_norms_along_a_piece(name):
    """Of every layer, and of the products of those in between, which the bound by products takes at their largest."""
    record = case(name)
    for k in (0, 8):
        with flint.ctx.workprec(128):
            piece = piece_of(name, k, False)
            sizes, (_, products) = [float(a) for a in piece.sizes], piece.integrals()
            on_path = float(piece.by_products(products)(flint.arb(0)))
        layers, _ = values_on(record, k, np.linspace(-1, 1, 21))
        for w, bound in zip(layers, sizes, strict=True):
            largest = np.linalg.norm(w, 2, axis=(1, 2)).max()
            assert largest <= bound <= 1.5 * largest
        square = sum(float(x) * np.prod(sizes[i + 1 : j]) ** 2 for (i, j), x in products.items())
        N = len(sizes)
        np.testing.assert_allclose(on_path, record["durations"][k] * np.sqrt((N - 1) / N * square), rtol=1e-9)


@pytest.mark.parametrize("name", ["one layer", "two layers", "three layers", "four layers"])
def test_change_of_the_product(name, rng):
    record = case(name)
    D, weights = record["D"], weights_of(record)
    read = balls._read(record)
    whole = functools.reduce(lambda x, w: w @ x, weights, D)
    for radius, sharpness in ((1e-6, 20), (0.01, 20), (0.5, 50), (3.0, 500)):
        with flint.ctx.workprec(128):
            sizes = [balls._spectral(balls._exact(w)) for w in weights]
            bound = float(balls._Objective(read).change(sizes, flint.arb(radius)))
        most = 0.0
        for scale in (0.0, 1.0, 1.0, 1.0):
            step = [rng.normal(size=w.shape) + (1 - scale) * 5 * w for w in weights]
            size = np.linalg.norm(packed(step))
            moved = [w + radius * x / size for w, x in zip(weights, step, strict=True)]
            most = max(most, np.linalg.norm(functools.reduce(lambda x, w: w @ x, moved, D) - whole))
        assert most <= bound
        assert bound < sharpness * most


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_eigenvalues(scale, rng):
    with flint.ctx.workprec(128):
        for n in (1, 2, 5, 9):
            S = rng.normal(size=(n, n)) * scale
            S = S + S.T
            low, high = balls._eigenvalues(balls._exact(S))
            found = np.linalg.eigvalsh(S)
            np.testing.assert_allclose([float(low), float(high)], found[[0, -1]], rtol=1e-12)
            B = rng.normal(size=(n, 3)) * scale
            size = balls._spectral(balls._exact(B))
            np.testing.assert_allclose(float(size), np.linalg.norm(B / scale, 2) * scale, rtol=1e-12)
        zero = balls._exact(np.zeros((3, 2)))
        assert balls._spectral(zero) == 0
        assert balls._eigenvalues(balls._exact(np.zeros((2, 2)))) == (0, 0)


def test_eigenvalues_hold_the_exact_ones():
    """Of an integer matrix whose eigenvalues are known: `n + 1` and `1`, repeated, or `n` and `0`."""
    with flint.ctx.workprec(128):
        for n, shift in itertools.product((2, 5, 8), (0.0, 1.0)):
            low, high = balls._eigenvalues(balls._exact(np.ones((n, n)) + shift * np.eye(n)))
            assert low <= shift
            assert high >= n + shift
            assert float(high - low) < n + 1e-12


def _wrong_vectors(kind: str, n: int, rng) -> np.ndarray:
    return {
        "none": np.zeros((n, n)),
        "long": 1.3 * np.eye(n),
        "short": 0.8 * np.eye(n),
        "skew": np.eye(n) + 0.1 * rng.normal(size=(n, n)),
        "turned": np.linalg.qr(rng.normal(size=(n, n)))[0],
    }[kind]


@pytest.mark.parametrize("kind", ["none", "long", "short", "skew", "turned"])
def test_what_numpy_proposes_is_not_trusted(kind, rng, monkeypatch):
    S = np.array([[2.0, 1.0, 0.5], [1.0, 1.5, -1.0], [0.5, -1.0, -3.0]])
    B = rng.normal(size=(4, 3))
    A = rng.normal(size=(3, 3))
    spectrum, size, levels = np.linalg.eigvalsh(S), np.linalg.norm(B, 2), lowest_levels(A, (3, 2, 3))
    with flint.ctx.workprec(128):
        for sign, shift in itertools.product([1, -1], [0, 5]):
            matrix = balls._exact(sign * S + shift * np.eye(3))
            exact = np.sort(sign * spectrum) + shift
            monkeypatch.setattr(np.linalg, "eigh", lambda x: (None, _wrong_vectors(kind, len(x), rng)))
            low, high = balls._eigenvalues(matrix)
            assert low <= exact[0] - 1e-12
            assert high >= exact[-1] + 1e-12
        assert size <= balls._spectral(balls._exact(B)) <= np.linalg.norm(B) * (1 + 1e-12)

    def svd(x):
        return _wrong_vectors(kind, 3, rng), np.array([2.0, 1.0, 0.5]), np.eye(3)

    # Singular vectors that are exact but for their lengths: no error is left but that of the lengths.
    diagonal = np.diag([2.0, 1.0, 0.5])
    for length in (0.9, 1.1):
        shrunk = (length * np.eye(3), length * np.array([2.0, 1.0, 0.5]), np.eye(3))
        monkeypatch.setattr(np.linalg, "svd", lambda x, shrunk=shrunk: (shrunk[0], shrunk[1] / 2, shrunk[2]))
        found = levels_of(diagonal, (3, 2, 3), 0.1)
        assert found.level[0] <= 0.5 <= found.level[1] < 1.5

    monkeypatch.setattr(np.linalg, "svd", svd)
    try:
        found = levels_of(A, (3, 2, 3), levels[1] * 1e-3)
    except balls._Unproved:
        assert kind in ("none", "long")
    else:
        assert found.level[0] <= levels[1] <= found.level[1]
        assert not found.separated or found.level[0] >= levels[1] * 1e-3


def test_what_is_not_a_number_proves_nothing():
    with flint.ctx.workprec(128):
        for bad in (flint.arb.nan(), flint.arb.pos_inf()):
            matrix = flint.arb_mat(2, 2, [bad, 1, 1, 1])
            assert not balls._spectral(matrix) < 1e300
            assert not balls._eigenvalues(matrix)[1] < 1e300
            assert not balls._eigenvalues(matrix)[0] > -1e300
            assert balls._above(bad) == np.inf
        assert balls._above(flint.arb.nan()) == np.inf
        assert balls._below(flint.arb.nan()) == -np.inf


def test_floats_are_rounded_outwards():
    with flint.ctx.workprec(128):
        third, huge, tiny = flint.arb(1) / 3, flint.arb(10) ** 400, flint.arb(10) ** -400
        assert balls._below(third) < third < balls._above(third)
        assert np.nextafter(balls._below(third), 1) == balls._above(third)
        assert (balls._below(huge), balls._above(huge)) == (sys.float_info.max, np.inf)
        assert (balls._below(tiny), balls._above(tiny)) == (0.0, 5e-324)
        assert balls._above(flint.arb(0.1)) == balls._below(flint.arb(0.1)) == 0.1


# -- levels ------------------------------------------------------------------------------------------------------------


def levels_of(A, widths, threshold, target_error=0.0):
    start = [np.zeros(shape) for shape in zip(widths[1:], widths, strict=False)]
    record = record_of(
        A,
        np.eye(widths[0]),
        start,
        np.zeros(0),
        np.zeros((0, 1, packed(start).size)),
        threshold,
        False,
        0,
        target_error,
    )
    read = balls._read(record)
    with flint.ctx.workprec(128):
        return balls._levels(balls._Objective(read), read)


@pytest.mark.parametrize("widths", [(4, 3), (3, 3, 3), (3, 5, 4), (4, 2, 3), (4, 3, 1, 5), (6, 6, 2, 6), (1, 2, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e120])
def test_levels(widths, scale, rng):
    A = rng.normal(size=(widths[-1], widths[0])) * scale
    second = lowest_levels(A, widths)[1]
    found = levels_of(A, widths, second * (1 - 1e-13) if np.isfinite(second) else 1.0)
    assert (found.separated, found.num_values, found.narrow) == (True, 1, True)
    np.testing.assert_allclose(found.level, second, rtol=1e-12)
    assert found.level[0] <= found.level[1]
    if len(widths) > 2:
        # Within the enclosure nothing is certain.
        assert not levels_of(A, widths, 0.5 * (found.level[0] + found.level[1])).separated
        above = levels_of(A, widths, (1 + 1e-12) * second)
        assert (above.separated, above.narrow) == (False, False)
        assert above.num_values > 1


def test_levels_that_are_known_exactly():
    A, widths = np.diag([2.0, 1.0, 1.0, 0.0]), (4, 4, 4)
    found = levels_of(A, widths, 0.5)
    assert found == balls._Levels((0.5, 0.5), True, 1, True)  # leaving out a zero changes nothing
    narrow = levels_of(A, (4, 2, 4), 1.0)
    assert narrow == balls._Levels((1.0, 1.0), True, 1, True)  # nor does exchanging equals
    # For targets near it both are levels of their own.
    assert levels_of(A, (4, 2, 4), 1.0, 1e-12) == balls._Levels((1.0, 1.0), False, 2, True)
    assert not levels_of(A, widths, 0.5, 1e-12).separated
    assert levels_of(A, (4, 2, 4), 1.0 + 1e-14).narrow is False
    # A whole matrix of rank one, not diagonal: the rank is found exactly.
    assert levels_of(np.outer([1.0, 2.0], [3.0, 5.0, 7.0]), (3, 3, 2), 200.0).separated
    assert not levels_of(np.outer([0.1, 0.3], [0.1, 0.7, 0.3]), (3, 3, 2), 0.02).separated  # not of rank one in floats
    # No levels but one.
    zero = levels_of(np.zeros((2, 3)), (3, 2, 2), np.inf)
    assert zero == balls._Levels((np.inf, np.inf), True, 1, True)


def test_levels_that_are_merged():
    A = np.diag([2.0, 1.0, 1.0 - 1e-14, 3e-9])
    found = levels_of(A, (4, 2, 4), 0.9)
    assert (found.separated, found.num_values, found.narrow) == (False, 2, True)
    assert 0.9 <= found.level[0] <= found.level[1] <= 1.0 + 1e-12
    found = levels_of(A, (4, 4, 4), 0.4)
    assert (found.separated, found.num_values, found.narrow) == (False, 2, True)
    # The singular values of this one cannot be told apart by enclosures, though equal.
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    found = levels_of(Q, (3, 1, 3), 1.4)
    assert (found.separated, found.num_values, found.narrow) == (False, 3, True)


def test_merged_levels_are_accepted_as_such():
    start = [np.diag([np.sqrt(2.0), 1e-4])] * 2
    record = record_of(np.diag([2.0, 1e-7]), np.eye(2), start, np.zeros(0), np.zeros((0, 1, 8)), 0.1)
    check = check_record(record)
    assert check.accepted
    assert (check.separated, check.num_values) == (False, 2)
    assert check.level[0] == 0.1


def test_check_is_frozen():
    check = check_record(without_pieces(case("two layers"), slice(0, 0)))
    assert isinstance(check, Check)
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.accepted = True
