"""Any lossy codec as an exchange whose bytes do not grow with the number of workers.

Sending encoded values to everybody (all_gather) costs n - 1 times their size. Here every rank owns a shard of the
bucket: it gets everybody's encoded shard, sums in float32, encodes the result and sends that to all, which is a
reduce-scatter and an all-gather of encoded values (`halves`): the two halves of a ring all_reduce.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.halves import Codec, ShardMessages, encoded_all_gather, encoded_reduce_scatter, shards
from dtrain.exchange import NOT_KEPT, Bucket, Context, Exchange, Exchanged, State


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
        values = bucket.value.to(torch.float32)
        parts = shards(values.numel(), context.world_size)
        workspace = Workspace(context, bucket, parts[0].stop)
        total, others, sent = yield from encoded_reduce_scatter(self.codec, values, context, workspace)
        mean, owned = yield from encoded_all_gather(self.codec, total, values.numel(), context, workspace)
        contribution = NOT_KEPT
        if context.wants_contribution:
            contribution = ByShard(sent, context.rank, torch.sub(owned.value, others, out=others))
        return Exchanged(mean.to(bucket.value.dtype), contribution, state)
