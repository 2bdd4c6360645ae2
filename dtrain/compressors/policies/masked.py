"""Exchange only the weights that pruning left. Every rank has the same masks, so no indices travel."""

from __future__ import annotations

from torch import Tensor

from dtrain.compressors.policies.shortened import Shortened, Slots
from dtrain.exchange import StateT


class Masked(Shortened[StateT]):
    """`inner` for the surviving weights, one after the other; the mean of all others is zero.

    `inner` gets a bucket in which a masked parameter is a vector of its survivors. `numbers` are masks, by parameter
    name and of its shape: True for a weight that is left. Parameters without one stay whole.
    """

    def _shorten(self, value: Tensor, slots: Slots) -> Tensor:
        return value.index_select(0, slots.survivors)
