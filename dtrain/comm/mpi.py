"""MPI (mpi4py) as a communicator. Its traffic does not pass torch.distributed, so it is recorded here.

MPI moves a nonblocking collective only while somebody is inside MPI, and beside backward nobody is. So a thread of each
communicator tests what is under way and sleeps in between. (docs/adr/0004-mpi-progress-by-polling.md)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dtrain.comm import CollectiveError
from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger, Pending
from dtrain.meter.wire import wire_bytes

if TYPE_CHECKING:
    from mpi4py import MPI

    from dtrain.comm import Launch

POLL_SECONDS = 100e-6
"""Between two looks at a collective under way: a tenth of what 4 MB take between two ranks of one machine."""

_SUMMED = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)
"""MPI has no bfloat16 (mpi4py hands it over as bytes), and sums of small integers overflow or saturate."""


class _Collective:
    """A collective under way, with the tensor that will hold its answer."""

    def __init__(self, request: Request, answer: Tensor, timeout_seconds: float) -> None:
        self._request, self._answer, self._timeout_seconds = request, answer, timeout_seconds
        self._done = threading.Event()
        self._error: BaseException | None = None

    def finish(self, error: BaseException | None = None) -> None:
        """Let whoever waits go on."""
        self._error = error
        self._done.set()

    def wait(self) -> Tensor:
        if not self._done.wait(self._timeout_seconds):
            raise CollectiveError(
                f"waited {self._timeout_seconds:g} s for an {self._request.op} on MPI: another rank is missing or stuck"
            )
        if self._error is not None:
            raise self._error
        return self._answer


_UnderWay = tuple[_Collective, "MPI.Request", Pending | None]


class MpiCommunicator:
    """The workers of an MPI communicator, which dtrain must have for itself: their collectives must not interleave.

    Args:
        comm: an intracommunicator, of an MPI that was initialised with MPI_THREAD_MULTIPLE.
        ledger: records every collective, once, if given.
        timeout_seconds: how long `wait` waits for a missing rank.
        group: its name in the ledger.
    """

    backend = "mpi"

    def __init__(
        self, comm: MPI.Intracomm, ledger: Ledger | None, *, timeout_seconds: float = 60.0, group: str = "world"
    ) -> None:
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise ValueError(
                "backend=mpi needs MPI initialised with MPI_THREAD_MULTIPLE, since exchanges run in a thread of their "
                "own: use an MPI that provides it (pip install mpich does), or initialise yours with it"
            )
        self.rank, self.world_size = comm.Get_rank(), comm.Get_size()
        self._comm, self._in_place, self._ledger = comm, MPI.IN_PLACE, ledger
        self._cuda_aware = "cuda" in (comm.Get_info().Get("mpi_memory_alloc_kinds") or "")
        self._timeout_seconds, self._group = timeout_seconds, group
        self._jobs: queue.SimpleQueue[_UnderWay | None] = queue.SimpleQueue()
        self._open = True
        self._thread = threading.Thread(target=self._progress, name="dtrain-mpi", daemon=True)
        self._thread.start()

    def start(self, request: Request) -> _Collective:
        """Start a collective; the payload, contiguous, is not copied.

        Raises ValueError for a payload that is not contiguous, for a dtype that MPI does not sum rightly, and for a
        CUDA tensor unless the MPI says that it takes them.
        """
        if not self._open:
            raise RuntimeError("this communicator is closed")
        self._check(request)
        answer = self._answer(request)
        pending = self._record(request)
        collective = _Collective(request, answer, self._timeout_seconds)
        self._jobs.put((collective, self._start(request, answer), pending))
        return collective

    def duplicate(self) -> MpiCommunicator:
        """The same workers on an MPI communicator of their own."""
        group = f"{self._group}.duplicate"
        return MpiCommunicator(self._comm.Dup(), self._ledger, timeout_seconds=self._timeout_seconds, group=group)

    def close(self) -> None:
        """End the thread. MPI_Finalize frees the rest: freeing is collective, and other ranks may have failed."""
        if self._open:
            self._open = False
            self._jobs.put(None)
            self._thread.join()

    def _check(self, request: Request) -> None:
        payload = request.payload
        if not payload.is_contiguous():
            raise ValueError(f"the payload of an {request.op} must be contiguous: call .contiguous() on it")
        if payload.device.type != "cpu" and not (payload.is_cuda and self._cuda_aware):
            raise ValueError(
                f"this MPI exchanges CPU tensors, and the payload is on {payload.device}: move it to the CPU, use "
                "backend=nccl, or a CUDA-aware MPI (one with cuda among its mpi_memory_alloc_kinds)"
            )
        if request.op is Op.ALL_REDUCE and payload.dtype not in _SUMMED:
            raise ValueError(
                f"MPI does not sum {str(payload.dtype).removeprefix('torch.')}: use float16 (compressor=fp16) or "
                "float32, or backend=gloo"
            )

    def _answer(self, request: Request) -> Tensor:
        """Where the answer will lie."""
        payload = request.payload
        match request.op:
            case Op.ALL_REDUCE | Op.BROADCAST:
                return payload
            case Op.ALL_GATHER:
                return payload.new_empty((self.world_size, *payload.shape))
            case Op.ALL_TO_ALL:
                return torch.empty_like(payload)
        raise ValueError(f"a communicator does not perform {request.op}: use all_reduce, all_gather or all_to_all")

    def _start(self, request: Request, answer: Tensor) -> MPI.Request:
        payload = request.payload
        if payload.is_cuda:
            torch.cuda.current_stream(payload.device).synchronize()  # MPI does not know of streams
        match request.op:
            case Op.ALL_REDUCE:
                return self._comm.Iallreduce(self._in_place, payload.detach())
            case Op.ALL_GATHER:
                return self._comm.Iallgather(_as_bytes(payload), _as_bytes(answer))
            case Op.ALL_TO_ALL:
                return self._comm.Ialltoall(_as_bytes(payload), _as_bytes(answer))
        return self._comm.Ibcast(_as_bytes(payload), root=0)

    def _record(self, request: Request) -> Pending | None:
        if self._ledger is None:
            return None
        is_root = request.op is Op.BROADCAST and self.rank == 0
        payload = 0 if request.op is Op.BROADCAST and not is_root else request.payload_bytes
        wire = wire_bytes(self.backend, request.op, payload, self.world_size, is_root=is_root)
        return self._ledger.record(request.op, payload, wire, world_size=self.world_size, group=self._group)

    def _progress(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._see_through(*job)
            del job  # and with it the tensors

    def _see_through(self, collective: _Collective, under_way: MPI.Request, pending: Pending | None) -> None:
        try:
            while not under_way.Test():
                if not self._open:
                    raise RuntimeError("this communicator was closed with a collective under way")
                time.sleep(POLL_SECONDS)
            if pending is not None:
                pending.complete()
            collective.finish()
        except BaseException as error:  # handed to whoever waits
            collective.finish(error)


def _as_bytes(tensor: Tensor) -> Tensor:
    """What is only moved is moved as bytes, whatever its dtype."""
    return tensor.detach().view(-1).view(torch.uint8)


@contextmanager
def open_world(launch: Launch, ledger: Ledger | None, *, timeout_seconds: float = 60.0) -> Iterator[MpiCommunicator]:
    """All workers that mpirun started, or this one alone, from the start of MPI to its end.

    Raises ValueError where mpi4py, MPI and the launcher do not fit, naming the cure.
    """
    if launch.launcher not in ("mpirun", "none"):
        raise ValueError(
            f"{launch.launcher} started these workers, and backend=mpi cannot join them: start them with mpiexec "
            "(launch/mpirun.sh)"
        )
    world = _initialise()
    if world.Get_size() != launch.world_size:
        raise ValueError(
            f"mpirun started {launch.world_size} workers, but mpi4py's MPI sees {world.Get_size()}: they are of "
            "different MPIs; start them with the mpiexec beside this python (launch/mpirun.sh does)"
        )
    communicator = MpiCommunicator(world, ledger, timeout_seconds=timeout_seconds)
    yield communicator
    # Not after an error: MPI_Finalize would wait for ranks that wait for this one. The launcher notices a rank that
    # ends without it, and ends the others.
    communicator.close()
    _finalise()


def _initialise() -> MPI.Intracomm:
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=False)
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        raise ValueError(f"backend=mpi needs mpi4py and an MPI ({error}): pip install 'dtrain[mpi]'") from None
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return MPI.COMM_WORLD


def _finalise() -> None:
    from mpi4py import MPI

    MPI.Finalize()
