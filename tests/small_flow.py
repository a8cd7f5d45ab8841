"""The one small flow of which trajectory, buffers and options are tested: four starts of a 3-3-2 network."""

import functools

import numpy as np
from random_cases import random_net, row

import gdflow as gf

WIDTHS = (3, 3, 2)
END = 6.0
#: Other options compile for themselves.
TOLERANCES = dict(rtol=1e-8, atol=1e-10)
PROBLEM = gf.Problem.from_target(np.random.default_rng(1).standard_normal((2, 3)))
STARTS = random_net(np.random.default_rng(2), WIDTHS, 0.5, (4,))
START = row(STARTS, 0)


@functools.cache
def flow() -> gf.Trajectory:
    """From the first start, every step saved."""
    return gf.simulate(PROBLEM, START, END, **TOLERANCES)


@functools.cache
def flows() -> gf.Trajectory:
    """From all four."""
    return gf.simulate(PROBLEM, STARTS, END, **TOLERANCES)
