"""Laws with a density: Gaussian entries, a ball, the neighbourhood of a network."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from gdflow.checks import check_positive
from gdflow.initialization.law import AbstractInitialization, Support
from gdflow.initialization.matrices import gaussian_network
from gdflow.network import LayerTuple, check_widths


def fan_in(d_in: int, d_out: int) -> float:
    """`1/√d_in`, the standard deviation with which a layer keeps, on average, the mean square of the entries."""
    return 1 / math.sqrt(d_in)


def fan_out(d_in: int, d_out: int) -> float:
    """`1/√d_out`, as the teachers of Terstiege, Rauhut, Bah, Westdickenberg (2022) have it."""
    return 1 / math.sqrt(d_out)


def _number_or_function(scale: Any) -> float | Callable[[int, int], float]:
    if callable(scale):
        return scale
    if isinstance(scale, str):
        raise TypeError(
            "scale must be a number, or a function of (d_in, d_out) such as gdflow.initialization.fan_in or fan_out; "
            f"got {scale!r}"
        )
    return check_positive("scale", scale)


class Gaussian(AbstractInitialization):
    """Independent centred Gaussian entries.

    **Arguments:**

    - `widths`: `(d_0, …, d_N)`.
    - `scale`: the standard deviation of the entries: one number for all layers, or a function of `(d_in, d_out)` that gives it
      for a layer of shape `(d_out, d_in)`. Such are `gdflow.initialization.fan_in` and `fan_out`; another may be one of your
      own. Give the same function object every time: laws with different ones are different, and compile anew.

    **Raises:** `ValueError` for scales, or values of the function, that are not positive and finite; `TypeError` for what is
    neither number nor function.

    ```python
    >>> Gaussian((3, 4, 2), scale=lambda d_in, d_out: (2 / (d_in + d_out)) ** 0.5)
    ```
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    scale: float | Callable[[int, int], float] = eqx.field(static=True, default=fan_in, converter=_number_or_function)

    def __check_init__(self):
        _ = self.deviations

    @property
    def deviations(self) -> tuple[float, ...]:
        """The standard deviations of the entries, layer by layer."""
        if not callable(self.scale):
            return (self.scale,) * (len(self.widths) - 1)
        pairs = zip(self.widths[:-1], self.widths[1:], strict=True)
        return tuple(check_positive(f"scale{pair}", self.scale(*pair)) for pair in pairs)

    @property
    def invariant_set(self) -> Support:
        return Support.FULL

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        return gaussian_network(key, self.widths, self.deviations)


class UniformBall(AbstractInitialization):
    """Uniform in the ball `‖W‖ ≤ radius` of the space of all layers together."""

    widths: tuple[int, ...] = eqx.field(static=True, converter=check_widths)
    radius: float = eqx.field(static=True, default=1.0, converter=functools.partial(check_positive, "radius"))

    @property
    def invariant_set(self) -> Support:
        return Support.FULL

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        direction_key, radius_key = jax.random.split(key)
        direction = gaussian_network(direction_key, self.widths, [1.0] * (len(self.widths) - 1))
        size = jax.random.uniform(radius_key) ** (1 / direction.num_parameters)
        return (self.radius * size / direction.norm()) * direction


class Around(AbstractInitialization):
    """A given network plus independent Gaussian entries of standard deviation `scale`."""

    center: LayerTuple
    scale: float = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, center: LayerTuple, scale: float):
        if not isinstance(center, LayerTuple):
            raise TypeError(f"the centre must be a network, a gdflow.LayerTuple, got {center!r}")
        if center.batch_shape:
            raise ValueError(f"the centre must be one network, got a batch of shape {center.batch_shape}")
        self.center, self.scale, self.widths = center, check_positive("scale", scale), center.widths

    @property
    def invariant_set(self) -> Support:
        return Support.FULL

    def draw(self, key: Key[Array, ""]) -> LayerTuple:
        return self.center + gaussian_network(key, self.widths, [self.scale] * self.center.depth)
