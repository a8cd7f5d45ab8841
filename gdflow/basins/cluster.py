"""Units computed elsewhere: by the workers of a Dask cluster, each with its own device.

    client = distributed.Client("tcp://scheduler:8786")
    gf.basin_sizes(problem, law, 10**9, key=key, folder="big", client=client)

A worker gets the record of the plan, once, and ids. It computes the unit in as many threads as Dask gives it, writes it into the
folder if it sees that, and else sends the bytes back. Rows do not depend on who computed them. A worker that dies costs the
units it was at: Dask gives them to another. If the scheduler is lost, what was written stays, and the same run goes on there.
"""

import dataclasses
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from gdflow.basins import units
from gdflow.basins.campaign import read_campaign
from gdflow.basins.plan import Plan, machine_record
from gdflow.basins.rows import Columns, Gathering
from gdflow.records import differences, digest

#: So many units are with every worker at once, so that none waits; more would be computed in vain when a rule ends the run.
_AHEAD = 2

_plans: dict[str, Plan] = {}
_one_at_a_time = threading.Lock()


def prepared(client: Any, plan: Plan) -> Plan:
    """The plan as the workers run it: their versions and their kind of device are part of its record.

    **Raises:** `TypeError` for what is no `distributed.Client`; `ValueError` if there are no workers, or if they differ.
    """
    try:
        import distributed
    except ImportError:
        raise TypeError("a client is a distributed.Client: pip install 'gdflow[cluster]'") from None
    if not isinstance(client, distributed.Client):
        raise TypeError(f"a client is a distributed.Client, got {client!r}")
    if client.status != "running":
        raise ValueError(f"the client is {client.status}: make another one")
    if not client.scheduler_info()["workers"]:
        raise ValueError("the cluster has no workers: start some (dask worker ADDRESS) and try again")
    said = client.run(_describe, plan.record["x64"])
    first, *others = said.items()
    for address, other in others:
        if apart := differences(first[1], other):
            raise ValueError(f"the workers {first[0]} and {address} differ: {'; '.join(apart)}")
    there = dataclasses.replace(plan)
    object.__setattr__(there, "record", plan.record | first[1])
    return there


def _describe(x64: bool) -> dict[str, Any]:
    jax.config.update("jax_enable_x64", x64)
    return machine_record()


def run_units(
    client: Any,
    plan: Plan,
    pieces: Sequence[range],
    ledger: Any,
    lanes: int,
    count: Callable[[int], None],
    halted: Callable[[], bool],
) -> None:
    """Has the pieces computed by the workers, and takes them into the ledger as they come.

    **Raises:** `ConnectionError` if the cluster is lost, `RuntimeError` if a unit cannot be computed; units that came are kept.
    """
    import distributed

    where = ledger.place
    # In a list: a dictionary would be scattered entry by entry, under names that other plans have, too.
    (scattered,) = client.scatter([plan.record], broadcast=True, hash=False)
    queue, running = iter(pieces), {}
    news = distributed.as_completed()

    def submit() -> None:
        piece = None if halted() else next(queue, None)
        if piece is not None:
            future = client.submit(_compute, scattered, plan.digest, piece.start, len(piece), lanes, where, pure=False)
            running[future] = piece
            news.add(future)

    try:
        for _ in range(_AHEAD * max(1, len(client.scheduler_info()["workers"]))):
            submit()
        while running:
            future = next(news)
            piece = running.pop(future)
            ledger.receive(piece, future.result())
            count(len(piece))
            submit()
    except (distributed.CancelledError, distributed.comm.CommClosedError, TimeoutError) as error:
        raise ConnectionError(
            f"the cluster was lost ({type(error).__name__}). The units that were finished are kept: the same run in this folder "
            "goes on there"
        ) from None
    except distributed.KilledWorker as error:
        raise RuntimeError(
            f"workers died over and over at the same unit: {error}. Perhaps it needs more memory than they have: fewer lanes"
        ) from None
    finally:
        client.cancel(list(running))


# -- at the workers ----------------------------------------------------------------------------------------------------


def _compute(
    record: dict[str, Any], fingerprint: str, first: int, num: int, lanes: int, where: tuple[str, str] | None
) -> Any:
    """A unit: its bytes, or `None` if they are in the folder."""
    import distributed

    try:
        threads = distributed.get_worker().state.nthreads
    except ValueError:  # outside of a worker
        threads = None
    with _one_at_a_time:  # all threads of the worker are one unit's
        if fingerprint not in _plans:
            jax.config.update("jax_enable_x64", record["x64"])
            plan = Plan.from_record(record)
            if digest(record) != fingerprint:
                raise RuntimeError("this worker was given another plan")
            if apart := differences(record["versions"], machine_record()["versions"]):
                raise RuntimeError(f"this worker has other versions than the plan: {'; '.join(apart)}")
            object.__setattr__(plan, "record", record)
            _plans.clear()
            _plans[fingerprint] = plan
        data = compute_unit(_plans[fingerprint], range(first, first + num), lanes, threads)
    folder = _visible_folder(where)
    if folder is None:
        return data
    units.write(folder, range(first, first + num), data)
    return None


def compute_unit(plan: Plan, ids: range, lanes: int, threads: int | None = None) -> bytes:
    """The rows of some ids, encoded as a unit."""
    catalogue, encoded = plan.catalogue(), []

    def done(piece: range, columns: Columns) -> None:
        limits, columns = units.own_limits(catalogue, piece, columns)
        encoded.append(units.encode(plan, piece, columns, limits))

    gathering = Gathering([ids], done)
    sized_for = units.default_size(plan)  # one program for all
    plan.run(ids, gathering.add, lanes=lanes, threads=threads, catalogue=catalogue, sized_for=sized_for)
    return encoded[0]


def _visible_folder(where: tuple[str, str] | None) -> pathlib.Path | None:
    """The folder of units, if this machine sees it: its campaign has the right token."""
    if where is None:
        return None
    outcomes, token = pathlib.Path(where[0]), where[1]
    try:
        return outcomes if read_campaign(outcomes.parent)["token"] == token else None
    except (OSError, ValueError):
        return None
