"""Small messages sent as one: after compression, latency and framing cost more than bytes.

Small requests of the same operation are joined into one collective and their answers taken apart again. What moves
bytes (all_gather, all_to_all) is joined whatever its dtype; what sums (all_reduce) only with its own. The payload bytes
are the same as before, and the answers those of separate collectives, but for the order of a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dtrain.comm import Communicator, Handle
from dtrain.exchange import Op, Request

SMALL_BYTES = 64 * 1024
"""A request below this is small: on a 1 Gbit/s link it takes half a millisecond, about what its latency costs."""


def start_together(
    requests: Sequence[Request], communicator: Communicator, *, small_bytes: int = SMALL_BYTES
) -> list[Handle]:
    """Start all requests, those below `small_bytes` in as few collectives as possible; handles are in their order."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, request in enumerate(requests):
        dtype = request.payload.dtype if request.op is Op.ALL_REDUCE else None
        key = (request.op, dtype) if request.payload_bytes < small_bytes else (i,)
        groups.setdefault(key, []).append(i)
    handles: dict[int, Handle] = {}
    for members in groups.values():
        if len(members) == 1:
            handles[members[0]] = communicator.start(requests[members[0]])
        else:
            joined = _join([requests[i] for i in members], communicator)
            handles |= {i: _Part(joined, place) for place, i in enumerate(members)}
    return [handles[i] for i in range(len(requests))]


class _Joined(Protocol):
    def answer(self, place: int) -> Tensor: ...


class _Part:
    """One request's share of a joined collective."""

    def __init__(self, joined: _Joined, place: int) -> None:
        self._joined, self._place = joined, place

    def wait(self) -> Tensor:
        return self._joined.answer(self._place)


class _JoinedSum:
    """Several all_reduces of one dtype as one."""

    def __init__(self, requests: Sequence[Request], communicator: Communicator) -> None:
        payloads = [request.payload for request in requests]
        self._shapes = [payload.shape for payload in payloads]
        flat = torch.cat([payload.reshape(-1) for payload in payloads])
        self._handle = communicator.start(Request(Op.ALL_REDUCE, flat, tuple(requests)))
        self._parts: Sequence[Tensor] | None = None

    def answer(self, place: int) -> Tensor:
        if self._parts is None:
            self._parts = self._handle.wait().split([shape.numel() for shape in self._shapes])
        return self._parts[place].view(self._shapes[place])


class _JoinedRows:
    """Several all_gathers, or several all_to_alls, as one of bytes: a row for each rank."""

    def __init__(self, requests: Sequence[Request], communicator: Communicator) -> None:
        op, payloads = requests[0].op, [request.payload for request in requests]
        self._op, self._like, self._world_size = op, payloads, communicator.world_size
        num_rows = communicator.world_size if op is Op.ALL_TO_ALL else 1
        rows = [payload.reshape(num_rows, -1).view(torch.uint8) for payload in payloads]
        self._widths = [row.shape[1] for row in rows]
        joined = torch.cat(rows, dim=1)
        self._handle = communicator.start(Request(op, joined if op is Op.ALL_TO_ALL else joined[0], tuple(requests)))
        self._columns: Sequence[Tensor] | None = None

    def answer(self, place: int) -> Tensor:
        if self._columns is None:
            self._columns = self._handle.wait().split(self._widths, dim=1)
        like = self._like[place]
        shape = like.shape if self._op is Op.ALL_TO_ALL else (self._world_size, *like.shape)
        return self._columns[place].contiguous().view(like.dtype).view(shape)


def _join(requests: Sequence[Request], communicator: Communicator) -> _Joined:
    kind = _JoinedSum if requests[0].op is Op.ALL_REDUCE else _JoinedRows
    return kind(requests, communicator)
