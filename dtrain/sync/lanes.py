"""Where exchanges run beside the training thread's work: a thread's own order on the host, a side stream on CUDA."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class Lane(Protocol):
    """Its work is ordered against the training thread's by points in that thread's work."""

    @property
    def takes_thread(self) -> bool:
        """Whether exchanges may run in a thread of their own."""
        ...

    def point(self) -> Any:
        """The training thread's work up to now."""
        ...

    def wait_for(self, point: Any) -> None:
        """What follows in the lane waits for that work."""
        ...

    def work(self) -> AbstractContextManager[Any]:
        """Work inside is the lane's."""
        ...

    def join(self) -> None:
        """What follows in the training thread waits for the lane."""
        ...


class HostLane:
    """Nothing is queued on the host: the order of calls is the order of work."""

    takes_thread = True

    def point(self) -> None:
        """See `Lane`."""

    def wait_for(self, point: None) -> None:
        """See `Lane`."""

    def work(self) -> AbstractContextManager[None]:
        """See `Lane`."""
        return nullcontext()

    def join(self) -> None:
        """See `Lane`."""


class CudaLane:
    """A side stream."""

    takes_thread = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def point(self) -> torch.cuda.Event:
        """See `Lane`."""
        event = torch.cuda.Event()
        event.record()
        return event

    def wait_for(self, point: torch.cuda.Event) -> None:
        """See `Lane`."""
        self._stream.wait_event(point)

    def work(self) -> AbstractContextManager[Any]:
        """See `Lane`."""
        torch.cuda.set_device(self._device)
        return torch.cuda.stream(self._stream)

    def join(self) -> None:
        """See `Lane`."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def lane_for(device: torch.device) -> Lane:
    """The lane for work on `device`."""
    return CudaLane(device) if device.type == "cuda" else HostLane()
