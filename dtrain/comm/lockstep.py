"""N virtual workers in one process: no network, the same generators, the same bytes counted.

`start` on every rank comes before `wait` on any, as `sync.drive.drive_lockstep` does it. Sums are taken in rank order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dtrain.comm.recording import record
from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger


class _Round:
    """One collective of all virtual workers."""

    def __init__(self, world_size: int) -> None:
        self.requests: list[Request | None] = [None] * world_size

    def answer(self, rank: int) -> Tensor:
        missing = [k for k, request in enumerate(self.requests) if request is None]
        if missing:
            raise RuntimeError(f"rank {rank} waits for a collective that ranks {missing} have not started")
        requests = [request for request in self.requests if request is not None]
        ops = {request.op for request in requests}
        shapes = {(tuple(request.payload.shape), request.payload.dtype) for request in requests}
        if len(ops) > 1 or len(shapes) > 1:
            raise RuntimeError(f"ranks disagree on a collective: {sorted(ops)}, {sorted(map(str, shapes))}")
        return _perform(requests, rank)


def _perform(requests: Sequence[Request], rank: int) -> Tensor:
    payloads = [request.payload for request in requests]
    match requests[0].op:
        case Op.ALL_REDUCE:
            total = payloads[0].clone()
            for payload in payloads[1:]:
                total += payload
            return total
        case Op.ALL_GATHER:
            return torch.stack(payloads)
        case Op.ALL_TO_ALL:
            return torch.stack([payload[rank] for payload in payloads])
        case Op.BROADCAST:
            return payloads[0].clone()
    raise ValueError(f"a communicator does not perform {requests[0].op}: use all_reduce, all_gather or all_to_all")


class _Handle:
    def __init__(self, meeting: _Round, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def wait(self) -> Tensor:
        return self._meeting.answer(self._rank)


class LockstepCommunicator:
    """One virtual worker. Made by `lockstep`."""

    backend = "lockstep"

    def __init__(self, rank: int, world_size: int, rounds: dict[int, _Round], ledger: Ledger | None) -> None:
        self.rank, self.world_size = rank, world_size
        self._rounds, self._ledger = rounds, ledger
        self._started = 0

    def start(self, request: Request) -> _Handle:
        """Put this worker's payload on the table of the next round."""
        meeting = self._rounds.setdefault(self._started, _Round(self.world_size))
        meeting.requests[self.rank] = request
        if None not in meeting.requests:  # every rank has its handle, and nobody looks it up any more
            del self._rounds[self._started]
        self._started += 1
        if self._ledger is not None:
            record(self._ledger, request, self, group="lockstep").complete()
        return _Handle(meeting, self.rank)

    def duplicate(self) -> LockstepCommunicator:
        """Itself: virtual workers have nothing to interleave."""
        return self

    def close(self) -> None:
        """Nothing to leave."""


def lockstep(world_size: int, ledgers: Sequence[Ledger] | None = None) -> list[LockstepCommunicator]:
    """`world_size` virtual workers that see one another, each recording in its own ledger if ledgers are given."""
    rounds: dict[int, _Round] = {}
    return [
        LockstepCommunicator(rank, world_size, rounds, ledgers[rank] if ledgers else None) for rank in range(world_size)
    ]
