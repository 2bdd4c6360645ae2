"""What the backends share whose collectives somebody must ask for: MPI and Horovod.

Neither announces that a collective is done, and their own waiting spins and knows no time-out. So a thread of each
communicator looks at what is under way and sleeps in between. Their traffic does not pass torch.distributed, so it is
recorded here. (docs/adr/0004-mpi-progress-by-polling.md)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dtrain.comm.communicator import CollectiveError
from dtrain.comm.recording import record
from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger, Pending

POLL_SECONDS = 100e-6
"""Between two looks at a collective under way: a tenth of what 4 MB take between two ranks of one machine."""

TITLES = {"mpi": "MPI", "horovod": "Horovod"}

_SUMMED = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)
"""Neither has bfloat16 on the CPU (mpi4py hands it over as bytes), and sums of small integers overflow or saturate."""

Poll = Callable[[], Tensor | None]
"""The answer of a collective once it is there, None before."""


def check_summed(backend: str, dtype: torch.dtype) -> None:
    """Raise ValueError, naming the cure, for a type that this backend ("mpi", "horovod") does not sum rightly."""
    if dtype not in _SUMMED:
        raise ValueError(
            f"{TITLES[backend]} does not sum {str(dtype).removeprefix('torch.')}: use float16 (compressor=fp16) or "
            "float32, or backend=gloo"
        )


class Waiting:
    """Who else waits; on a backend whose ranks cannot tell each other, nobody knows."""

    def tell(self, *, waiting: bool) -> None:
        """Tell the others that this rank has waited half its time, or that it goes on after all."""

    def missing(self) -> str:
        """Who has not said that it waits."""
        return "another rank is missing or stuck"


class Collective:
    """A collective under way."""

    def __init__(self, what: str, timeout_seconds: float, waiting: Waiting) -> None:
        self.done = threading.Event()
        self._what, self._timeout_seconds, self._waiting = what, timeout_seconds, waiting
        self._outcome: Tensor | BaseException | None = None

    def finish(self, outcome: Tensor | BaseException) -> None:
        """Let whoever waits go on, with an answer or an error."""
        self._outcome = outcome
        self.done.set()

    def wait(self) -> Tensor:
        half = self._timeout_seconds / 2
        if not self.done.wait(half):
            self._waiting.tell(waiting=True)
            if not self.done.wait(half):
                raise CollectiveError(
                    f"waited {self._timeout_seconds:g} s for an {self._what}: {self._waiting.missing()}"
                )
            self._waiting.tell(waiting=False)
        if isinstance(self._outcome, BaseException):
            reason = (str(self._outcome).splitlines() or [type(self._outcome).__name__])[0]
            raise CollectiveError(f"{self._what} failed: {reason}") from self._outcome
        assert self._outcome is not None
        return self._outcome


class PolledCommunicator:
    """A communicator but for `_begin`, which starts a collective, and `duplicate`.

    Args:
        rank, world_size: this worker's place.
        ledger: records every collective, once, if given.
        timeout_seconds: how long `wait` waits for a missing rank; then it raises CollectiveError.
        group: its name in the ledger.
        waiting: tells who is missing then.
    """

    backend: str

    def __init__(
        self,
        rank: int,
        world_size: int,
        ledger: Ledger | None,
        *,
        timeout_seconds: float,
        group: str,
        waiting: Waiting,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._ledger, self._timeout_seconds, self._group = ledger, timeout_seconds, group
        self._waiting = waiting
        self._jobs: queue.SimpleQueue[tuple[Collective, Poll, Pending | None] | None] = queue.SimpleQueue()
        self._open = True
        self._thread = threading.Thread(target=self._watch, name=f"dtrain-{self.backend}", daemon=True)
        self._thread.start()

    def start(self, request: Request) -> Collective:
        """Start a collective; the payload, contiguous, is not copied.

        Raises ValueError for a payload that is not contiguous, or of a dtype or device that the backend does not take.
        """
        if not self._open:
            raise RuntimeError("this communicator is closed")
        self._check(request)
        pending = None if self._ledger is None else record(self._ledger, request, self, self._group)
        collective = Collective(f"{request.op} on {TITLES[self.backend]}", self._timeout_seconds, self._waiting)
        self._jobs.put((collective, self._begin(request, collective), pending))
        return collective

    def close(self) -> None:
        """End the thread. The backend's end frees the rest: freeing is collective, and other ranks may have failed."""
        if self._open:
            self._open = False
            self._jobs.put(None)
            self._thread.join()

    def _begin(self, request: Request, collective: Collective) -> Poll:
        raise NotImplementedError

    def _check(self, request: Request) -> None:
        payload = request.payload
        if request.op not in (Op.ALL_REDUCE, Op.ALL_GATHER, Op.ALL_TO_ALL, Op.BROADCAST):
            raise ValueError(f"a communicator does not perform {request.op}: use all_reduce, all_gather or all_to_all")
        if not payload.is_contiguous():
            raise ValueError(f"the payload of an {request.op} must be contiguous: call .contiguous() on it")
        if request.op is Op.ALL_REDUCE:
            check_summed(self.backend, payload.dtype)

    def _watch(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._see_through(*job)
            del job  # and with it the tensors

    def _see_through(self, collective: Collective, poll: Poll, pending: Pending | None) -> None:
        try:
            while (answer := poll()) is None:
                if not self._open:
                    raise RuntimeError("this communicator was closed with a collective under way")
                time.sleep(POLL_SECONDS)
            if pending is not None:
                pending.complete()
            collective.finish(answer)
        except BaseException as error:  # handed to whoever waits
            collective.finish(error)


def as_bytes(tensor: Tensor) -> Tensor:
    """What is only moved is moved as bytes, whatever its dtype."""
    return tensor.detach().view(-1).view(torch.uint8)
