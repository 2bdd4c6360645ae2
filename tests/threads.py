"""N ranks as threads of one process: whole programs of several ranks, where lockstep needs generators."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from dtrain.exchange import Op, Request

T = TypeVar("T")


class _AbandonedError(Exception):
    """Another rank has failed, or never came."""


class _Meeting:
    """What the ranks of one communicator have put on the table, collective by collective."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.tables: dict[int, dict[int, Request]] = {}
        self.taken: dict[int, int] = {}
        self.changed = threading.Condition()
        self.failed = False


class _Handle:
    def __init__(self, meeting: _Meeting, number: int, rank: int) -> None:
        self._meeting, self._number, self._rank = meeting, number, rank

    def wait(self) -> Tensor:
        meeting, number = self._meeting, self._number
        with meeting.changed:
            full = meeting.changed.wait_for(
                lambda: meeting.failed or len(meeting.tables[number]) == meeting.world_size, timeout=30
            )
            if not full or meeting.failed:
                raise _AbandonedError(f"rank {self._rank} waits for a collective that others have not started")
            table = meeting.tables[number]
            answer = _answer([table[rank] for rank in range(meeting.world_size)], self._rank)
            meeting.taken[number] = meeting.taken.get(number, 0) + 1
            if meeting.taken[number] == meeting.world_size:
                del meeting.tables[number], meeting.taken[number]
        return answer


def _answer(requests: list[Request], rank: int) -> Tensor:
    payloads = [request.payload for request in requests]
    assert len({(request.op, request.payload.shape, request.payload.dtype) for request in requests}) == 1
    match requests[0].op:
        case Op.ALL_REDUCE:
            return torch.stack(payloads).sum(0, dtype=payloads[0].dtype)
        case Op.ALL_GATHER:
            return torch.stack(payloads)
        case Op.ALL_TO_ALL:
            return torch.stack([payload[rank] for payload in payloads])
        case Op.BROADCAST:
            return payloads[0].clone()
    raise ValueError(requests[0].op)


class ThreadCommunicator:
    """One rank. Made by `run_ranks`."""

    backend = "lockstep"

    def __init__(self, rank: int, meetings: list[_Meeting], depth: int = 0) -> None:
        self.rank, self.world_size = rank, meetings[0].world_size
        self._meetings, self._depth, self._started = meetings, depth, 0

    def start(self, request: Request) -> _Handle:
        meeting = self._meetings[self._depth]
        with meeting.changed:
            # a copy: who has all answers may go on and write over what others have not read yet
            handed_over = Request(request.op, request.payload.clone())
            meeting.tables.setdefault(self._started, {})[self.rank] = handed_over
            meeting.changed.notify_all()
        self._started += 1
        return _Handle(meeting, self._started - 1, self.rank)

    def duplicate(self) -> ThreadCommunicator:
        return ThreadCommunicator(self.rank, self._meetings, self._depth + 1)

    def close(self) -> None: ...


def run_ranks(world_size: int, body: Callable[[ThreadCommunicator], T]) -> list[T]:
    """What `body` returns on each rank; the first error that is not another rank's is raised."""
    meetings = [_Meeting(world_size) for _ in range(4)]

    def run(rank: int) -> T:
        try:
            return body(ThreadCommunicator(rank, meetings))
        except BaseException:
            for meeting in meetings:
                with meeting.changed:
                    meeting.failed = True
                    meeting.changed.notify_all()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(run, rank) for rank in range(world_size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next((e for e in errors if not isinstance(e, _AbandonedError)), errors[0])
    return [future.result() for future in futures]
