"""Values of a run for a median, in bounded memory however long the run is."""

from __future__ import annotations

from array import array
from statistics import median

CAPACITY = 4096


class Sample:
    """All values while they are at most `CAPACITY`; from then on every 2nd, 4th, 8th ... of them, evenly over the run.

    Which are kept depends on their number alone, so the same run gives the same median. At most 32 KiB.
    """

    def __init__(self) -> None:
        self._kept = array("d")
        self._every = 1
        self.count = 0
        """Values that were added."""

    def add(self, value: float | None) -> None:
        """Take in the next value; None stands for one that was not measured, and is left out."""
        if value is None:
            return
        if self.count % self._every == 0:
            if len(self._kept) == CAPACITY:
                self._kept = self._kept[::2]
                self._every *= 2
            self._kept.append(value)
        self.count += 1

    def median(self) -> float | None:
        """The median of the values that were kept; None where there are none."""
        return median(self._kept) if self._kept else None
