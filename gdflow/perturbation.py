"""The same problem on other data, traceably: derivatives of a flow with respect to its data go through these functions.

`Problem(X, Y)` decomposes its data on the host, which no derivative passes. The functions here put other data of the same
shape, typically traced ones, into a problem that exists. States need no more than `target` and `design`, the `A` and `D` of
`½‖A − WD‖²`; the time to a certificate also depends on the data through the critical values, which move along here.

Singular *vectors* have no derivatives where singular values coincide and are not used: a problem `with_data` has singular
values but no vectors, and what needs these (other coordinates, best fits, strata) says so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.checks import is_traced
from gdflow.losses import SquaredError
from gdflow.network import matmul
from gdflow.objective import LinearObjective
from gdflow.problem import Problem
from gdflow.spectrum import SingularValues, Spectrum, data_error


def with_singular_values(problem: Problem, s: Float[Array, " min_d_y_rho"]) -> Problem:
    """The problem with other singular values `s_1 ≥ s_2 ≥ … > 0` of its target and the same singular vectors.

    Differentiable in `s`, in any coordinates; the residual of the least-squares fit stays. That `s` falls is not checked of
    traced values.

    **Raises:** `ValueError` for a loss without levels, for a number of values that the target does not have, and for values
    that do not fall, are negative or not finite.

    ```python
    >>> def time(s):
    ...     return simulate(with_singular_values(problem, s), net, jnp.inf, ts=[0.0], stop=AtCertificate()).final_time
    >>> jax.grad(time)(problem.singular_values)
    ```
    """
    f = problem.decomposition
    if s.shape != f.s.shape:
        raise ValueError(f"the target has {f.s.shape[0]} singular values, got shape {s.shape}")
    if not is_traced(s) and not (np.all(np.diff(s) <= 0) and np.all(np.asarray(s) >= 0) and np.all(np.isfinite(s))):
        raise ValueError(f"singular values fall and are finite and not negative, got {np.asarray(s).tolist()}")
    k = s.shape[0]
    Y_bar = matmul(f.U_Y[:, :k] * s[None, :], f.V_Y[:, :k].T)
    spectrum = Spectrum(f.U_X, f.S_X, Y_bar, f.U_Y, s, f.V_Y)
    objective = LinearObjective(
        *spectrum.standard_form(problem.coordinates), problem.loss, problem.data_error, problem.linear.diagonal
    )
    return problem.replace(objective=objective, spectrum=spectrum)


def with_data(problem: Problem, X: Float[Array, "d_x m"], Y: Float[Array, "d_y m"]) -> Problem:
    """The problem on other data, in data coordinates; differentiable in `X` and `Y`.

    With `Xᵀ = QR` (compact), `D = Rᵀ` and `A = YQ`: half the squared error is `½‖A − WD‖²` plus the residual, and the
    singular values of the target are those of `A`. Any loss; the samples of another loss are used as they are.

    **Raises:** `ValueError` for other shapes than the problem's, and for fewer samples than features (`X` must be of full
    row rank, which traced data cannot be checked for), and problems in other coordinates than data.
    """
    if problem.coordinates != "data":
        raise ValueError(f'data coordinates are needed, got {problem.coordinates!r}: problem.in_coordinates("data")')
    d_x, d_y, m = problem.d_in, problem.d_out, X.shape[-1]
    if X.shape != (d_x, m) or Y.shape != (d_y, m):
        raise ValueError(f"X and Y must have shapes ({d_x}, m) and ({d_y}, m), got {X.shape} and {Y.shape}")
    if not isinstance(problem.loss, SquaredError):
        return problem.replace(objective=LinearObjective(Y, X, problem.loss, problem.data_error))
    if m < d_x:
        raise ValueError(f"{m} samples of {d_x} features: XXᵀ is not invertible, and QR has no derivative")
    Q, R = jnp.linalg.qr(X.T)
    target, design = matmul(Y, Q), R.T
    offset = 0.5 * jnp.sum((Y - matmul(target, Q.T)) ** 2)
    values = SingularValues(jnp.linalg.svd(target, compute_uv=False))
    fixed_R, fixed_Y = jax.lax.stop_gradient((R, Y))
    error = data_error(jnp.linalg.svd(fixed_R, compute_uv=False), jnp.linalg.norm(fixed_Y), size=d_x + d_y)
    objective = LinearObjective(target, design, problem.loss, error)
    return problem.replace(objective=objective, offset=offset, spectrum=values, neglected=jnp.zeros(()))
