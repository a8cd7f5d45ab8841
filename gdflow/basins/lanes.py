"""The batch engine: a fixed number of lanes, each with its own time and step, refilled as they finish.

A lane holds one start on its way. All lanes advance together until some have finished; then these hand in their
row and are refilled with the next starts of a queue that was fixed in advance, all on the device. So no lane waits for a
slower one; and since every id is assigned before anything runs and lanes in flight are drained at the end, fast starts are not
favoured. What a start is and how it steps is the business of a *process*, a small protocol; gradient flows
(`gdflow.basins.process`) are one.
"""

import concurrent.futures
import functools
import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gdflow.checks import check_count
from gdflow.ids import split_ids
from gdflow.layouts import AbstractLayout
from gdflow.programs import forget_old_programs

#: Lanes hand in their rows and are refilled together, as soon as one in so many of them has finished …
REFILL_SHARE = 4
#: … which is looked after at every step on a CPU, and every so many steps on an accelerator, where it takes a round trip to the
#: host.
STEPS_PER_LOOK = 8


class AbstractLaneState(eqx.Module):
    """The state of all lanes: every leaf is an array, packed as the process's layout says (vectors: one number per lane)."""

    done: eqx.AbstractVar[Bool[Array, " lanes"]]


class AbstractProcess(eqx.Module):
    """What runs in the lanes."""

    @property
    @abstractmethod
    def layout(self) -> AbstractLayout:
        """Where the lanes lie in arrays with more than one axis."""

    @abstractmethod
    def draw(self, high: Array, low: Array) -> Any:
        """Starts with given ids (high and low 32 bits): a packed tree of arrays."""

    @abstractmethod
    def init(self, starts: Any) -> AbstractLaneState:
        """State of the lanes at given starts."""

    @abstractmethod
    def step(self, state: Any) -> Any:
        """One step of every lane; lanes that are `done` must not change."""

    @abstractmethod
    def rows(self, state: Any) -> dict[str, Array]:
        """What is reported of each lane once it is done: columns whose first axis counts the lanes."""


class _Flight(eqx.Module):
    """All lanes between two calls: the process's state, and which id each lane works on."""

    state: AbstractLaneState
    occupied: Bool[Array, " lanes"]
    ids: tuple[Array, ...]


def _empty_flight(process: AbstractProcess, lanes: int) -> _Flight:
    """Lanes without starts: placeholders that are done and so never move."""

    def shapes():
        ids = jnp.zeros(lanes, jnp.uint32)
        return process.init(process.draw(ids, ids))

    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), eqx.filter_eval_shape(shapes))
    empty = jnp.zeros(lanes, bool)
    ids = jnp.zeros(lanes, jnp.uint32)
    return _Flight(eqx.tree_at(lambda s: s.done, state, ~empty), empty, (ids, ids))


#: On CPU every host thread runs lanes of its own, so kernels are not to be split among threads once more; and vectors as wide
#: as the machine has them: kernels of the lanes are bound by loads.
COMPILER_OPTIONS = {"xla_cpu_multi_thread_eigen": False, "xla_cpu_prefer_vector_width": 512}


def _work_off(process: AbstractProcess, flight: _Flight, high: Array, low: Array, num: Int[Array, ""], drain: Array):
    """Works off the first `num` ids; with `drain` until all lanes are empty, else until all ids are assigned to lanes.

    Returns the lanes, the rows of the starts that finished, and how many these are.
    """
    lanes = flight.occupied.shape[0]
    batch = max(1, lanes // REFILL_SHARE)
    steps_per_look = 1 if jax.default_backend() == "cpu" else STEPS_PER_LOOK
    capacity = high.shape[0] + lanes
    pool = process.draw(high, low)
    shapes = jax.eval_shape(lambda: process.rows(process.layout.take(flight.state, jnp.arange(batch))))
    rows = {name: jnp.zeros((capacity, *x.shape[1:]), x.dtype) for name, x in shapes.items()}
    finished_ids = (jnp.zeros(capacity, jnp.uint32), jnp.zeros(capacity, jnp.uint32))

    def refill(flight, taken):
        lane = jnp.nonzero(~flight.occupied, size=batch, fill_value=lanes)[0]
        source = taken + jnp.arange(batch)
        valid = (lane < lanes) & (source < num)
        fresh = process.init(process.layout.take(pool, source))
        # For every lane, which of the fresh starts it takes (`batch` for none).
        chosen = jnp.full(lanes, batch).at[jnp.where(valid, lane, lanes)].set(jnp.arange(batch), mode="drop")
        use = chosen < batch
        state = process.layout.select(use, process.layout.take(fresh, chosen), flight.state)
        ids = tuple(jnp.where(use, jnp.take(x, taken + chosen, mode="clip"), old)
                    for x, old in zip((high, low), flight.ids, strict=True))  # fmt: skip
        return _Flight(state, flight.occupied | use, ids), taken + jnp.sum(valid)

    def fly(flight, taken):
        # While there are starts left, an empty lane is as good a reason to stop as one that has finished.
        waiting = jnp.where(taken < num, True, flight.occupied)
        enough = jnp.minimum(batch, jnp.sum(waiting))

        def steps(state):
            return jax.lax.fori_loop(0, steps_per_look, lambda _, state: process.step(state), state)

        def too_few(state):
            return jnp.sum(state.done & waiting) < enough

        return _Flight(jax.lax.while_loop(too_few, steps, flight.state), flight.occupied, flight.ids)

    def harvest(flight, rows, finished_ids, count):
        finished = flight.state.done & flight.occupied
        lane = jnp.nonzero(finished, size=batch, fill_value=lanes)[0]
        got = lane < lanes
        part = process.rows(process.layout.take(flight.state, lane))
        position = jnp.where(got, count + jnp.arange(batch), capacity)
        rows = {name: column.at[position].set(part[name], mode="drop") for name, column in rows.items()}
        finished_ids = tuple(x.at[position].set(jnp.take(i, lane, mode="clip"), mode="drop")
                             for x, i in zip(finished_ids, flight.ids, strict=True))  # fmt: skip
        occupied = flight.occupied.at[lane].set(False, mode="drop")
        return _Flight(flight.state, occupied, flight.ids), rows, finished_ids, count + jnp.sum(got)

    def body(carry):
        flight, taken, rows, finished_ids, count = carry
        flight, taken = refill(flight, taken)
        flight = fly(flight, taken)
        flight, rows, finished_ids, count = harvest(flight, rows, finished_ids, count)
        return flight, taken, rows, finished_ids, count

    def unfinished(carry):
        flight, taken, *_ = carry
        return (taken < num) | (drain & jnp.any(flight.occupied))

    zero = jnp.zeros((), dtype=num.dtype)
    flight, _, rows, finished_ids, count = jax.lax.while_loop(
        unfinished, body, (flight, zero, rows, finished_ids, zero)
    )
    return flight, rows, finished_ids, count


_advance: Callable[..., Any] = eqx.filter_jit(_work_off, compiler_options=COMPILER_OPTIONS)  # type: ignore[call-overload]


def run_lanes(
    process: AbstractProcess,
    ids: Sequence[int] | np.ndarray,
    sink: Callable[[np.ndarray, dict[str, np.ndarray]], None],
    *,
    lanes: int,
    pool: int,
    threads: int,
    halted: Callable[[], bool] = lambda: False,
) -> None:
    """Runs the starts with the given ids, each until it is done, and hands on their rows as they come.

    **Arguments:**

    - `ids`: a `range` or an array; 64 bits.
    - `sink`: called with the ids of some starts that have finished (`uint64`, in the order in which they did) and the
      process's columns for them; never by two threads at once.
    - `lanes`: how many starts are in flight at once, per thread.
    - `pool`: how many starts are drawn and handed to the device at once.
    - `threads`: how many host threads feed independent sets of lanes; with several devices they take turns.
    - `halted`: whether no more starts shall be begun; those that are in flight, and all before them, go on to their ends.

    An exception in one thread, an interrupt included, ends the others after their current pool.
    """
    for name, value in (("lanes", lanes), ("pool", pool), ("threads", threads)):
        check_count(name, value)
    forget_old_programs()
    queue = iter(range(0, len(ids), pool))
    lock = threading.Lock()
    stop = threading.Event()
    empty = _empty_flight(process, lanes)

    def work(device: jax.Device) -> None:
        arrays, rest = eqx.partition((process, empty), eqx.is_array)
        here, flight = eqx.combine(jax.device_put(arrays, device), rest)
        draining = False
        while not draining and not stop.is_set():
            with lock:
                first = None if halted() else next(queue, None)
            draining = first is None or first + pool >= len(ids)
            part = np.asarray(ids[:0] if first is None else ids[first : first + pool], dtype=np.uint64)
            # The last pool is padded to full size, so that nothing compiles anew.
            words = (np.pad(word, (0, pool - len(part))) for word in split_ids(part))
            high, low, num, drain = jax.device_put((*words, np.asarray(len(part)), np.asarray(draining)), device)
            flight, rows, finished, count = _advance(here, flight, high, low, num, drain)
            n = int(count)
            # Cut on the host: a slice of a device array would be compiled anew for every length.
            done_high, done_low = (np.asarray(x)[:n].astype(np.uint64) for x in finished)
            columns = {name: np.asarray(column)[:n] for name, column in rows.items()}
            with lock:
                sink((done_high << np.uint64(32)) | done_low, columns)

    devices = jax.local_devices()
    in_threads([functools.partial(work, devices[i % len(devices)]) for i in range(threads)], stop)


def in_threads(works: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Calls functions at once, a thread each. `stop` is set when one fails, or at the end."""
    # JAX's precision setting may have been made for the calling thread only; its workers are to inherit it.
    x64 = jnp.result_type(float) == jnp.float64

    def alike(work: Callable[[], None]) -> None:
        with jax.enable_x64(x64):
            work()

    with concurrent.futures.ThreadPoolExecutor(len(works)) as executor:
        futures = [executor.submit(alike, work) for work in works]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()


def default_threads() -> int:
    """One thread per core on a CPU, each running lanes of its own; one per accelerator."""
    if jax.default_backend() != "cpu":
        return jax.local_device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_pool(num: int, most: int, threads: int) -> int:
    """A power of two, so that few sizes are ever compiled: at most `most`, and several pools for each thread to share."""
    return 2 ** int(np.log2(np.clip(num // (4 * threads), 16, max(most, 16))))
