"""The limits that a run finds: states near critical points become limits, told apart, with what is proved of them.

Limits are numbered as they are found, which depends on the machine; in the end (`Catalogue.sorted`) they are put in the order of
their losses, and so do not.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gdflow.attraction import attraction_radius
from gdflow.basins.outcomes import DECIDED, Status
from gdflow.objective import Objective
from gdflow.polish import Polished, polish
from gdflow.ranks import zero_threshold
from gdflow.verdicts import Converged

#: States are polished in batches of this size, padded, so that one program does; fewer where all Hessians have more entries
#: than this.
_BATCH, _ENTRIES = 16, 2**24
#: A critical point has a gradient norm of at most this part of the size of its Hessian times that of the point.
_CRITICAL = 1e-9
#: A Newton step from it is at most this part of its size.
_SETTLED = 1e-6
#: Where directions seem flat that no symmetry explains, the gradient must be round-off, so small in units of the machine: along a
#: slow tail, or where the loss curves by less than round-off of the Hessian, it is small but not zero.
_ROUND_OFF = 1e3 * np.finfo(float).eps
#: An eigenvalue of at most this part of the largest is zero.
_ZERO = 1e-8


@dataclasses.dataclass(frozen=True)
class FoundLimit:
    """A limit that starts were found to converge to.

    - `loss`: effective loss.
    - `point`: a representative, in canonical form; of the limit at infinity the direction of one, of norm one, when it was sure
      to go there.
    - `at_infinity`: whether the flow diverges, while its loss tends to the infimum.
    - `positive`, `zero`: eigenvalues of the Hessian that are positive, and that are zero beyond those of known symmetries;
      `symmetries`: how many those are. Isolated limits have none beyond.
    - `smallest`, `largest`: the smallest and the largest positive eigenvalue.
    - `kinks`: on how many kinks it lies; the Hessian is that on the surface where all of them vanish (`gdflow.kinks`).
    - `dead`: how many units are off, layer by layer. They stay off, so a limit with some need be a minimum for the others only.
    - `radius`: of a ball around it from which the flow, or the descent that was run, certainly ends there; 0 if none is proved.
    - `first_id`: of the starts that converge to it.
    """

    loss: float
    point: Any
    at_infinity: bool
    positive: int
    zero: int
    symmetries: int
    smallest: float
    largest: float
    kinks: int
    dead: tuple[int, ...]
    radius: float
    first_id: int

    @property
    def isolated(self) -> bool:
        """Whether it is isolated up to symmetries."""
        return self.zero == 0 and not self.at_infinity

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.at_infinity:
            return "infinity, loss → 0"
        what = "minimum" if self.isolated else f"{self.zero} flat"
        where = f" on {self.kinks} kink{'s' if self.kinks > 1 else ''}" if self.kinks else ""
        # Units that are off stay off, whatever would become of the loss if they were not.
        off = sum(self.dead)
        return what + where + (f", but for {off} unit{'s' if off > 1 else ''} off" if off else "")


def limit_labels(limits: Sequence[FoundLimit]) -> tuple[str, ...]:
    """Names for limits in the order of their losses."""
    return tuple(f"limit {k}" + (" (∞)" if limit.at_infinity else "") for k, limit in enumerate(limits, 1))


@dataclasses.dataclass
class _Entry:
    limit: FoundLimit
    fingerprint: Any
    features: Any


class Catalogue:
    """Limits found so far.

    **Arguments:** `objective`, `verdict`: of the run; `example`: a batch of starts, for their structure; `shortest`: the shortest
    step of the integration; `step`: of a descent (`AbstractMethod.descent_step`), `None` for the flow; `stable_below`: at which
    curvatures a descent stays (`AbstractMethod.stable_below`).
    """

    def __init__(
        self,
        objective: Objective,
        verdict: Converged,
        example: Any,
        shortest: float = 0.0,
        step: float | None = None,
        stable_below: float | None = None,
    ):
        self.objective, self.same, self.shortest = objective, verdict.same, float(shortest)
        self.descends, self.step = step is not None, 0.0 if step is None else float(step)
        self.stable_below = np.inf if step is None else 0.0 if stable_below is None else float(stable_below)
        one = jax.tree.map(lambda x: np.asarray(x)[0], example)
        flat, self._unravel = ravel_pytree(one)
        self._size = flat.size
        self._entries: list[_Entry] = []
        self._infinity: int | None = None

    # -- rows ----------------------------------------------------------------------------------------------------------

    def settle(self, ids: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows with their limits, by number; the column `point` becomes `distance`, from the state to the limit."""
        columns = dict(columns)
        points = columns.pop("point")
        status, limit = columns["status"].copy(), np.full(len(ids), -1)
        distance = np.full(len(ids), np.nan)
        for i in np.flatnonzero(status == Status.CERTIFIED):
            limit[i] = self._at_infinity(int(ids[i]), points[i])
        waiting = np.flatnonzero((status == Status.CONVERGED) | (status == Status.STATIONARY))
        batch = min(_BATCH, max(1, _ENTRIES // self._size**2))
        for first in range(0, len(waiting), batch):
            some = waiting[first : first + batch]
            padded = np.resize(points[some], (batch, self._size))
            found = polish(self.objective, jax.vmap(self._unravel)(jnp.asarray(padded)), self.shortest)
            found = jax.tree.map(np.asarray, found)
            for k, i in enumerate(some):
                limit[i], distance[i], certified = self._place(found, k, int(ids[i]), float(columns["loss"][i]))
                if limit[i] >= 0:
                    stays = self._entries[limit[i]].limit.largest < self.stable_below
                    status[i] = Status.CERTIFIED if certified else Status.LOCATED if stays else Status.REACHED
        # What is undecided claims nothing; which limits its loss excludes is known in the end (`sorted`).
        highest = np.where(np.isin(status, DECIDED), limit, np.iinfo(np.int32).max)
        return columns | {"status": status, "limit": limit, "highest": highest, "distance": distance}

    def unsure(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Which settled rows may become certain by a longer run: those not yet in the ball around a limit that has one, and those
        that had converged, but to nothing that is a limit: perhaps they were passing a saddle."""
        radii = np.array([entry.limit.radius for entry in self._entries] + [0.0])
        status = columns["status"]
        return (status == Status.CONVERGED) | ((status == Status.LOCATED) & (radii[columns["limit"]] > 0))

    def _at_infinity(self, start: int, point: np.ndarray) -> int:
        direction = self._unravel(jnp.asarray(point / np.linalg.norm(point)))
        limit = FoundLimit(0.0, direction, True, 0, 0, 0, 0.0, 0.0, 0, (), 0.0, start)
        if self._infinity is None:
            self._infinity = len(self._entries)
            self._entries.append(_Entry(limit, np.zeros(0), np.zeros(0)))
        self._seen(self._infinity, limit)
        return self._infinity

    def _place(self, found: Polished, k: int, start: int, loss: float) -> tuple[int, float, bool]:
        """Which limit a polished state is at (−1 for none), how far the state is from it, and whether that is proved."""
        values = _on_surface(found.hessians[k], found.normals[k])
        largest = float(abs(values).max())
        size = 1.0 + float(np.linalg.norm(found.canonical[k]))
        finite = np.isfinite(found.losses[k]) and np.isfinite(values).all()
        critical = finite and float(found.gradient_norms[k]) <= _CRITICAL * largest * size
        moved, value = float(found.moved[k]), float(found.losses[k])
        # Rising loss or a leap say that the point found is not the limit of the flow.
        near = bool(found.downhill[k]) and value <= loss + 1e-9 * (1 + abs(loss)) and moved <= 0.1 * size
        threshold = max(_ZERO * largest, zero_threshold(largest, self._size))
        # Of separated samples the loss has no minimum: where it is zero, it is so by underflow.
        endless = bool(self.objective.vanishes_at_infinity()) and loss < np.log(2.0)
        if not critical or not near or endless or values[0] < -threshold:
            return -1, moved, False
        free = values[values > threshold]
        if free.size and float(found.gradient_norms[k]) > _SETTLED * free.min() * size:
            return -1, moved, False  # a Newton step would still lead on: a slow tail, perhaps to infinity
        positive, symmetries = free.size, int(found.num_symmetries[k])
        zero = max(0, len(values) - positive - symmetries)
        fingerprint, features = np.asarray(found.fingerprints[k]), np.asarray(found.features[k])
        if zero and float(found.gradient_norms[k]) > _ROUND_OFF * largest * size:
            return -1, moved, False
        number = self._same(value, fingerprint, features, zero)
        point = self._unravel(jnp.asarray(found.canonical[k]))
        limit = FoundLimit(
            value, point, False, positive, zero, symmetries, float(free.min(initial=np.inf)), largest, int(found.num_kinks[k]),
            tuple(map(int, found.dead[k])), 0.0, start,
        )  # fmt: skip
        if number is None:
            # Symmetries that are no directions of effect (rows of constant units) do not matter for the ball; others do.
            proved = symmetries == self.objective.num_idle(point) and zero == 0
            radius = 0.0
            if proved and np.isfinite(self.step):
                radius = attraction_radius(self.objective, point, free, float(found.gradient_norms[k]), self.step)
            number = len(self._entries)
            self._entries.append(_Entry(dataclasses.replace(limit, radius=radius), fingerprint, features))
        self._seen(number, limit)
        entry = self._entries[number]
        # The ball is around the first of them, of which this one may be another computation.
        gap = float(np.linalg.norm(entry.fingerprint - fingerprint))
        return number, moved, moved + gap < entry.limit.radius

    def _same(self, loss: float, fingerprint: np.ndarray, features: np.ndarray, zero: int) -> int | None:
        for number, entry in enumerate(self._entries):
            limit = entry.limit
            if limit.at_infinity or abs(limit.loss - loss) > self.same * max(1.0, abs(loss)):
                continue
            # Of a family, outputs tell; its ends may have no flat direction.
            isolated = zero == 0 and limit.zero == 0
            old, new = (entry.fingerprint, fingerprint) if isolated else (entry.features, features)
            if np.linalg.norm(old - new) <= self.same * (1 + np.linalg.norm(new)):
                return number
        return None

    def _seen(self, number: int, limit: FoundLimit) -> None:
        """Of all starts with a limit the one with the lowest id represents it, whoever was first."""
        entry = self._entries[number]
        if limit.first_id < entry.limit.first_id:
            entry.limit = dataclasses.replace(limit, radius=entry.limit.radius)

    # -- in the end ----------------------------------------------------------------------------------------------------

    def sorted(self, columns: dict[str, np.ndarray]) -> tuple[tuple[FoundLimit, ...], dict[str, np.ndarray]]:
        """The limits in the order of their losses, and the rows renumbered; limits without a row are left out."""
        used = np.unique(columns["limit"][columns["limit"] >= 0])
        for k in used:
            entry = self._entries[k]
            first = int(columns["id"][columns["limit"] == k].min())
            entry.limit = dataclasses.replace(entry.limit, first_id=first)
        limits, place = self._ordered(used.tolist())
        return limits, self.renumbered(columns, place, limits)

    def merged(
        self, groups: Sequence[Sequence[FoundLimit]], used: Sequence[np.ndarray]
    ) -> tuple[tuple[FoundLimit, ...], list[np.ndarray]]:
        """The limits of several catalogues (units of a run) as one list, in the order of their losses; this one then has them so.

        **Arguments:** `used`: of every group which of its limits have a start; others are left out.

        **Returns:** the list; and for every group the numbers that its limits have there, −1 for those left out.
        """
        numbers = [
            [self._take_in(limit) if k in some else -1 for k, limit in enumerate(group)]
            for group, some in zip(groups, used, strict=True)
        ]
        limits, place = self._ordered(range(len(self._entries)))
        self._entries = [self._entries[k] for k in np.argsort(place)]
        self._infinity = None if self._infinity is None else int(place[self._infinity])
        return limits, [np.append(place, -1)[np.array(some, int)] for some in numbers]

    def renumbered(
        self, columns: dict[str, np.ndarray], place: np.ndarray, limits: Sequence[FoundLimit]
    ) -> dict[str, np.ndarray]:
        """Rows whose limits are numbers in another list, of which `place` says what they are in this one.

        The loss falls along the flow: what is undecided can end at the limits whose loss is below its own.
        """
        limit = np.append(place, -1)[columns["limit"]]
        losses = np.array([found.loss for found in limits])
        above = np.searchsorted(losses, columns["loss"] + 1e-9 * (1 + abs(columns["loss"])), side="right") - 1
        # … of the flow: steps may lead up again.
        above = np.where(np.isfinite(columns["loss"]) & (not self.descends), above, len(limits) - 1)
        highest = np.where(np.isin(columns["status"], DECIDED), limit, np.clip(above, 0, max(len(limits) - 1, 0)))
        return columns | {"limit": limit, "highest": highest}

    def _ordered(self, used: Iterable[int]) -> tuple[tuple[FoundLimit, ...], np.ndarray]:
        """Limits in the order of their losses, and the place of each number there."""
        order = sorted(used, key=lambda k: (self._entries[k].limit.loss, self._entries[k].limit.first_id))
        place = np.full(len(self._entries), -1)
        place[order] = np.arange(len(order))
        return tuple(self._entries[k].limit for k in order), place

    def _take_in(self, limit: FoundLimit) -> int:
        """The number that a limit from elsewhere has here: the one that it has already, or a new one."""
        number, fingerprint, features = self._infinity, np.zeros(0), np.zeros(0)
        if not limit.at_infinity:
            found = polish(self.objective, jax.tree.map(lambda x: jnp.asarray(x)[None], limit.point), self.shortest)
            fingerprint, features = np.asarray(found.fingerprints[0]), np.asarray(found.features[0])
            number = self._same(limit.loss, fingerprint, features, limit.zero)
        if number is None:
            number = len(self._entries)
            self._entries.append(_Entry(limit, fingerprint, features))
            if limit.at_infinity:
                self._infinity = number
        self._seen(number, limit)
        return number


def _on_surface(H: Any, normals: Any) -> np.ndarray:
    """Eigenvalues of a Hessian on the directions that are orthogonal to given vectors (zero ones do not count)."""
    H, normals = np.asarray(H), np.asarray(normals)
    if not np.any(normals) or not (np.isfinite(H).all() and np.isfinite(normals).all()):
        return np.linalg.eigvalsh(H) if np.isfinite(H).all() else np.full(len(H), np.nan)
    _, s, V = np.linalg.svd(normals)
    Z = V[int(np.sum(s > 1e-10 * s[0])) :].T
    return np.linalg.eigvalsh(Z.T @ H @ Z)
