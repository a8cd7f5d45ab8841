"""Classification near its thresholds and at its limits: doubtful ranks, points that are not critical, many levels, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from landscape_points import KIND, POOL, flat, whitened
from random_cases import zero_net

import gdflow as gf
from gdflow.landscape import classification, curvature, escape_direction, extreme_eigenpairs, find_pivots
from gdflow.losses import Logistic
from gdflow.network import LayerTuple
from gdflow.problem import Problem


def test_pivots_of_a_path_by_hand():
    """Three layers, `S = {1}`; rank 1 everywhere but where a second path is laid."""
    target = np.diag([2.0, 1.0])
    path = [np.diag([2.0, 0.0]), np.diag([1.0, 0.0]), np.diag([1.0, 0.0])]
    second = np.array([[0.0, 0.0], [0.0, 1.0]])
    pairs = {(2, 1), (3, 1), (3, 2)}
    # A path in W_2 frees (3,1), in W_1 from the second input (3,2), in W_3 to the second output (2,1).
    for layer, freed in [(None, set()), (1, {(3, 1)}), (0, {(3, 2)}), (2, {(2, 1)})]:
        layers = [w + second if k == layer else w for k, w in enumerate(path)]
        found = find_pivots(layers, target, (1,), tolerance=1e-9)
        assert {(p.i, p.j) for p in found.pivots} == pairs
        assert {(p.i, p.j) for p in found.pivots if not p.tightened} == freed
        assert found.strict == bool(freed)
        assert found.non_strict == (not freed)
        assert (found.depth, found.max_rank, found.nested, found.minimum) == (3, 2, True, False)


def test_nothing_descends_from_a_minimum():
    problem, widths = POOL["3 wide"]
    net = gf.sample_critical_point(problem, widths, (1, 2, 3), key=jax.random.key(0), kind="minimum", norm=9.0)
    assert escape_direction(problem, net, (1, 2, 3)) is None


# Points that are not critical.


def test_conditions_of_the_lemmas_fail_at_other_points():
    """With so large a tolerance that the gradient passes, the residuals show what is wrong, in proportion."""
    problem, widths = POOL["3 wide"]
    rng = np.random.default_rng(2)
    net = gf.sample_critical_point(
        problem, widths, (1, 3), key=jax.random.key(0), ranks={(2, 2): 4, (1, 1): 3, (3, 3): 2}
    )
    exact = gf.classify(problem, net)
    assert len(exact.residuals) == 8
    direction = LayerTuple([rng.normal(size=w.shape) for w in net.weights])
    for size in (1e-6, 1e-4):
        c = gf.classify(problem, net + size * direction, tolerance=0.01)
        assert c.subset == (1, 3)
        for condition, value in c.residuals.items():
            # The condition's scale is a product of norms up to about 3³·4: four orders below the perturbation are enough.
            assert size * 1e-4 < value < size * 10, condition
            assert exact.residuals[condition] < 1e-14


@pytest.mark.slow
def test_the_nearest_level_may_lie_above_the_lowest_4096():
    """Thirteen singular values have 8192 levels; the origin's is the highest."""
    s = np.sqrt(2.0 ** np.arange(13, 0, -1))
    problem = Problem.from_singular_values(s)
    origin = zero_net(13, 13, 13)
    c = gf.classify(problem, origin)
    assert (c.nearest_level, c.subset, c.kind) == (None, (), "strict saddle")
    np.testing.assert_allclose((c.level_value, c.level_distance), (0.5 * np.sum(s**2), 0.0), rtol=1e-14, atol=1e-11)
    assert "nearest level above the lowest 4096" in " ".join(str(c).split())
    moved = gf.classify(problem, origin + LayerTuple([1e-3 * jnp.eye(13)] * 2))
    assert (moved.critical, moved.nearest_level, moved.level_value, moved.level_distance) == (False, None, None, None)
    assert "nearest level above the lowest 4096" in " ".join(str(moved).split())
    # ½Σ_{i∉S}s_i² with s_i² = 2, 4, 8, …: level k is k itself. In the lower half all is as ever.
    inside = [1, *range(3, 14, 2)]
    net = gf.sample_critical_point(problem, (13, 13, 13), inside, key=jax.random.key(0), kind="balanced")
    assert gf.classify(problem, net).nearest_level == sum(2 ** (13 - i) for i in range(1, 14) if i not in inside)


# Decisions near the tolerance.


def decisive(layer: int, size: float, place: tuple[int, int] = (1, 1)) -> LayerTuple:
    """Non-strict of rank 1 but for a path of a given weight in one layer, exactly critical whatever its weight.

    Whitened, target `[diag(3, 2, 1) 0]`, widths 4-4-4-3, layers mixed by orthogonal matrices.
    """
    rng = np.random.default_rng(0)
    G = [np.eye(4), *(np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2)), np.eye(3)]
    layers = [np.diag([3.0, 0, 0, 0]), np.diag([1.0, 0, 0, 0]), np.diag([1.0, 0, 0, 0])[:3]]
    layers[layer][place] = size
    return LayerTuple([after @ w @ before.T for w, before, after in zip(layers, G[:-1], G[1:], strict=True)])


PATHS = [  # layer, pivot that it frees, weight at which its singular value is the tolerance times the threshold's scale
    (0, "(3,2)", 3.0 * 3.0 / 2.0),  # W_1Σᵀ: 2·weight beside ‖W_1‖‖Σ‖ = 3·3
    (1, "(3,1)", 1.0),  # W_2: weight beside ‖W_2‖ = 1
    (2, "(2,1)", 3.0 / 2.0),  # ΣᵀW_3: 2·weight beside ‖Σ‖‖W_3‖ = 3
]


@pytest.mark.parametrize("tolerance", [1e-9, 1e-6])
@pytest.mark.parametrize(("layer", "pivot", "unit"), PATHS)
def test_a_rank_near_its_threshold_is_not_guessed(layer, pivot, unit, tolerance):
    problem = POOL["3 wide"][0]

    def at(multiple):
        return gf.classify(problem, decisive(layer, multiple * unit * tolerance), tolerance=tolerance)

    for multiple in (0.0, 1e-3, 0.05):
        c = at(multiple)
        assert (c.kind, c.uncertain, c.escape) == ("non-strict saddle", (), None)
    for multiple in (0.15, 0.9, 1.0, 1.1, 8.0):
        c = at(multiple)
        assert c.kind == "uncertain"
        reasons = [reason for reason in c.uncertain if pivot in reason]
        assert len(reasons) == 1
        assert f"{multiple:.2g} times the threshold" in reasons[0]
        assert f"UNCERTAIN pivot {pivot}" in " ".join(str(c).split())
    for multiple in (1e3, 1e5):
        c = at(multiple)
        assert (c.kind, c.uncertain) == ("strict saddle", ())
        assert c.escape_value < 0
    # The eigenvalue is as small as the rank's margin. The same point under a stricter tolerance is decided.
    assert gf.classify(problem, decisive(layer, unit * tolerance), tolerance=1e-4 * tolerance).kind == "strict saddle"


def test_a_doubtful_rank_on_which_nothing_rests_does_not_matter():
    problem = POOL["3 wide"][0]
    # From another hidden unit, so that the two paths do not meet.
    doubtful, free = decisive(1, 1e-9), decisive(2, 1.0, (1, 2))
    W1, W2, _ = doubtful.weights
    c = gf.classify(problem, LayerTuple([W1, W2, free.weights[2]]))
    # Pivot (2,1) is free for certain, so the point is strict whatever (3,1) is.
    assert not all(p.certain for p in c.pivots.pivots)
    assert (c.kind, c.uncertain) == ("strict saddle", ())


def test_a_doubtful_rank_of_the_whole_is_uncertain():
    """A rank-1 point with `W_1` almost on the level of rank 2: `R` has a second singular value at the threshold."""
    problem = POOL["3 wide"][0]
    layers = [np.diag([3.0, 0, 0, 0]), np.diag([1.0, 1e-9, 0, 0]), np.diag([1.0, 1.0, 0, 0])[:3]]
    c = gf.classify(problem, LayerTuple(layers))
    assert c.critical
    assert c.kind == "uncertain"
    assert any("rank R" in reason and "W fits {1}" in reason for reason in c.uncertain)


def test_disagreement_of_ranks_and_hessian_is_uncertain(monkeypatch):
    problem, widths = POOL["3 wide"]
    net = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind="strict")
    found = gf.classify(problem, net)

    def with_eigenvalues(values):
        fake = found.inertia.__class__(1, 0, 0, 1e-9, 1.0, 0.0, np.asarray(values))
        monkeypatch.setattr(classification, "inertia", lambda *args, **kwargs: fake)

    with_eigenvalues([0.0, 1.0])
    c = gf.classify(problem, net)
    assert (c.kind, c.by_pivots, c.escape) == ("uncertain", "strict saddle", None)
    assert "the ranks say strict saddle, but λ_min = 0 is not below" in c.uncertain[0]
    with_eigenvalues([-1.0, 1.0])
    flat_point = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind="non-strict")
    c = gf.classify(problem, flat_point)
    assert (c.kind, c.by_pivots, c.by_hessian) == ("uncertain", "non-strict saddle", "strict saddle")
    assert "the ranks say non-strict saddle, but λ_min = -1 is below" in c.uncertain[0]


def test_the_tolerance_admits_points_known_to_few_digits():
    problem, widths = POOL["3 wide"]
    rng = np.random.default_rng(3)
    for kind in ("strict", "non-strict"):
        net = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(1), kind=kind)
        near = net + 1e-8 * LayerTuple([rng.normal(size=w.shape) for w in net.weights])
        assert gf.classify(problem, near, tolerance=1e-10).kind == "not critical"
        assert gf.classify(problem, near, tolerance=1e-6).kind == KIND[kind]


# Many parameters: the smallest eigenvalue by Lanczos.


@pytest.mark.slow
def test_large_networks_are_classified_by_their_smallest_eigenvalue():
    problem, widths = whitened([3, 2, 1], 20, 3), (20, 40, 30, 3)
    for subset, kind in [((), "zero-hessian"), ((1,), "non-strict"), ((1,), "strict")]:
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(1), kind=kind)
        assert net.num_parameters > classification.MAX_EIGENVALUES
        c = gf.classify(problem, net)
        assert (c.kind, c.subset, c.inertia, c.uncertain) == (KIND[kind], subset, None, ())
        assert (c.escape is None) == (kind != "strict")
        assert "inertia" not in str(c)


def test_a_hessian_that_vanishes_has_zero_extreme_eigenvalues(monkeypatch):
    monkeypatch.setattr(curvature, "MAX_EIGH", 1)
    problem = whitened([2, 1], 3, 2)
    values, vectors = extreme_eigenpairs(problem, zero_net(3, 2, 2, 2), 3)
    np.testing.assert_array_equal(values, 0.0)
    # Still an orthonormal system.
    V = np.stack([flat(v) for v in vectors])
    np.testing.assert_array_equal(V @ V.T, np.eye(3))
    values, _ = extreme_eigenpairs(problem, zero_net(3, 2, 2), 1)
    np.testing.assert_allclose(values, -2.0, rtol=1e-12)  # two layers: the Hessian at the origin has eigenvalues ±s_i


# Printing and refusals.


def test_printing():
    problem, widths = POOL["3 wide"]
    for kind, parts in [
        ("strict", ["strict saddle", "escape", "H_W = -", "λ_min = -"]),
        ("non-strict", ["non-strict saddle", "3 of 3 pivots tightened"]),
    ]:
        c = gf.classify(problem, gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind=kind))
        text = " ".join(str(c).split())
        for part in ["Classification", "S {1}", "r = 1", "r_max = 3", "by pivots", "by Hessian", "inertia", *parts]:
            assert part in text
        assert "3.1: RᵀS=RᵀRW_11" in text
        assert ("escape" in text) == (kind == "strict")
        assert "UNCERTAIN" not in text
        assert "<table" in c._repr_html_() or "<pre" in c._repr_html_()


@pytest.mark.parametrize(
    ("s", "message"),
    [
        (
            [2.0, 1.0, 1.0],
            r"classification needs distinct .* s_2 = 1 and s_3 = 1 are equal: subsets that exchange them",
        ),
        (
            [2.0, 1.0, 0.0],
            r"classification needs .* s_3 = 0 is zero.*gdflow\.critical_values and gdflow\.inertia still work",
        ),
    ],
)
def test_ties_and_zeros_are_refused_by_name(s, message):
    problem = whitened(s, 4, 3)
    net = zero_net(4, 3, 3)
    with pytest.raises(ValueError, match=message):
        gf.classify(problem, net)
    values = gf.critical_values(problem, 3).values
    expected = {0.5 * sum(x**2 for x in left) for r in range(4) for left in itertools.combinations(s, r)}
    np.testing.assert_allclose(values, sorted(expected), rtol=0, atol=1e-12)
    # At the origin of two layers every s_i > 0 has d_1 = 3 negative eigenvalues.
    assert gf.inertia(problem, net).negative == 3 * sum(x > 0 for x in s)


def test_what_is_refused():
    problem, widths = POOL["3 wide"]
    net = zero_net(*widths)
    for tolerance in (0.0, 1.0, -1e-9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"tolerance must lie between 0 and 1, got"):
            gf.classify(problem, net, tolerance=tolerance)
    with pytest.raises(ValueError, match=r"widths \(3, 4, 3\) do not fit the problem.*d_0 = 4 and d_N = 3"):
        gf.classify(problem, zero_net(3, 4, 3))
    with pytest.raises(ValueError, match="W_2 is nan at entry"):
        gf.classify(problem, LayerTuple([jnp.zeros((4, 4)), jnp.full((3, 4), jnp.nan)]))
    with pytest.raises(ValueError, match="one network is needed here"):
        gf.classify(problem, LayerTuple([jnp.zeros((2, 4, 4)), jnp.zeros((2, 3, 4))]))
    signs = np.where(np.arange(12).reshape(3, 4) % 2, 1.0, -1.0)
    with pytest.raises(ValueError, match="this problem has loss Logistic"):
        gf.classify(Problem(np.eye(4), signs, Logistic()), net)
