"""No compression: a dense all_reduce, the yardstick of every other method."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.exchange import Bucket, Context, Exchange, Exchanged, Op, Request, State


@dataclass(frozen=True)
class NoCompression:
    """The mean in one all_reduce of the bucket's own dtype.

    Bitwise DDP's result at every world size where the bucket layout is the same.
    """

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return {}

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """One round: all_reduce of 4 bytes an element for float32, in the bucket's own memory."""
        payload = bucket.value
        if context.remainder is not None:
            payload = context.scratch.empty("payload", payload).copy_(payload)
            context.remainder.sub_(bucket.value)
        mean = yield Request(Op.ALL_REDUCE, payload)
        return Exchanged(mean, state)
