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


class HostClock:
    """time.perf_counter."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """CUDA events on whichever stream is current."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000.0


HOST_CLOCK = HostClock()
CUDA_CLOCK = CudaClock()


def clock_for(device: torch.device) -> Clock:
    """The clock that measures work on `device`."""
    return CUDA_CLOCK if device.type == "cuda" else HOST_CLOCK
