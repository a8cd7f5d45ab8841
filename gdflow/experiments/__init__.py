"""Experiments of the papers, run by name: pictures, numbers and texts that say which claims the numbers confirm."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from types import ModuleType

import rich.progress

from gdflow.basins.storage import prepare_folder
from gdflow.checks import check_double_precision, check_seed
from gdflow.experiments import landscape as landscape
from gdflow.experiments import riemannian as riemannian
from gdflow.experiments import spurious_minima as spurious_minima
from gdflow.experiments.results import Claim as Claim
from gdflow.experiments.results import FigureResult as FigureResult
from gdflow.experiments.results import file_names, summary_markdown

INDEX = "index.md"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A named experiment.

    - `description`: one line; `outputs`: the names of its results, in order.
    - `run`: called with `fast`, a report function `(label, done, total)` and a seed; yields the results.
    """

    description: str
    outputs: tuple[str, ...]
    run: Callable[[bool, Callable[[str, int, int], None] | None, int], Iterator[FigureResult]]

    @property
    def files(self) -> tuple[str, ...]:
        """The files it writes."""
        index = (INDEX,) if len(self.outputs) > 1 else ()
        return (*(file for name in self.outputs for file in file_names(name)), *index)


def _figures(paper: ModuleType, description: str) -> dict[str, Experiment]:
    """The figures of a paper together, by its name, and each by its number."""

    def experiment(numbers: tuple[int, ...], description: str) -> Experiment:
        return Experiment(
            description,
            tuple(f"{name}-{number}" for number in numbers),
            lambda fast, report, seed: paper.run_figures(numbers, fast, report, seed),
        )

    name = paper.__name__.rsplit(".", 1)[1]
    single = {
        f"{name}-{number}": experiment((number,), (figure.__doc__ or "").split(" Arguments as")[0].splitlines()[0])
        for number, figure in paper.FIGURES.items()
    }
    return {name: experiment(tuple(paper.FIGURES), description), **single}


#: All experiments by name.
EXPERIMENTS: dict[str, Experiment] = {
    **_figures(riemannian, "Figures 1-9 of Terstiege, Rauhut, Bah, Westdickenberg (2022), Appendix"),
    **_figures(landscape, "Figures 2-4 of Chitour, Liao, Couillet (2022), from computed objects"),
    spurious_minima.NAME: Experiment(
        "How often ReLU students end at spurious minima, by the flow and by descent (after Safran, Shamir 2018)",
        (spurious_minima.NAME,),
        spurious_minima.run,
    ),
}


def find_experiment(name: str) -> Experiment:
    """The experiment of this name; `ValueError` that lists the names if there is none."""
    if name not in EXPERIMENTS:
        known = "\n".join(f"  {other}: {experiment.description}" for other, experiment in EXPERIMENTS.items())
        raise ValueError(f"there is no experiment {name!r}; there are:\n{known}")
    return EXPERIMENTS[name]


def run_experiment(
    name: str,
    folder: str | os.PathLike,
    *,
    fast: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> list[FigureResult]:
    """Runs an experiment and writes its results into a folder, each as soon as it is there.

    For every figure a picture, the curves and the runs as CSV, and a text with the claims; for several figures an `index.md`.

    **Arguments:** `fast`: smaller sizes and shorter times; `seed`: what data, teachers and starts are drawn with;
    `overwrite`: replace results that are in the folder; `progress`: show a bar.

    **Raises:** `ValueError` for unknown names, seeds that are none and without double precision; before anything is computed, as
    `gdflow.basins.storage.prepare_folder`, for folders that can't be written.
    """
    experiment = find_experiment(name)
    check_double_precision()
    check_seed(seed)
    folder = prepare_folder(folder, experiment.files, overwrite=overwrite)
    results: list[FigureResult] = []
    with rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[runs]}"),
        rich.progress.TimeElapsedColumn(),
        disable=not progress,
    ) as bar:
        figures = bar.add_task(name, total=len(experiment.outputs), runs="")

        def report(label: str, done: int, total: int) -> None:
            bar.update(figures, completed=len(results) + done / max(total, 1), runs=f"{label}: run {done}/{total}")

        for result in experiment.run(fast, report, seed):
            result.save(folder)
            results.append(result)
            bar.update(figures, completed=len(results))
    if INDEX in experiment.files:
        _write_index(folder, experiment, results)
    return results


def _write_index(folder: pathlib.Path, experiment: Experiment, results: list[FigureResult]) -> None:
    (folder / INDEX).write_text(summary_markdown(experiment.description, results), encoding="utf-8")
