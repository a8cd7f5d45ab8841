"""Draws of laws of starts, and statistical tests of them.

Keys are fixed, so every statistical test always gives the same answer; `FALSE_ALARM` is the probability that a right law
would have failed it for a key drawn at random.
"""

import jax
import numpy as np
import scipy.stats

FALSE_ALARM = 1e-6
#: Constructions of a few products of matrices with entries of order one to ten.
ROUNDING = 1e-12


def assert_law(sample: np.ndarray, cdf) -> None:
    """Kolmogorov–Smirnov test at level `FALSE_ALARM`."""
    assert scipy.stats.kstest(np.ravel(sample), cdf).pvalue > FALSE_ALARM


def assert_uncorrelated(columns: np.ndarray) -> None:
    """All correlations of the columns (one row a start) within their joint Gaussian quantile at level `FALSE_ALARM`."""
    n, p = columns.shape
    r = np.corrcoef(columns.T)[np.triu_indices(p, 1)]
    bound = scipy.stats.norm.isf(FALSE_ALARM / (2 * r.size)) / np.sqrt(n)  # Bonferroni over pairs and signs
    assert np.max(np.abs(r)) < bound


def draws(law, num: int) -> list[np.ndarray]:
    """The layers of `num` starts, each of shape `(num, d_j, d_{j-1})`."""
    return [np.asarray(w) for w in law.sample_batch(jax.random.key(11), np.arange(num)).weights]


def flat(layers) -> np.ndarray:
    return np.concatenate([w.reshape(len(w), -1) for w in layers], axis=1)


def conserved(layers) -> list[np.ndarray]:
    """`C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ` of a batch, in NumPy."""
    return [b.mT @ b - a @ a.mT for a, b in zip(layers[:-1], layers[1:], strict=True)]
