"""Any lossy codec as an exchange whose bytes do not grow with the number of workers.

Sending encoded values to everybody (all_gather) costs n - 1 times their size. Here every rank owns a shard of the
bucket: it gets everybody's encoded shard, sums in float32, encodes the result and sends that to all, which is a
reduce-scatter and an all-gather of encoded values (`halves`): the two halves of a ring all_reduce.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.codecs.blocks import Blocks
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.halves import (
    Codec,
    ShardMessages,
    bring_together,
    encoded_all_gather,
    encoded_reduce_scatter,
    shards,
)
from dtrain.exchange import NOT_KEPT, Bucket, Context, Exchange, Exchanged, Op, Request, State


@dataclass(frozen=True, slots=True)
class ByShard:
    """What a rank contributed to both halves: messages to the other shards, and of its own a dense part."""

    sent: ShardMessages
    rank: int
    owned: Tensor

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        for rank in range(len(self.sent.shards)):
            if rank != self.rank:
                self.sent.subtract_shard(rank, residual)
        residual[self.sent.shards[self.rank]].sub_(self.owned)


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
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange[State]:
        """Two rounds, one message each."""
        if not context.wants_contribution and self.corrects(bucket):
            return (yield from self._exchange_fused(bucket, None, state, context))
        values = bucket.value.to(torch.float32)
        parts = shards(values.numel(), context.world_size)
        workspace = Workspace(context, bucket, parts[0].stop)
        total, others, sent = yield from encoded_reduce_scatter(self.codec, values, context, workspace)
        mean, owned = yield from encoded_all_gather(self.codec, total, values.numel(), context, workspace)
        contribution = NOT_KEPT
        if context.wants_contribution:
            contribution = ByShard(sent, context.rank, torch.sub(owned.value, others, out=others))
        return Exchanged(mean.to(bucket.value.dtype), contribution, state)

    def corrects(self, bucket: Bucket) -> bool:
        """See `Corrects`: where kernels do it in fewer passes than error feedback and codec apart."""
        return isinstance(self.codec, Blocks) and self.codec.encoding_kernels(bucket.value) is not None

    def exchange_corrected(
        self, bucket: Bucket, residual: Tensor, left: Tensor, state: State, context: Context
    ) -> Exchange[State]:
        """See `Corrects`."""
        return (yield from self._exchange_fused(bucket, (residual, left), state, context))

    def _exchange_fused(
        self, bucket: Bucket, feedback: tuple[Tensor, Tensor] | None, state: State, context: Context
    ) -> Exchange[State]:
        """Two rounds, with the messages and the mean of `exchange`. `feedback`: a residual, and what is left of it."""
        codec, value, scratch = self.codec, bucket.value, context.scratch
        assert isinstance(codec, Blocks)
        parts = shards(value.numel(), context.world_size)
        own, size = parts[context.rank], codec.num_bytes(parts[0].stop)
        workspace = Workspace(context, bucket, parts[0].stop)
        outgoing = scratch.empty("outgoing", value.new_empty((context.world_size, size), dtype=torch.uint8))
        for rank, (part, message) in enumerate(zip(parts, outgoing, strict=True)):
            used = message[: codec.num_bytes(value[part].numel())]
            if feedback is None:
                codec.encode(value[part], used, workspace)
            else:
                residual, left = feedback
                mine = rank == context.rank  # of which what others make of it is known only when it is summed
                codec.encode_corrected(value[part], residual[part], left[part], used, workspace, subtract=not mine)
            message[len(used) :].zero_()
        incoming = yield Request(Op.ALL_TO_ALL, outgoing)

        others = scratch.empty("others", value[own])
        used_bytes = codec.num_bytes(others.numel())
        message = scratch.empty("message", outgoing[0])
        received = [one[:used_bytes] for one in incoming]
        mine_received = received.pop(context.rank)
        codec.encode_sum(received, mine_received, others, message[:used_bytes], workspace)
        message[used_bytes:].zero_()
        mean = yield from bring_together(codec, message, value.numel(), context, workspace)
        if feedback is not None:
            _, left = feedback
            codec.correct_owned(left[own], mean[own], others)
        return Exchanged(mean, NOT_KEPT, state)
