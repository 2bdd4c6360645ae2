"""All workers of a launch, on the backend of a name."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing

from dtrain.comm.communicator import Communicator
from dtrain.comm.launcher import Launch
from dtrain.meter.ledger import Ledger

BACKENDS = ("gloo", "nccl", "mpi", "horovod")


def open_communicator(
    backend: str,
    launch: Launch,
    ledger: Ledger | None,
    *,
    timeout_seconds: float = 60.0,
    start: str | None = None,
) -> AbstractContextManager[Communicator]:
    """All workers of this launch, on the backend of that name, for the length of a with statement.

    `ledger` is for a backend whose traffic does not pass torch.distributed, where meter/c10d.py records it. `start`
    tells this start of the ranks from others before it (`meter.roll_call.name_start`).

    Raises ValueError, naming the cure, where the backend cannot run here or cannot join what the launcher started.
    """
    if backend == "mpi":
        from dtrain.comm import mpi

        return mpi.open_world(launch, ledger, timeout_seconds=timeout_seconds)
    if backend == "horovod":
        from dtrain.comm import horovod

        return horovod.open_world(launch, ledger, timeout_seconds=timeout_seconds)
    from dtrain.comm.torch_dist import open_default

    return closing(open_default(backend, launch, timeout_seconds=timeout_seconds, start=start))
