"""What is asked of a run besides its rows, and when it has enough of them: rules that look at what was seen, or at the clock."""

import dataclasses
from typing import Any

from gdflow.checks import check_number


@dataclasses.dataclass(frozen=True)
class Until:
    """Ends a run of many starts before all of them were run. Its intervals hold for any number of starts (`gdflow.binomial`).

    **Arguments:**

    - `half_width`: end as soon as half the width of every limit's interval is at most this, audits left out: what more starts can
      narrow.
    - `seconds`: begin no more starts after so much wall time. Those that are in flight go on to their ends, so that slow starts
      are not cut off.

    **Raises:** `ValueError` for numbers that are not positive, and if none is given.

    ```python
    >>> until = gf.basins.Until(half_width=0.001, seconds=3600)
    ```
    """

    half_width: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {name: x for name, x in vars(self).items() if x is not None}
        if not given:
            raise ValueError("a rule for ending a run needs half_width or seconds")
        for name, value in given.items():
            if not check_number(name, value) > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def text(self) -> str:
        """The rule in words."""
        width = [] if self.half_width is None else [f"intervals of ± {self.half_width:g}"]
        clock = [] if self.seconds is None else [f"{self.seconds:g} s"]
        return " or ".join(width + clock)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a run besides its rows: `confidence`, `audit`, `until` and `lanes` of `basin_sizes`."""

    confidence: float
    audit: float | None
    until: Any
    lanes: float | None

    def __post_init__(self) -> None:
        if not (self.until is None or isinstance(self.until, Until)):
            raise TypeError(f"until is a gdflow.basins.Until, got {self.until!r}")

    @property
    def record(self) -> dict[str, Any]:
        until = None if self.until is None else dataclasses.asdict(self.until)
        return {"confidence": self.confidence, "audit": self.audit, "until": until, "lanes": self.lanes}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Request":
        until = record["until"]
        return cls(record["confidence"], record["audit"], None if until is None else Until(**until), record["lanes"])
