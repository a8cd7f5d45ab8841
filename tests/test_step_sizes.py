"""Basins against the step: counts by a loop of its own, intervals, limits that the flow does not have, balancing, pictures."""

import jax
import numpy as np
import optax
import pytest
from scipy.stats import beta

import gdflow as gf
from gdflow.basins.step_sizes import ENDS

KEY = jax.random.key(4)
TILT = 0.1
STEPS = (0.2, 0.6, 0.95, 1.15)


def slope(x):
    return x**3 - x + TILT


@pytest.fixture(scope="module")
def well():
    """A tilted double well: minima at `x³ − x + 0.1 = 0`, of different losses; steps above `2/(3x² − 1)` make them unstable."""
    potential = gf.Potential(lambda x: (x**2 - 1) ** 2 / 4 + TILT * x)
    return gf.step_size_basins(
        potential, lambda key: 1.6 * jax.random.normal(key), 400, key=KEY, steps=STEPS, progress=False
    )


def ends(x, step):
    """What becomes of one start, by iterating: which minimum, a cycle, or infinity."""
    for _ in range(20_000):
        x = x - step * slope(x)
        if abs(x) > 1e6:
            return "diverges"
    if abs(slope(x)) < 1e-9:
        return "lowest limit" if x < 0 else "another limit"
    y = x
    for _ in range(64):
        y = y - step * slope(y)
        if abs(y - x) < 1e-7:
            return "cycle"
    return "undecided"


@pytest.mark.slow
def test_ends_are_those_of_a_loop(well):
    starts = np.asarray(well.flow.plan.starts.networks(range(400)))
    flows = np.where(starts < np.sort(np.roots([1, 0, -1, TILT]))[1], "lowest limit", "another limit")
    for row in well.rows:
        found = [ends(x, row.step) for x in starts]
        for name, count in zip(ENDS, row.counts, strict=True):
            assert count == found.count(name), (row.step, name)
        both = np.isin(found, ENDS[:2])
        assert row.compared == both.sum()
        assert row.changed == np.sum(both & (np.array(found) != flows))
    assert well.rows[1].changed > 0
    assert well.rows[2].counts[ENDS.index("cycle")] > 0
    assert well.rows[-1].counts[ENDS.index("diverges")] > 0


@pytest.mark.slow
def test_intervals_are_exact(well):
    assert np.isfinite(well.rows[0].mean_steps)
    for row in well.rows:
        counts = dict(zip(ENDS, row.counts, strict=True))
        open_ = counts["undecided"] + counts["reached only"]
        for (name, count), (low, high) in zip(counts.items(), row.intervals, strict=True):
            possible = count if name in ("undecided", "reached only") else count + open_
            assert low == pytest.approx(0 if count == 0 else beta.ppf(0.025, count, 400 - count + 1))
            assert high == pytest.approx(1 if possible == 400 else beta.ppf(0.975, possible + 1, 400 - possible))
        assert row.changed_interval[0] <= row.changed / 400 <= row.changed_interval[1]


@pytest.mark.slow
def test_stability_ends_where_theory_says(well):
    roots = np.sort(np.roots([1, 0, -1, TILT]))
    edges = dict(well.edges)
    assert sorted(edges.values()) == pytest.approx(sorted(2 / (3 * roots[[0, 2]] ** 2 - 1)), rel=1e-6)
    for row in well.rows:
        for k, x in ((0, roots[0]), (1, roots[2])):
            if row.step > 2 / (3 * x**2 - 1):
                assert row.counts[k] == 0
            elif row.step < 0.9:
                assert row.counts[k] > 0


@pytest.mark.slow
def test_large_steps_balance_linear_networks():
    """With small steps the `C_j` stay; the flattest minima, the balanced ones, are stable up to `2/(N s_1^{2−2/N})`."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    law = gf.initialization.Gaussian((2, 3, 2))
    edge = 2 / (2 * 2.0)
    basins = gf.step_size_basins(problem, law, 60, key=KEY, steps=[0.01, 0.9 * edge, 1.2 * edge], progress=False)
    assert dict(basins.edges) == {"balanced minimum": pytest.approx(edge)}
    small, large, beyond = basins.rows
    assert small.counts[0] == 60
    assert small.imbalance[1] > 0.95
    assert large.imbalance[1] < 0.7
    assert beyond.counts[0] == beyond.counts[1] == 0
    assert small.changed == 0
    text = str(basins)
    assert "gradient descent" in text
    assert "imbalance" in text


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_edge_with_momentum(nesterov):
    """A parabola of curvature 3: below the edge all starts converge, above it none does."""
    bowl, mu = gf.Potential(lambda x: 1.5 * x**2), 0.6
    edge = 2 * (1 + mu) / (1 + 2 * mu * nesterov) / 3
    basins = gf.step_size_basins(
        bowl, lambda key: 1 + jax.random.uniform(key), 10, key=KEY, steps=[0.98 * edge, 1.02 * edge], optimizer=optax.sgd,
        options=dict(momentum=mu, nesterov=nesterov), flow=False, progress=False,
    )  # fmt: skip
    assert [row.counts[0] for row in basins.rows] == [10, 0]
    assert dict(basins.edges) == {"limit at 0": pytest.approx(edge, rel=1e-6)}


@pytest.mark.slow
def test_pictures_and_other_optimizers(well, tmp_path):
    figure = gf.plotting.plot_step_sizes(well)
    figure.savefig(tmp_path / "well.png")
    panel = figure.axes[0]
    assert panel.get_xlabel() == r"step $\eta$"
    assert {text.get_text() for text in panel.get_legend().get_texts()} >= {
        "lowest limit",
        "another limit",
        "cycle",
        "diverges",
    }
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    adam = gf.step_size_basins(
        problem, gf.initialization.Gaussian((2, 3, 2)), 20, key=KEY, steps=[0.05], optimizer=optax.adam,
        options=dict(b1=0.8), flow=False, progress=False, folder=tmp_path / "adam",
    )  # fmt: skip
    assert adam.optimizer == "adam, b1=0.8"
    assert adam.flow is None
    assert adam.rows[0].counts[ENDS.index("reached only")] == 20
    assert adam.edges == ()  # nothing is known of it
    assert (tmp_path / "adam" / "step-0.05" / "summary.json").exists()
    gf.plotting.plot_step_sizes(adam).savefig(tmp_path / "adam.png")


def test_bad_input():
    problem = gf.Problem.from_singular_values([1.0])
    law = gf.initialization.Gaussian((1, 1, 1))
    for steps, error, message in (([], ValueError, "at least one"), ([0.1, -1.0], ValueError, "a step must be positive"),
                                  (["a"], TypeError, "a step")):  # fmt: skip
        with pytest.raises(error, match=message):
            gf.step_size_basins(problem, law, 5, key=KEY, steps=steps, progress=False)
    with pytest.raises(ValueError, match="options"):
        gf.step_size_basins(problem, law, 5, key=KEY, steps=[0.1], options=dict(momentum=0.9), progress=False)
