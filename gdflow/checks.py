"""Checks of single options: what is no count and no number is refused, with the name of the option and the value."""

import math
import numbers

import numpy as np


def check_count(name: str, value: object, least: int = 1) -> int:
    """`value` as an `int`: an integer, or a float with an integral value such as `1e4`, of at least `least`.

    **Raises:** `TypeError` for what is no number (booleans and strings are none), `ValueError` for fractions, infinities,
    `nan`, and numbers below `least`; the message names the option.

    ```python
    >>> check_count("max_steps", 1e4)
    10000
    ```
    """
    value = _scalar(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)


def check_number(name: str, value: object) -> float:
    """`value` as a finite `float`.

    **Raises:** `TypeError` for what is no real number (booleans and strings are none), `ValueError` for infinities and `nan`;
    the message names the option.
    """
    value = _scalar(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _scalar(value: object) -> object:
    """The entry of an array without axes; anything else as it is."""
    return np.asarray(value)[()] if getattr(value, "ndim", None) == 0 else value
