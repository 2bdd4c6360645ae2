"""Exchange one number per centroid, for weights whose values come from a codebook.

Han, Mao and Dally, Deep Compression (ICLR 2016), section 3.3, trains the centroids; here that is done through the
weights: all that share a centroid get the same gradient, so they stay equal, and model and optimizer need not know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.compressors.policies.shortened import Shortened, Slots
from dtrain.exchange import StateT


class Shared(Shortened[StateT]):
    """`inner` for the mean of each centroid's gradients, which becomes the gradient of every weight that has it.

    The paper takes their sum. The mean is the same direction, the projection of the dense gradient on what shared
    weights can do, at a length that the dense learning rate suits whatever the number of weights to a centroid.
    Sums are in float64, so that their order does not matter.

    `numbers` has, by parameter name and of its shape, the number of each weight's centroid from 0; -1 for a weight that
    has none, whose mean is zero. Or a mask of the weights that are left, for a parameter that shares none. Parameters
    without either stay whole.
    """

    def _shorten(self, value: Tensor, slots: Slots) -> Tensor:
        sums = torch.zeros_like(slots.shares).index_add_(0, slots.of_element, value.to(torch.float64))
        return (sums * slots.shares)[:-1].to(value.dtype)
