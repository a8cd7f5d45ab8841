"""Minibatches: estimates of a gradient from a few samples, drawn anew in every epoch."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from gdflow.checks import check_count
from gdflow.ids import check_key
from gdflow.losses import SquaredError
from gdflow.network import LayerTuple
from gdflow.objective import DataObjective, LinearObjective
from gdflow.problem import AbstractProblem, Problem

#: Samples fit a problem if their gradient at a network is its own to this part.
_SAME = 1e-8


class Minibatches(eqx.Module):
    """`(m/b) Σ_{k∈B} ∇ℓ_k`, an unbiased estimate of the gradient, on `b` of `m` samples.

    In every epoch the samples are put in a new order; each batch takes the next `b`, and the last `m mod b` of an epoch are left
    out. Which these are depends on the key, the start and the step alone.

    **Arguments:**

    - `size`: `b`.
    - `key`: of the orders.
    - `samples`: `(X, Y)`, as the problem has them (centred and scaled, if it is). Needed for linear networks: a `Problem` keeps a
      reduced form of their data, which knows no samples any more.

    ```python
    >>> gf.gradient_descent(problem, net, 0.01, 1000, batches=gf.Minibatches(16, jax.random.key(0)))
    ```
    """

    size: int = eqx.field(static=True)
    key: Key[Array, ""]
    samples: tuple[Float[Array, "d_x m"], Float[Array, "d_y m"]] | None

    def __init__(self, size: int, key: Key[Array, ""], samples: tuple[ArrayLike, ArrayLike] | None = None):
        self.size, self.key = check_count("size", size), check_key(key)
        if samples is not None:
            X, Y = (np.asarray(x, dtype=float) for x in samples)
            if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1]:
                raise ValueError(
                    f"samples are X (d_x, m) and Y (d_y, m), one column a sample; got shapes {X.shape} and {Y.shape}"
                )
            samples = (jnp.asarray(X), jnp.asarray(Y))
        self.samples = samples

    def check(self, problem: AbstractProblem, widths: tuple[int, ...]) -> None:
        """`ValueError` unless such batches can be taken of this problem, for networks of these widths."""
        if not isinstance(problem, Problem):
            raise ValueError(f"minibatches are of samples, and a {type(problem).__name__} has none")
        if isinstance(problem.objective, LinearObjective):
            if problem.coordinates != "data":
                raise ValueError(
                    f'minibatches are of samples, which {problem.coordinates} coordinates do not have: coordinates="data"'
                )
            if self.samples is None:
                raise ValueError(
                    "the problem of a linear network keeps a reduced form of the data: give the samples themselves, "
                    "gf.Minibatches(size, key, samples=(X, Y))"
                )
            self._check_samples(problem)
        elif self.samples is not None:
            raise ValueError("the problem keeps its samples: leave those of the minibatches out")
        m = self.objective(problem.objective).target.shape[1]
        if self.size > m:
            raise ValueError(f"a batch of {self.size} samples: there are only {m}")

    def _check_samples(self, problem: Problem) -> None:
        assert self.samples is not None
        X, Y = self.samples
        if (X.shape[0], Y.shape[0]) != (problem.d_in, problem.d_out):
            raise ValueError(
                f"samples X {X.shape} and Y {Y.shape} do not fit a problem with d_x = {problem.d_in}, d_y = {problem.d_out}"
            )
        if not isinstance(problem.loss, SquaredError):
            return
        # The loss depends on the samples through XXᵀ and YXᵀ alone, but for a constant.
        D, A = problem.design, problem.target
        for name, ours, theirs in (("XXᵀ", X @ X.T, D @ D.T), ("YXᵀ", Y @ X.T, A @ D.T)):
            apart = float(jnp.max(jnp.abs(ours - theirs)))
            if not apart <= _SAME * float(jnp.max(jnp.abs(theirs)) + jnp.linalg.norm(D) * jnp.linalg.norm(A)):
                raise ValueError(
                    f"the samples are not those of the problem: {name} differs by {apart:.3g}. If the problem centres or scales "
                    "its data, so must they be"
                )

    def objective(self, objective: Any) -> DataObjective:
        """The objective with samples, all of them."""
        if self.samples is None:
            return objective
        X, Y = self.samples
        return LinearObjective(Y, X, objective.loss, objective.data_error)

    def columns(self, key: Key[Array, ""], step: Int[Array, ""], m: int) -> Int[Array, " b"]:
        """The samples of a batch. Traceable. **Arguments:** `key`: of the start; `step`: how many were taken before."""
        batches = m // self.size
        order = jax.random.permutation(jax.random.fold_in(key, step // batches), m)
        return jax.lax.dynamic_slice_in_dim(order, (step % batches) * self.size, self.size)

    def gradient(self, objective: Any, net: LayerTuple, key: Key[Array, ""], step: Int[Array, ""]) -> LayerTuple:
        """The estimate in the given step. Traceable. **Arguments:** `objective`: of the problem; `key`: of the start."""
        whole = self.objective(objective)
        m = whole.target.shape[1]
        some = whole.on_samples(self.columns(key, step, m))
        return jax.tree.map(lambda g: (m / self.size) * g, some.gradient(net))
