"""Horovod as a communicator: its low-level collectives, not its DistributedOptimizer.

Horovod has one world and one background thread, which runs what all ranks have asked for under the same name. It
remembers its last answers by name, so names come round again: a few for each kind and size of collective.
(docs/adr/0006-horovod-names.md)
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from dtrain.comm.polled import Collective, Poll, PolledCommunicator, Waiting, as_bytes
from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger

if TYPE_CHECKING:
    from dtrain.comm import Launch

NAMES_OF_A_KIND = 16
"""Collectives of one operation, type and size that may be under way at once; another one waits for the oldest."""

_LARGEST_BYTES = 2**31 - 1
"""Horovod counts elements in 32 bits, and what is only moved is moved as bytes."""

_numbers = itertools.count()


class HorovodCommunicator(PolledCommunicator):
    """All workers of an initialised Horovod. Every rank must make its communicators in the same order.

    Args:
        ledger: records every collective, once, if given.
        timeout_seconds: how long `wait` waits for a missing rank.
        group: its name in the ledger.
    """

    backend = "horovod"

    def __init__(self, ledger: Ledger | None, *, timeout_seconds: float = 60.0, group: str = "world") -> None:
        self._hvd = _import()
        if not self._hvd.is_initialized():
            raise ValueError("Horovod is not initialised: call hvd.init() first")
        self._prefix = f"dtrain{next(_numbers)}"
        self._started: dict[str, int] = {}
        self._done: dict[str, Event] = {}
        super().__init__(
            self._hvd.rank(),
            self._hvd.size(),
            ledger,
            timeout_seconds=timeout_seconds,
            group=group,
            waiting=Waiting(),
        )

    def duplicate(self) -> HorovodCommunicator:
        """The same workers, under names of their own."""
        group = f"{self._group}.duplicate"
        return HorovodCommunicator(self._ledger, timeout_seconds=self._timeout_seconds, group=group)

    def _check(self, request: Request) -> None:
        if request.payload.device.type != "cpu":
            raise ValueError(
                f"backend=horovod exchanges CPU tensors, and the payload is on {request.payload.device}: move it to "
                "the CPU, or use backend=nccl"
            )
        num_bytes = request.payload_bytes * (self.world_size if request.op is Op.ALL_GATHER else 1)
        if num_bytes > _LARGEST_BYTES:
            raise ValueError(
                f"Horovod moves less than 2 GiB at a time, and this {request.op} has {num_bytes:,} B: use smaller "
                "buckets (bucket_bytes), or backend=gloo"
            )
        super()._check(request)

    def _begin(self, request: Request, collective: Collective) -> Poll:
        hvd, payload = self._hvd, request.payload
        handle = self._start(request, self._name(request, collective))

        def poll() -> Tensor | None:
            if not hvd.poll(handle):
                return None
            answer = hvd.synchronize(handle)
            match request.op:
                case Op.ALL_GATHER:
                    return cast("Tensor", answer.view(payload.dtype).view(self.world_size, *payload.shape))
                case Op.ALL_TO_ALL:
                    return cast("Tensor", answer[0].view(payload.dtype).view(payload.shape))
            return payload

        return poll

    def _start(self, request: Request, name: str) -> Any:
        payload = request.payload.detach()
        match request.op:
            case Op.ALL_REDUCE:
                return self._hvd.allreduce_async_(payload, name=name, op=self._hvd.Sum)
            case Op.ALL_GATHER:
                return self._hvd.allgather_async(as_bytes(payload), name=name)
            case Op.ALL_TO_ALL:
                return self._hvd.alltoall_async(as_bytes(payload), name=name)
        return self._hvd.broadcast_async_(as_bytes(payload), root_rank=0, name=name)

    def _name(self, request: Request, collective: Collective) -> str:
        """The same on every rank, and of nothing that is still under way."""
        kind = f"{self._prefix}.{request.op}.{str(request.payload.dtype)[6:]}.{request.payload.numel()}"
        number = self._started.get(kind, 0)
        self._started[kind] = (number + 1) % NAMES_OF_A_KIND
        name = f"{kind}.{number}"
        if name in self._done:
            self._done[name].wait(self._timeout_seconds)
        self._done[name] = collective.done
        return name


@contextmanager
def open_world(
    launch: Launch, ledger: Ledger | None, *, timeout_seconds: float = 60.0
) -> Iterator[HorovodCommunicator]:
    """All workers that horovodrun or mpirun started, from hvd.init() to hvd.shutdown().

    Raises ValueError where Horovod and the launcher do not fit, naming the cure.
    """
    if launch.launcher not in ("horovodrun", "mpirun", "none"):
        raise ValueError(
            f"{launch.launcher} started these workers, and backend=horovod cannot join them: start them with "
            "horovodrun (dtrain launch backend=horovod)"
        )
    hvd = _import()
    if launch.launcher == "none":
        raise ValueError(
            "backend=horovod, but horovodrun did not start this process, so it would train alone: write horovodrun -np "
            "RANKS before it, or launch/horovodrun.sh -n RANKS in its place, with 1 for a worker alone"
        )
    if launch.launcher == "mpirun" and not hvd.mpi_built():
        raise ValueError(
            "mpirun started these workers, and this Horovod is built without MPI: start them with horovodrun, or pip "
            "install 'dtrain[mpi]' and run make horovod again"
        )
    for name, value in _settings(timeout_seconds).items():
        os.environ.setdefault(name, value)
    hvd.init()
    if hvd.size() != launch.world_size:
        raise ValueError(
            f"{launch.launcher} started {launch.world_size} workers, but Horovod sees {hvd.size()}: start them with "
            "the horovodrun or mpiexec of this environment (dtrain launch does)"
        )
    communicator = HorovodCommunicator(ledger, timeout_seconds=timeout_seconds)
    # After an error too: Horovod then tells the other ranks, instead of leaving them to wait.
    try:
        yield communicator
    finally:
        communicator.close()
        hvd.shutdown()


def _settings(timeout_seconds: float) -> dict[str, str]:
    """Horovod's environment where the user has not set it."""
    return {
        "HOROVOD_FUSION_THRESHOLD": "0",  # buckets are chosen here; fused by arrival, sums would differ between runs
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(max(1, round(timeout_seconds))),
        # Over MPI, rank 0 then names a missing rank before waiting for it ends in an error; over gloo it never does
        "HOROVOD_STALL_CHECK_TIME_SECONDS": str(max(1, min(60, int(timeout_seconds / 4)))),
    }


def num_workers() -> int:
    """Of the job; 1 before hvd.init(). Raises ValueError without Horovod."""
    hvd = _import()
    return int(hvd.size()) if hvd.is_initialized() else 1


def _import() -> Any:
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise ValueError(f"backend=horovod needs Horovod ({error}): run make horovod") from None
    return hvd
