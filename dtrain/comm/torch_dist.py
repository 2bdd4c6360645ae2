"""torch.distributed (gloo, NCCL) as a communicator. Its traffic is recorded by meter/c10d.py, not here."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

# Its functions' default arguments hold the default group as it is when the module is imported, and torch imports it
# later by itself: imported before there is a group, it keeps none alive.
import torch.distributed.nn.functional
from torch import Tensor
from torch.distributed import distributed_c10d

from dtrain.comm.communicator import CollectiveError
from dtrain.exchange import Op, Request
from dtrain.meter.rendezvous import RendezvousError, join_store

if TYPE_CHECKING:
    from dtrain.comm import Handle, Launch


class _Work:
    """A torch collective under way, with the tensor that will hold its answer."""

    __slots__ = ("_answer", "_op", "_work")

    def __init__(self, op: Op, work: dist.Work | None, answer: Tensor) -> None:
        self._op, self._work, self._answer = op, work, answer

    def wait(self) -> Tensor:
        if self._work is not None:
            with _failing(self._op):
                self._work.wait()
        return self._answer


@contextmanager
def _failing(op: Op) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise CollectiveError(f"{op} failed: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of what torch says, without the place in its source."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"^\[[^]]*] ", "", lines[0]).partition(". ")[0]


class TorchCommunicator:
    """The workers of one process group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._open: dist.ProcessGroup | None = group
        self.backend = str(dist.get_backend(group))
        self.rank = group.rank()
        self.world_size = group.size()
        self._device = torch.device("cuda" if self.backend == "nccl" else "cpu")

    @property
    def _group(self) -> dist.ProcessGroup:
        if self._open is None:
            raise RuntimeError("this communicator is closed")
        return self._open

    def start(self, request: Request) -> Handle:
        """Start a collective; the payload must be contiguous and on a device that the backend serves."""
        group = self._group
        with _failing(request.op):
            work, answer = self._start(request.op, request.payload, group)
        return _Work(request.op, work, answer)

    def _start(self, op: Op, payload: Tensor, group: dist.ProcessGroup) -> tuple[dist.Work | None, Tensor]:
        match op:
            case Op.ALL_REDUCE:
                return dist.all_reduce(payload, group=group, async_op=True), payload
            case Op.ALL_GATHER:
                answer = payload.new_empty((self.world_size, *payload.shape))
                return _all_gather(answer, payload, group), answer
            case Op.ALL_TO_ALL:
                answer = torch.empty_like(payload)
                return dist.all_to_all_single(answer, payload, group=group, async_op=True), answer
            case Op.BROADCAST:
                return dist.broadcast(payload, group_src=0, group=group, async_op=True), payload
        raise ValueError(f"a communicator does not perform {op}: use all_reduce, all_gather or all_to_all")

    def duplicate(self) -> TorchCommunicator:
        """The same workers on a process group of their own, which waits for a missing rank as long as this one does."""
        ranks, options = dist.get_process_group_ranks(self._group), self._group._get_backend(self._device).options
        alone = self.world_size < dist.get_world_size()  # others of the job are not here to take part
        group = dist.new_group(ranks, backend=self.backend, timeout=options._timeout, use_local_synchronization=alone)
        return TorchCommunicator(group)

    def close(self) -> None:
        """Destroy the group; the default group takes every other with it. Its threads end once nothing refers to it."""
        group, self._open = self._open, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)


def _all_gather(answer: Tensor, payload: Tensor, group: dist.ProcessGroup) -> dist.Work | None:
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    work: dist.Work | None = gather(answer.view(-1), payload.reshape(-1), group=group, async_op=True)
    return work


def is_built(backend: str) -> bool:
    """Whether this torch has the backend, gloo or nccl, in it."""
    return dist.is_available() and (dist.is_gloo_available() if backend == "gloo" else dist.is_nccl_available())


def open_default(
    backend: str, launch: Launch, *, timeout_seconds: float = 60.0, start: str | None = None
) -> TorchCommunicator:
    """Join the default process group, by the launcher's rendezvous or, with no launcher, alone.

    `start`: what `meter.roll_call.name_start` called this start of the ranks.

    Raises ValueError for a backend that cannot run here, naming the cure; CollectiveError for workers that do not meet.
    """
    if backend == "nccl" and not (torch.cuda.is_available() and dist.is_nccl_available()):
        raise ValueError("backend=nccl needs a CUDA device and a torch built with NCCL: use backend=gloo")
    if launch.launcher not in ("torchrun", "none"):
        cure = f", or add backend={'mpi' if launch.launcher == 'mpirun' else 'horovod'}"
        raise ValueError(
            f"{launch.launcher} started these workers, and backend={backend} cannot join them: start them with "
            f"torchrun{cure}"
        )
    timeout = timedelta(seconds=timeout_seconds)
    device = torch.device("cuda", launch.local_rank) if backend == "nccl" else None
    if device is not None:
        torch.cuda.set_device(device)
    rank, world_size = launch.rank, launch.world_size
    if not dist.is_initialized():
        distributed_c10d._world.group_count = 0  # one that failed counts on, and by it ranks look for each other
    try:
        alone = launch.launcher == "none"
        store = dist.HashStore() if alone else join_store(os.environ, timeout_seconds, start)  # type: ignore[attr-defined]
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=device
        )
    except RendezvousError as error:
        raise CollectiveError(str(error)) from None
    except RuntimeError as error:  # of the backend, which did not connect to another rank
        raise CollectiveError(
            f"rank {rank} on host {socket.gethostname()} cannot open {backend}: {_reason(error)}"
        ) from error
    group = dist.group.WORLD
    assert group is not None
    return TorchCommunicator(group)
