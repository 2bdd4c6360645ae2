"""Communicators: each runs the collectives that a compressor or the trainer asks for, on one backend.

Backends are imported when opened, so that a missing one costs nothing until it is asked for.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, closing
from typing import Protocol

from torch import Tensor

from dtrain.comm.launcher import Launch, detect_launch
from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger

__all__ = [
    "BACKENDS",
    "QUIET_SECONDS",
    "CollectiveError",
    "Communicator",
    "Handle",
    "Launch",
    "all_gather",
    "broadcast",
    "detect_launch",
    "fail_together",
    "open_communicator",
    "perform",
]

BACKENDS = ("gloo", "nccl", "mpi", "horovod")


QUIET_SECONDS = 10.0
"""How long a rank that is not the first to speak of a failure keeps quiet."""


class CollectiveError(RuntimeError):
    """A collective that did not come to its end: another rank is missing, or the network is."""


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> Tensor:
        """The answer. On CUDA it is ready for work on the current stream; the host does not wait.

        Raises CollectiveError once it is known to have failed, at the latest after the communicator's time-out.
        """
        ...


class Communicator(Protocol):
    """One rank's side of a group of workers. Every rank starts the same requests in the same order."""

    @property
    def backend(self) -> str:
        """The backend's name, as the wire model knows it."""
        ...

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def start(self, request: Request) -> Handle:
        """Start a collective without waiting for it."""
        ...

    def duplicate(self) -> Communicator:
        """A communicator of the same workers whose collectives may interleave with this one's in any order."""
        ...

    def close(self) -> None:
        """Leave the group. Collectives under way must have been waited for."""
        ...


def open_communicator(
    backend: str, launch: Launch, ledger: Ledger | None, *, timeout_seconds: float = 60.0
) -> AbstractContextManager[Communicator]:
    """All workers of this launch, on the backend of that name, for the length of a with statement.

    `ledger` is for a backend whose traffic does not pass torch.distributed, where meter/c10d.py records it.

    Raises ValueError, naming the cure, where the backend cannot run here or cannot join what the launcher started.
    """
    if backend == "mpi":
        from dtrain.comm import mpi

        return mpi.open_world(launch, ledger, timeout_seconds=timeout_seconds)
    if backend == "horovod":
        from dtrain.comm import horovod

        return horovod.open_world(launch, ledger, timeout_seconds=timeout_seconds)
    from dtrain.comm.torch_dist import open_default

    return closing(open_default(backend, launch, timeout_seconds=timeout_seconds))


def fail_together(launch: Launch, failure: str, *, has_spoken: bool) -> bool:
    """Before a worker ends for `failure`: whether it is this worker's to say, since no lower rank ends for the same.

    One that has not spoken waits a little: if another has, a launcher such as torchrun ends it meanwhile.
    """
    if launch.launcher == "mpirun":
        from dtrain.comm import mpi

        return all(said != failure for rank, said in mpi.fail_together(failure).items() if rank < launch.rank)
    if not has_spoken:
        time.sleep(QUIET_SECONDS)
    return True


def perform(communicator: Communicator, request: Request) -> Tensor:
    """Run one collective to its end."""
    return communicator.start(request).wait()


def broadcast(communicator: Communicator, tensor: Tensor) -> Tensor:
    """Rank 0's `tensor`, on every rank; shape and dtype must be the same everywhere. Written into `tensor`."""
    return perform(communicator, Request(Op.BROADCAST, tensor))


def all_gather(communicator: Communicator, tensor: Tensor) -> Tensor:
    """Every rank's `tensor`, as (world_size, *tensor.shape)."""
    return perform(communicator, Request(Op.ALL_GATHER, tensor))
