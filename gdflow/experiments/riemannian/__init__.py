"""Figures 1 to 9 of Terstiege, Rauhut, Bah, Westdickenberg (2022), *A Riemannian gradient flow perspective on learning deep
linear neural networks*, Appendix: every figure recomputed, every claim decided by a criterion.

From Python: `gdflow.experiments.riemannian.figure_5(fast=True).figure`. Figures that share runs compute them once if they are
given the same `Runs`.

*How.* Runs of many draws of data, teacher and start are followed until their limits are certified (`runs`); orders of times are
tested over the draws, on two sets of them (`claims`); what the print does not state, the standard deviation of the non-balanced
starts, is varied.

*What comes out* with the published sizes and seed 0: of 28 claims 20 are confirmed, among them every limit that was followed to
its certificate, and that supervised networks are the slower the deeper they are (N = 20 takes eighty times as long as N = 2, and
more with d = 200). Three hang on the unprinted standard deviation of non-balanced starts: whether the kinds of start are alike,
and whether balanced ones are slightly faster. They are, by a few per cent, beside Glorot's; beside 1/√d_j they are four to ten
times as fast. Five are not decided: two limits, from non-balanced starts of deep networks of width 200, which were not followed
to their ends; and whether autoencoders are slower for larger N, where medians differ by no more than a tenth. It takes about 40
minutes on two cores; with `fast` two. Another `seed` draws other data, teachers and starts.
"""

from collections.abc import Callable, Iterator, Sequence

from gdflow.experiments.results import FigureResult
from gdflow.experiments.riemannian.autoencoder import figure_5 as figure_5
from gdflow.experiments.riemannian.autoencoder import figure_6 as figure_6
from gdflow.experiments.riemannian.autoencoder import figure_7 as figure_7
from gdflow.experiments.riemannian.autoencoder import figure_8 as figure_8
from gdflow.experiments.riemannian.autoencoder import figure_9 as figure_9
from gdflow.experiments.riemannian.runs import Runs as Runs
from gdflow.experiments.riemannian.supervised import figure_1 as figure_1
from gdflow.experiments.riemannian.supervised import figure_2 as figure_2
from gdflow.experiments.riemannian.supervised import figure_3 as figure_3
from gdflow.experiments.riemannian.supervised import figure_4 as figure_4

#: The figures by their numbers.
FIGURES: dict[int, Callable[..., FigureResult]] = {
    1: figure_1, 2: figure_2, 3: figure_3, 4: figure_4, 5: figure_5, 6: figure_6, 7: figure_7, 8: figure_8, 9: figure_9,
}  # fmt: skip


def run_figures(
    numbers: Sequence[int],
    fast: bool = False,
    report: Callable[[str, int, int], None] | None = None,
    seed: int = 0,
) -> Iterator[FigureResult]:
    """The figures of these numbers one after another, each as soon as it is done; what they share is computed once."""
    runs = Runs(fast, report, seed)
    for number in numbers:
        yield FIGURES[number](runs=runs)
