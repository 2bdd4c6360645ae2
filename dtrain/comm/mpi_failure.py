"""What ranks tell each other over MPI when a run fails: who is missing, and what went wrong.

Single messages beside the collectives, sent only where a run is about to fail. They use no collective, since in one all
ranks would have to take part.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dtrain.comm.polled import Waiting

if TYPE_CHECKING:
    from mpi4py import MPI

_WAITING_TAG, _FAILURE_TAG = 1, 2
_POLL_SECONDS = 0.01
_HOST_BYTES = 64
"""The longest name of a host on Linux."""


class MpiWaiting(Waiting):
    """Who else waits. A rank that has waited half its time says so to all, so that who gives up can name the others."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm, self._others, self._hosts = comm, _others(comm), _hosts(comm)
        self._waiting: dict[int, bool] = {}
        self._sent: list[MPI.Request] = []

    def tell(self, *, waiting: bool) -> None:
        """Tell the others that this rank waits, or that it goes on after all."""
        under_way = [request for request in self._sent if not request.Test()]
        self._sent = under_way + _send(self._comm, bytes([waiting]), _WAITING_TAG)

    def missing(self) -> str:
        """Who has not said that it waits."""
        for rank in self._others:
            while (word := _receive(self._comm, rank, _WAITING_TAG)) is not None:
                self._waiting[rank] = bool(word[0])
        return _describe([(r, self._hosts[r]) for r in self._others if not self._waiting.get(r)])


def _describe(missing: Sequence[tuple[int, str]]) -> str:
    if not missing:
        return "all ranks wait, for different collectives"
    ranks = [f"rank {rank} on host {host}" for rank, host in missing]
    return f"{', '.join(ranks)} {'is' if len(ranks) == 1 else 'are'} missing or stuck"


def _hosts(comm: MPI.Intracomm) -> list[str]:
    """Of every rank: afterwards a rank that is missing cannot say. A few bytes as ranks meet, which are not counted."""
    own = socket.gethostname().encode()[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0")
    all_of_them = bytearray(_HOST_BYTES * comm.Get_size())
    comm.Allgather(own, all_of_them)
    names = (all_of_them[i : i + _HOST_BYTES] for i in range(0, len(all_of_them), _HOST_BYTES))
    return [name.rstrip(b"\0").decode(errors="replace") for name in names]


def exchange_failures(comm: MPI.Intracomm, failure: str, patience_seconds: float) -> dict[int, str]:
    """Tell all others why this rank fails. Returns what those that fail as well said, by rank, within the time."""
    sent = _send(comm, failure.encode(), _FAILURE_TAG)
    said: dict[int, str] = {}
    deadline = time.monotonic() + patience_seconds
    while len(said) < len(sent) and time.monotonic() < deadline:
        for rank in _others(comm):
            word = _receive(comm, rank, _FAILURE_TAG)
            if word is not None:
                said[rank] = word.decode(errors="replace")
        time.sleep(_POLL_SECONDS)
    return said


def _others(comm: MPI.Intracomm) -> list[int]:
    return [rank for rank in range(comm.Get_size()) if rank != comm.Get_rank()]


def _send(comm: MPI.Intracomm, word: bytes, tag: int) -> list[MPI.Request]:
    return [comm.Isend(word, dest=rank, tag=tag) for rank in _others(comm)]


def _receive(comm: MPI.Intracomm, rank: int, tag: int) -> bytes | None:
    """The next message of a rank, if one has come."""
    from mpi4py import MPI

    status = MPI.Status()
    message = comm.Improbe(source=rank, tag=tag, status=status)
    if message is None:
        return None
    word = bytearray(status.Get_count(MPI.BYTE))
    message.Recv(word)
    return bytes(word)
