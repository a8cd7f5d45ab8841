"""Checks of the options that all flows have: times, tolerances, numbers of steps."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gdflow.checks import check_count, check_number, is_traced


def check_span(t0: float, t1: float, *, endless: bool = False) -> None:
    """`ValueError` for spans that run backwards, or that never end unless they may."""
    if not (t1 > t0 and math.isfinite(t0)):
        raise ValueError(f"the flow runs forwards from a finite time: t1={t1} must be larger than t0={t0}")
    if math.isinf(t1) and not endless:
        raise ValueError("t1=inf needs a stop, e.g. stop=gf.AtCertificate()")


def save_times(ts: ArrayLike | Sequence[float] | float, t0: float, t1: float | Float[Array, ""]) -> Float[Array, " T"]:
    """Save times as an array: those given, or so many equidistant ones from `t0` to `t1`.

    **Raises:** `ValueError` for fewer than two equidistant times, for times that do not increase or lie outside, and for an
    empty list; `TypeError` for what is no number. The values of traced times are not checked.
    """
    if is_traced(ts):
        return jnp.asarray(ts, dtype=float)
    if np.ndim(ts) == 0:
        count = check_count("the number of save times ts", ts)
        if is_traced(t1) or not (count >= 2 and math.isfinite(t1)):
            raise ValueError(f"{count} equidistant times up to t1={t1}: give at least 2, and a finite t1")
        return jnp.linspace(t0, t1, count)
    values = np.asarray(ts)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"save times must be real numbers, got dtype {values.dtype}")
    if values.ndim != 1 or not values.size:
        raise ValueError(f"save times must be a list of at least one, got shape {values.shape}")
    if is_traced(t1):
        return jnp.asarray(values, dtype=float)
    if not (np.all(np.diff(values) > 0) and values[0] >= t0 and values[-1] <= t1):
        raise ValueError(f"save times must increase and lie in [{t0}, {t1}], got {values[0]} … {values[-1]}")
    return jnp.asarray(values, dtype=float)


def check_step(step: float, t0: float, t1: float) -> None:
    """`ValueError` for a fixed step that is not positive or does not divide the time."""
    if not check_number("step", step) > 0:
        raise ValueError(f"the step must be positive, got {step}")
    count = (t1 - t0) / step
    if math.isfinite(count) and (round(count) < 1 or abs(count - round(count)) > 1e-6):
        raise ValueError(f"a fixed step must divide t1 - t0: ({t1} - {t0})/{step} = {count}")


def check_tolerances(rtol: float, atol: float, max_steps: float) -> int:
    """The number of steps as an `int`.

    **Raises:** `ValueError` or `TypeError` for tolerances and numbers of steps that no integration can have: a relative
    tolerance lies between 0 and 1.
    """
    if not 0 < check_number("rtol", rtol) < 1:
        raise ValueError(f"need 0 < rtol < 1, got rtol={rtol}")
    if not check_number("atol", atol) >= 0:
        raise ValueError(f"need atol ≥ 0, got atol={atol}")
    return check_count("max_steps", max_steps)
