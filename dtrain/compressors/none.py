"""No compression: a dense all_reduce, the yardstick of every other method."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.exchange import NOT_KEPT, Bucket, Context, Dense, Exchange, Exchanged, Op, Request, State


@dataclass(frozen=True)
class NoCompression:
    """The mean in one all_reduce of the bucket's own dtype.

    Bitwise DDP's result at every world size where the bucket layout is the same.
    """

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange[State]:
        """One round: all_reduce of 4 bytes an element for float32, in the bucket's own memory.

        Where the contribution is wanted, in a copy, since the sum takes the place of what was sent.
        """
        payload, contribution = bucket.value, NOT_KEPT
        if context.wants_contribution:
            payload = context.scratch.empty("payload", payload).copy_(payload)
            contribution = Dense(bucket.value)
        mean = yield Request(Op.ALL_REDUCE, payload)
        return Exchanged(mean, contribution, state)
