"""What the gradient flow of a problem conserves, and how much.

`conservation_laws` lists the laws that hold for the activations, the loss, the data and the weight decay of a problem,
and says of the others why they do not. `drift` tells how well an integration kept them.

Notation: `a_0 = X`, `z_j = W_ja_{j-1}`, `a_j = σ_j(z_j)`, `p_j = W_{j+1}ᵀ∂ℓ/∂z_{j+1}`; samples are numbered from 0.
Then `(W_{j+1}ᵀẆ_{j+1})_{ll'} = −Σ_k p_{lk}σ(z_{l'k})` and `(Ẇ_jW_jᵀ)_{ll'} = −Σ_k p_{lk}σ'(z_{lk})z_{l'k}`, whatever
comes before and after. All laws between two layers follow from these two lines, which no other activation and no
property of the loss enters.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from rich.console import RenderableType
from rich.text import Text

from gdflow.activations import AbstractActivation, Identity
from gdflow.checks import is_traced
from gdflow.invariants import conserved
from gdflow.losses import SoftmaxCrossEntropy
from gdflow.network import LayerTuple, check_layer_tuple, check_one_network, matmul
from gdflow.objective import LinearObjective, NetworkObjective
from gdflow.problem import Problem, check_problem
from gdflow.ranks import decide_rank, zero_threshold
from gdflow.tables import Printable, column_table


class AbstractLaw(eqx.Module):
    """A law: `e^{rate·t}` times its `value` is constant along the flow.

    **Arguments:** `rate`: `0` without weight decay, else `κ` times the degree of the quantity in the weights.
    """

    rate: eqx.AbstractVar[Float[Array, ""]]

    @property
    @abstractmethod
    def name(self) -> str:
        """A few words, for tables."""

    @property
    @abstractmethod
    def statement(self) -> str:
        """The quantity, as a formula."""

    @abstractmethod
    def value(self, net: LayerTuple) -> Float[Array, "..."]:
        """The quantity at a network, all its entries. Traceable."""

    def size(self, net: LayerTuple) -> Float[Array, ""]:
        """What the quantity is to be compared with: here `max_j ‖W_j‖²_F`. Traceable."""
        return jnp.max(net.layer_norms()) ** 2


class Imbalance(AbstractLaw):
    """`C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ` about a hidden layer without activation: there `σ(z) = z` and `σ' = 1`.

    Chitour, Liao, Couillet (2022), Lemma 2.2; with weight decay `Ċ_j = −2κC_j`.

    **Arguments:** `layer`: `j`; `units`: the units that take part, all but the constant one of a network with biases.
    """

    rate: Float[Array, ""]
    layer: int = eqx.field(static=True)
    units: int = eqx.field(static=True)

    @property
    def name(self) -> str:
        return f"imbalance {self.layer}"

    @property
    def statement(self) -> str:
        return _imbalance(self.layer)

    def value(self, net: LayerTuple) -> Float[Array, "units units"]:
        return conserved(net)[self.layer - 1][: self.units, : self.units]


class UnitImbalance(AbstractLaw):
    """The diagonal of `C_j` about a hidden layer with a homogeneous activation: there `σ(z) = zσ'(z)`.

    Du, Hu, Lee (2018), Theorem 2.1, for any data, loss and depth. The weights into a unit include its bias. At a
    kink `z = 0` both sides have `σ(z) = zσ'(z)`, so the law also holds where a flow slides along it.

    **Arguments:** as of `Imbalance`.
    """

    rate: Float[Array, ""]
    layer: int = eqx.field(static=True)
    units: int = eqx.field(static=True)

    @property
    def name(self) -> str:
        return f"imbalance {self.layer}, unit by unit"

    @property
    def statement(self) -> str:
        j = self.layer
        return f"(W_{j + 1}ᵀW_{j + 1})_ll − (W_{j}W_{j}ᵀ)_ll"

    def value(self, net: LayerTuple) -> Float[Array, " units"]:
        before, after = net.weights[self.layer - 1], net.weights[self.layer]
        return (jnp.sum(after**2, axis=0) - jnp.sum(before**2, axis=1))[: self.units]


class SampleIntegral(AbstractLaw):
    """`(W_2ᵀW_2)_ll − 2Σ_k Σ((W_1X)_lk)/‖x_k‖²`, `Σ = ∫_0 σ_1/σ_1'`, for samples that are orthogonal to each other.

    Chitour, Liao, Couillet (2018), Lemma 5, there for orthonormal samples, one hidden layer and the squared error. But
    `ż_lk = −Σ_k' ⟨x_k, x_k'⟩ σ'(z_lk')p_lk' = −‖x_k‖²σ'(z_lk)p_lk` needs the first layer and the samples only, so
    layers and losses after it may be any. A sample of zeros has `z = 0` for ever and adds nothing if `σ(0) = 0`; else
    the law fails.

    **Arguments:** `activation`: `σ_1`; `samples`: `X`, those of zeros left out; `units`: as of `Imbalance`.
    """

    rate: Float[Array, ""]
    activation: AbstractActivation
    samples: Float[Array, "d_in m"]
    units: int = eqx.field(static=True)

    @property
    def name(self) -> str:
        return "integral over samples"

    @property
    def statement(self) -> str:
        return "(W_2ᵀW_2)_ll − 2Σ_k Σ((W_1X)_lk)/‖x_k‖², Σ = ∫σ_1/σ_1'"

    def _terms(self, net: LayerTuple) -> Float[Array, "units m"]:
        integral = self.activation.ratio_integral(matmul(net.weights[0], self.samples))
        return (2 * integral / jnp.sum(self.samples**2, axis=0)[None, :])[: self.units]

    def value(self, net: LayerTuple) -> Float[Array, " units"]:
        return jnp.sum(net.weights[1] ** 2, axis=0)[: self.units] - jnp.sum(self._terms(net), axis=1)

    def size(self, net: LayerTuple) -> Float[Array, ""]:
        """`‖W_2‖²_F`, or the sum of the sizes of all terms of the integral if it is larger. Traceable."""
        return jnp.maximum(jnp.sum(net.weights[1] ** 2), jnp.sum(jnp.abs(self._terms(net))))


class LinearLaw(AbstractLaw):
    """A law that is linear in the weights: some of them, or sums of them, move by weight decay only."""

    def size(self, net: LayerTuple) -> Float[Array, ""]:
        """`max_j ‖W_j‖_F`. Traceable."""
        return jnp.max(net.layer_norms())


class IdleDirections(LinearLaw):
    """`W_1U`, the columns of `U` an orthonormal basis of the directions that the samples do not have, `UᵀX = 0`.

    Chitour, Liao, Couillet (2022), Remark 1, there for linear networks; `Ẇ_1` is a multiple of `Xᵀ` in all others too.
    """

    rate: Float[Array, ""]
    basis: Float[Array, "d_in q"]

    @property
    def name(self) -> str:
        return "idle directions"

    @property
    def statement(self) -> str:
        return f"W_1U, UᵀX = 0, U with {self.basis.shape[1]} columns"

    def value(self, net: LayerTuple) -> Float[Array, "d_1 q"]:
        return matmul(net.weights[0], self.basis)


class IdleRows(LinearLaw):
    """The last row of `W_j`, `j < N`, in a network with biases: it leads into a constant unit."""

    rate: Float[Array, ""]
    layer: int = eqx.field(static=True)

    @property
    def name(self) -> str:
        return f"idle row {self.layer}"

    @property
    def statement(self) -> str:
        return f"last row of W_{self.layer}, into the constant unit"

    def value(self, net: LayerTuple) -> Float[Array, " d"]:
        return net.weights[self.layer - 1][-1]


class OutputSums(LinearLaw):
    """The column sums `1ᵀW_N` for cross-entropy of a linear output layer.

    Softmax does not see a shift of all outputs of a sample, so `1ᵀ∂ℓ/∂F = 0` and `1ᵀẆ_N = 0` (Kunin et al. 2021,
    "Neural mechanics", translation symmetry).
    """

    rate: Float[Array, ""]

    @property
    def name(self) -> str:
        return "sums over outputs"

    @property
    def statement(self) -> str:
        return "1ᵀW_N"

    def value(self, net: LayerTuple) -> Float[Array, " d"]:
        return jnp.sum(net.weights[-1], axis=0)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A law that does not hold for a problem: its `name`, its `statement`, and the `reason`."""

    name: str
    statement: str
    reason: str


class ConservationLaws(Printable, eqx.Module):
    """The laws of a problem for networks of given widths, from `conservation_laws`; prints as a table.

    - `laws`: those that hold.
    - `refused`: those that do not, with reasons.
    - `widths`: `(d_0, …, d_N)`.
    """

    laws: tuple[AbstractLaw, ...]
    refused: tuple[Refusal, ...] = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)

    def __iter__(self) -> Iterator[AbstractLaw]:
        return iter(self.laws)

    def __len__(self) -> int:
        return len(self.laws)

    def check_network(self, net: LayerTuple) -> None:
        """`ValueError` or `TypeError` unless `net` is one network of these widths."""
        if check_one_network(check_layer_tuple(net)).widths != self.widths:
            raise ValueError(
                f"the laws are of networks of widths {self.widths}, but the network has widths {net.widths}"
            )

    def values(self, net: LayerTuple) -> tuple[Float[Array, "..."], ...]:
        """The values of all laws at a network. Traceable."""
        self.check_network(net)
        return tuple(law.value(net) for law in self.laws)

    def num_independent(self, net: LayerTuple) -> int:
        """How many of all entries of all values are functionally independent at a network: the rank of their Jacobian.

        ```python
        >>> conservation_laws(problem, (2, 3, 1)).num_independent(net)
        6
        ```
        """
        self.check_network(net)
        if not self.laws:
            return 0
        rows = np.asarray(_jacobian(self.without_refusals(), net))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths > 0, lengths, 1.0)
        return decide_rank(
            np.linalg.svd(rows, compute_uv=False), size=max(rows.shape), eps=float(jnp.finfo(rows.dtype).eps)
        ).rank

    def without_refusals(self) -> "ConservationLaws":
        """The same without reasons, which are static: with them, every new data set would compile anew."""
        return ConservationLaws(self.laws, (), self.widths)

    def __rich__(self) -> RenderableType:
        table = column_table(f"conservation laws for widths {self.widths}", "law", "quantity", "constant is")
        for column in table.columns[1:]:
            column.justify = "left"
        for law in self.laws:
            rate = float(law.rate)
            constant = "the quantity" if rate == 0 else f"e^({rate:g}t) times the quantity"
            table.add_row(Text(law.name), Text(law.statement), Text(constant, style="green"))
        for refusal in self.refused:
            reason = Text(f"no: {refusal.reason}", style="red")
            table.add_row(Text(refusal.name), Text(refusal.statement), reason)
        return table


def conservation_laws(problem: Problem, widths: Iterable[int]) -> ConservationLaws:
    """Which laws hold along every gradient flow of a problem, and why others do not.

    Between hidden layer `j` and the next: all of `C_j` without activation, its diagonal if the activation is
    homogeneous, for any data, loss and depth. For other activations of the first hidden layer: Lemma 5 of Chitour,
    Liao, Couillet (2018), if the samples are orthogonal. Beside them, what does not move at all. With weight decay `κ`,
    `e^{2κt}` times quadratic and `e^{κt}` times linear quantities are constant; Lemma 5 is lost, since `zσ/σ'` is no
    multiple of `Σ(z)` unless `σ` is homogeneous. With biases the weights into a unit include its bias, and the constant
    unit has no such law: nothing flows back through it.

    **Arguments:**

    - `problem`: a `gdflow.Problem`.
    - `widths`: `(d_0, …, d_N)`, see `problem.widths`.

    **Returns:** a `gdflow.conservation.ConservationLaws`.

    **Raises:** `ValueError` for widths that do not fit, `TypeError` for what is no problem and for traced data.

    ```python
    >>> problem = gf.Problem(jnp.eye(2), jnp.ones((1, 2)), activations="tanh")
    >>> [law.name for law in conservation_laws(problem, (2, 3, 1))]
    ['integral over samples']
    ```
    """
    widths = check_problem(problem).check_widths(widths)
    objective = problem.objective
    assert isinstance(objective, LinearObjective | NetworkObjective)
    if is_traced(objective):
        raise TypeError("which laws hold depends on the data, which must be known: not inside jax.jit, grad or vmap")
    depth = len(widths) - 1
    activations: tuple[AbstractActivation, ...] = (Identity(),) * depth
    decay, biases = jnp.zeros((), objective.design.dtype), False
    if isinstance(objective, NetworkObjective):
        activations, decay, biases = objective.layer_activations(depth), objective.decay, objective.biases
    laws: list[AbstractLaw] = []
    refused: list[Refusal] = []
    for j, activation in enumerate(activations[:-1], 1):
        units = widths[j] - biases
        if isinstance(activation, Identity):
            laws.append(Imbalance(2 * decay, j, units))
        elif activation.homogeneous:
            laws.append(UnitImbalance(2 * decay, j, units))
            reason = f"σ_{j} = {activation.name} is homogeneous, not linear"
            refused.append(Refusal(f"imbalance {j}, all of it", _imbalance(j), reason))
        else:
            moves = "" if j == 1 else ", and what enters it moves, so no integral over samples takes its place"
            reason = f"σ_{j} = {activation.name} is not homogeneous{moves}"
            refused.append(Refusal(f"imbalance {j}", _imbalance(j), reason))
            if j == 1:
                integral = SampleIntegral(0 * decay, activation, _nonzero_samples(objective.design), units)
                reasons = _against_integral(activation, objective.design, float(decay))
                if reasons:
                    refused.append(Refusal(integral.name, integral.statement, "; ".join(reasons)))
                else:
                    laws.append(integral)
        if biases:
            laws.append(IdleRows(decay, j))
            reason = "what leaves the constant unit moves, what enters it does not"
            refused.append(Refusal(f"imbalance {j}, constant unit", f"{_imbalance(j)}, last row and column", reason))
    basis = _idle_basis(objective.design)
    if basis.shape[1]:
        laws.append(IdleDirections(decay, basis))
    if isinstance(objective.loss, SoftmaxCrossEntropy):
        sums = OutputSums(decay)
        if isinstance(activations[-1], Identity):
            laws.append(sums)
        else:
            reason = f"the output has an activation, σ_{depth} = {activations[-1].name}"
            refused.append(Refusal(sums.name, sums.statement, reason))
    return ConservationLaws(tuple(laws), tuple(refused), widths)


def drift(
    laws: ConservationLaws, net: LayerTuple, start: LayerTuple, time: float | Float[Array, ""] = 0.0
) -> Float[Array, ""]:
    """How far the conserved quantities `q` have moved along a flow since its start, relative to the weights.

    The largest `‖q(net) − e^{−rate·time}q(start)‖_F / max(size(net), e^{−rate·time}size(start))` of all laws: zero for
    the exact flow, without laws, and between zero networks. For a linear network without idle directions it is
    `gdflow.invariants.drift`. It measures the error of an integration. Traceable, and one function of two networks:
    `jax.vmap` it along a trajectory.

    **Arguments:**

    - `laws`: of the problem, for these widths.
    - `net`, `start`: the network, and where its flow began.
    - `time`: that has passed; without weight decay it does not matter.

    **Returns:** a number, shape `()`.

    **Raises:** `ValueError` for networks of other widths.

    ```python
    >>> float(drift(laws, net, net))
    0.0
    ```
    """
    laws.check_network(net)
    laws.check_network(start)
    worst = jnp.zeros((), net.weights[0].dtype)
    for law in laws:
        factor = jnp.exp(-law.rate * time)
        moved = jnp.linalg.norm(jnp.ravel(law.value(net) - factor * law.value(start)))
        size = jnp.maximum(law.size(net), factor * law.size(start))
        worst = jnp.maximum(worst, moved / jnp.where(size > 0, size, 1.0))
    return worst


def _imbalance(j: int) -> str:
    return f"C_{j} = W_{j + 1}ᵀW_{j + 1} − W_{j}W_{j}ᵀ"


def _lengths(design: Array) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of the samples, and which of them count as zero."""
    lengths = np.linalg.norm(np.asarray(design), axis=0)
    threshold = zero_threshold(float(lengths.max(initial=0.0)), max(design.shape), float(jnp.finfo(design.dtype).eps))
    return lengths, lengths <= threshold


def _nonzero_samples(design: Array) -> Array:
    return design[:, np.flatnonzero(~_lengths(design)[1])]


def _against_integral(activation: AbstractActivation, design: Array, decay: float) -> list[str]:
    """What speaks against the law of `SampleIntegral`; nothing if it holds."""
    reasons = []
    try:
        activation.ratio_integral(jnp.zeros((1, 1), design.dtype))
    except ValueError:
        reasons.append(f"the integral of σ/σ' is not known in closed form for {activation.name}")
    if decay > 0:
        reasons.append(f"weight decay {decay:g}: the quantity is not quadratic, so its parts decay at different rates")
    lengths, zero = _lengths(design)
    if zero.any() and activation.at_zero != 0:
        reasons.append(
            f"sample {np.flatnonzero(zero)[0]} is zero, and σ(0) = {activation.at_zero:g}: it moves W_2 but not W_1"
        )
    cosines = np.where(zero, 0.0, np.asarray(design) / np.where(zero, 1.0, lengths))
    cosines = np.triu(cosines.T @ cosines, 1)
    i, k = np.unravel_index(np.argmax(np.abs(cosines)), cosines.shape)
    if abs(cosines[i, k]) > zero_threshold(1.0, max(design.shape), float(jnp.finfo(design.dtype).eps)):
        reasons.append(f"samples {i} and {k} are not orthogonal: cosine {cosines[i, k]:.3g}")
    return reasons


def _idle_basis(design: Array) -> Float[Array, "d_in q"]:
    U, s, _ = np.linalg.svd(np.asarray(design), full_matrices=True)
    rank = decide_rank(s, size=max(design.shape), eps=float(jnp.finfo(design.dtype).eps)).rank
    return jnp.asarray(U[:, rank:], design.dtype)


@eqx.filter_jit
def _jacobian(laws: ConservationLaws, net: LayerTuple) -> Float[Array, "values parameters"]:
    flat, unflatten = ravel_pytree(net)
    return jax.jacrev(lambda w: ravel_pytree(laws.values(unflatten(w)))[0])(flat)
