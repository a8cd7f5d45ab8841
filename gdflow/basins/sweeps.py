"""Sweeps: basins at every point of a grid of settings, as one campaign, with one tidy table."""

import dataclasses
import functools
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import rich.console
import rich.progress
from jaxtyping import Array, Key

from gdflow.basins.campaign import check_belongs, check_readable
from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.plan import Plan, make_plan
from gdflow.basins.running import check_ids, run_plan
from gdflow.basins.stopping import Request
from gdflow.basins.storage import prepare_folder
from gdflow.records import digest, record
from gdflow.tables import Printable, column_table, visible

TABLE = "table.csv"
#: Points of a grid, at most.
MOST_POINTS = 10_000
#: What a point of a sweep may be made of: arguments of `gdflow.basin_sizes` that a plan is made of.
_PARTS = ("problem", "starts", "key", "method", "verdict", "riders", "limits", "proof")
_RESERVED = ("limit", "label", "loss", "num", "certified", "located", "reached", "possible", "fraction", "low", "high",
    "undecided", "mean_steps", "seconds", "anytime")  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep(Printable):
    """The result of `gdflow.sweep`; prints as a table.

    - `axes`: names of the settings, with the values of each.
    - `points`: of every run the settings; `estimates`: of every run a `gdflow.basins.BasinEstimate`.
    """

    axes: dict[str, tuple[Any, ...]]
    points: tuple[dict[str, Any], ...]
    estimates: tuple[BasinEstimate, ...]

    @functools.cached_property
    def table(self) -> pa.Table:
        """One row for every limit of every run: the settings, and what is known of the limit.

        Columns: those of the axes (numbers, or text), then `limit, label, loss, num, certified, located, reached, possible,
        fraction` (of starts with the limit), `low, high` (the exact interval), `undecided, mean_steps, seconds, anytime`.
        """
        rows = []
        for point, estimate in zip(self.points, self.estimates, strict=True):
            shared = dict(
                num=estimate.num, undecided=estimate.undecided, mean_steps=estimate.tally.steps / estimate.num,
                seconds=estimate.seconds, anytime=estimate.anytime is not None,
            )  # fmt: skip
            for row in estimate.rows:
                rows.append(
                    {name: plain(point[name]) for name in self.axes}
                    | dict(limit=row.limit, label=row.label, loss=row.loss, certified=row.certified, located=row.located,
                        reached=row.reached, possible=row.possible, fraction=(row.certified + row.located) / estimate.num,
                        low=row.interval[0], high=row.interval[1])
                    | shared
                )  # fmt: skip
        names = [*self.axes, *_RESERVED]
        columns = {name: [row[name] for row in rows] for name in names}
        return pa.table({name: _column(values) for name, values in columns.items()})

    def __rich__(self) -> rich.console.RenderableType:
        reached = any(row.reached for estimate in self.estimates for row in estimate.rows)
        table = column_table(
            f"{len(self.points)} runs", *self.axes, "starts", "limit", "loss", "share", "interval",
            *(["reached only"] if reached else []), "undecided",
            caption="Of every run the limits that starts have; intervals are exact, of every limit by itself."
            + self._numbers_text(),
        )  # fmt: skip
        for point, estimate in zip(self.points, self.estimates, strict=True):
            cells = [visible(str(plain(point[name]))) for name in self.axes]
            found = [row for row in estimate.rows if row.certified + row.located + row.reached]
            rows = found or list(estimate.rows[:1])
            if not rows:
                blank = ["–"] * (4 + reached)
                table.add_row(*cells, str(estimate.num), *blank, str(estimate.undecided))
            for k, row in enumerate(rows):
                share = (row.certified + row.located) / estimate.num
                own = [*cells, str(estimate.num)] if k == 0 else [""] * (len(cells) + 1)
                table.add_row(
                    *own, row.label, f"{row.loss:.6g}", f"{share:.4g}", f"[{row.interval[0]:.4f}, {row.interval[1]:.4f}]",
                    *([str(row.reached)] if reached else []), str(estimate.undecided) if k == 0 else "",
                )  # fmt: skip
        return table

    def _numbers_text(self) -> str:
        any_number = sum(estimate.anytime is not None for estimate in self.estimates)
        return (
            f" Of {any_number} runs the number of starts was not fixed in advance: theirs hold for any."
            if any_number
            else ""
        )


def _column(values: list[Any]) -> pa.Array:
    """Numbers where all are, else text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([str(value) for value in values])


def plain(value: Any) -> Any:
    """A setting as a table can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return "-".join(str(plain(item)) for item in value)
    return getattr(value, "__name__", None) or str(value)


def sweep(
    make: Callable[..., Mapping[str, Any]],
    axes: Any,
    num: float,
    *,
    key: Key[Array, ""] | None = None,
    confidence: float = 0.95,
    audit: float | None = None,
    until: Any = None,
    client: Any = None,
    folder: Any = None,
    overwrite: bool = False,
    trusted: bool = False,
    progress: bool = True,
) -> Sweep:
    """Basins at every point of a grid.

    **Arguments:**

    - `make`: called with one value of every axis, by name; returns arguments of `gdflow.basin_sizes` as a dictionary: `problem`,
      `starts`, and, if need be, `key, method, verdict, riders, limits, proof`.
    - `axes`: names and values; runs are made at all combinations, at most 10⁴.
    - `num`: starts of every run; `key`: of all runs whose `make` gives none, so that runs whose widths agree share their starts.
    - `confidence`, `audit`, `until`, `client`, `progress`: as for `gdflow.basin_sizes`, of every run.
    - `folder`: keeps all runs, each in a folder of its own that is named by its settings, and `table.csv`. The same call goes on
      where it was.
    - `overwrite`: replace other runs in the folder.
    - `trusted`: code of your own is what it was when the folder was begun; without it, such runs are not gone on with.

    **Returns:** a `Sweep`; `gdflow.plotting.plot_sweep` draws it.

    **Raises:** `ValueError` or `TypeError` for axes without values or with names of columns, what `make` returns, and as
    `gdflow.basin_sizes`, for every point before any is run.

    ```python
    >>> def make(depth, scale):
    ...     return dict(problem=problem, starts=gf.initialization.Gaussian(problem.widths([5] * depth), scale))
    >>> result = gf.sweep(make, dict(depth=[1, 2, 3], scale=[0.1, 0.5]), 1000, key=jax.random.key(0))
    ```
    """
    grid: dict[str, tuple[Any, ...]] = {name: tuple(values) for name, values in _checked(axes).items()}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    names = [_name(point) for point in points]
    if len(set(names)) < len(names):
        names = [f"{k:04d}-{name}" for k, name in enumerate(names)]
    plans = [_plan(make, point, key) for point in points]
    ids = [check_ids(plan.starts, num) for plan in plans]
    if folder is not None:
        folder = prepare_folder(folder, (TABLE,), overwrite=True)
        for name, plan in zip(names, plans, strict=True):
            check_readable(plan)
            if not overwrite:
                check_belongs(folder / name, plan, 0, trusted, "the same call with trusted=True")
    asked = Request(confidence, audit, until, None)
    estimates = []
    with rich.progress.Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("runs", total=len(points))
        for name, plan, some in zip(names, plans, ids, strict=True):
            bar.update(task, description=visible(name))
            where = None if folder is None else folder / name
            estimates.append(
                run_plan(
                    plan, some, asked, client=client, folder=where, overwrite=overwrite, trusted=trusted, progress=False
                )
            )
            bar.advance(task)
    result = Sweep(grid, tuple(points), tuple(estimates))
    if folder is not None:
        partial = folder / (TABLE + ".partial")
        pyarrow.csv.write_csv(result.table, partial)
        os.replace(partial, pathlib.Path(folder) / TABLE)
    return result


def _checked(axes: Any) -> Mapping[str, Sequence[Any]]:
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(f"axes are names with sequences of values, at least one; got {axes!r}")
    count = 1
    for name, values in axes.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{name!r} cannot be the name of an axis: make takes it as the name of an argument")
        if name in _RESERVED:
            raise ValueError(f"an axis cannot be named {name!r}: the table has such a column")
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise TypeError(f"the axis {name!r} needs a sequence of values, at least one; got {values!r}")
        count *= len(values)
    if count > MOST_POINTS:
        raise ValueError(f"the axes have {count} combinations, more than {MOST_POINTS}")
    return axes


def _plan(make: Callable[..., Mapping[str, Any]], point: dict[str, Any], key: Any) -> Plan:
    said = ", ".join(f"{name}={plain(value)}" for name, value in point.items())
    made = make(**point)
    if not isinstance(made, Mapping) or not {"problem", "starts"} <= set(made) <= set(_PARTS):
        got = sorted(made) if isinstance(made, Mapping) else made
        raise TypeError(
            f"make returns a dictionary with problem, starts and perhaps {', '.join(_PARTS[2:])}; at {said}: {got}"
        )
    try:
        return make_plan(**{"key": key, **made})
    except (ValueError, TypeError) as error:
        raise type(error)(f"at {said}: {error}") from None


def _name(point: dict[str, Any]) -> str:
    """A folder's name for some settings: short, and safe in any file system."""
    text = ",".join(f"{name}={plain(value)}" for name, value in point.items())
    safe = re.sub(r"[^A-Za-z0-9=,.+_-]", "_", text)
    return safe if len(safe) <= 120 and safe == text else f"{safe[:100]}-{digest(record(point))[:8]}"
