"""Exchange one number per centroid, for weights whose values come from a codebook.

Han, Mao and Dally, Deep Compression (ICLR 2016), section 3.3, trains the centroids; here that is done through the
weights: all that share a centroid get the same gradient, so they stay equal, and model and optimizer need not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dtrain.compressors.places import Places, exchange_short, number
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Layout, State


@dataclass(frozen=True)
class Shared:
    """`inner` for the mean of each centroid's gradients, which becomes the gradient of every weight that has it.

    The paper takes their sum. The mean is the same direction, the projection of the dense gradient on what shared
    weights can do, at a length that the dense learning rate suits whatever the number of weights to a centroid.

    Sums are in float64, so that their order does not matter. What the projection left out is never sent, so error
    feedback belongs inside: around, it would collect it.

    Args:
        inner: how the centroids' gradients are exchanged.
        codes: by parameter name, of its shape, the number of each weight's centroid from 0; -1 for a weight that has
            none, whose mean is zero. Or a mask of the weights that are left, for a parameter that shares none.
            Parameters without either stay whole.
    """

    inner: Compressor
    codes: Mapping[str, Tensor]
    _known: dict[tuple[Layout, torch.device], tuple[Places, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def init(self, bucket: Bucket) -> State:
        """The state of `inner`."""
        places, _ = self._places(bucket)
        return self.inner.init(Bucket(bucket.value.new_empty(places.layout.numel), places.layout))

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of `inner`; none where nothing is left."""
        places, weight = self._places(bucket)
        sums = torch.zeros_like(weight).index_add_(0, places.slots, bucket.value.to(torch.float64))
        short = (sums * weight)[:-1].to(bucket.value.dtype)
        return (yield from exchange_short(self.inner, short, places, bucket, state, context))

    def _places(self, bucket: Bucket) -> tuple[Places, Tensor]:
        """And 1 / the number of elements that share each place, with one more for those that have none."""
        key = (bucket.layout, bucket.value.device)
        if key not in self._known:
            places = number(bucket.layout, self.codes, bucket.value.device)
            sizes = torch.bincount(places.slots, minlength=places.layout.numel + 1)
            self._known[key] = places, sizes.clamp_min(1).to(torch.float64).reciprocal()
        return self._known[key]
