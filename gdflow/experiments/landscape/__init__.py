"""Figures 2 to 4 of Chitour, Liao, Couillet (2022), *A geometric approach of gradient descent algorithms in linear neural
networks*.

The printed figures are drawn by hand: a "vision" of the landscape, a normally hyperbolic manifold with its fibres, trajectories
near it. Here the same is drawn from computed objects, and what the text says beside them is decided from numbers.

From Python: `gdflow.experiments.landscape.figure_3().figure`.
"""

from collections.abc import Callable, Iterator, Sequence

from gdflow.experiments.landscape.hyperbolicity import figure_3 as figure_3
from gdflow.experiments.landscape.hyperbolicity import figure_4 as figure_4
from gdflow.experiments.landscape.vision import figure_2 as figure_2
from gdflow.experiments.results import FigureResult

#: The figures by their numbers.
FIGURES: dict[int, Callable[..., FigureResult]] = {2: figure_2, 3: figure_3, 4: figure_4}


def run_figures(
    numbers: Sequence[int],
    fast: bool = False,
    report: Callable[[str, int, int], None] | None = None,
    seed: int = 0,
) -> Iterator[FigureResult]:
    """The figures of these numbers one after another."""
    for number in numbers:
        if report is not None:
            report(f"Figure {number}", 0, 1)
        yield FIGURES[number](fast=fast, seed=seed)
        if report is not None:
            report(f"Figure {number}", 1, 1)
