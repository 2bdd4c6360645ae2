"""The two halves of an all_reduce, of encoded values: a reduce-scatter, and an all-gather. Either can be used alone.

Every rank owns a shard of the vector: of n equal parts, the last of them shorter or empty, that of its number. The
first half brings to the owner what all ranks have of its shard; the second brings every shard to all. A contribution to
a half is subtracted from a residual of the shape of what was put in: the whole vector, then the shard.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dtrain.compressors.codecs.workspace import Workspace
from dtrain.exchange import NOT_KEPT, Bucket, Context, Contribution, Dense, Exchange, Exchanged, Op, Request, State


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


def shards(numel: int, world_size: int) -> list[slice]:
    """The shard of each rank: ceil(numel / world_size) elements, fewer or none where the vector ends."""
    part = -(-numel // world_size)
    return [slice(min(k * part, numel), min((k + 1) * part, numel)) for k in range(world_size)]


@dataclass(frozen=True, slots=True)
class ShardMessages:
    """What this rank contributed to a reduce-scatter: an encoded message for each shard, as (n, bytes) of uint8."""

    codec: Codec
    shards: Sequence[slice]
    messages: Tensor
    workspace: Workspace

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        for rank in range(len(self.shards)):
            self.subtract_shard(rank, residual)

    def subtract_shard(self, rank: int, residual: Tensor) -> None:
        """Of the contribution only what was for that rank."""
        _add(self.codec, self.messages[rank], residual[self.shards[rank]], self.workspace, -1.0)


class Reduced(NamedTuple):
    """What a reduce-scatter gives a rank: of its own shard the sum over ranks, and the same without its own part.

    `others` is kept apart only where the context wants contributions; elsewhere it is `total`.
    """

    total: Tensor
    others: Tensor
    contribution: ShardMessages


def encoded_reduce_scatter(
    codec: Codec, values: Tensor, context: Context, workspace: Workspace
) -> Generator[Request, Tensor, Reduced]:
    """Sum float32 `values`, of shape (numel,), over ranks, who encode them once: each gets the sum of its own shard.

    One round: all_to_all of n messages of b = codec.num_bytes(ceil(numel / n)), of which (n - 1) b go on the wire. What
    arrives is decoded and added up in float32, of shape (length of the shard,). Contributions over ranks add up to
    exactly that but for the order of the sum.
    """
    n, scratch = context.world_size, context.scratch
    parts = shards(values.numel(), n)
    size = codec.num_bytes(parts[0].stop)
    outgoing = scratch.empty("outgoing", values.new_empty((n, size), dtype=torch.uint8))
    for shard, message in zip(parts, outgoing, strict=True):
        _encode(codec, values[shard], message, workspace)
    incoming = yield Request(Op.ALL_TO_ALL, outgoing)

    others = scratch.empty("others", values[parts[context.rank]]).zero_()
    for rank in range(n):
        if rank != context.rank:
            _add(codec, incoming[rank], others, workspace)
    total = scratch.empty("total", others).copy_(others) if context.wants_contribution else others
    _add(codec, incoming[context.rank], total, workspace)
    return Reduced(total, others, ShardMessages(codec, parts, outgoing, workspace))


class Gathered(NamedTuple):
    """What an all-gather gives every rank: the whole vector. The contribution is to the rank's own shard."""

    value: Tensor
    contribution: Dense


def encoded_all_gather(
    codec: Codec, shard: Tensor, numel: int, context: Context, workspace: Workspace
) -> Generator[Request, Tensor, Gathered]:
    """Bring every rank's `shard`, float32, together as the vector of `numel` elements, bitwise the same on all.

    One round: all_gather of b = codec.num_bytes(ceil(numel / n)), of which (n - 1) b go on the wire. The owner, too,
    gets its shard as it was encoded, and that is what it contributed; it lies in `value`.
    """
    parts = shards(numel, context.world_size)
    message = context.scratch.empty("message", shard.new_empty(codec.num_bytes(parts[0].stop), dtype=torch.uint8))
    _encode(codec, shard, message, workspace)
    value = yield from bring_together(codec, message, numel, context, workspace)
    return Gathered(value, Dense(value[parts[context.rank]]))


def bring_together(
    codec: Codec, message: Tensor, numel: int, context: Context, workspace: Workspace
) -> Generator[Request, Tensor, Tensor]:
    """All-gather the messages that shards were encoded to, and decode them as the vector of `numel` elements."""
    gathered = yield Request(Op.ALL_GATHER, message)
    value = context.scratch.empty("mean", message.new_empty((), dtype=torch.float32).expand(numel))
    for part, received in zip(shards(numel, context.world_size), gathered, strict=True):
        codec.decode(received[: codec.num_bytes(value[part].numel())], value[part], workspace)
    return value


@dataclass(frozen=True)
class ReduceScatter:
    """The first half as a compressor, whose `mean` is of this rank's shard alone. Error feedback goes around it."""

    codec: Codec

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange[State]:
        """One round: see `encoded_reduce_scatter`."""
        values = bucket.value.to(torch.float32)
        workspace = Workspace(context, bucket, shards(values.numel(), context.world_size)[0].stop)
        reduced = yield from encoded_reduce_scatter(self.codec, values, context, workspace)
        contribution: Contribution = reduced.contribution if context.wants_contribution else NOT_KEPT
        return Exchanged(reduced.total.to(bucket.value.dtype), contribution, state)


def _encode(codec: Codec, values: Tensor, message: Tensor, workspace: Workspace) -> None:
    used = codec.num_bytes(values.numel())
    codec.encode(values, message[:used], workspace)
    message[used:].zero_()  # the last shards may be shorter, and messages are of one size


def _add(codec: Codec, message: Tensor, values: Tensor, workspace: Workspace, factor: float = 1.0) -> None:
    codec.decode(message[: codec.num_bytes(values.numel())], values, workspace, add=factor)
