"""What ranks agree on between two steps: to stop, to save, and that what they saved is written.

A signal comes to ranks at different steps, and clocks differ. So what a rank was asked for goes to all with a message
that every rank sends after the same step: the one of a logging point, and where those are far apart, one of 8 bytes
of its own every few seconds. After how many steps the next is due follows from what the slowest rank needed for one,
which the message says too.
"""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

LOOK_SECONDS = 2.0
"""At most so long, and a step, from a signal to the stop: torchrun sends SIGKILL 30 s after SIGTERM."""

_ASKED = struct.Struct("=B???f")


class _Asked(NamedTuple):
    """What one rank told. `seconds` is how long a step took it."""

    signal: int
    save: bool
    is_written: bool
    is_waited_for: bool
    seconds: float


@dataclass
class StopRequest:
    """The signal by which this rank was asked to stop, and the one for which all ranks do; 0: none."""

    signal: int = 0
    agreed: int = 0

    @property
    def is_preemption(self) -> bool:
        """Whether all stop since a machine is taken away (SIGTERM), and not since somebody is tired of the run."""
        return self.agreed == signal.SIGTERM


class Agreed(NamedTuple):
    """What all ranks do now. `declare`: a checkpoint is whole, since each of them has written its part."""

    stop: bool = False
    save: bool = False
    declare: bool = False
    regroup: bool = False


NOTHING, STOP = Agreed(), Agreed(stop=True)


class Boundary:
    """One rank's part in it, for the whole of a run. `save_seconds`: between checkpoints, by rank 0's clock; or None.

    `is_written`: whether this rank has written its part of a checkpoint that is under way; it may raise.
    `is_waited_for`: whether workers wait to come in, as far as this rank is to know. Every rank calls `told` and then
    `heard` after the same steps.
    """

    def __init__(
        self,
        save_seconds: float | None = None,
        is_written: Callable[[], bool] = lambda: False,
        stop: StopRequest | None = None,
        is_waited_for: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stop, self._save_seconds = stop or StopRequest(), save_seconds
        self._is_written, self._is_waited_for = is_written, is_waited_for
        self._saved = self._looked = time.monotonic()
        self._looked_after, self._next = 0, 0

    def begin(self, step: int) -> None:
        """Training begins or goes on after something else: that took time which steps do not."""
        self._looked, self._looked_after = time.monotonic(), step

    def is_due(self, step: int) -> bool:
        """Whether ranks look up after this step, logging point or not. The first step says how long they are."""
        return step >= self._next

    def told(self, step: int) -> float:
        """What this rank tells the others: 8 bytes, of which a float64 is made since other figures are.

        Raises OSError, with the path, where its part of a checkpoint could not be written.
        """
        now = time.monotonic()
        seconds = (now - self._looked) / max(1, step - self._looked_after)
        due = self._save_seconds is not None and now - self._saved >= self._save_seconds
        number: float
        asked = (self.stop.signal, due, self._is_written(), self._is_waited_for(), seconds)
        (number,) = struct.unpack("=d", _ASKED.pack(*asked))
        return number

    def heard(self, everyone: Iterable[float], step: int) -> Agreed:
        """What comes of what ranks told, in their order."""
        asked = [_Asked(*_ASKED.unpack(struct.pack("=d", number))) for number in everyone]
        self.stop.agreed = max(one.signal for one in asked)
        self._next = step + max(1, int(LOOK_SECONDS / max(1e-6, *(one.seconds for one in asked))))
        self.begin(step)
        save, regroup = asked[0].save, any(one.is_waited_for for one in asked)
        if save:
            self._saved = time.monotonic()
        return Agreed(self.stop.agreed != 0, save, all(one.is_written for one in asked), regroup)
