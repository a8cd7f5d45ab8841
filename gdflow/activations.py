"""Activations: entrywise functions between the layers, each with its derivative and what the theory needs of it."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class AbstractActivation(eqx.Module):
    """An entrywise function `σ`, continuous and differentiable but at finitely many points.

    An activation of your own needs `value` and `derivative`; the other properties claim the least unless told otherwise.
    """

    @abstractmethod
    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`σ(x)`, entry by entry."""

    @abstractmethod
    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`σ'(x)`, entry by entry; where there is none an element of Clarke's subdifferential."""

    def both(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """`σ(x)` and `σ'(x)`, for those that have work in common."""
        return self.value(x), self.derivative(x)

    @property
    def name(self) -> str:
        """For tables."""
        return type(self).__name__

    @property
    def odd(self) -> bool:
        """Whether `σ(−x) = −σ(x)`: then the sign of a hidden unit can be flipped."""
        return False

    @property
    def homogeneous(self) -> bool:
        """Whether `σ(cx) = cσ(x)` for every `c ≥ 0`: then a hidden unit can be scaled."""
        return False

    @property
    def smooth(self) -> bool:
        """Whether `σ` has a continuous second derivative: without it the flow meets kinks."""
        return True

    @property
    def slopes_at_kink(self) -> tuple[float, float] | None:
        """The slopes of `σ` left and right of zero, if `σ` is linear on either side; else `None`."""
        return None

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """Upper bounds of `|σ'|, |σ''|, |σ'''|, |σ''''|` on the line; `None` if they are not known or infinite."""
        return None

    @property
    def at_zero(self) -> float:
        """`σ(0)`."""
        return float(self.value(jnp.zeros(())))

    def ratio_integral(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`Σ(x) = ∫_0^x σ(s)/σ'(s) ds`, of which the conserved quantities of one hidden layer are made.

        **Raises:** `ValueError` if it is not known in closed form.
        """
        raise ValueError(f"the integral of σ/σ' is not known for {self.name}: define `ratio_integral`")


class Identity(AbstractActivation):
    """`σ(x) = x`, as in linear networks."""

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.ones_like(x)

    @property
    def odd(self) -> bool:
        return True

    @property
    def homogeneous(self) -> bool:
        return True

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        return (1.0, 0.0, 0.0, 0.0)

    def ratio_integral(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return 0.5 * x**2


class Tanh(AbstractActivation):
    """`σ(x) = tanh x`."""

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.tanh(x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 - jnp.tanh(x) ** 2

    def both(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        t = jnp.tanh(x)
        return t, 1 - t**2

    @property
    def odd(self) -> bool:
        return True

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        # With u = tanh²: σ' = 1 − u, |σ''| ≤ 4/(3√3), |σ'''| = 2|1 − u||3u − 1| ≤ 2, |σ''''| = 8|tanh|(1 − u)|2 − 3u| < 4.09.
        return (1.0, 4 / (3 * np.sqrt(3)) * (1 + 1e-15), 2.0, 4.09)

    def ratio_integral(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return 0.5 * jnp.sinh(x) ** 2


class Arctan(AbstractActivation):
    """`σ(x) = arctan x`."""

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.arctan(x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 / (1 + x**2)

    @property
    def odd(self) -> bool:
        return True

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        # σ'' = −2x/(1 + x²)², at most 3√3/8; |σ'''| = |6x² − 2|/(1 + x²)³ ≤ 2; |σ''''| = 24|x||1 − x²|/(1 + x²)⁴ < 4.67.
        return (1.0, 3 * np.sqrt(3) / 8 * (1 + 1e-15), 2.0, 4.67)

    def ratio_integral(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        # Near zero the closed form cancels: its series is used there, which is exact to round-off below |x| = 0.02.
        series = x**2 / 2 + x**4 / 6 - x**6 / 45 + x**8 / 140
        closed = (x + x**3 / 3) * jnp.arctan(x) - x**2 / 6 - jnp.log1p(x**2) / 3
        return jnp.where(jnp.abs(x) < 0.02, series, closed)


class Sigmoid(AbstractActivation):
    """`σ(x) = 1/(1 + e^{−x})`; `σ(0) = ½`, so a network of zeros does not output zero."""

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.sigmoid(x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        # σ(x) = (1 + tanh(x/2))/2.
        first, second, third, fourth = Tanh().bounds
        return (first / 4, second / 8, third / 16, fourth / 32)

    def ratio_integral(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        # σ/σ' = 1 + eˣ.
        return x + jnp.expm1(x)


class GELU(AbstractActivation):
    """`σ(x) = xΦ(x)`, `Φ` the normal distribution function."""

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x * jax.scipy.stats.norm.cdf(x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        # σ'' = (2 − x²)φ, σ''' = (x³ − 4x)φ, σ'''' = (7x² − 4 − x⁴)φ; |σ'| is largest at √2.
        return (1.1290, 0.7979, 0.7788, 1.5958)


class AbstractPiecewiseLinear(AbstractActivation):
    """Activations that are linear on either side of a kink at zero."""

    @property
    @abstractmethod
    def slopes_at_kink(self) -> tuple[float, float]:
        """The slopes of `σ` left and right of zero."""

    @property
    def homogeneous(self) -> bool:
        return True

    @property
    def smooth(self) -> bool:
        return False

    def ratio_integral(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        # σ = xσ' on either side of zero; where a unit is off its weights do not move, and any constant would do.
        return 0.5 * x**2


class LeakyReLU(AbstractPiecewiseLinear):
    """`σ(x) = x` for `x > 0` and `slope·x` below, `0 ≤ slope < 1`; `σ'(0) = slope` here."""

    slope: float = 0.01

    def __check_init__(self):
        if isinstance(self.slope, float | int) and not 0 <= self.slope < 1:
            raise ValueError(f"the slope of LeakyReLU must be at least 0 and below 1, got {self.slope}")

    @property
    def slopes_at_kink(self) -> tuple[float, float]:
        return (self.slope, 1.0)

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.where(x > 0, x, self.slope * x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.where(x > 0, 1.0, self.slope).astype(x.dtype)


class ReLU(AbstractPiecewiseLinear):
    """`σ(x) = max(x, 0)`; `σ'(0) = 0` here."""

    @property
    def slopes_at_kink(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.maximum(x, 0)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return (x > 0).astype(x.dtype)


class Custom(AbstractActivation):
    """An activation from a function and its derivative.

    **Arguments:** `function`, `slope`: traceable, entrywise; the derivative by automatic differentiation if there is none;
    `is_odd`, `is_homogeneous`, `is_smooth`: see `AbstractActivation`.

    **Raises:** `ValueError` if at some points (−3 to 3) the derivative is not that of the function, or a claim does not hold.

    ```python
    >>> activation = Custom(lambda x: jnp.sin(x), lambda x: jnp.cos(x), is_odd=True)
    ```
    """

    function: Callable[[Array], Array]
    slope: Callable[[Array], Array] | None = None
    is_odd: bool = False
    is_homogeneous: bool = False
    is_smooth: bool = True

    def __check_init__(self):
        x = jnp.linspace(-3, 3, 49) + 0.0117  # not at zero, where kinks are
        y, slope = self.value(x), self.derivative(x)
        if y.shape != x.shape or slope.shape != x.shape:
            raise ValueError(f"an activation acts entry by entry; of shape {x.shape} it makes {y.shape}, {slope.shape}")
        exact = jax.vmap(jax.grad(lambda s: self.function(s)))(x)
        wrong = np.flatnonzero(~(np.abs(slope - exact) <= 1e-4 * (1 + np.abs(exact))))
        if wrong.size:
            i = wrong[0]
            raise ValueError(
                f"the derivative given is {float(slope[i]):.6g} at {float(x[i]):.4g}, but that of the function is "
                f"{float(exact[i]):.6g}"
            )
        tolerance = 1e-4 * (1 + jnp.max(jnp.abs(y)))
        if self.is_odd and not jnp.all(jnp.abs(self.value(-x) + y) <= tolerance):
            raise ValueError("the function is not odd, as is_odd says")
        if self.is_homogeneous and not jnp.all(jnp.abs(self.value(2 * x) - 2 * y) <= 2 * tolerance):
            raise ValueError("the function is not positively homogeneous, as is_homogeneous says")

    def value(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.function(x)

    def derivative(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.slope is not None:
            return self.slope(x)
        return jax.jvp(self.function, (x,), (jnp.ones_like(x),))[1]

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "Custom")

    @property
    def odd(self) -> bool:
        return self.is_odd

    @property
    def homogeneous(self) -> bool:
        return self.is_homogeneous

    @property
    def smooth(self) -> bool:
        return self.is_smooth


#: By the names that the command line takes.
NAMED: dict[str, type[AbstractActivation]] = {
    "identity": Identity, "tanh": Tanh, "arctan": Arctan, "sigmoid": Sigmoid, "gelu": GELU, "relu": ReLU,
    "leaky-relu": LeakyReLU,
}  # fmt: skip


def as_activation(activation: object) -> AbstractActivation:
    """An activation from an instance, its class, or a name such as `"tanh"`; else a `TypeError` or `ValueError`."""
    if isinstance(activation, AbstractActivation):
        return activation
    if isinstance(activation, type) and issubclass(activation, AbstractActivation):
        return activation()
    if isinstance(activation, str):
        if activation not in NAMED:
            raise ValueError(
                f"there is no activation {activation!r}: one of {', '.join(NAMED)}, or gdflow.activations.Custom"
            )
        return NAMED[activation]()
    raise TypeError(
        f"an activation is one of gdflow.activations, such as Tanh(), or a name; got {activation!r}: a function of your own "
        "becomes one by gdflow.activations.Custom(function, derivative)"
    )
