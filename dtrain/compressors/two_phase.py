"""Any lossy codec as an exchange whose bytes do not grow with the number of workers.

Sending encoded values to everybody (all_gather) costs n - 1 times their size. Here every rank owns a shard of the
bucket: it gets everybody's encoded shard, sums in float32, encodes the result and sends that to all, which is a
reduce-scatter and an all-gather of encoded values: the two halves of a ring all_reduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dtrain.compressors.codecs.workspace import Workspace
from dtrain.exchange import Bucket, Context, Exchange, Exchanged, Op, Request, State


class Codec(Protocol):
    """How float32 values become bytes. A value that is not finite must not come back finite."""

    def num_bytes(self, numel: int) -> int:
        """The size of the message that `numel` values become, scales included."""
        ...

    def encode(self, values: Tensor, message: Tensor, workspace: Workspace) -> None:
        """Write `values`, of shape (numel,), to `message`: uint8, of shape (num_bytes(numel),)."""
        ...

    def decode(self, message: Tensor, values: Tensor, workspace: Workspace, *, add: float | None = None) -> None:
        """Set `values` to what `message` holds or increase them by `add` times that."""
        ...


@dataclass(frozen=True)
class TwoPhase:
    """The mean of encoded values, in two rounds: all_to_all of shards, all_gather of the encoded mean of each.

    With b = codec.num_bytes(ceil(numel / n)), a rank hands over n * b bytes and then b, and sends 2 * (n - 1) * b. One
    worker alone goes the same way, with the same two errors and nothing on the wire.

    The second encoding errs too, which is part of what the shard's owner contributes: the mean less what the others
    contributed, which makes the sum over ranks right to a few roundings of what is summed.

    A value that is not finite on any rank makes its block of the mean not finite on all. Values other than float32 are
    encoded as float32, and rounded to their own type at the end.
    """

    codec: Codec

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return {}

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """Two rounds, one message each."""
        n, scratch = context.world_size, context.scratch
        values = bucket.value.to(torch.float32)
        shards = _shards(values.numel(), n)
        mine = shards[context.rank]
        workspace = Workspace(context, bucket, shards[0].stop)
        size = self.codec.num_bytes(shards[0].stop)

        outgoing = scratch.empty("outgoing", values.new_empty((n, size), dtype=torch.uint8))
        for shard, message in zip(shards, outgoing, strict=True):
            self._encode(values[shard], message, workspace)
        remainder = context.remainder
        if remainder is not None:
            for rank, shard in enumerate(shards):
                if rank != context.rank:
                    self._add(outgoing[rank], remainder[shard], workspace, -1.0)
        incoming = yield Request(Op.ALL_TO_ALL, outgoing)

        others = scratch.empty("others", values[mine]).zero_()
        for rank in range(n):
            if rank != context.rank:
                self._add(incoming[rank], others, workspace)
        total = others if remainder is None else scratch.empty("total", others).copy_(others)
        self._add(incoming[context.rank], total, workspace)
        message = scratch.empty("message", outgoing[0])
        self._encode(total, message, workspace)
        gathered = yield Request(Op.ALL_GATHER, message)

        mean = scratch.empty("mean", values)
        for shard, part in zip(shards, gathered, strict=True):
            self.codec.decode(part[: self._used(mean[shard])], mean[shard], workspace)
        if remainder is not None:
            remainder[mine].sub_(torch.sub(mean[mine], others, out=others))
        return Exchanged(mean.to(bucket.value.dtype), state)

    def _encode(self, values: Tensor, message: Tensor, workspace: Workspace) -> None:
        used = self._used(values)
        self.codec.encode(values, message[:used], workspace)
        message[used:].zero_()  # the last shards may be shorter, and messages are of one size

    def _add(self, message: Tensor, values: Tensor, workspace: Workspace, factor: float = 1.0) -> None:
        self.codec.decode(message[: self._used(values)], values, workspace, add=factor)

    def _used(self, values: Tensor) -> int:
        return self.codec.num_bytes(values.numel())


def _shards(numel: int, world_size: int) -> list[slice]:
    """Equal parts, the last of them shorter or empty where the division leaves a remainder."""
    part = -(-numel // world_size)
    return [slice(min(k * part, numel), min((k + 1) * part, numel)) for k in range(world_size)]
