"""Sampled critical points are critical, lie on the stratum asked for, are of the kind asked for, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from landscape_points import (
    POOL,
    TWO_HIDDEN,
    admissible_subsets,
    data_problem,
    derivatives,
    eigenvalues,
    flat,
    natural_size,
    r_max,
    sample,
    whitened,
)

import gdflow as gf
from gdflow.landscape import NormalForm
from gdflow.losses import Logistic
from gdflow.network import LayerTuple
from gdflow.problem import Problem

# A tenth of a per cent of the largest eigenvalue would do to tell signs apart: over the pool the negative eigenvalues of
# strict points are beyond 5e-3 of it, and what ought to be zero is below 1e-14.
ZERO = 1e-10

points = functools.cache(functools.partial(sample, repeats=4))


def numerical_rank(matrix) -> int:
    """Rank with a tolerance far from both sides: factors have condition number below 100, round-off is 1e-15."""
    s = np.linalg.svd(np.asarray(matrix), compute_uv=False)
    return int(np.sum(s > 1e-8))


def product(net: LayerTuple, j: int, k: int) -> np.ndarray:
    """`W_k … W_j`."""
    return functools.reduce(lambda right, left: left @ right, [np.asarray(w) for w in net.weights[j - 1 : k]])


def partial_products(depth: int) -> list[tuple[int, int]]:
    return [(j, k) for j in range(1, depth + 1) for k in range(j, depth + 1)]


def conserved(net: LayerTuple) -> list[np.ndarray]:
    W = [np.asarray(w) for w in net.weights]
    return [after.T @ after - before @ before.T for before, after in itertools.pairwise(W)]


@pytest.mark.parametrize("name", POOL)
def test_points_are_critical_and_fit_their_subset(name):
    problem, widths = POOL[name]
    nets = [p.net for p in points(name)]
    assert {net.widths for net in nets} == {widths}
    gradients = np.linalg.norm(derivatives(problem, nets, "gradient"), axis=1)
    losses = derivatives(problem, nets, "loss")
    U, s, Vt = np.linalg.svd(problem.target, full_matrices=False)
    for p, gradient, loss in zip(points(name), gradients, losses, strict=True):
        assert gradient <= 1e-12 * natural_size(problem, p.net)
        inside = [i - 1 for i in p.subset]
        level = 0.5 * (np.sum(s**2) - np.sum(s[inside] ** 2))
        # The loss is quadratic in products with errors of a few eps times the sizes of the factors.
        np.testing.assert_allclose(loss, level, rtol=0, atol=1e-13 * natural_size(problem, p.net) * np.sum(s**2))
        # W D is the part of the target that belongs to S: distinct s_i make it unique.
        fitted = (U[:, inside] * s[inside]) @ Vt[inside]
        error = np.linalg.norm(product(p.net, 1, p.net.depth) @ problem.design - fitted)
        assert error <= 1e-12 * natural_size(problem, p.net)
        # In normal form it is the diagonal itself.
        form = NormalForm(problem)
        diagonal = np.zeros(form.target.shape)
        diagonal[inside, inside] = s[inside]
        error = np.linalg.norm(np.asarray(form.into(p.net).end_to_end) - diagonal)
        assert error <= 1e-12 * natural_size(problem, p.net)


@pytest.mark.parametrize("name", POOL)
def test_points_are_of_the_kind_asked_for(name):
    problem, widths = POOL[name]
    nets = [p.net for p in points(name)]
    spectra = eigenvalues(problem, nets)
    for p, e in zip(points(name), spectra, strict=True):
        size = max(abs(e[0]), abs(e[-1]))
        if p.kind == "strict":
            assert e[0] < -ZERO * size
        if p.kind in ("non-strict", "minimum"):
            # A Hessian may vanish altogether; then these are round-off of products of condition number at most 4.
            assert e[0] >= -ZERO * size - 1e-13 * natural_size(problem, p.net) ** 2
            best = p.subset == tuple(range(1, r_max(problem, widths) + 1))
            assert best == (p.kind == "minimum")
        if p.kind == "zero-hessian":
            # Sums of products of matrices with condition number at most 4: a few eps of their size.
            assert size <= 1e-13 * natural_size(problem, p.net) ** 2
    assert {p.kind for p in points(name)} >= {"any", "strict", "minimum", "balanced"}
    assert ("non-strict" in {p.kind for p in points(name)}) == (len(widths) > 3)


def test_points_with_a_zero_hessian_are_not_only_the_origin():
    nets = [p.net for name in POOL for p in points(name) if p.kind == "zero-hessian"]
    assert len(nets) >= 40
    assert sum(float(net.norm()) > 0.1 for net in nets) >= 10


@pytest.mark.parametrize("name", POOL)
def test_balanced_points_have_no_conserved_quantity_and_the_least_norm(name):
    problem, widths = POOL[name]
    form, N = NormalForm(problem), len(widths) - 1
    s = np.asarray(problem.singular_values)
    for p in points(name):
        net = form.into(p.net)
        r = len(p.subset)
        # ‖W_N…W_1‖ with singular values s_S needs Σ‖W_j‖² ≥ N Σ_S s_i^{2/N} (Schatten quasi-norms).
        least = np.sqrt(N * np.sum(s[[i - 1 for i in p.subset]] ** (2 / N)))
        if p.kind == "balanced":
            for C in conserved(net):
                assert np.linalg.norm(C) <= 1e-13 * np.sum(s**2)
            np.testing.assert_allclose(float(net.norm()), least, rtol=1e-12, atol=1e-14)
            assert all(numerical_rank(product(net, j, k)) == r for j, k in partial_products(N))
        else:
            assert float(net.norm()) >= least * (1 - 1e-12)


@pytest.mark.parametrize("name", POOL)
def test_ranks_asked_for_are_met(name):
    """Ranks of two products of one point are asked of another; `numerical_rank` counts them in the problem's coordinates."""
    problem, widths = POOL[name]
    rng = np.random.default_rng(18)
    pairs, values = partial_products(len(widths) - 1), []
    candidates = [p for p in points(name) if p.kind in ("any", "strict", "non-strict")]
    for p in [candidates[i] for i in rng.permutation(len(candidates))[:10]]:
        chosen = [pairs[i] for i in rng.permutation(len(pairs))[:2]]
        ranks = {(j, k): numerical_rank(product(p.net, j, k)) for j, k in chosen}
        key = jax.random.key(int(rng.integers(2**31)))
        net = gf.sample_critical_point(problem, widths, p.subset, key=key, kind=p.kind, ranks=ranks)
        assert {(j, k): numerical_rank(product(net, j, k)) for j, k in chosen} == ranks
        values += [rank - len(p.subset) for rank in ranks.values()]
    # A sampler that gives all products rank r would not pass (with one hidden unit nearly all have rank r).
    assert max(values) > 0 or min(widths) == 1


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_ranks_asked_for_are_met_with_surplus_inputs(rank):
    """`rank W_1` of `[Σ_S; Z_1]` counts the surplus inputs that `Z_1` sees beside those in `S`."""
    problem, widths = whitened([3, 2, 1], 5, 3), (5, 5, 5, 3)
    for seed in range(20):
        net = gf.sample_critical_point(problem, widths, (1, 2), key=jax.random.key(seed), ranks={(1, 1): rank})
        assert numerical_rank(net.weights[0]) == rank


def test_ranks_count_the_problems_layers_also_where_it_is_transposed():
    problem, widths = whitened([2, 1], 2, 3), (2, 4, 4, 4, 3)
    assert NormalForm(problem).transposed
    # W_2 and W_3 of rank 2 and 4 tell the order of the layers.
    net = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), ranks={(2, 2): 2, (3, 3): 4})
    assert [numerical_rank(w) for w in net.weights[1:3]] == [2, 4]


@pytest.mark.parametrize("kind", ["any", "strict", "minimum"])
@pytest.mark.parametrize("name", ["2 wide", "3 wide", "3 data, rank-deficient, fewer inputs", "5 fewer inputs"])
def test_norm_and_imbalance_are_met(name, kind):
    problem, widths = POOL[name]
    form = NormalForm(problem)
    subset = tuple(range(1, r_max(problem, widths) + 1)) if kind == "minimum" else (2,)
    key = jax.random.key(3)

    def of(**options):
        net = gf.sample_critical_point(problem, widths, subset, key=key, kind=kind, **options)
        W = [np.asarray(w) for w in form.into(net).weights]
        gradient = np.linalg.norm(derivatives(problem, [net], "gradient"))
        # Scales of layers apart enlarge the round-off of the product relative to the product of all norms by nothing.
        assert gradient <= 1e-12 * natural_size(problem, net)
        return W

    free = of()
    for norm in (8.0, 50.0):
        W = of(norm=norm)
        np.testing.assert_allclose(np.sqrt(sum(np.sum(w**2) for w in W)), norm, rtol=1e-12)
        # W_1 → cW_1, W_2 → W_2/c and nothing else.
        c = np.linalg.norm(W[0]) / np.linalg.norm(free[0])
        for new, old, factor in zip(W, free, [c, 1 / c, *[1.0] * len(W[2:])], strict=True):
            np.testing.assert_allclose(new, factor * old, rtol=1e-11, atol=1e-12 * norm)
    # Large imbalances lose the digits of the smaller norm's square: relative to the larger one they are exact.
    for imbalance in (-300.0, -1.0, 0.0, 2.5, 1e4):
        W = of(imbalance=imbalance)
        squares = [float(np.sum(w**2)) for w in W[:2]]
        np.testing.assert_allclose(squares[1] - squares[0], imbalance, rtol=0, atol=1e-12 * max(squares))
        np.testing.assert_allclose(np.trace(conserved(LayerTuple(W))[0]), imbalance, rtol=0, atol=1e-12 * max(squares))
        np.testing.assert_allclose(
            W[1] @ W[0], free[1] @ free[0], rtol=0, atol=1e-11 * np.linalg.norm(free[1] @ free[0])
        )


def test_a_key_determines_the_point():
    for name in ("2 wide", "3 data, rank-deficient, fewer inputs", "4 bottleneck"):
        problem, widths = POOL[name]
        for kind in ("any", "strict", "balanced"):
            a, b, c = (
                flat(gf.sample_critical_point(problem, widths, (2,), key=jax.random.key(k), kind=kind))
                for k in (5, 5, 6)
            )
            np.testing.assert_array_equal(a, b)
            assert np.linalg.norm(a - c) > 0.1


@pytest.mark.parametrize("spread", [1.0, 1.5, 4.0])
def test_spread_bounds_the_condition_of_the_changes_of_basis(spread):
    # At a minimum of a square problem with hidden layers of rank r = d the layers are G_1Σ, G_2G_1^{-1}, G_2^{-1}.
    problem = whitened([2, 1], 2, 2)
    for seed in range(10):
        net = gf.sample_critical_point(problem, (2, 2, 2, 2), (1, 2), key=jax.random.key(seed), spread=spread)
        s = np.linalg.svd(np.asarray(net.weights[-1]), compute_uv=False)
        assert s[0] <= spread * (1 + 1e-12)
        assert s[-1] >= (1 - 1e-12) / spread
        if spread == 1.0:
            np.testing.assert_allclose(s, 1.0, rtol=1e-13)
    assert spread == 1.0 or s[0] > s[-1] * 1.01


def test_the_order_of_a_subset_does_not_matter():
    problem, widths = POOL["3 wide"]
    a, b = (gf.sample_critical_point(problem, widths, S, key=jax.random.key(0)) for S in ((3, 1), [1, 3]))
    np.testing.assert_array_equal(flat(a), flat(b))


def test_every_rank_of_the_middle_layer_occurs():
    """At strict points of rank 1 of the widths 4-4-4-3 the middle layer may have any rank from 1 to 4."""
    problem, widths = POOL["3 wide"]
    ranks = {
        numerical_rank(gf.sample_critical_point(problem, widths, (2,), key=jax.random.key(k), kind="strict").weights[1])
        for k in range(60)
    }
    assert ranks == {1, 2, 3, 4}


# What is refused.

WIDE = POOL["3 wide"]
TWO = POOL["2 wide"]
NARROW = POOL["3 bottleneck"]


@pytest.mark.parametrize(
    ("pool", "subset", "options", "message"),
    [
        (WIDE, (0,), {}, r"indices of singular values, 1 to 3; got 0 in \(0,\)"),
        (WIDE, (1, 4), {}, r"1 to 3; got 4 in \(1, 4\)"),
        (WIDE, (True,), {}, "got True"),
        (WIDE, (2, 2), {}, r"an index occurs twice in the subset \(2, 2\)"),
        (NARROW, (1, 2, 3), {}, r"has 3 elements, more than the narrowest of the widths \(3, 3, 2, 3\)"),
        (WIDE, (1,), {"kind": "saddle"}, "kind must be one of any, strict, .*; got 'saddle'"),
        (WIDE, (1,), {"kind": "minimum"}, r"global minima have S = \{1\.\.3\}, not \(1,\)"),
        (NARROW, (1, 3), {"kind": "minimum"}, r"global minima have S = \{1\.\.2\}, not \(1, 3\)"),
        (WIDE, (1, 2, 3), {"kind": "strict"}, "belongs to the global minima, none of which is a strict saddle"),
        (NARROW, (1, 2), {"kind": "strict"}, "belongs to the global minima"),
        (
            WIDE,
            (2,),
            {"kind": "non-strict"},
            r"at least three layers and S = \{1\.\.r\} with r < 3; got 3 layers, S = \(2,\)",
        ),
        (NARROW, (1, 2), {"kind": "non-strict"}, "with r < 2"),
        (TWO, (1,), {"kind": "non-strict"}, "at least three layers.*got 2 layers"),
        (
            TWO,
            (),
            {"kind": "zero-hessian"},
            "zero Hessian needs at least three layers and the empty subset; got 2 layers",
        ),
        (WIDE, (1,), {"kind": "zero-hessian"}, r"the empty subset; got 3 layers, S = \(1,\)"),
        (WIDE, (1,), {"spread": 0.5}, "spread must be at least 1, got 0.5"),
        (WIDE, (1,), {"spread": np.nan}, "spread must be at least 1, got nan"),
        (WIDE, (1,), {"norm": 5.0, "imbalance": 0.0}, "norm or imbalance, not both"),
        (WIDE, (1,), {"norm": 0.5}, r"norm 0\.5 is below [\d.]+, the least that rescaling W_1 and W_2 reaches"),
        (WIDE, (1,), {"norm": -9.0}, "norm -9 is below"),
        (WIDE, (1,), {"norm": np.inf}, "norm must be finite, got inf"),
        (WIDE, (1,), {"norm": np.nan}, "norm must be finite, got nan"),
        (WIDE, (1,), {"imbalance": np.nan}, "imbalance must be finite, got nan"),
        (WIDE, (1,), {"kind": "balanced", "norm": 9.0}, "a balanced point has no free scale"),
        (WIDE, (1,), {"kind": "balanced", "imbalance": 1.0}, "a balanced point has no free scale"),
        (WIDE, (), {"kind": "zero-hessian", "ranks": {(1, 1): 0}, "norm": 9.0}, "this point's scale is not free"),
        (WIDE, (1,), {"ranks": {(0, 2): 1}}, r"no product \(ΠW\)_0\^2 in a network of depth 3"),
        (WIDE, (1,), {"ranks": {(3, 2): 1}}, r"no product \(ΠW\)_3\^2"),
        (WIDE, (1,), {"ranks": {(2, 4): 1}}, r"no product \(ΠW\)_2\^4"),
        (WIDE, (1,), {"ranks": {(2, 2): 5}}, r"\(ΠW\)_2\^2 has rank at most 4, not 5"),
        (NARROW, (1,), {"ranks": {(2, 3): 3}}, r"\(ΠW\)_2\^3 has rank at most 2, not 3"),
        (WIDE, (1,), {"ranks": {(2, 2): -1}}, "not -1"),
        (WIDE, (1,), {"kind": "balanced", "ranks": {(2, 2): 2}}, "at a balanced point every product has rank 1"),
        (WIDE, (1,), {"kind": "balanced", "ranks": {(5, 9): 1}}, r"no product \(ΠW\)_5\^9"),
    ],
)
def test_what_is_refused(pool, subset, options, message):
    problem, widths = pool
    with pytest.raises(ValueError, match=message):
        gf.sample_critical_point(problem, widths, subset, key=jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("subset", "kind", "ranks"),
    [
        ((1, 2), "any", {(2, 2): 1}),  # every product has at least the rank of the whole
        ((1, 2), "any", {(1, 3): 3}),  # and the whole has rank |S|
        ((1,), "non-strict", {(2, 2): 2}),  # pivot (3,1)
        ((), "zero-hessian", {(3, 3): 1}),  # W_3 ≠ 0 has a quadratic term
    ],
)
def test_ranks_that_no_point_has_are_refused(subset, kind, ranks):
    problem, widths = WIDE
    with pytest.raises(ValueError, match=rf"there is no critical point of kind '{kind}' with S = .* and ranks"):
        gf.sample_critical_point(problem, widths, subset, key=jax.random.key(0), kind=kind, ranks=ranks)
    # What the theorems allow is found.
    allowed = {(1, 3): len(subset)}
    gf.sample_critical_point(problem, widths, subset, key=jax.random.key(0), kind=kind, ranks=allowed)


@pytest.mark.parametrize(
    ("s", "message"),
    [
        ([2.0, 2.0, 1.0], r"sampling critical points needs distinct .* s_1 = 2 and s_2 = 2 are equal"),
        ([2.0, 1.0, 0.0], r"s_3 = 0 is zero.*gdflow\.critical_values and gdflow\.inertia still work"),
    ],
)
def test_ties_and_zeros_are_refused(s, message):
    problem = whitened(s, 4, 3)
    with pytest.raises(ValueError, match=message):
        gf.sample_critical_point(problem, (4, 4, 4, 3), (1,), key=jax.random.key(0))
    assert len(gf.critical_values(problem, 3)) > 1
    # Two singular values that differ by more than round-off of their squares are distinct.
    near = whitened([2.0, 1.0 + 1e-9, 1.0], 4, 3)
    net = gf.sample_critical_point(near, (4, 4, 4, 3), (2,), key=jax.random.key(0))
    assert float(near.gradient(net).norm()) < 1e-12 * natural_size(near, net)


def test_networks_and_losses_that_do_not_fit_are_refused():
    problem, key = WIDE[0], jax.random.key(0)
    with pytest.raises(ValueError, match="need d_0 = 4 and d_N = 3"):
        gf.sample_critical_point(problem, (3, 4, 3), (1,), key=key)
    with pytest.raises(ValueError, match="positive integers, got 0"):
        gf.sample_critical_point(problem, (4, 0, 3), (), key=key)
    signs = np.where(np.arange(12).reshape(3, 4) % 2, 1.0, -1.0)
    with pytest.raises(ValueError, match="this problem has loss Logistic"):
        gf.sample_critical_point(Problem(np.eye(4), signs, Logistic()), (4, 4, 3), (1,), key=key)


# Generic points.


@pytest.mark.parametrize(
    ("widths", "s", "subset", "ranks"),
    [
        ((3, 3, 3, 3), [3, 2, 1], (), {(1, 1): 1, (3, 3): 1}),
        ((5, 4, 4, 3), [3, 2, 1], (), {(1, 1): 1, (3, 3): 1}),
        ((5, 4, 4, 3), [3, 2, 1], (2,), {(1, 1): 2, (3, 3): 2}),
        ((6, 5, 4, 4), [4, 3, 2, 1], (2,), {(1, 1): 2, (3, 3): 3}),
        ((4, 4, 4, 4, 4), [4, 3, 2, 1], (), {(1, 1): 2, (4, 4): 2, (2, 3): 0}),
    ],
)
def test_inputs_and_outputs_outside_the_subset_are_mixed(widths, s, subset, ranks):
    """`W_1` sees all inputs outside `S` or none, `W_N` acts on all outputs: no basis of them is special.

    On the first example rank one in `W_1` would be one column of it, if every input outside `S` stayed by itself.
    """
    d_y, outside = widths[-1], [i for i in range(widths[-1]) if i + 1 not in subset]
    none = 0
    problem = whitened(s, widths[0], widths[-1])
    for seed in range(8):
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(seed), ranks=ranks)
        assert np.linalg.norm(derivatives(problem, [net], "gradient")) <= 1e-12 * natural_size(problem, net)
        first, last = np.asarray(net.weights[0]), np.asarray(net.weights[-1])
        assert [numerical_rank(first), numerical_rank(last)] == [ranks[1, 1], ranks[len(widths) - 1, len(widths) - 1]]
        # A smooth law on entries of order one: of some hundred, one below 1e-10 (at rank 1 a product) has a tiny probability.
        assert np.min(abs(last)) > 1e-10
        smallest = abs(first).min(axis=0)
        assert np.all(np.delete(smallest, outside) > 1e-10)
        # Where only surplus inputs have paths (`W_1Σᵀ` of rank r), the inputs outside S have none of them.
        assert np.all(smallest[outside] > 1e-10) or not first[:, outside].any()
        none += not first[:, outside].any()
    assert none < 8
    assert none == 0 or widths[0] > d_y


def test_two_points_of_one_rank_type_differ_at_both_ends():
    """Rows and columns are mixed by a matrix each time anew: row spaces of `W_1` and column spaces of `W_N` turn."""
    problem = whitened([4, 3, 2, 1], 4, 4)
    nets = [
        gf.sample_critical_point(problem, (4, 4, 4, 4), (), key=jax.random.key(k), ranks={(1, 1): 2, (3, 3): 1})
        for k in (0, 1)
    ]
    first, last = ([np.asarray(net.weights[j]) for net in nets] for j in (0, 2))
    assert numerical_rank(np.concatenate(first, axis=0)) == 4
    assert numerical_rank(np.concatenate(last, axis=1)) == 2


@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_spread_singular_values_outside_the_subset(ratio):
    """Mixed outputs bring singular values of any ratio together; the layers stay of order `√ratio` at most."""
    problem = whitened([3, 1, 1 / ratio], 4, 3)
    for seed in range(10):
        net = gf.sample_critical_point(problem, (4, 3, 3, 3), (1,), key=jax.random.key(seed))
        assert np.linalg.norm(derivatives(problem, [net], "gradient")) <= 1e-12 * natural_size(problem, net)
        assert float(net.norm()) <= 50


@pytest.mark.parametrize("widths", [(4, 4, 3), (4, 4, 4, 3), (4, 4, 4, 4, 3)], ids=str)
def test_the_target_times_a_power_of_two_gives_the_layers_times_its_root(widths):
    N = len(widths) - 1
    for exponent in (-30, 1, 40):
        for kind in ("any", "strict", "balanced"):
            points = [
                gf.sample_critical_point(
                    whitened(np.array([3.0, 2.0, 1.0]) * 2.0**power, 4, 3),
                    widths,
                    (2,),
                    key=jax.random.key(3),
                    kind=kind,
                )
                for power in (0, N * exponent)
            ]
            # The sampler's steps are exact; roots of singular values (balanced points) and the SVD of the target round.
            np.testing.assert_allclose(flat(points[1]), flat(points[0]) * 2.0**exponent, rtol=1e-12)


# A single layer.


@pytest.mark.parametrize(("d_x", "d_y", "rank"), [(4, 3, 4), (2, 3, 2), (4, 3, 2)])
def test_a_single_layer_has_the_least_squares_solution(d_x, d_y, rank):
    problem = data_problem(d_x, d_y, rank, 8)
    k = min(d_y, rank)
    whole = tuple(range(1, k + 1))
    for kind in ("any", "minimum"):
        net = gf.sample_critical_point(problem, (d_x, d_y), whole, key=jax.random.key(0), kind=kind, ranks={(1, 1): k})
        X, Y = np.asarray(problem.design), np.asarray(problem.target)
        np.testing.assert_allclose(net.weights[0], Y @ np.linalg.pinv(X), atol=1e-12)
    for options, message in [
        ({"kind": "strict"}, "a single layer is convex: .* there are none of kind 'strict'"),
        ({"kind": "balanced"}, "none of kind 'balanced'"),
        ({"norm": 2.0}, "a single layer has no free scale"),
        ({"ranks": {(1, 1): 1}}, f"has rank {k}"),
    ]:
        with pytest.raises(ValueError, match=message):
            gf.sample_critical_point(problem, (d_x, d_y), whole, key=jax.random.key(0), **options)
    with pytest.raises(ValueError, match=r"its critical points have S = \(1, 2.*\), not \(1,\)"):
        gf.sample_critical_point(problem, (d_x, d_y), (1,), key=jax.random.key(0))


def test_a_single_layer_may_have_ties_and_zeros():
    problem = whitened([2, 2, 0], 4, 3)
    net = gf.sample_critical_point(problem, (4, 3), (1, 2), key=jax.random.key(0))
    np.testing.assert_allclose(net.weights[0], problem.target, atol=1e-14)


@pytest.mark.parametrize("name", TWO_HIDDEN)
def test_strata_are_closed_under_the_symmetries_of_the_hidden_layers(name):
    """`W_j → G_jW_jG_{j-1}^{-1}` moves a point on its stratum: gradient and loss stay those of a critical point."""
    problem, widths = POOL[name]
    rng = np.random.default_rng(5)
    for subset in admissible_subsets(problem, widths):
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(1), kind="any")
        G = [np.eye(widths[0]), *(np.eye(d) + 0.2 * rng.normal(size=(d, d)) for d in widths[1:-1]), np.eye(widths[-1])]
        layers = [
            after @ np.asarray(w) @ np.linalg.inv(before)
            for w, before, after in zip(net.weights, G, G[1:], strict=False)
        ]
        moved = LayerTuple([jnp.asarray(w) for w in layers])
        gradient = np.linalg.norm(derivatives(problem, [moved], "gradient"))
        assert gradient <= 1e-12 * natural_size(problem, moved)


def test_a_rank_deficient_input_leaves_no_weight_on_its_null_directions():
    problem = data_problem(4, 2, 3, 1)
    null = np.linalg.svd(np.asarray(problem.design).T)[2][3:]
    for kind in ("any", "strict", "balanced"):
        net = gf.sample_critical_point(problem, (4, 3, 2), (2,), key=jax.random.key(2), kind=kind)
        # Round-off of a product of an orthogonal matrix with W_1.
        assert np.linalg.norm(np.asarray(net.weights[0]) @ null.T) <= 1e-14 * np.linalg.norm(net.weights[0])
