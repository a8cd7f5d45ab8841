"""Single proofs: what they say, the sharper bound, balls of starts, files, and the check in ball arithmetic."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import random_net, zero_net

import gdflow as gf
from gdflow.initialization import Gaussian
from gdflow.losses import Logistic
from gdflow.plotting import plot_proof
from gdflow.proofs.sharp import SharpBound, split

KEY = jax.random.key(5)
SLOW = pytest.mark.slow
WIDTHS = (3, 2, 2)
PROBLEM = gf.Problem.from_singular_values([2.0, 1.0], d_x=3)


def start(i, widths=WIDTHS, scale=0.7):
    return Gaussian(widths, scale).sample(KEY, i)


@functools.cache
def a_proof(i=0):
    return gf.prove(PROBLEM, start(i))


@pytest.mark.slow
def test_a_proof_says_what_it_proves():
    proof = a_proof()
    assert proof.proved
    assert proof.verdict == "global minimum"
    text = str(proof)
    for words in ("proved: global minimum", "arrival", "radius", "Dopri8", "float64 start"):
        assert words in text
    assert proof.arrival_time == pytest.approx(proof.durations.sum())
    low, high = proof.band()
    assert np.all(low <= proof.losses)
    assert np.all(proof.losses <= high)
    assert high[-1] < proof.threshold
    assert np.all(np.diff(proof.exponents) >= 0)


@pytest.mark.parametrize(
    ("num", "case"), [(3, "whitened"), pytest.param(90, "whitened", marks=SLOW), pytest.param(10, "data", marks=SLOW)]
)
def test_balls_agree(num, case):
    """Of the same inequalities both find the same numbers, and the balls' are a little smaller: their integrals have no tails."""
    pytest.importorskip("flint")
    problem, widths = PROBLEM, WIDTHS
    if case == "data":
        rng = np.random.default_rng(3)
        problem, widths = gf.Problem(rng.standard_normal((3, 9)), rng.standard_normal((2, 9))), (3, 4, 3, 2)
    for i in range(num):
        proof = gf.prove(problem, start(i, widths))
        found = proof.check()
        assert found.accepted == proof.proved, found.reason
        if proof.proved:
            assert found.separated
            # The program's radius counts rounding and tails; widening by the largest row sum.
            assert found.radius <= proof.radius[-1] * (1 + 1e-6) + 1e-300
            assert found.exponent <= proof.exponents[-1] + 1e-6
            assert found.loss[0] - 1e-12 <= proof.losses[-1] <= found.loss[1] + 1e-12


def corrupted(record, name):
    """Twenty ways to damage a record; each claims more than the path proves, or is no path."""
    changed = {k: np.array(v) for k, v in record.items()}
    n = len(changed["durations"])
    match name:
        case "start":
            changed["start_1"] = changed["start_1"] + 0.3
        case "other layer":
            changed["start_2"] = -changed["start_2"]
        case "target":
            changed["A"] = changed["A"] * 1.5
        case "target turned":
            changed["A"] = changed["A"][::-1]
        case "design":
            changed["D"] = 2 * changed["D"]
        case "level":
            changed["threshold"] = changed["threshold"] * 3
        case "infinite level":
            changed["threshold"] = np.array(np.inf)
        case "durations":
            changed["durations"] = changed["durations"] * 1.5
        case "negative duration":
            changed["durations"][n // 2] *= -1
        case "zero duration":
            changed["durations"][0] = 0
        case "a piece moved":
            changed["path_1"][n // 2, 0] += 0.5
        case "a slope moved":
            changed["path_2"][n // 2, 1] += 0.5
        case "pieces swapped":
            for j in (1, 2):
                changed[f"path_{j}"][[0, n - 1]] = changed[f"path_{j}"][[n - 1, 0]]
        case "pieces left out":
            for key in ("durations", "path_1", "path_2", "sharp"):
                changed[key] = np.delete(changed[key], slice(1, n - 1), axis=0)
            changed["radius"] = changed["radius"][:3]
        case "end left out":
            for key in ("durations", "path_1", "path_2", "sharp"):
                changed[key] = changed[key][: n // 2]
            changed["radius"] = changed["radius"][: n // 2 + 1]
        case "not a number":
            changed["path_1"][0, 0, 0, 0] = np.nan
        case "infinite":
            changed["path_2"][0, 0, 0, 0] = np.inf
        case "single precision":
            changed["path_1"] = changed["path_1"].astype(np.float32)
        case "shape":
            changed["path_1"] = changed["path_1"][:, :, :, :-1]
        case "large ball":
            changed["radius"] = changed["radius"] + 1.0
        case "negative ball":
            changed["radius"] = changed["radius"] - 1.0
        case "target error":
            changed["target_error"] = np.array(1.0)
        case "missing":
            del changed["D"]
    return changed


DAMAGES = (
    "start", "other layer", "target", "target turned", "design", "level", "infinite level", "durations", "negative duration",
    "zero duration", "a piece moved", "a slope moved", "pieces swapped", "pieces left out", "end left out", "not a number",
    "infinite", "single precision", "shape", "large ball", "negative ball", "target error", "missing",
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_rejected(damage, tmp_path):
    pytest.importorskip("flint")
    record = corrupted(a_proof().record(), damage)
    path = tmp_path / "proof.npz"
    np.savez(path, **record)
    try:
        accepted = gf.load_proof(path).check().accepted
    except ValueError:
        accepted = False
    assert not accepted


def test_files(tmp_path):
    pytest.importorskip("flint")
    proof = a_proof()
    path = proof.save(tmp_path / "a.npz")
    again = gf.load_proof(path)
    assert str(again) == str(proof)
    assert again.check() == proof.check()
    whole = path.read_bytes()
    for name, content in (
        ("empty", b""),
        ("cut", whole[: len(whole) // 2]),
        ("text", b"no proof"),
        ("bits", b"PK" + whole[9:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"is no proof|damaged"):
            gf.load_proof(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no proof"):
        gf.load_proof(tmp_path / "nothing")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="no proof of this version"):
        gf.load_proof(tmp_path / "other.npz")


def test_starts_that_need_no_path_or_have_none():
    below = gf.LayerTuple([jnp.eye(2, 3) * jnp.array([[1.4], [1.0]]), jnp.diag(jnp.array([1.4, 1.0]))])
    proof = gf.prove(PROBLEM, below)
    assert proof.proved
    assert proof.arrival_time == 0.0
    critical = gf.prove(PROBLEM, zero_net(*WIDTHS))
    assert not critical.proved
    assert "the start is critical" in critical.reason
    assert "not proved" in str(critical)
    few = gf.prove(PROBLEM, start(0), max_steps=3)
    assert not few.proved
    assert "after 3 steps" in few.reason
    # One layer is convex: nothing but its minimum is critical.
    assert gf.prove(PROBLEM, start(0, (3, 2))).proved


def test_every_start_in_a_ball():
    proof = gf.prove(PROBLEM, start(1), ball=True)
    assert proof.ball is not None
    assert 1e-8 < proof.ball < 10
    assert "all within" in str(proof)
    rng = np.random.default_rng(0)
    for _ in range(3):
        away = random_net(rng, WIDTHS)
        other = start(1) + away * (float(proof.ball) / away.norm())
        assert gf.prove(PROBLEM, other).proved
    # A ball that holds a start which never comes below the level would be false.
    level = gf.LayerTuple([jnp.array([[1.0, 0, 0], [0, 0, 0]]), jnp.diag(jnp.array([1.0, 0.0]))])
    gap = float((start(1) - level).norm())
    assert proof.ball < gap


@pytest.mark.slow
def test_the_sharper_bound_proves_more():
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0], d_x=6)
    net = Gaussian((6, 5, 5, 3)).sample(jax.random.key(0), 0) * 0.3
    loose = gf.integrator(rtol=1e-8, atol=1e-11)
    plain = gf.prove(problem, net, methods=loose, sharp=False)
    sharp = gf.prove(problem, net, methods=loose)
    assert not plain.proved
    assert sharp.proved
    assert sharp.sharp.any()
    assert "sharper bound" in str(sharp)
    pytest.importorskip("flint")
    assert sharp.check().accepted


def test_the_sharper_bound_holds(rng):
    objective = gf.Problem.from_singular_values([2.0, 1.0], d_x=3).objective
    for widths in ((3, 2, 2), (3, 2, 3, 2)):
        coefficients = [
            np.stack([0.1**i * rng.standard_normal((b, a)) for i in range(5)])
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        ]
        whole = SharpBound(objective, coefficients, 0.5)
        for E in (1e-6, 0.2):
            mu = whole(E) / 0.5
            for _ in range(30):
                s, away = rng.uniform(-1, 1), random_net(rng, widths)
                point = gf.LayerTuple(
                    [
                        np.polynomial.polynomial.polyval(s, c) + E / away.norm() * w
                        for c, w in zip(coefficients, away.weights, strict=True)
                    ]
                )
                least = np.linalg.eigvalsh(np.asarray(gf.hessian(PROBLEM, point)))[0]
                assert -least <= mu
        # Parts of a piece are the piece.
        for k, part in enumerate(split(coefficients, 4)):
            for c, whole_c in zip(part, coefficients, strict=True):
                at = np.polynomial.polynomial.polyval(0.3, c)
                np.testing.assert_allclose(
                    at, np.polynomial.polynomial.polyval((0.3 + 2 * k - 3) / 4, whole_c), atol=1e-12
                )


def test_errors():
    with pytest.raises(ValueError, match="one start is needed, got a batch"):
        gf.prove(PROBLEM, Gaussian(WIDTHS).sample_batch(KEY, np.arange(2)))
    with pytest.raises(ValueError, match="widths"):
        gf.prove(PROBLEM, start(0, (4, 2, 2)))
    with pytest.raises(ValueError, match="no polynomial that is known"):
        gf.prove(PROBLEM, start(0), methods=gf.integrator(diffrax.Kvaerno5()))
    with pytest.raises(ValueError, match="finite"):
        gf.prove(PROBLEM, start(0) * np.nan)
    rng = np.random.default_rng(0)
    labels = gf.Problem(rng.standard_normal((3, 8)), rng.choice([-1.0, 1.0], (2, 8)), Logistic())
    with pytest.raises(ValueError, match="squared error"):
        gf.prove(labels, start(0))
    balanced = gf.initialization.Balanced((2, 2, 2)).sample(KEY, 0)
    square = gf.Problem.from_singular_values([2.0, 1.0])
    with pytest.raises(ValueError, match="or of balanced ones"):
        gf.prove(square, balanced, verdict=gf.verdicts.Balanced(square, (2, 2, 2)))


def test_verdicts_that_are_not_of_this_start_are_refused():
    """Each of these was "proved" once, of a start at or below another threshold."""
    problem = gf.Problem.from_singular_values([3.0, 2.0, 1.0])
    through_two = gf.LayerTuple([jnp.array([[0.0, 1, 0]]), jnp.array([[0.0], [1], [0]])])  # tends to the saddle {2}
    with pytest.raises(ValueError, match="almost every start"):
        gf.prove(problem, through_two, verdict=gf.verdicts.AlmostSure(problem, (3, 1, 3)))
    level = gf.verdicts.LevelVerdict
    partial = gf.LayerTuple([jnp.diag(jnp.array([0.0, 1, 1]))] * 2)
    with pytest.raises(ValueError, match="not that of this problem and of widths"):
        gf.prove(problem, partial, verdict=level(problem, (3, 1, 3)))
    other = gf.Problem.from_singular_values([30.0, 20.0, 10.0])
    with pytest.raises(ValueError, match="not that of this problem"):
        gf.prove(problem, partial, verdict=level(other, (3, 3, 3)))
    with pytest.raises(ValueError, match="not that of the run"):
        gf.basin_sizes(problem, Gaussian((3, 3, 3)), 5, key=KEY, riders=(gf.basins.tube.Tube(level(other, (3, 3, 3))),))
    with pytest.raises(ValueError, match="no methods"):
        gf.prove(problem, partial, methods=())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0**-132])
def test_layers_that_cancel_are_not_proved(scale):
    """`w_3 = −w_2` stays so along the exact flow of ½(c − w_3w_2w_1c)²: it ends at the saddle, whatever round-off does.

    At 2^-132 the squares of the bounds underflow, and a proof once came of that.
    """
    problem = gf.Problem.from_target(np.array([[scale]]), np.array([[scale]]), coordinates="reduced")
    for first in (1.0, 1.5):
        net = gf.LayerTuple([jnp.array([[first]]), jnp.array([[0.5]]), jnp.array([[-0.5]])])
        assert not gf.prove(
            problem, net, methods=gf.integrator(rtol=1e-4, atol=1e-7), sharp=False, max_steps=400
        ).proved


def test_pictures(tmp_path):
    for name, proof in (
        ("proved", a_proof()),
        ("not", gf.prove(PROBLEM, start(0), max_steps=3)),
        ("critical", gf.prove(PROBLEM, zero_net(*WIDTHS))),
    ):
        figure = plot_proof(proof)
        figure.savefig(tmp_path / f"{name}.png")
        assert {axes.get_xlabel() for axes in figure.axes} == {"flow time $t$"}
