"""How often ReLU students end at minima that are not global: from random starts, by the gradient flow and by gradient descent.

`k` students learn `k` orthonormal ReLU teachers from Gaussian inputs in `R^k` (`gdflow.teacher`), from `w_i ~ N(0, I/k)`.
Besides the `k!` global minima, where the students are the teachers, there are other minima from some `k` on (Safran, Shamir
2018). All starts of one `k` are the same for the flow and for every step of gradient descent, so differences are paired: what
counts are the starts whose limit differs.

Minima are in one class if their losses and all products of their students with each other and with the teachers are the same
(`TeacherObjective.fingerprint`): a permutation of the students, or of the coordinates, takes one to the other.

*What comes out*, with 2000 starts for every `k` from 4 to 12 and seed 0: by the flow 0, 0, 2, 89, 254, 424, 663, 935, 1138
starts end at spurious minima, by descent with step 0.1 0, 0, 2, 88, 254, 423, 665, 933, 1138. The fractions do not differ
measurably, but up to 35 starts end elsewhere; for `k = 8` 4, 8, 12, 24, 48 do with the steps 0.02, 0.05, 0.1, 0.2, 0.4. At the
most frequent spurious minimum one student points against a teacher and all others along one; from `k = 8` on there are others.

From Python: `gdflow.experiments.spurious_minima.spurious_minima(fast=True).figure`.
"""

from collections.abc import Callable, Iterator

from gdflow.checks import check_double_precision, check_seed
from gdflow.experiments.results import FigureResult
from gdflow.experiments.spurious_minima.claims import CLAIMS
from gdflow.experiments.spurious_minima.figures import NOTES, class_notes, class_table, draw, run_table
from gdflow.experiments.spurious_minima.runs import FAST as FAST
from gdflow.experiments.spurious_minima.runs import FULL as FULL
from gdflow.experiments.spurious_minima.runs import NAME as NAME
from gdflow.experiments.spurious_minima.runs import Results as Results
from gdflow.experiments.spurious_minima.runs import Study as Study
from gdflow.experiments.spurious_minima.runs import compute as compute


def spurious_minima(
    fast: bool = False,
    report: Callable[[str, int, int], None] | None = None,
    seed: int = 0,
    *,
    study: Study | None = None,
) -> FigureResult:
    """Fractions of random starts that end at spurious minima: ReLU students and teachers (Safran, Shamir 2018), flow and descent.

    **Arguments:** `fast`: up to `k = 9` with 300 starts each instead of `k = 20` with 2000; `report`: told of every run,
    `(label, done, total)`; `seed`: of the starts; `study`: another choice of sizes, starts and steps.

    **Raises:** `ValueError` without double precision, and for seeds that are none.
    """
    check_double_precision()
    check_seed(seed)
    return result(compute(study or (FAST if fast else FULL), report, seed))


def run(fast: bool, report: Callable[[str, int, int], None] | None, seed: int) -> Iterator[FigureResult]:
    """The one result of this experiment, for `gdflow.experiments.Experiment`."""
    yield spurious_minima(fast, report, seed)


def result(results: Results) -> FigureResult:
    """Picture, tables and claims of some runs."""
    return FigureResult(
        NAME,
        "Spurious minima of ReLU students and teachers",
        "Safran and Shamir (2018), *Spurious local minima are common in two-layer ReLU neural networks*, prove for 6 ≤ "
        "k ≤ 20 "
        "that k students of k orthonormal teachers have minima that are not global, and report that gradient descent "
        "finds them "
        "the more often the larger k is. Here: how often, with exact intervals, for gradient descent and for the flow "
        "from "
        "the same starts.",
        tuple(claim(results) for claim in CLAIMS),
        class_table(results),
        run_table(results),
        draw(results),
        (*class_notes(results), *NOTES),
    )
