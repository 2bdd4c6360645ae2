"""A collective operation, and one request for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor


class Op(StrEnum):
    """A collective operation. A compressor may request the first three; the meter knows them all."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"
    REDUCE = "reduce"
    REDUCE_SCATTER = "reduce_scatter"
    GATHER = "gather"
    SCATTER = "scatter"
    SEND = "send"
    RECV = "recv"
    BARRIER = "barrier"


@dataclass(frozen=True, slots=True)
class Request:
    """One collective that a compressor, or the trainer, asks for.

    The answer depends on `op`: `all_reduce` gives the SUM over ranks, in the payload's shape; `all_gather` gives
    (world_size, *payload.shape), rank k's payload in row k; `all_to_all` takes a payload of shape (world_size, *part),
    row k for rank k, and gives the same shape, row k from rank k; `broadcast` gives rank 0's payload.
    The payload must be contiguous. That of an all_reduce or broadcast is given away: the backend may overwrite it, and
    the answer may lie in it. That of an all_gather or all_to_all is only lent: it stays as it is, and must not be
    written before the answer is there. An answer belongs to whoever asked.
    """

    op: Op
    payload: Tensor
    parts: tuple[Request, ...] = field(default=(), compare=False, repr=False)
    """The small requests that this one joins (`sync.fuse`); none of what was asked for as it is."""

    @property
    def payload_bytes(self) -> int:
        """Bytes that this rank hands over."""
        return self.payload.numel() * self.payload.element_size()
