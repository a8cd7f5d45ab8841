"""Which starts can reach no non-strict saddle, against the ranks of exact critical points and simulated trajectories."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from landscape_points import admissible_subsets, data_problem, kinds, r_max, whitened
from random_cases import random_net

import gdflow as gf
from gdflow.avoidance import excludes_non_strict_saddles, saddle_avoidance, widths_exclude_non_strict_saddles
from gdflow.certificates import certify
from gdflow.network import LayerTuple
from gdflow.problem import Problem

EPS = float(np.finfo(np.float64).eps)


# Starts that reach no non-strict saddle.

#: Three layers: whether the widths exclude almost every start (in normal form `d_2 ≥ 2r_max − 1` or
#: `d_1 ≥ 2r_max + d_x − d_y − 1`), problem, widths.
AVOIDANCE = {
    "wide second": (True, whitened([3, 2, 1], 4, 3), (4, 3, 5, 3)),
    "wide first": (True, whitened([3, 2, 1], 4, 3), (4, 6, 3, 3)),
    "bottleneck": (True, whitened([3, 2, 1], 3, 3), (3, 4, 2, 3)),
    "data, fewer inputs": (True, data_problem(2, 4, 2, 2), (2, 3, 3, 4)),
    "data, rank-deficient, fewer inputs": (True, data_problem(4, 3, 2, 3), (4, 3, 2, 3)),
    "narrow": (False, whitened([3, 2, 1], 4, 3), (4, 4, 4, 3)),
    "narrow, data, fewer inputs": (False, data_problem(3, 4, 3, 7), (3, 4, 4, 4)),
    "narrow, data, rank-deficient": (False, data_problem(5, 3, 4, 8), (5, 5, 4, 3)),
    "narrow, reduced, square": (False, data_problem(3, 3, 3, 9, "reduced"), (3, 3, 3, 3)),
}


def gaussian(widths, num: int) -> LayerTuple:
    rng = np.random.default_rng(10)
    return LayerTuple([rng.normal(size=(num, a, b)) / np.sqrt(b) for b, a in itertools.pairwise(widths)])


def stacked(nets) -> LayerTuple:
    return jax.tree.map(lambda *w: jnp.stack(w), *nets)


@functools.cache
def _compiled(name: str):
    problem = AVOIDANCE[name][1]
    return jax.jit(jax.vmap(lambda net: excludes_non_strict_saddles(problem, net)))


def excluded(name: str, nets: LayerTuple) -> np.ndarray:
    """Start by start; the function is traceable, also under `jax.jit`. Always of 200 networks, to compile once."""
    num = nets.batch_shape[0]
    return np.asarray(_compiled(name)(jax.tree.map(lambda w: jnp.resize(w, (200, *w.shape[1:])), nets)))[:num]


def isometric_layers(problem: Problem, net: LayerTuple) -> list[np.ndarray]:
    """The layers on the range of the data, at least as many inputs as outputs, with the metric of the problem's flow."""
    D = np.asarray(problem.design)
    U = np.linalg.svd(D)[0][:, : np.linalg.matrix_rank(D)]
    W = [np.asarray(w) for w in net.weights]
    W[0] = W[0] @ U
    return W if W[0].shape[1] >= W[-1].shape[0] else [w.T for w in reversed(W)]


def ranks_exclude(W: list[np.ndarray]) -> bool:
    """`n_±(C_2) ≤ r`, `n_+(C_1) ≤ r`, `n_−(C_1) ≤ r + d_x − d_y` for no `r < r_max`, by definition."""
    widths = [W[0].shape[1], *(w.shape[0] for w in W)]

    def signs(before, after):
        e = np.linalg.eigvalsh(after.T @ after - before @ before.T)
        # Round-off is 1e-15; no test start comes within 1e-10 of a zero eigenvalue.
        return int(np.sum(e > 1e-10)), int(np.sum(e < -1e-10))

    (p1, n1), (p2, n2) = signs(W[0], W[1]), signs(W[1], W[2])
    return not any(max(p1, p2, n2) <= r and n1 <= r + widths[0] - widths[-1] for r in range(min(widths)))


@pytest.mark.parametrize("name", AVOIDANCE)
def test_no_non_strict_saddle_is_excluded(name):
    """Soundness at the limits themselves: a saddle is the limit of the trajectory that starts there."""
    _, problem, widths = AVOIDANCE[name]
    nets, rng = [], np.random.default_rng(11)
    for subset in admissible_subsets(problem, widths):
        for kind in sorted({"non-strict", "zero-hessian"} & set(kinds(problem, widths, subset))):
            for k in range(8):
                key = jax.random.key(len(nets))
                # Scales far apart too, and far from one.
                options = (
                    {"imbalance": float(10 ** rng.uniform(0, 4) * rng.choice([-1, 1]))} if k % 2 and subset else {}
                )
                nets.append(gf.sample_critical_point(problem, widths, subset, key=key, kind=kind, **options))
    assert len(nets) >= 8 * (r_max(problem, widths) + 1) >= 24
    assert not excluded(name, stacked(nets)).any()
    # Each rank r < r_max has its own; the inequalities hold there with its r.
    assert not any(ranks_exclude(isometric_layers(problem, net)) for net in nets)
    # What W_1 does on the null directions of X never matters.
    D = np.asarray(problem.design)
    null = np.linalg.svd(D)[0][:, np.linalg.matrix_rank(D) :]
    assert null.shape[1] == ("rank-deficient" in name) * (problem.d_in - len(problem.decomposition.S_X))
    if null.size:
        moved = [
            LayerTuple([w.weights[0] + rng.normal(size=(widths[1], null.shape[1])) @ null.T, *w.weights[1:]])
            for w in nets
        ]
        assert not excluded(name, stacked(moved)).any()


@pytest.mark.parametrize("name", AVOIDANCE)
@pytest.mark.slow
def test_exclusion_is_that_of_the_definition(name):
    """Starts of all shapes: Gaussian ones, and ones with layers of deficient rank or of different scales."""
    by_widths, problem, widths = AVOIDANCE[name]
    assert widths_exclude_non_strict_saddles(problem, widths) is by_widths
    generic = gaussian(widths, 200)
    found = excluded(name, generic)
    if by_widths:
        assert found.all()
    else:
        assert 0 < found.sum() < 200  # the widths do not decide
    rng, special = np.random.default_rng(12), []
    for _ in range(200):
        layers = []
        for a, b in zip(widths[1:], widths[:-1], strict=True):
            rank = int(rng.integers(0, min(a, b) + 1))
            layers.append(3 ** rng.uniform(-1, 1) * rng.normal(size=(a, rank)) @ rng.normal(size=(rank, b)))
        special.append(LayerTuple(layers))
    verdicts = excluded(name, stacked(special))
    assert 10 < verdicts.sum() < 190
    for nets, values in ((special, verdicts), ([jax.tree.map(lambda w: w[i], generic) for i in range(60)], found)):  # noqa: B023
        for net, value in zip(nets, values[:60] if nets is not special else values, strict=True):
            assert value == ranks_exclude(isometric_layers(problem, net))


@pytest.mark.parametrize(
    "name",
    [
        "narrow",
        pytest.param("data, rank-deficient, fewer inputs", marks=pytest.mark.slow),
        pytest.param("narrow, data, fewer inputs", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_verdict_is_the_same_all_along_the_flow(name):
    _, problem, widths = AVOIDANCE[name]
    generic = gaussian(widths, 200)
    verdicts = excluded(name, generic)
    chosen = np.concatenate([np.flatnonzero(verdicts)[:4], np.flatnonzero(~verdicts)[:4]])
    rng = np.random.default_rng(13)
    # Where all Gaussian starts are excluded, those with layers of rank one supply the other verdict.
    low = [[np.outer(rng.normal(size=a), rng.normal(size=b)) for b, a in itertools.pairwise(widths)] for _ in range(3)]
    starts = jax.tree.map(lambda a, b: jnp.concatenate([a[chosen], b]), generic, stacked(map(LayerTuple, low)))
    trajectories = gf.simulate(problem, starts, 1.0, ts=5, rtol=1e-12, atol=1e-14, dense=False)
    num = len(chosen) + 3
    assert trajectories.status == ["reached t1"] * num
    before = excluded(name, starts)
    assert set(before.tolist()) == {True, False} or r_max(problem, widths) == 1
    states = [jax.tree.map(lambda w: w[i, -1], trajectories.networks) for i in range(num)]  # noqa: B023
    assert float((states[0] - jax.tree.map(lambda w: w[0], starts)).norm()) > 0.01
    np.testing.assert_array_equal(excluded(name, stacked(states[:-3])), before[:-3])
    # Eigenvalues that are zero at a start drift by the error of the integration, 1e-12, beyond round-off: starts of low rank
    # are compared by the definition, in which 1e-10 is zero.
    assert [ranks_exclude(isometric_layers(problem, net)) for net in states] == before.tolist()


@pytest.mark.slow
def test_exclusion_does_not_depend_on_scale_or_on_round_off():
    problem, widths = whitened([3, 2, 1], 4, 3), (4, 4, 4, 3)
    net = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind="non-strict")
    rng = np.random.default_rng(14)
    noise = LayerTuple([rng.normal(size=w.shape) for w in net.weights])
    # Zero eigenvalues of C_j move by about the size of the noise: 1e-15 is round-off, 1e-6 is a different start.
    assert not bool(excludes_non_strict_saddles(problem, net + 1e-15 * noise))
    assert bool(excludes_non_strict_saddles(problem, net + 1e-6 * noise)) == ranks_exclude(
        [np.asarray(w) for w in (net + 1e-6 * noise).weights]
    )
    for seed in range(6):
        start = random_net(np.random.default_rng(seed), widths)
        values = {bool(excludes_non_strict_saddles(problem, c * start)) for c in (1e-8, 1.0, 1e8)}
        assert len(values) == 1


@pytest.mark.slow
def test_a_last_layer_larger_than_the_others_is_excluded():
    """`C_2 = W_3ᵀW_3 − W_2W_2ᵀ` with `r_max` positive eigenvalues, the certificate's simplest case; zero starts are not."""
    problem = whitened([3, 2, 1], 3, 3)
    one = jnp.eye(3)
    assert bool(excludes_non_strict_saddles(problem, LayerTuple([one, one, 2 * one])))
    assert bool(excludes_non_strict_saddles(problem, LayerTuple([2 * one, one, one])))
    assert bool(excludes_non_strict_saddles(problem, LayerTuple([one, 2 * one, one])))
    assert not bool(excludes_non_strict_saddles(problem, LayerTuple([one, one, one])))
    assert not bool(excludes_non_strict_saddles(problem, LayerTuple([0 * one, 0 * one, 0 * one])))
    # Two directions are not enough for r_max = 3: the third may be lost at a saddle of rank 2.
    two = jnp.diag(jnp.array([2.0, 2.0, 1.0]))
    assert not bool(excludes_non_strict_saddles(problem, LayerTuple([one, one, two])))


@pytest.mark.parametrize(
    ("s", "d_x", "d_y", "hidden", "expected"),
    [
        ([3, 2, 1], 4, 3, (4, 4), False),
        ([3, 2, 1], 4, 3, (4, 5), True),
        ([3, 2, 1], 4, 3, (5, 4), False),
        ([3, 2, 1], 4, 3, (6, 4), True),
        ([3, 2, 1], 3, 3, (5, 3), True),
        ([3, 2, 1], 3, 4, (4, 4), False),  # transposed: hidden layers in the other order
        ([3, 2, 1], 3, 4, (5, 4), True),
        ([3, 2, 1], 3, 4, (4, 5), False),
        ([3, 2, 1], 3, 4, (4, 6), True),
        ([3, 2, 1], 9, 3, (2, 3), True),  # r_max = 2
        ([3, 2, 1], 9, 3, (3, 2), False),
        ([3, 2, 1], 9, 3, (1, 1), True),
        ([3, 2, 1], 4, 3, (3,), True),  # two layers
        ([3, 2, 1], 4, 3, (1,), True),
    ],
)
def test_widths_that_exclude_almost_every_start(s, d_x, d_y, hidden, expected):
    problem = whitened(s, d_x, d_y)
    assert widths_exclude_non_strict_saddles(problem, problem.widths(hidden)) is expected


def test_two_layers_have_no_non_strict_saddles():
    problem, widths = whitened([3, 2, 1], 4, 3), (4, 3, 3)
    for subset in ((), (1,), (1, 2, 3)):
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(0), kind="balanced")
        assert bool(excludes_non_strict_saddles(problem, net))
    found = saddle_avoidance(problem, gaussian(widths, 5))
    assert (found.count, found.num, found.by_widths, found.interval[1]) == (5, 5, True, 1.0)
    assert "by the widths almost every start" in " ".join(str(found).split())


@pytest.mark.slow
def test_the_share_of_excluded_starts_has_an_exact_interval():
    confidence = 0.9
    _, problem, widths = AVOIDANCE["narrow"]
    starts = gaussian(widths, 150)
    found = saddle_avoidance(problem, starts, confidence=confidence)
    assert saddle_avoidance(problem, starts).confidence == 0.95
    np.testing.assert_array_equal(found.excluded, excluded("narrow", starts))
    assert (found.num, found.count, found.share) == (150, found.excluded.sum(), found.excluded.mean())
    assert 0 < found.count < 150
    expected = scipy.stats.binomtest(found.count, 150).proportion_ci(confidence, method="exact")
    np.testing.assert_allclose(found.interval, expected, rtol=1e-12)
    # Clopper and Pearson: each tail has probability (1 − confidence)/2 at the ends.
    tails = (
        scipy.stats.binom.sf(found.count - 1, 150, found.interval[0]),
        scipy.stats.binom.cdf(found.count, 150, found.interval[1]),
    )
    np.testing.assert_allclose(tails, (1 - confidence) / 2, rtol=1e-6)
    text = " ".join(str(found).split())
    assert f"{found.count} of 150 ({found.share:.4g}), {100 * confidence:g} % interval [{found.interval[0]:.4g}" in text
    assert "by the widths no claim" in text


def test_what_avoidance_refuses():
    problem = whitened([3, 2, 1], 4, 3)

    def starts(*widths):
        return gaussian(widths, 3)

    deep = "known for two and three layers, not for 4"
    with pytest.raises(ValueError, match=deep):
        saddle_avoidance(problem, starts(4, 3, 3, 3, 3))
    with pytest.raises(ValueError, match=deep):
        widths_exclude_non_strict_saddles(problem, (4, 3, 3, 3, 3))
    with pytest.raises(ValueError, match="not for 1"):
        saddle_avoidance(problem, starts(4, 3))
    one = jax.tree.map(lambda w: w[0], starts(4, 3, 3, 3))
    with pytest.raises(ValueError, match=r"a batch of starts has one leading axis, got batch shape \(\)"):
        saddle_avoidance(problem, one)
    with pytest.raises(ValueError, match=r"got batch shape \(1, 3\)"):
        saddle_avoidance(problem, jax.tree.map(lambda w: w[None], starts(4, 3, 3, 3)))
    for confidence in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
            saddle_avoidance(problem, starts(4, 3, 3, 3), confidence=confidence)
    with pytest.raises(ValueError, match="need d_0 = 4 and d_N = 3"):
        saddle_avoidance(problem, starts(3, 3, 3, 3))
    with pytest.raises(ValueError, match="W_1 is nan at entry"):
        saddle_avoidance(problem, jax.tree.map(lambda w: w.at[1].set(jnp.nan), starts(4, 3, 3, 3)))
    for s, message in (([2, 2, 1], "s_1 = 2 and s_2 = 2 are equal"), ([2, 1, 0], "s_3 = 0 is zero")):
        degenerate = whitened(s, 4, 3)
        for refused in (
            lambda: excludes_non_strict_saddles(degenerate, one),  # noqa: B023
            lambda: saddle_avoidance(degenerate, starts(4, 3, 3, 3)),  # noqa: B023
            lambda: widths_exclude_non_strict_saddles(degenerate, (4, 3, 3, 3)),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=f"the exclusion of non-strict saddles needs distinct .*{message}"):
                refused()


@pytest.mark.slow
def test_certify_says_which_starts_avoid_non_strict_saddles():
    problem = whitened([3, 2, 1], 3, 3)
    one = jnp.eye(3)
    for net, verdict, text in [
        (LayerTuple([one, one, 2 * one]), True, "excluded as limits by the conserved quantities"),
        (LayerTuple([one, one, one]), False, "not excluded by the conserved quantities"),
        (LayerTuple([one, one]), True, "there are none"),
        (LayerTuple([one, one, one, 2 * one]), None, "nothing known"),
        (LayerTuple([one]), None, "nothing known"),
    ]:
        certificate = certify(problem, net)
        assert certificate.avoids_non_strict is verdict
        assert f"non-strict saddles {text}" in " ".join(str(certificate).split())
    # Ties are no error here: nothing is known.
    tied = certify(whitened([2, 2, 1], 3, 3), LayerTuple([one, one, 2 * one]))
    assert tied.avoids_non_strict is None
