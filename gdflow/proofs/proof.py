"""What a proof consists of; printed, saved, and checked again.

*The file* is NumPy's archive (`numpy.load`, no pickles); floats are exact. A program that is to check it needs:

| name | what it is |
|---|---|
| `format` | the words `gdflow proof 1` |
| `A`, `D` | the objective `½‖A − W_N…W_1D‖²`, `D` square, diagonal and positive |
| `start_1`, …, `start_N` | the layers `W_j(0)`, `(d_j, d_{j−1})` |
| `durations` | `(n,)`: the time that each piece of the path takes |
| `path_1`, …, `path_N` | `(n, g + 1, d_j, d_{j−1})`: on piece `k`, `p_j(s) = Σ_i path_j[k, i] s^i`, `s` from −1 to 1 |
| `sharp` | `(n,)`: whether the piece's `μ` is from the Hessian at its middle (`gdflow.proofs.sharp`) or from products of layers |
| `radius` | `(n + 1,)`: the tube; the first is that of the ball of starts, the others are claims |
| `target_error` | the claim is made for every target so near to `A` (Frobenius norm) |
| `threshold` | the claim: the exact flow comes to a loss below it, and only the lowest cluster of critical values is there |

Further entries are for people.
"""

import dataclasses
import os
import pathlib
import zipfile
from typing import Any

import numpy as np
from rich.console import RenderableType

from gdflow.checks import check_count
from gdflow.network import LayerTuple
from gdflow.proofs.balls import Check, check_record
from gdflow.tables import Printable, key_value_table, visible

FORMAT = "gdflow proof 1"
#: What the entries for people are called.
_TEXTS = ("verdict", "reason", "attempts", "coordinates")
_NUMBERS = ("A", "D", "durations", "sharp", "radius", "target_error", "threshold", "losses", "errors", "exponents")


@dataclasses.dataclass(frozen=True, repr=False)
class Proof(Printable):
    """A proof that the exact flow from a start ends at the lowest level, or the reason why there is none; from `gdflow.prove`.

    - `proved`; `verdict`, what is proved of the limit; `reason`, why nothing is (empty if it is).
    - `A`, `D`, `start`: what it is about, in the problem's isometric coordinates.
    - `durations`, `path`, `sharp`: the path, piece by piece; see the module for the meaning, `path` is a tuple by layer.
    - `radius`, `exponents`, `losses`, `errors`: at the joints of the pieces, `(n + 1,)`: the tube's radius `ε`, `∫μ` so far, the
      computed loss, and by how much the exact flow's `√(2L)` may differ from the computed one.
    - `threshold`, `target_error`: see the module.
    - `attempts`: what was tried, and how it ended.
    - `coordinates`: the problem's.
    - `ball`: every start within this distance (Frobenius) converges to the lowest level too; `None` if not asked for.
    """

    proved: bool
    verdict: str
    reason: str
    A: np.ndarray
    D: np.ndarray
    start: LayerTuple
    durations: np.ndarray
    path: tuple[np.ndarray, ...]
    sharp: np.ndarray
    radius: np.ndarray
    exponents: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    threshold: float
    target_error: float
    attempts: tuple[str, ...]
    coordinates: str
    ball: float | None = None

    @property
    def times(self) -> np.ndarray:
        """Of the joints, `(n + 1,)`."""
        return np.concatenate([[0.0], np.cumsum(self.durations)])

    @property
    def arrival_time(self) -> float:
        """When the exact flow is proved to be below the threshold: the end of the path. NaN without a proof."""
        return float(self.times[-1]) if self.proved else float("nan")

    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the exact flow's loss at the joints, from below and from above; infinite where the tube has broken."""
        root = np.sqrt(2 * self.losses)
        with np.errstate(invalid="ignore"):
            low = 0.5 * np.maximum(root - self.errors, 0.0) ** 2
        return low, 0.5 * (root + self.errors) ** 2

    def record(self) -> dict[str, np.ndarray]:
        """What the file holds."""
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in _NUMBERS}
        for j, (w, c) in enumerate(zip(self.start.weights, self.path, strict=True), 1):
            arrays |= {f"start_{j}": np.asarray(w), f"path_{j}": c}
        texts = {name: np.asarray(getattr(self, name)) for name in _TEXTS}
        ball = np.asarray(np.nan if self.ball is None else self.ball)
        return {"format": np.asarray(FORMAT)} | arrays | texts | {"ball": ball, "proved": np.asarray(self.proved)}

    def save(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes the proof to a file, which another program can check; see the module. **Returns:** where it is."""
        path = pathlib.Path(path)
        with open(path, "wb") as file:
            np.savez_compressed(file, **self.record())  # type: ignore[arg-type]
        return path

    def check(self, precision: int = 128) -> Check:
        """The same inequalities in ball arithmetic, from the stored path alone; see `gdflow.proofs.balls`.

        **Arguments:** `precision`: in bits.

        **Raises:** `ImportError` without python-flint (`pip install 'gdflow[proofs]'`), `ValueError` for damaged proofs.
        """
        precision = check_count("precision", precision)
        return check_record({k: v for k, v in self.record().items() if k in needed_names(len(self.path))}, precision)

    def __rich__(self) -> RenderableType:
        widths = "-".join(map(str, self.start.widths))
        rows = [
            ("start", f"{widths}, {self.coordinates} coordinates"),
            ("verdict", f"proved: {self.verdict}" if self.proved else f"not proved: {self.reason}"),
        ]
        if self.proved:
            rows += [
                ("arrival", f"t = {self.arrival_time:.6g}, after {len(self.durations)} pieces: loss at most "
                            f"{self.band()[1][-1]:.6g}, below the level at {self.threshold:.6g}"),
                ("tube", f"radius {self.radius[0]:.3g} → {self.radius[-1]:.3g}, exponent {self.exponents[-1]:.3f}"),
            ]  # fmt: skip
        if self.ball is not None:
            rows.append(("ball of starts", f"all within {self.ball:.4g} of this one have the same limit's value"))
        if self.sharp.any():
            rows.append(("sharper bound", f"on {int(self.sharp.sum())} of {len(self.sharp)} pieces"))
        rows += [("attempt" if k == 0 else "", text) for k, text in enumerate(self.attempts)]
        rows.append(
            ("about", "the exact flow from the float64 start, for every target within "
                      f"{self.target_error:.1e} of the float64 array A; ranks of the data are assumed as reported")
        )  # fmt: skip
        return key_value_table("Proof", rows)


def needed_names(num_layers: int) -> set[str]:
    """The entries of a file that a check needs."""
    layers = range(1, num_layers + 1)
    return {
        "format", "A", "D", "durations", "sharp", "radius", "target_error", "threshold",
        *(f"start_{j}" for j in layers), *(f"path_{j}" for j in layers),
    }  # fmt: skip


def load_proof(path: str | os.PathLike) -> Proof:
    """Reads a proof from a file; nothing in it is believed before `Proof.check` has been through it.

    **Raises:** `FileNotFoundError`, and `ValueError` for files that are no proofs or damaged.
    """
    shown = visible(os.fspath(path))
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            record = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no proof {shown}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise ValueError(f"{shown} is no proof, or it is damaged: {error}") from None
    except Exception as error:  # of whatever decompression makes of damage
        raise ValueError(f"{shown} is damaged: {type(error).__name__}") from None
    if record.get("format", np.asarray("")).shape != () or str(record.get("format")) != FORMAT:
        raise ValueError(f"{shown} is no proof of this version: its format is not {FORMAT!r}")
    num = sum(name.startswith("start_") for name in record)
    expected = needed_names(num) | {"losses", "errors", "exponents", "ball", "proved", *_TEXTS}
    if num == 0 or not expected <= record.keys():
        raise ValueError(f"{shown} is damaged: it has no {', '.join(sorted(expected - record.keys())) or 'start_1'}")
    try:
        ball = float(record["ball"])
        joints = {len(record[name]) for name in ("radius", "exponents", "losses", "errors")}
        pieces = {len(record[name]) for name in ("durations", "sharp", *(f"path_{j}" for j in range(1, num + 1)))}
        if len(joints) != 1 or len(pieces) != 1 or joints != {min(pieces) + 1}:
            raise ValueError("its arrays are not of one length")
        names = ("A", "D", "durations", "sharp", "radius", "exponents", "losses", "errors")
        arrays: dict[str, Any] = {name: record[name] for name in names}
        return Proof(
            proved=bool(record["proved"]),
            verdict=str(record["verdict"]),
            reason=str(record["reason"]),
            coordinates=str(record["coordinates"]),
            **arrays,
            start=LayerTuple([record[f"start_{j}"] for j in range(1, num + 1)]),
            path=tuple(record[f"path_{j}"] for j in range(1, num + 1)),
            threshold=float(record["threshold"]),
            target_error=float(record["target_error"]),
            attempts=tuple(map(str, record["attempts"])),
            ball=None if np.isnan(ball) else ball,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{shown} is damaged: {error}") from None
