"""What is measured: problems, laws of starts, tolerances and how many starts each contender runs."""

import dataclasses
import functools

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.basins.fused.matrices import cheapest_order  # noqa: E402
from gdflow.data import linnerud_path  # noqa: E402
from gdflow.data.bundled import LINNERUD_TARGETS  # noqa: E402

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A problem and a law of starts, each start integrated until its loss falls below the second-lowest critical value.

    - `nums`: starts per contender, with `--fast` in second place; a contender that is not named, or has none, takes no
      part.
    - `num_reference`: how many starts are compared with the tight reference, likewise.
    - `max_steps`, `t1`: a start that is undecided after so many steps, or so much flow time, is given up. SciPy, which
      cannot limit the steps, has `t1` only.
    - `dt0`: first step of `diffeqsolve`. Its own choice is always 0.01 (Diffrax 0.7.2), from which the large starts of
      F overflow, never to return.
    """

    name: str
    description: str
    problem: gf.Problem
    law: gf.initialization.AbstractInitialization
    nums: dict[str, tuple[int, int]]
    num_reference: tuple[int, int] = (50, 10)
    rtol: float = 1e-6
    atol: float = 1e-9
    max_steps: int = 10_000
    t1: float = 1e4
    dt0: float = 0.01

    @functools.cached_property
    def level(self) -> float:
        """The loss below which a start is certified."""
        return float(gf.thresholds.Thresholds(self.problem, self.law.widths).values[0])

    def starts(self, first: int, num: int) -> list[jax.Array]:
        """Layers of starts `first, …, first + num − 1`, stacked; the same for every contender that takes starts."""
        return list(self.law.sample_batch(KEY, np.arange(first, first + num)).weights)

    @property
    def design(self) -> np.ndarray | None:
        """The design `D`, `None` for the identity, so that no peer multiplies by it."""
        design = np.asarray(self.problem.design)
        return None if np.array_equal(design, np.eye(len(design))) else design

    @property
    def flop(self) -> int:
        """Operations of one gradient: the products forward, in the cheapest order, and back, with a diagonal design."""
        d = self.law.widths
        return 2 * 3 * sum(d[j] * d[s + 1] * d[k + 1] for (j, k), s in cheapest_order(d).items())


def _gaussian(problem: gf.Problem, hidden: list[int]) -> gf.initialization.Gaussian:
    return gf.initialization.Gaussian(problem.widths(hidden))


def _small(name: str, description: str, problem: gf.Problem, hidden: list[int], **options) -> Workload:
    return Workload(name, description, problem, _gaussian(problem, hidden), **options)


def all_workloads() -> list[Workload]:
    """The workloads A to F; G, the scaling, runs A in processes of its own."""
    from_values = gf.Problem.from_singular_values
    deep, deep_widths = from_values([3, 2, 1, 0.5]), (4,) * 11
    deep_options = dict(max_steps=4096, t1=150.0, dt0=1e-8, num_reference=(50, 5))
    return [
        _small(
            "A", "widths 6-5-5-3, singular values 3, 2, 1, whitened", from_values([3, 2, 1], d_x=6), [5, 5],
            nums=dict(gdflow=(200_000, 20_000), lanes=(100_000, 5000), cpp=(200_000, 20_000), diffrax=(20_000, 1000),
                      steady=(200, 20), torchode=(1000, 200), torchdiffeq=(10_000, 200), scipy=(1000, 20)),
        ),
        _small(
            "B", "widths 10-8-8-4, singular values 4, 3, 2, 1, whitened", from_values([4, 3, 2, 1], d_x=10), [8, 8],
            nums=dict(gdflow=(50_000, 2000), lanes=(20_000, 2000), cpp=(50_000, 5000), diffrax=(5000, 0), torchode=(1000, 0),
                      torchdiffeq=(5000, 0), scipy=(500, 10)),
        ),
        _small(
            "C", "widths 64-32-32-64, 64 singular values from 3 to 0.3, whitened: a bottleneck of half the rank",
            from_values(np.linspace(3, 0.3, 64)), [32, 32], max_steps=2000, num_reference=(10, 2),
            nums=dict(gdflow=(256, 16), cpp=(256, 16), diffrax=(64, 0), scipy=(10, 1)),
        ),
        _small(
            "D", "Linnerud data, standardised, data coordinates, widths 3-5-5-3",
            gf.Problem.from_csv(linnerud_path(), LINNERUD_TARGETS), [5, 5],
            nums=dict(gdflow=(50_000, 5000), lanes=(20_000, 5000), cpp=(50_000, 5000), diffrax=(5000, 200), scipy=(500, 10)),
        ),
        _small(
            "E", "stiff: widths 6-5-5-3, singular values 3, 0.3, 0.03, whitened", from_values([3, 0.3, 0.03], d_x=6),
            [5, 5],
            nums=dict(gdflow=(5000, 1000), lanes=(2000, 1000), cpp=(5000, 1000), diffrax=(1000, 0), scipy=(100, 5)),
        ),
        Workload(
            "F-orthogonal", "depth 10, all widths 4, singular values 3, 2, 1, 0.5, whitened; orthogonal starts",
            deep, gf.initialization.Orthogonal(deep_widths),
            nums=dict(gdflow=(500, 20), diffrax=(500, 0), scipy=(10, 1)), **deep_options,
        ),
        Workload(
            "F-balanced", "the same; λ-balanced starts, λ = 0.1",
            deep, gf.initialization.LambdaBalanced(deep_widths, lam=0.1),
            nums=dict(gdflow=(500, 20), diffrax=(500, 2), scipy=(20, 1)), **deep_options,
        ),
    ]  # fmt: skip
