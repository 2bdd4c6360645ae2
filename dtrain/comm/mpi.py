"""MPI (mpi4py) as a communicator.

MPI moves a nonblocking collective only while somebody is inside MPI, and beside backward nobody is. So the thread that
looks whether it is done also moves it. (docs/adr/0004-mpi-progress-by-polling.md)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dtrain.comm.mpi_failure import MpiWaiting, exchange_failures
from dtrain.comm.polled import Collective, Poll, PolledCommunicator, Waiting, as_bytes
from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger

if TYPE_CHECKING:
    from mpi4py import MPI

    from dtrain.comm import Launch


class MpiCommunicator(PolledCommunicator):
    """The workers of an MPI communicator, which dtrain must have for itself: their collectives must not interleave.

    Args:
        comm: an intracommunicator, of an MPI that was initialised with MPI_THREAD_MULTIPLE.
        ledger: records every collective, once, if given.
        timeout_seconds: how long `wait` waits for a missing rank; then it raises CollectiveError.
        group: its name in the ledger.
        waiting: the one of the communicator that this one duplicates.
    """

    backend = "mpi"

    def __init__(
        self,
        comm: MPI.Intracomm,
        ledger: Ledger | None,
        *,
        timeout_seconds: float = 60.0,
        group: str = "world",
        waiting: Waiting | None = None,
    ) -> None:
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise ValueError(
                "backend=mpi needs MPI initialised with MPI_THREAD_MULTIPLE, since exchanges run in a thread of their "
                "own: use an MPI that provides it (pip install mpich does), or initialise yours with it"
            )
        self._comm, self._in_place = comm, MPI.IN_PLACE
        self._cuda_aware = "cuda" in (comm.Get_info().Get("mpi_memory_alloc_kinds") or "")
        super().__init__(
            comm.Get_rank(),
            comm.Get_size(),
            ledger,
            timeout_seconds=timeout_seconds,
            group=group,
            waiting=waiting or MpiWaiting(comm),
        )

    def duplicate(self) -> MpiCommunicator:
        """The same workers on an MPI communicator of their own."""
        return MpiCommunicator(
            self._comm.Dup(),
            self._ledger,
            timeout_seconds=self._timeout_seconds,
            group=f"{self._group}.duplicate",
            waiting=self._waiting,
        )

    def _check(self, request: Request) -> None:
        device = request.payload.device
        if device.type != "cpu" and not (device.type == "cuda" and self._cuda_aware):
            raise ValueError(
                f"this MPI exchanges CPU tensors, and the payload is on {device}: move it to the CPU, use "
                "backend=nccl, or a CUDA-aware MPI (one with cuda among its mpi_memory_alloc_kinds)"
            )
        super()._check(request)

    def _begin(self, request: Request, collective: Collective) -> Poll:
        answer = self._answer(request)
        under_way = self._start(request, answer)
        return lambda: answer if under_way.Test() else None

    def _answer(self, request: Request) -> Tensor:
        """Where the answer will lie."""
        payload = request.payload
        match request.op:
            case Op.ALL_GATHER:
                return payload.new_empty((self.world_size, *payload.shape))
            case Op.ALL_TO_ALL:
                return torch.empty_like(payload)
        return payload

    def _start(self, request: Request, answer: Tensor) -> MPI.Request:
        payload = request.payload
        if payload.is_cuda:
            torch.cuda.current_stream(payload.device).synchronize()  # MPI does not know of streams
        match request.op:
            case Op.ALL_REDUCE:
                return self._comm.Iallreduce(self._in_place, payload.detach())
            case Op.ALL_GATHER:
                return self._comm.Iallgather(as_bytes(payload), as_bytes(answer))
            case Op.ALL_TO_ALL:
                return self._comm.Ialltoall(as_bytes(payload), as_bytes(answer))
        return self._comm.Ibcast(as_bytes(payload), root=0)


@contextmanager
def open_world(launch: Launch, ledger: Ledger | None, *, timeout_seconds: float = 60.0) -> Iterator[MpiCommunicator]:
    """All workers that mpirun started, from the start of MPI to its end.

    Raises ValueError where mpi4py, MPI and the launcher do not fit, naming the cure.
    """
    if launch.launcher not in ("mpirun", "none"):
        raise ValueError(
            f"{launch.launcher} started these workers, and backend=mpi cannot join them: start them with mpirun "
            "(dtrain launch backend=mpi)"
        )
    _import_mpi()
    if launch.launcher == "none":
        raise ValueError(
            "backend=mpi, but mpiexec did not start this process, so it would train alone: write mpiexec -n RANKS "
            "before it, or launch/mpirun.sh -n RANKS in its place, with 1 for a worker alone"
        )
    world = _initialise()
    if world.Get_size() != launch.world_size:
        raise ValueError(
            f"mpirun started {launch.world_size} workers, but mpi4py's MPI sees {world.Get_size()}: they are of "
            "different MPIs; start them with the mpiexec beside this python (dtrain launch does)"
        )
    communicator = MpiCommunicator(world, ledger, timeout_seconds=timeout_seconds)
    yield communicator
    # Not after an error: MPI_Finalize would wait for ranks that wait for this one. The launcher notices a rank that
    # ends without it, and ends the others.
    communicator.close()
    _finalise()


def fail_together(failure: str, *, patience_seconds: float = 5.0) -> dict[int, str]:
    """Before this worker ends for `failure`: what the others that fail as well say, by rank.

    Where all fail, MPI ends in order. Else this worker leaves it without the others, by which the launcher knows that
    it has to end them; MPICH's takes no notice of a worker that ends before MPI was initialised. Initialising takes
    every worker, so it is given up after a while.
    """
    said: dict[int, str] = {}

    def tell() -> None:
        world = _initialise()
        said.update(exchange_failures(world, failure, patience_seconds))
        if len(said) == world.Get_size() - 1:
            _finalise()

    try:
        mpi = _import_mpi()
    except ValueError:  # no MPI: then there are no others
        return {}
    if mpi.Is_finalized():  # Horovod over MPI does so when it shuts down
        return {}
    if mpi.Is_initialized():
        tell()  # in the thread that initialised it, since that one has to finalise it
    else:
        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        thread.join(4 * patience_seconds)
    return dict(said)


def library_version() -> str:
    """The MPI that mpi4py uses, in a line. Raises ValueError where there is none, naming the cure."""
    text: str = _import_mpi().Get_library_version()
    return " ".join(text.splitlines()[0].rstrip("\0").split()).partition(", package:")[0]


def _import_mpi() -> Any:
    """mpi4py.MPI, which neither initialises nor finalises by itself. Raises ValueError where there is none."""
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=False)
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        raise ValueError(f"backend=mpi needs mpi4py and an MPI ({error}): pip install 'dtrain[mpi]'") from None
    return MPI


def _initialise() -> MPI.Intracomm:
    mpi = _import_mpi()
    if not mpi.Is_initialized():
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
    world: MPI.Intracomm = mpi.COMM_WORLD
    return world


def _finalise() -> None:
    from mpi4py import MPI

    MPI.Finalize()
