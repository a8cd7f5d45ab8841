"""Processes made by hand, run in lanes: what several test modules share."""

import jax
import numpy as np

import gdflow as gf
from gdflow.basins import Crossings, Drift, Limits
from gdflow.basins.lanes import run_lanes
from gdflow.basins.process import LaneProcess
from gdflow.basins.starts import Drawn, Listed
from gdflow.verdicts import LevelVerdict

KEY = jax.random.key(17)


def listed(nets):
    """Starts from tuples of matrices, as they are: nothing is checked."""
    stacked = gf.LayerTuple([np.stack(layers) for layers in zip(*nets, strict=True)])
    return Listed(stacked)


def process(problem, starts, crossings=(), *, method=None, key=KEY, **limits):
    """A process, of a law or of listed starts, with the level verdict."""
    starts = starts if isinstance(starts, Listed) else Drawn(starts, key)
    riders = (Drift(), Crossings(crossings)) if len(crossings) else (Drift(),)
    method = gf.integrator() if method is None else method
    return LaneProcess(problem, starts, method, LevelVerdict(problem, starts.widths), riders, Limits(**limits))


def run(process, ids, *, lanes, pool, threads=1):
    """All rows, in the order of the ids."""
    parts = []
    run_lanes(process, ids, lambda *part: parts.append(part), lanes=lanes, pool=pool, threads=threads)
    finished = np.concatenate([some for some, _ in parts])
    order = np.argsort(finished)
    np.testing.assert_array_equal(finished[order], np.sort(np.asarray(ids, np.uint64)))
    return {name: np.concatenate([columns[name] for _, columns in parts])[order] for name in parts[0][1]}


def columns(estimate):
    """The rows of an estimate as arrays."""
    return {name: estimate.outcomes[name].to_numpy() for name in estimate.outcomes.column_names}


def multiples(*sizes):
    """Three layers r·I of width 2, for several r."""
    return [(r * np.eye(2),) * 3 for r in sizes]
