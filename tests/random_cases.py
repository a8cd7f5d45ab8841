"""Random networks, problems with labels, and how to take batches of networks apart."""

import itertools

import jax
import numpy as np

from gdflow.losses import Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.problem import Problem


def random_net(rng: np.random.Generator, widths, scale: float = 1.0, batch: tuple[int, ...] = ()) -> LayerTuple:
    """Independent Gaussian entries of standard deviation `scale`."""
    return LayerTuple(
        [scale * rng.standard_normal((*batch, a, b)) for a, b in zip(widths[1:], widths[:-1], strict=True)]
    )


def zero_net(*widths: int) -> LayerTuple:
    """All entries zero."""
    return LayerTuple([np.zeros((b, a)) for a, b in itertools.pairwise(widths)])


def labelled_problem(rng: np.random.Generator, loss, samples: int = 8) -> Problem:
    """Samples of three inputs and two outputs in general position, with such outputs as the loss is for."""
    X = rng.standard_normal((3, samples))
    if isinstance(loss, Logistic):
        Y = rng.choice([-1.0, 1.0], (2, samples))
    elif isinstance(loss, SoftmaxCrossEntropy):
        Y = np.eye(2)[:, rng.integers(0, 2, samples)]
    else:
        Y = 2 * rng.standard_normal((2, samples))
    return Problem(X, Y, loss)


def row(tree, i):
    """Entry `i` of a batch."""
    return jax.tree.map(lambda x: x[i], tree)


def flat(net: LayerTuple) -> np.ndarray:
    """All entries, layer after layer."""
    return np.concatenate([np.ravel(w) for w in net.weights])
