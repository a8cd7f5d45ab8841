"""What is minimised: a function of a point and its gradient, with all the data that it needs.

A `gdflow.Problem` knows where its data come from and what they mean. A compiled program needs no more than an `Objective`, which
has no static field that would differ between data sets: programs are compiled anew for other shapes only.

A point is a `gdflow.LayerTuple` for networks, any pytree of arrays for a potential. Every objective has its value and gradient
for one point, and for many points at once, in *lanes*, packed as a `gdflow.layouts.AbstractLayout` says.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gdflow.activations import AbstractActivation, Identity
from gdflow.layouts import NARROW, AbstractLayout, AbstractProducts, LanesLast, One
from gdflow.losses import AbstractLoss, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.network import LayerTuple, matmul

#: On a CPU, with the lanes along the last axis, more samples than these are summed up in blocks of so many, of a size that leaves
#: no rest if there is one. The compiler writes out sums of so many terms, and so works on vectors of lanes; longer ones it
#: leaves as loops over numbers, at two to three times the cost.
BLOCK = range(10, 21)

#: An input of an activation of at most this size, beside those of the layer, is zero.
_ROUND_OFF = 1e-12


class Objective(eqx.Module):
    """A real function `L` of a point."""

    @abstractmethod
    def effective_loss(self, net: Any) -> Float[Array, ""]:
        """`L` at a point."""

    @abstractmethod
    def gradient(self, net: Any) -> Any:
        """`∇L`, of the structure of the point."""

    def lane_losses(self, layout: AbstractLayout, nets: Any) -> Float[Array, " lanes"]:
        """`L` in every lane."""
        return jax.vmap(self.effective_loss)(layout.unpack(nets))

    def lane_gradients(self, layout: AbstractLayout, nets: Any) -> tuple[Any, Float[Array, " lanes"]]:
        """`∇L`, packed, and `L` in every lane."""
        unpacked = layout.unpack(nets)
        return layout.pack(jax.vmap(self.gradient)(unpacked)), jax.vmap(self.effective_loss)(unpacked)

    @property
    def smooth(self) -> bool:
        """Whether the gradient is continuous: without that the flow meets kinks."""
        return True

    def numbers(self, num_parameters: int) -> int:
        """About how many numbers an evaluation of the gradient at one point handles."""
        return num_parameters

    # -- what tells limits apart ---------------------------------------------------------------------------------------

    def canonical(self, net: Any) -> Any:
        """The representative of all points that symmetries of `L` make of this one. Traceable; by default there are none."""
        return net

    def num_symmetries(self, net: Any) -> Int[Array, ""]:
        """In how many independent directions the symmetries of `L` move the point: `∇²L` vanishes there at critical points."""
        return jnp.zeros((), int)

    def features(self, net: Any) -> Float[Array, " q"]:
        """Numbers that no symmetry changes, not even one that is not known: they tell families of limits apart."""
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(net)])

    def fingerprint(self, net: Any) -> Float[Array, " q"]:
        """Numbers that tell isolated limits apart: by default those of the canonical form."""
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(self.canonical(net))])

    def num_idle(self, net: Any) -> int:
        """How many of the symmetries move numbers that have no effect, whatever the others are; by default none."""
        return 0

    def dead_units(self, net: Any) -> tuple[Bool[Array, " d_j"], ...]:
        """Of every hidden layer, which units are off: nothing that enters them can move. By default none are known."""
        return ()

    def vanishes_at_infinity(self) -> Bool[Array, ""]:
        """Whether a loss below `log 2` proves that `L` tends to 0 while the point runs to infinity (`gdflow.separation`).

        So it does for homogeneous networks without decay or biases, with the logistic or the softmax loss of labels.
        """
        return jnp.asarray(False)


class DataObjective(Objective):
    """The loss of a network on data: `target` and `design`, one column a sample, and the `loss` of the output."""

    target: eqx.AbstractVar[Float[Array, "d_y m"]]
    design: eqx.AbstractVar[Float[Array, "d_in m"]]
    loss: eqx.AbstractVar[AbstractLoss]

    @property
    def d_in(self) -> int:
        """`d_0` of the networks that fit."""
        return self.design.shape[0]

    @property
    def d_out(self) -> int:
        """`d_N = d_y`."""
        return self.target.shape[0]

    @abstractmethod
    def on_samples(self, columns: Int[Array, " b"]) -> "DataObjective":
        """The loss summed over some samples only, with a share `b/m` of the decay: `m/b` times it has the loss as its mean."""


class LinearObjective(DataObjective):
    """The effective loss `L(W_1, …, W_N) = ℓ(W_N…W_1 D; A)` of a linear network.

    **Arguments:**

    - `target`, `design`: `A` and `D`.
    - `loss`: `ℓ`, a loss of the output.
    - `data_error`: how far `A` may be from the exact target by round-off of its making (Frobenius norm).
    - `diagonal`: whether `D` is known to be diagonal.
    """

    target: Float[Array, "d_y q"]
    design: Float[Array, "d_in q"]
    loss: AbstractLoss
    data_error: Float[Array, ""]
    diagonal: bool = eqx.field(static=True, default=False)

    def on_samples(self, columns: Int[Array, " b"]) -> "LinearObjective":
        return LinearObjective(self.target[:, columns], self.design[:, columns], self.loss, self.data_error)

    def end_to_end_loss(self, W: Float[Array, "d_y d_in"]) -> Float[Array, ""]:
        """The loss `ℓ(WD; A)` of an end-to-end matrix."""
        return self.loss.value(matmul(W, self.design), self.target)

    def end_to_end_gradient(self, W: Float[Array, "d_y d_in"]) -> Float[Array, "d_y d_in"]:
        """Its gradient; for the squared error `−M Dᵀ` with `M = A − WD`."""
        return matmul(self.loss.gradient(matmul(W, self.design), self.target), self.design.T)

    def effective_loss(self, net: LayerTuple) -> Float[Array, ""]:
        """The loss of a network."""
        return self.end_to_end_loss(net.end_to_end)

    def gradient(self, net: LayerTuple) -> LayerTuple:
        """The gradient in the layers, in closed form (Chitour, Liao, Couillet 2022, eq. (6), with `D`).

        Of a network with a waist (`gdflow.LayerTuple.waist`) without a matrix of the size of `W`.
        """
        if net.waist is None:
            return net.pullback(self.end_to_end_gradient(net.end_to_end))
        upper, lower = net.halves
        middle = self._times_design(lower, self.design)
        error = self.loss.gradient(matmul(upper, middle), self.target)
        back = self._times_design(matmul(upper.T, error), self.design.T)
        return net.pullback_halves(matmul(error, middle.T), back)

    def _times_design(self, matrix: Array, design: Array) -> Array:
        return matrix * jnp.diagonal(design)[None, :] if self.diagonal else matmul(matrix, design)

    def features(self, net: LayerTuple) -> Float[Array, " q"]:
        """The output `WD`, as far as the loss sees it: factors of one product are not told apart."""
        return jnp.ravel(_seen_by(self.loss, matmul(net.end_to_end, self.design)))

    def vanishes_at_infinity(self) -> Bool[Array, ""]:
        return _separates(self.loss, self.target)

    # In lanes only one matrix, of the size of `D`, stands between the layers and the loss.

    def _output(self, layout: AbstractLayout, W: Array) -> Array:
        if self.diagonal:
            return W * layout.everywhere(jnp.diagonal(self.design)[None, :])
        return layout.product(W, layout.everywhere(self.design))

    def lane_losses(self, layout: AbstractLayout, nets: LayerTuple) -> Float[Array, " lanes"]:
        W = nets.weights[0]
        for w in nets.weights[1:]:
            W = layout.product(w, W)
        return self._lane_value(layout, self._output(layout, W))

    def _lane_value(self, layout: AbstractLayout, F: Array) -> Float[Array, " lanes"]:
        if isinstance(self.loss, SquaredError):
            return 0.5 * layout.squares(layout.everywhere(self.target) - F)[0]
        return layout.each(self.loss.value, F, layout.everywhere(self.target))

    def lane_gradients(self, layout: AbstractLayout, nets: LayerTuple) -> tuple[LayerTuple, Float[Array, " lanes"]]:
        product, transpose = layout.product, layout.transpose
        right = [nets.weights[0]]
        for w in nets.weights[1:]:
            right.append(product(w, right[-1]))
        F = self._output(layout, right[-1])
        G = layout.each(self.loss.gradient, F, layout.everywhere(self.target))
        if self.diagonal:
            left = G * layout.everywhere(jnp.diagonal(self.design)[None, :])
        else:
            left = product(G, layout.everywhere(self.design.T))
        parts = []
        for w, r in zip(nets.weights[:0:-1], right[-2::-1], strict=True):
            parts.append(product(left, transpose(r)))
            left = product(transpose(w), left)
        return packed(nets, [left, *parts[::-1]]), self._lane_value(layout, F)


class NetworkObjective(DataObjective):
    """`L(W_1, …, W_N) = ℓ(σ_N(W_N σ_{N−1}(… σ_1(W_1X))); Y) + ½κΣ_j‖W_j‖²`, a network with entrywise activations.

    **Arguments:**

    - `target`, `design`: `Y` and `X`, one column a sample.
    - `loss`: `ℓ`, a loss of the output.
    - `activations`: one for all hidden layers, the output being linear; or one for every layer, that of the output included.
    - `decay`: `κ ≥ 0`.
    - `biases`: whether the last unit of every layer but the last is the constant 1: the last row of `X` is, and the last row of
      every `W_j` but `W_N` has no effect. So the last column of every layer is its bias.
    """

    target: Float[Array, "d_y m"]
    design: Float[Array, "d_in m"]
    loss: AbstractLoss
    activations: tuple[AbstractActivation, ...]
    decay: Float[Array, ""]
    biases: bool = eqx.field(static=True, default=False)

    def on_samples(self, columns: Int[Array, " b"]) -> "NetworkObjective":
        share = self.decay * (columns.shape[0] / self.target.shape[1])
        parts = (self.target[:, columns], self.design[:, columns], share)
        return eqx.tree_at(lambda o: (o.target, o.design, o.decay), self, parts)

    @property
    def smooth(self) -> bool:
        return all(activation.smooth for activation in self.activations)

    def numbers(self, num_parameters: int) -> int:
        rows, m = self.design.shape
        units = max(1, num_parameters // (rows + self.d_out))
        if max(rows, units, self.d_out) <= NARROW and jax.default_backend() == "cpu":
            m = min(m, BLOCK[-1])  # at once
        return num_parameters + m * units

    def layer_activations(self, depth: int) -> tuple[AbstractActivation, ...]:
        """`σ_1, …, σ_N`; `ValueError` if there are activations for another number of layers."""
        if len(self.activations) == 1:
            return (*self.activations * (depth - 1), Identity())
        if len(self.activations) != depth:
            raise ValueError(
                f"there are {len(self.activations)} activations, one for every layer, but the network has {depth} layers: give "
                "one activation for all hidden layers, or as many as there are layers"
            )
        return self.activations

    def _forward(
        self, ops: AbstractProducts, weights: tuple[Array, ...], shares: list[Array] | None = None
    ) -> tuple[list[Array], list[Array]]:
        """The inputs of all layers, the output last, and `σ_j'` at what the layers make of them.

        **Arguments:** `shares`: for activations with kinks slopes between those on both sides, 0 for the left and 1 for the right
        one, by layer; NaN where they are as they are.
        """
        inputs, slopes = [ops.everywhere(self.design)], []
        for j, (w, activation) in enumerate(zip(weights, self.layer_activations(len(weights)), strict=True), 1):
            z = ops.product(w, inputs[-1])
            value, slope = activation.both(z)
            if shares is not None and activation.slopes_at_kink is not None:
                left, right = activation.slopes_at_kink
                share = shares[j - 1]
                between = left + (right - left) * jnp.where(jnp.isnan(share), 0.0, share)
                value = jnp.where(jnp.isnan(share), value, between * z)
                slope = jnp.where(jnp.isnan(share), slope, between)
            if self.biases and j < len(weights):
                rows = w.shape[0] if isinstance(ops, One) else ops.height(w)  # type: ignore[attr-defined]
                constant = ops.everywhere((jnp.arange(rows) == rows - 1)[:, None])
                value, slope = jnp.where(constant, 1.0, value), jnp.where(constant, 0.0, slope)
            inputs.append(value)
            slopes.append(slope)
        return inputs, slopes

    def _value(self, ops: AbstractProducts, weights: tuple[Array, ...], output: Array) -> Array:
        value = ops.each(self.loss.value, output, ops.everywhere(self.target))
        squares = [ops.each(lambda w: jnp.sum(jnp.square(w), axis=(0, 1)), w) for w in weights]
        return value + 0.5 * self.decay * sum(squares)

    def _backward(
        self, ops: AbstractProducts, weights: tuple[Array, ...], shares: list[Array] | None = None
    ) -> tuple[list[Array], Array]:
        """Gradients in all layers, and the value: the errors `δ_j` of the layers from the last to the first."""
        inputs, slopes = self._forward(ops, weights, shares)
        delta = ops.each(self.loss.gradient, inputs[-1], ops.everywhere(self.target)) * slopes[-1]
        parts = []
        for j in range(len(weights), 0, -1):
            parts.append(ops.product(delta, ops.transpose(inputs[j - 1])) + self.decay * weights[j - 1])
            if j > 1:
                delta = ops.product(ops.transpose(weights[j - 1]), delta) * slopes[j - 2]
        return parts[::-1], self._value(ops, weights, inputs[-1])

    def output(self, net: LayerTuple) -> Float[Array, "d_y m"]:
        """`σ_N(W_N σ_{N−1}(… σ_1(W_1X)))`."""
        return self._forward(One(), net.weights)[0][-1]

    def preactivations(self, net: LayerTuple) -> tuple[Float[Array, "d_j m"], ...]:
        """What enters the activation of every layer, `W_j` times its input."""
        inputs, _ = self._forward(One(), net.weights)
        return tuple(matmul(w, a) for w, a in zip(net.weights, inputs[:-1], strict=True))

    def effective_loss(self, net: LayerTuple) -> Float[Array, ""]:
        """The loss of a network."""
        return self._value(One(), net.weights, self.output(net))

    def gradient(self, net: LayerTuple) -> LayerTuple:
        """The gradient in the layers, in closed form (Chitour, Liao, Couillet 2018, section 5, there for one hidden layer)."""
        return LayerTuple(self._backward(One(), net.weights)[0])

    def _over_samples(self, layout: AbstractLayout, function: Callable[["NetworkObjective"], Any]) -> Any:
        """`function(self)`, a sum over samples, block by block where that is faster (see `BLOCK`)."""
        m = self.design.shape[1]
        if m <= BLOCK[-1] or not isinstance(layout, LanesLast) or jax.default_backend() != "cpu":
            return function(self)
        size = max(BLOCK, key=lambda size: (m % size == 0, size))

        def part(first: Any, size: int) -> Any:
            """The sum over so many samples, which carry their share of the decay."""
            some = [jax.lax.dynamic_slice_in_dim(x, first, size, 1) for x in (self.design, self.target)]
            return function(
                eqx.tree_at(lambda o: (o.design, o.target, o.decay), self, (*some, self.decay * (size / m)))
            )

        def add(k: Array, total: Any) -> Any:
            return jax.tree.map(jnp.add, total, part(k * size, size))

        if m % size:
            total = part(m - m % size, m % size)
        else:
            total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: part(0, size)))
        return jax.lax.fori_loop(0, m // size, add, total)

    def lane_losses(self, layout: AbstractLayout, nets: LayerTuple) -> Float[Array, " lanes"]:
        weights = nets.weights
        return self._over_samples(
            layout, lambda some: some._value(layout, weights, some._forward(layout, weights)[0][-1])
        )

    def lane_gradients(self, layout: AbstractLayout, nets: LayerTuple) -> tuple[LayerTuple, Float[Array, " lanes"]]:
        parts, value = self._over_samples(layout, lambda some: some._backward(layout, nets.weights))
        return packed(nets, parts), value

    # -- kinks ---------------------------------------------------------------------------------------------------------

    @property
    def has_kinks(self) -> bool:
        """Whether all that is not smooth in it are kinks at zero of activations that are linear on either side."""
        return not self.smooth and all(a.smooth or a.slopes_at_kink is not None for a in self.activations)

    def kink_inputs(self, net: LayerTuple) -> Float[Array, " n"]:
        """What enters the activations that have kinks, on all samples, layer by layer; constant units left out."""
        parts = []
        for j, (z, activation) in enumerate(
            zip(self.preactivations(net), self.layer_activations(net.depth), strict=True), 1
        ):
            if activation.slopes_at_kink is not None:
                parts.append(jnp.ravel(z[:-1] if self.biases and j < net.depth else z))
        return jnp.concatenate(parts)

    def dead_kinks(self, net: LayerTuple) -> list[Bool[Array, " d_j"]]:
        """Of every unit that has kinks whether it is off, in the order of `kink_inputs`; none of an output is."""
        dead = (*self.dead_units(net), jnp.zeros(self.d_out, bool))
        activations = self.layer_activations(net.depth)
        return [
            units[:-1] if self.biases and j < net.depth else units
            for j, (units, activation) in enumerate(zip(dead, activations, strict=True), 1)
            if activation.slopes_at_kink is not None
        ]

    def gradient_between(self, net: LayerTuple, shares: Float[Array, " n"]) -> LayerTuple:
        """The gradient with slopes between those on both sides of kinks, in the order of `kink_inputs`; NaN: as they are."""
        layers: list[Array] = []
        for j, (w, activation) in enumerate(zip(net.weights, self.layer_activations(net.depth), strict=True), 1):
            rows, m = w.shape[0], self.design.shape[1]
            if activation.slopes_at_kink is None:
                layers.append(jnp.zeros(0))
                continue
            real = rows - 1 if self.biases and j < net.depth else rows
            own, shares = shares[: real * m].reshape(real, m), shares[real * m :]
            layers.append(jnp.concatenate([own, jnp.full((rows - real, m), jnp.nan)]))
        return LayerTuple(self._backward(One(), net.weights, layers)[0])

    def dead_units(self, net: LayerTuple) -> tuple[Bool[Array, " d_j"], ...]:
        """Of every hidden layer, which units have `σ' = 0` on all samples: nothing that enters them can move.

        So have units of ReLU whose input is nowhere positive. Where weight decay takes the weights of such a unit to zero its
        input is round-off, which counts as zero. The constant unit of a layer with biases counts as alive.
        """
        inputs, slopes = self._forward(One(), net.weights)
        dead = []
        for w, a, slope, activation in zip(
            net.weights[:-1], inputs, slopes, self.layer_activations(net.depth), strict=False
        ):
            off = slope == 0
            if activation.slopes_at_kink is not None and activation.slopes_at_kink[0] == 0:
                z = matmul(w, a)
                off = off | (jnp.abs(z) <= _ROUND_OFF * (1 + jnp.max(jnp.abs(a))))
            dead.append(jnp.all(off, axis=1) & ~self._constant(slope))
        return tuple(dead)

    def _silent_units(self, net: LayerTuple) -> tuple[Bool[Array, " d_j"], ...]:
        """Of every hidden layer, which units have the output zero (but for round-off) on all samples."""
        inputs, _ = self._forward(One(), net.weights)
        return tuple(
            jnp.all(jnp.abs(a) <= _ROUND_OFF * (1 + jnp.max(jnp.abs(before))), axis=1)
            for before, a in zip(inputs[:-2], inputs[1:-1], strict=True)
        )

    def _constant(self, layer: Float[Array, "d_j ..."]) -> Bool[Array, " d_j"]:
        """Which unit of a hidden layer is the constant."""
        rows = layer.shape[0]
        return (jnp.arange(rows) == rows - 1) if self.biases else jnp.zeros(rows, bool)

    def features(self, net: LayerTuple) -> Float[Array, " q"]:
        """The outputs on all samples, as far as the loss sees them."""
        return jnp.ravel(_seen_by(self.loss, self.output(net)))

    def canonical(self, net: LayerTuple) -> LayerTuple:
        """The representative of all networks that permutations, sign flips and scalings of hidden units make of this one.

        Layer by layer from the input: units that are off on all samples and whose output vanishes there are set to zero, and so
        are the rows of constant units; a unit of an odd activation points to one side of a fixed hyperplane; one of a
        homogeneous activation has incoming weights of norm one (outgoing ones are zero if these are), unless weight decay says
        how they are scaled; units are sorted along the normal of that hyperplane.
        """
        weights = list(net.weights)
        dead, silent = self.dead_units(net), self._silent_units(net)
        for j, activation in enumerate(self.layer_activations(net.depth)[:-1]):
            row, column = weights[j], weights[j + 1]
            constant = self._constant(row)
            gone = dead[j] & silent[j]
            row = jnp.where((gone | constant)[:, None], 0.0, row)
            column = jnp.where(gone[None, :], 0.0, column)
            factor = jnp.ones(row.shape[0], row.dtype)
            if activation.homogeneous:
                size = jnp.linalg.norm(row, axis=1)
                zero = (size == 0) & ~constant
                column = jnp.where(zero[None, :], 0.0, column)
                factor = jnp.where(zero | constant | (self.decay > 0), 1.0, 1 / jnp.where(size > 0, size, 1.0))
            along = matmul(row, _normal(row.shape[1]).astype(row.dtype)) * factor
            if activation.odd:
                factor = jnp.where((along < 0) & ~constant, -factor, factor)
                along = jnp.abs(along)
            order = jnp.argsort(jnp.where(constant, jnp.inf, along))
            row = jnp.where(constant[:, None], row, row * factor[:, None])
            column = jnp.where(constant[None, :], column, column / factor[None, :])
            weights[j], weights[j + 1] = row[order], column[:, order]
        return LayerTuple(weights)

    def num_symmetries(self, net: LayerTuple) -> Int[Array, ""]:
        """Scalings of homogeneous units, all weights of units that are off, and rows of constant units; none with decay."""
        count = jnp.zeros((), int)
        units = zip(self.layer_activations(net.depth), self.dead_units(net), self._silent_units(net), strict=False)
        for j, (activation, dead, silent) in enumerate(units):
            into, out = net.weights[j].shape[1], net.weights[j + 1].shape[0]
            scaled = 1 if activation.homogeneous else 0
            # What a saturated unit, not a silent one, makes of its constant output matters.
            off = into + jnp.where(silent, out, 0)
            real = dead.shape[0] - (1 if self.biases else 0)
            count = count + jnp.sum(jnp.where(dead, off, scaled)[:real]) + (into if self.biases else 0)
        return jnp.where(self.decay > 0, 0, count)

    def num_idle(self, net: LayerTuple) -> int:
        """Those of the rows of constant units; none with decay, to which they matter."""
        return sum(w.shape[1] for w in net.weights[:-1]) if self.biases and float(self.decay) == 0 else 0

    def vanishes_at_infinity(self) -> Bool[Array, ""]:
        homogeneous = all(activation.homogeneous for activation in self.activations) and not self.biases
        return (self.decay == 0) & homogeneous & _separates(self.loss, self.target)


class PotentialObjective(Objective):
    """A function of your own of any pytree of arrays, with its gradient by automatic differentiation."""

    function: Callable[[Any], Array]

    def effective_loss(self, net: Any) -> Float[Array, ""]:
        return self.function(net)

    def gradient(self, net: Any) -> Any:
        return jax.grad(self.function)(net)


def _normal(size: int) -> Array:
    """A fixed direction in general position."""
    return jnp.cos(1.0 + 0.7 * jnp.arange(size) ** 2 + 0.3 * jnp.arange(size))


def check_linear(objective: Objective) -> LinearObjective:
    """`objective`, or a `TypeError` where it is not that of a linear network."""
    if not isinstance(objective, LinearObjective):
        raise TypeError(f"this is about linear networks without weight decay, got a {type(objective).__name__}")
    return objective


def _seen_by(loss: AbstractLoss, output: Float[Array, "d_y m"]) -> Float[Array, "d_y m"]:
    """The output up to what the loss does not depend on: one number that is added in all classes, for softmax."""
    return output - jnp.mean(output, axis=0, keepdims=True) if isinstance(loss, SoftmaxCrossEntropy) else output


def _separates(loss: AbstractLoss, target: Float[Array, "d_y m"]) -> Bool[Array, ""]:
    """Whether the loss is one of labels: logistic, or softmax with one-hot columns. With soft labels it is never zero."""
    if isinstance(loss, Logistic):
        return jnp.asarray(True)
    one_hot = jnp.all((target == 0) | (target == 1)) & (target.shape[0] > 1)
    return one_hot & isinstance(loss, SoftmaxCrossEntropy)


def packed(like: LayerTuple, weights: list[Array]) -> LayerTuple:
    """Packed layers as a tree of the structure of packed networks: their shapes do not chain as those of networks do."""
    return jax.tree.unflatten(jax.tree.structure(like), weights)
