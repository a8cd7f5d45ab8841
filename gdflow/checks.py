"""Checks of single options: what is no count and no number is refused, with the name of the option and the value.

Of arrays that are being traced no value is known, and checks of values are left out: `is_traced`.
"""

import math
import numbers
from typing import Any

import jax
import numpy as np


def is_traced(*trees: object) -> bool:
    """Whether any array in the trees is traced, so that its values are not known."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def check_count(name: str, value: object, least: int = 1) -> int:
    """`value` as an `int`: an integer, or a float with an integral value such as `1e4`, of at least `least`.

    **Raises:** `TypeError` for what is no number (booleans and strings are none), `ValueError` for fractions, infinities,
    `nan`, and numbers below `least`; the message names the option.

    ```python
    >>> check_count("max_steps", 1e4)
    10000
    ```
    """
    number = _real(name, value, "an integer")
    if not isinstance(number, int | np.integer) and (not math.isfinite(number) or number != int(number)):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(number)


def check_number(name: str, value: object) -> float:
    """`value` as a finite `float`.

    **Raises:** `TypeError` for what is no real number (booleans and strings are none), `ValueError` for infinities and `nan`;
    the message names the option.
    """
    number = _real(name, value, "a number")
    try:
        number = float(number)
    except OverflowError:  # of an integer
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return number


def check_positive(name: str, value: object) -> float:
    """`value` as a positive finite `float`.

    **Raises:** `TypeError` for what is no real number (booleans and strings are none), `ValueError` for zero, negative numbers,
    infinities and `nan`; the message names the option.
    """
    number = _real(name, value, "a number")
    if not 0 < number <= np.finfo(float).max:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(number)


def _real(name: str, value: Any, wanted: str) -> Any:
    """`value`, or the entry of an array without axes, if it is a real number."""
    number = np.asarray(value)[()] if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, bool | np.bool_) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    return number


def check_double_precision() -> None:
    """`ValueError` unless JAX computes in double precision, for experiments whose errors are below single precision."""
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError('experiments need double precision: jax.config.update("jax_enable_x64", True)')


def check_seed(seed: int) -> int:
    """A seed, or a `ValueError` for what is none."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"a seed lies between 0 and 2**63 - 1, got {seed}")
    return seed
