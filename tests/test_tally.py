"""Counts of a stream of outcomes against NumPy's; tallies add up."""

import json
import math

import numpy as np
import pytest

from gdflow.basins import Status
from gdflow.basins.outcomes import DECIDED
from gdflow.basins.tally import BINS_PER_DECADE, DECADES, Tally

BIN = 10 ** (1 / BINS_PER_DECADE)


def sample(num, num_limits, rng):
    """Made-up columns of every kind of row."""
    status = rng.integers(0, len(Status), num)
    decided = np.isin(status, DECIDED)
    highest = rng.integers(0, num_limits, num)
    return dict(
        status=status,
        limit=np.where(decided | (status == Status.REACHED), highest, -1),
        highest=highest,
        time=10 ** rng.uniform(-11, 17, size=num),
        steps=rng.integers(0, 10_000, num),
        loss=rng.random(num),
        gradient_norm=rng.random(num),
        drift=np.where(rng.random(num) < 0.1, np.nan, 10 ** rng.normal(-9, 1, num)),
    )


def filled(times):
    """A tally of certified starts with given times."""
    zeros = np.zeros(len(times), dtype=int)
    tally = Tally(2)
    tally.add(dict(status=zeros, limit=zeros, highest=zeros, steps=zeros, time=np.asarray(times, float)))
    return tally


def test_chunks_in_any_order_add_up(rng):
    """Counts by NumPy on the whole, of one tally and of the sum of several."""
    num, num_limits = 1000, 6
    columns = sample(num, num_limits, rng)
    order, cuts = rng.permutation(num), np.sort(rng.integers(0, num, 20))  # some chunks are empty
    cuts[3] = cuts[4]
    tally, total = Tally(num_limits), Tally(num_limits)
    for chunk in np.split(order, cuts):
        part = {name: column[chunk] for name, column in columns.items()}
        tally.add(part)
        alone = Tally(num_limits)
        alone.add(part)
        total = total + alone
    certified, located = (columns["status"] == status for status in (Status.CERTIFIED, Status.LOCATED))
    for counted in (tally, total):
        assert counted.num == num
        assert counted.statuses.tolist() == [int(np.sum(columns["status"] == s)) for s in Status]
        for found, among in ((counted.certified, certified), (counted.located, located)):
            assert found.tolist() == [int(np.sum(among & (columns["limit"] == k))) for k in range(num_limits)]
        # Possible is a limit of the starts that are certified to have it, and of those that are undecided up to it or beyond; of
        # those on a cycle none is.
        undecided = ~certified & ~located & (columns["status"] != Status.CYCLING)
        for k in range(num_limits):
            possible = np.sum((certified | located) & (columns["limit"] == k))
            possible += np.sum(undecided & (columns["highest"] >= k))
            assert counted.possible(k) == possible
            assert counted.reached[k] == np.sum((columns["status"] == Status.REACHED) & (columns["limit"] == k))
        again = Tally.from_record(json.loads(json.dumps(counted.record())), num_limits)
        for name, value in vars(counted).items():
            np.testing.assert_array_equal(getattr(again, name), value)
        for damage in ({"num": num + 1}, {"certified": [-1] * num_limits}, {"times": [[0, -1]]}, {"located": [1]}):
            with pytest.raises(ValueError, match=r"add up|reshape"):
                Tally.from_record(counted.record() | damage, num_limits)
        assert counted.steps == int(np.sum(columns["steps"]))
        assert counted.most_steps == int(np.max(columns["steps"]))
        assert counted.largest_drift == np.nanmax(columns["drift"])
        np.testing.assert_array_equal(
            counted.times, np.histogram(columns["time"][certified | located], Tally.edges())[0]
        )


def test_times_outside_the_histogram():
    """0 is a start that is certified as it stands; it and everything else is counted somewhere."""
    tally = filled([0.0, 1e-300, 1e-13, 1.0, 1e30, 1e300])
    assert tally.times[0] == 3
    assert tally.times[-1] == 2
    assert tally.times.sum() == 6
    one = np.flatnonzero(tally.times[1:-1]) + 1
    low, high = Tally.edges()[[one[0], one[0] + 1]]
    assert low <= 1 < high
    assert len(Tally.edges()) == len(tally.times) + 1
    np.testing.assert_allclose(Tally.edges()[[0, -1]], [10.0**d for d in DECADES], rtol=1e-14)


@pytest.mark.parametrize("q", [1e-4, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0])
def test_quantiles_are_right_to_a_bin(q, rng):
    """The smallest time that a share of at least `q` does not exceed, from the sorted sample."""
    times = np.exp(rng.normal(scale=2, size=10_001))
    exact = np.sort(times)[math.ceil(q * times.size) - 1]
    got = filled(times).time_quantile(q)
    assert exact / BIN < got < exact * BIN


def test_the_lowest_quantile_is_the_shortest_time(rng):
    """The limit of quantiles for `q` to 0, and what NumPy says of kept rows."""
    times = np.exp(rng.normal(scale=2, size=1001))
    got = filled(times).time_quantile(0.0)
    assert times.min() / BIN < got < times.min() * BIN


def test_no_certified_start_has_no_quantile():
    tally = Tally(2)
    assert tally.time_quantile(0.5) is None
