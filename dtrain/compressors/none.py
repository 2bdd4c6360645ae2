"""No compression: a dense all_reduce, the yardstick of every other method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dtrain.exchange import Bucket, Context, Exchange, Exchanged, Op, Request, State


@dataclass(frozen=True)
class NoCompression:
    """The mean in one all_reduce of the bucket's own dtype.

    The value is multiplied by 1/world_size before the sum and not after, as stock DDP does: no overflow, and bitwise
    DDP's result at every world size where the bucket layout is the same.
    """

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return {}

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """One round: all_reduce of 4 bytes an element for float32."""
        share = context.scratch.empty("share", bucket.value)
        torch.mul(bucket.value, 1.0 / context.world_size, out=share)
        if context.remainder is not None:
            context.remainder.sub_(bucket.value)
        mean = yield Request(Op.ALL_REDUCE, share)
        return Exchanged(mean, state)
