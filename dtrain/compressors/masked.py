"""Exchange only the weights that pruning left. Every rank has the same masks, so no indices travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dtrain.compressors.places import Places, exchange_short, number
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Layout, State


@dataclass(frozen=True)
class Masked:
    """`inner` for the surviving weights, one after the other; the mean of all others is zero.

    `inner` gets a bucket in which a masked parameter is a vector of its survivors. What a pruned weight's gradient was
    is never sent, so error feedback belongs inside: around, it would collect it.

    Args:
        inner: how what is left is exchanged.
        masks: by parameter name, of its shape, True for a weight that is left; parameters without one stay whole.
    """

    inner: Compressor
    masks: Mapping[str, Tensor]
    _known: dict[tuple[Layout, torch.device], tuple[Places, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def init(self, bucket: Bucket) -> State:
        """The state of `inner`."""
        places, _ = self._places(bucket)
        return self.inner.init(Bucket(bucket.value.new_empty(places.layout.numel), places.layout))

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of `inner`; none where nothing is left."""
        places, survivors = self._places(bucket)
        short = bucket.value.index_select(0, survivors)
        return (yield from exchange_short(self.inner, short, places, bucket, state, context))

    def _places(self, bucket: Bucket) -> tuple[Places, Tensor]:
        """And where the survivors are in the bucket."""
        key = (bucket.layout, bucket.value.device)
        if key not in self._known:
            places = number(bucket.layout, self.masks, bucket.value.device)
            survivors = torch.nonzero(places.slots < places.layout.numel).view(-1).to(torch.int32)
            self._known[key] = places, survivors
        return self._known[key]
