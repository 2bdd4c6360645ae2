"""Marks in time: on the host for CPU work, as events of the current stream for CUDA work."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Takes marks, and tells the seconds between two of them."""

    def mark(self) -> Any:
        """Now, in the order of the work that was queued so far."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from one mark to a later one; on CUDA the host waits for the later one."""
        ...

    def is_reached(self, mark: Any) -> bool:
        """Whether work has come to this mark; nobody waits."""
        ...


class HostClock:
    """time.perf_counter."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def is_reached(self, mark: float) -> bool:
        return True


class CudaClock:
    """CUDA events on whichever stream is current."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000.0

    def is_reached(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())


class NoClock:
    """For what cannot be timed: every mark is None."""

    def mark(self) -> None:
        return None

    def seconds(self, start: None, end: None) -> float:
        raise AssertionError("a mark that is None was never made")

    def is_reached(self, mark: None) -> bool:
        return False


HOST_CLOCK = HostClock()
CUDA_CLOCK = CudaClock()
UNTIMED = NoClock()


def clock_for(device: torch.device) -> Clock:
    """The clock that measures work on `device`: none while a CUDA graph captures it, where events have no times."""
    if device.type != "cuda":
        return HOST_CLOCK
    return UNTIMED if torch.cuda.is_current_stream_capturing() else CUDA_CLOCK
