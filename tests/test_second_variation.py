"""Second variations: the general form and the papers' block forms against automatic differentiation of the loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from random_cases import random_net

from gdflow.landscape import (
    NormalForm,
    sample_critical_point,
    second_variation,
    second_variation_blocks,
    second_variation_single_hidden,
    split_single_hidden,
)
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.problem import Problem

# Some hundred operations on entries of order one, then a sum that may cancel by a few digits.
RELATIVE = 1e-10

# (d_x, d_1, …, d_y), depth 2 to 6: wide, with bottlenecks narrower than the target, and with d_x < d_y.
POOL = (
    (4, 3, 2),
    (2, 5, 4),
    (5, 1, 3),
    (3, 7, 3),
    (5, 4, 2, 3),
    (2, 3, 4, 6),
    (7, 1, 5, 2),
    (4, 3, 5, 2, 3),
    (3, 2, 4, 3, 5),
    (3, 4, 2, 5, 3, 2),
    (2, 1, 3, 2, 4, 5),
    (4, 3, 2, 5, 3, 6, 2),
)


def random_problem(seed: int, d_x: int, d_y: int, coordinates: str = "data", rank_x: int | None = None) -> Problem:
    """Nine samples; `X` of a rank less than full if asked for."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(d_x, 9))
    if rank_x is not None:
        X = rng.normal(size=(d_x, rank_x)) @ X[:rank_x]
    return Problem(X, rng.normal(size=(d_y, 9)), coordinates=coordinates)


def random_subset(rng: np.random.Generator, problem: Problem, widths) -> tuple[int, ...]:
    """Not empty: there the Hessian may vanish."""
    k = len(problem.singular_values)
    r = int(rng.integers(1, problem.max_rank(widths) + 1))
    return tuple(sorted(int(i) + 1 for i in rng.permutation(k)[:r]))


def stack(nets) -> LayerTuple:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)


def half_hessian_form(problem: Problem, net: LayerTuple, w: LayerTuple):
    """`½vᵀHv` by `jax.hessian` of the loss of raveled weights."""
    flat, unravel = ravel_pytree(net)
    H = jax.hessian(lambda x: problem.effective_loss(unravel(x)))(flat)
    v = ravel_pytree(w)[0]
    return 0.5 * v @ H @ v


def evaluate(problem: Problem, nets, ws, *forms) -> list[np.ndarray]:
    """The forms at every network and variation, and last the reference."""

    def all_forms(net, w):
        return [f(problem, net, w) for f in (*forms, half_hessian_form)]

    return [np.asarray(x) for x in jax.jit(jax.vmap(all_forms))(stack(nets), stack(ws))]


def as_printed(problem, net, w):
    return second_variation_blocks(problem, net, w, as_printed=True)


def settings():
    """Every tuple of widths; those of two layers, which compile fast, in two coordinates."""
    for k, widths in enumerate(POOL):
        pairs, single = (("whitened", "data"), ("whitened", "reduced")), ("whitened", "data", "reduced")
        choices = pairs[k % 2] if len(widths) == 3 else single[k % 3 :][:1]
        for setting in choices:
            marks = [pytest.mark.slow] if k in (8, 10) else []
            yield pytest.param(widths, setting, id=f"{'-'.join(map(str, widths))}-{setting}", marks=marks)


@pytest.mark.parametrize(("widths", "setting"), list(settings()))
def test_both_forms_are_half_the_quadratic_form_of_the_hessian(widths, setting, rng):
    """At random and at critical points. In data coordinates `X` has less than full rank."""
    d_x, *hidden, d_y = widths
    problem = random_problem(sum(widths), d_x, d_y, setting, d_x - 1 if setting == "data" else None)
    widths = problem.widths(hidden)
    nets = [random_net(rng, widths) for _ in range(3)]
    for seed in range(3):
        subset = random_subset(rng, problem, widths)
        nets.append(sample_critical_point(problem, widths, subset, key=jax.random.key(seed)))
        assert problem.gradient(nets[-1]).norm() < 1e-11  # round-off of a gradient, entries at most some tens
    general, blocks, reference = evaluate(
        problem, nets, [random_net(rng, widths) for _ in nets], second_variation, second_variation_blocks
    )
    np.testing.assert_allclose(general, reference, rtol=RELATIVE)
    np.testing.assert_allclose(blocks, reference, rtol=RELATIVE)


@pytest.mark.parametrize("hidden", [(3,), (4, 2, 3)])
def test_targets_of_less_than_full_rank(hidden, rng):
    """Zero singular values are no obstacle to the block form."""
    X, Y = rng.normal(size=(4, 9)), rng.normal(size=(3, 1)) * rng.normal(size=9)
    problem = Problem(X, Y)
    widths = problem.widths(hidden)
    assert float(problem.singular_values[1]) == 0.0
    nets, ws = ([random_net(rng, widths) for _ in range(3)] for _ in range(2))
    general, blocks, reference = evaluate(problem, nets, ws, second_variation, second_variation_blocks)
    np.testing.assert_allclose(general, reference, rtol=RELATIVE)
    np.testing.assert_allclose(blocks, reference, rtol=RELATIVE)


def test_a_single_layer_has_the_general_form_only(rng):
    problem = random_problem(0, 3, 2)
    net, w = (random_net(rng, (3, 2)) for _ in range(2))
    # The loss is a quadratic polynomial: its second-order term does not depend on the point.
    expected = 0.5 * np.sum((np.asarray(w.weights[0]) @ np.asarray(problem.design)) ** 2)
    assert float(second_variation(problem, net, w)) == pytest.approx(expected, rel=1e-13)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        second_variation_blocks(problem, net, w)


@pytest.mark.parametrize("hidden", [(3,), (3, 4), (3, 4, 3), (2, 3, 2, 3)], ids=lambda hidden: f"H={len(hidden)}")
def test_the_printed_double_sum_is_wrong_from_three_hidden_layers_on(hidden, rng):
    problem = random_problem(1, 4, 3, "whitened")
    widths = problem.widths(hidden)
    nets, ws = ([random_net(rng, widths) for _ in range(3)] for _ in range(2))
    printed, right, reference = evaluate(problem, nets, ws, as_printed, second_variation_blocks)
    np.testing.assert_allclose(right, reference, rtol=RELATIVE)
    if len(hidden) < 3:  # the sum is empty
        np.testing.assert_array_equal(printed, right)
    else:
        assert np.all(abs(printed - reference) > 1e-3 * abs(reference))


def losses(rng):
    labels = rng.choice([-1.0, 1.0], (3, 6))
    return {
        "logistic": (Logistic(), labels),
        "softmax": (SoftmaxCrossEntropy(), np.eye(3)[:, rng.integers(0, 3, 6)]),
        "huber": (Huber(2.0), 2 * rng.normal(size=(3, 6))),
    }


@pytest.mark.parametrize("hidden", [(2,), (5, 3), (3, 1, 4)])
@pytest.mark.parametrize("loss", ["logistic", "softmax", "huber"])
def test_general_form_of_other_losses(loss, hidden, rng):
    """Random residuals lie off Huber's kinks, and on both sides of them."""
    loss, Y = losses(rng)[loss]
    problem = Problem(0.5 * rng.normal(size=(4, 6)), Y, loss)
    widths = problem.widths(hidden)
    nets, ws = ([random_net(rng, widths) for _ in range(4)] for _ in range(2))
    if isinstance(loss, Huber):
        small = [abs(Y - np.asarray(net.end_to_end @ problem.design)) < loss.delta for net in nets]
        assert 0 < np.mean(small) < 1
    general, reference = evaluate(problem, nets, ws, second_variation)
    np.testing.assert_allclose(general, reference, rtol=RELATIVE)
    with pytest.raises(ValueError, match="squared error"):
        second_variation_blocks(problem, nets[0], ws[0])


def test_the_form_vanishes_where_the_hessian_does(rng):
    problem = random_problem(2, 4, 3)
    widths = problem.widths((4, 3))
    nets = [sample_critical_point(problem, widths, (), key=jax.random.key(k), kind="zero-hessian") for k in range(3)]
    values = evaluate(problem, nets, [random_net(rng, widths) for _ in nets], second_variation, second_variation_blocks)
    # Terms of size some hundreds cancel to round-off; elsewhere they leave numbers of that size.
    np.testing.assert_allclose(values, 0.0, atol=1e-11)


# -- one hidden layer ------------------------------------------------------------------------------------------------------

SINGLE_HIDDEN = {
    "wide": ((4, 3, 2), "whitened", None),
    "bottleneck": ((4, 2, 3), "whitened", None),
    "transposed": ((2, 3, 4), "reduced", None),
    "rank-deficient-X": ((4, 3, 2), "data", 3),
}


@pytest.mark.parametrize("case", SINGLE_HIDDEN)
@pytest.mark.slow
def test_single_hidden_forms_at_critical_points_of_every_stratum(case, rng):
    """Eq. (25) and its split (29)–(32), whose terms have the sizes that (32) counts."""
    (d_x, d_1, d_y), coordinates, rank_x = SINGLE_HIDDEN[case]
    problem = random_problem(3, d_x, d_y, coordinates, rank_x)
    form, widths = NormalForm(problem), problem.widths((d_1,))
    q, _, p = form.widths(widths)
    subsets = [S for r in range(problem.max_rank(widths) + 1) for S in itertools.combinations(range(1, p + 1), r)] * 3
    nets = [sample_critical_point(problem, widths, S, key=jax.random.key(k)) for k, S in enumerate(subsets)]
    ws = [random_net(rng, widths) for _ in nets]
    general, single, reference = evaluate(problem, nets, ws, second_variation, second_variation_single_hidden)
    np.testing.assert_allclose(general, reference, rtol=RELATIVE)
    np.testing.assert_allclose(single, reference, rtol=RELATIVE)
    blocks = []
    for S, net, w, expected in zip(subsets, nets, ws, reference, strict=True):
        split = split_single_hidden(problem, net, w, S)
        assert float(split.value) == pytest.approx(expected, rel=RELATIVE)
        r = len(S)
        blocks += [float(jnp.linalg.norm(split.e_2C_2))] if r else []
        assert split.beta.size + split.gamma.size == r * r + r * (q - p)
        assert split.delta_1.size + split.epsilon_1.size == 2 * r * (p - r)
        assert split.e_2.size + split.delta_2.size == 2 * (d_1 - r) * (p - r)
    if case == "wide":  # at some of the points `C_2`, which the forms γ involve, is not zero
        assert max(blocks) > 1e-2


def test_the_split_at_a_minimum_is_a_sum_of_squares(rng):
    problem = random_problem(4, 4, 2, "whitened")
    widths = problem.widths((3,))
    net, w = sample_critical_point(problem, widths, (1, 2), key=jax.random.key(0)), random_net(rng, widths)
    split = split_single_hidden(problem, net, w, (1, 2))
    assert split.E_Y.size == 0
    np.testing.assert_allclose(split.D_Y, problem.singular_values, rtol=1e-14)  # copied from the target
    expected = 0.5 * (np.sum(np.asarray(split.beta) ** 2) + np.sum(np.asarray(split.gamma) ** 2))
    assert float(split.value) == pytest.approx(expected, rel=1e-14)


# -- differentiation and errors ---------------------------------------------------------------------------------------------


def test_the_form_is_differentiable(rng):
    """The gradient of half the quadratic form is `∇²L[w]`."""
    problem = random_problem(5, 3, 2)
    net, w = (random_net(rng, (3, 4, 2)) for _ in range(2))
    found = ravel_pytree(jax.jit(jax.grad(lambda v: second_variation(problem, net, v)))(w))[0]
    flat, unravel = ravel_pytree(net)
    H = jax.jit(jax.hessian(lambda x: problem.effective_loss(unravel(x))))(flat)
    np.testing.assert_allclose(found, H @ ravel_pytree(w)[0], rtol=RELATIVE)


@pytest.mark.parametrize("form", [second_variation, second_variation_blocks, second_variation_single_hidden])
def test_widths_that_do_not_fit_are_refused(form, rng):
    problem = random_problem(6, 3, 2)
    net = random_net(rng, (3, 4, 2))
    with pytest.raises(ValueError, match=r"widths of its network, \(3, 4, 2\), got \(3, 5, 2\)"):
        form(problem, net, random_net(rng, (3, 5, 2)))
    other = random_net(rng, (4, 4, 2))
    with pytest.raises(ValueError, match=r"\(4, 4, 2\) do not fit .* d_0 = 3"):
        form(problem, other, other)


def test_single_hidden_forms_refuse_other_depths_and_subsets(rng):
    problem = random_problem(7, 3, 2)
    deep = random_net(rng, (3, 2, 2, 2))
    with pytest.raises(ValueError, match="one hidden layer, got depth 3"):
        second_variation_single_hidden(problem, deep, deep)
    with pytest.raises(ValueError, match="one hidden layer, got depth 3"):
        split_single_hidden(problem, deep, deep, ())
    net = random_net(rng, (3, 1, 2))
    with pytest.raises(ValueError, match="indices of singular values, 1 to 2; got 3"):
        split_single_hidden(problem, net, net, (3,))
    with pytest.raises(ValueError, match="more than the narrowest"):
        split_single_hidden(problem, net, net, (1, 2))
    with pytest.raises(ValueError, match="twice"):
        split_single_hidden(problem, net, net, (1, 1))
