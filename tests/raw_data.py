"""Small data sets of every shape, and what is known of them without the library, in NumPy."""

import functools
import math

import numpy as np


def product(weights, size):
    return functools.reduce(lambda right, left: left @ right, weights, np.eye(size))


def raw_loss(weights, X, Y):
    """`½‖Y − W_N…W_1X‖²`."""
    return 0.5 * np.sum((Y - product(weights, len(X)) @ X) ** 2)


def raw_gradient(weights, X, Y):
    """`−[(ΠW)_{j+1}^N]ᵀ (Y − WX) Xᵀ [(ΠW)_1^{j-1}]ᵀ` (Chitour, Liao, Couillet 2022, eq. (6))."""
    G = -(Y - product(weights, len(X)) @ X) @ X.T
    return [product(weights[j + 1 :], w.shape[0]).T @ G @ product(weights[:j], len(X)).T for j, w in enumerate(weights)]


def inverse_root(square):
    values, vectors = np.linalg.eigh(square)
    return vectors / np.sqrt(values) @ vectors.T


def draw_weights(widths, rng):
    """Fan-in Gaussian: products of any depth stay of size one."""
    return [rng.normal(size=(b, a)) / math.sqrt(a) for a, b in zip(widths[:-1], widths[1:], strict=True)]


def relative_error(found, expected):
    """Of matrices or of tuples of matrices, in the Frobenius norm."""
    found, expected = (a if isinstance(a, list | tuple) else [a] for a in (found, expected))
    difference = sum(np.sum((np.asarray(a) - np.asarray(b)) ** 2) for a, b in zip(found, expected, strict=True))
    return math.sqrt(difference / sum(np.sum(np.asarray(b) ** 2) for b in expected))


def duplicated_features(rng):
    Z = rng.normal(size=(3, 12))
    return np.concatenate([Z, Z[:1], Z[1:2] - Z[2:]]), rng.normal(size=(2, 12))


def centred_classes(rng):
    """One-hot targets of four classes, centred: the rows sum to zero."""
    labels = np.arange(40) % 4
    Y = np.eye(4)[:, labels]
    return rng.normal(size=(5, 40)) + 2 * rng.normal(size=(5, 4))[:, labels], Y - Y.mean(axis=1, keepdims=True)


DATA = {
    "tall": lambda rng: (rng.normal(size=(4, 30)), rng.normal(size=(2, 30))),
    "few samples": lambda rng: (rng.normal(size=(4, 5)), rng.normal(size=(2, 5))),
    "wide": lambda rng: (rng.normal(size=(5, 3)), rng.normal(size=(2, 3))),
    "more outputs": lambda rng: (rng.normal(size=(2, 20)), rng.normal(size=(4, 20))),
    "one sample": lambda rng: (rng.normal(size=(3, 1)), rng.normal(size=(2, 1))),
    "one of each": lambda rng: (rng.normal(size=(1, 1)), rng.normal(size=(1, 1))),
    "duplicated features": duplicated_features,
    "centred classes": centred_classes,
}
WELL_POSED = ["tall", "few samples", "more outputs", "one of each"]  # X of full row rank
