"""The initial weights of every network here: one rule, with a gain per layer.

None of these networks normalises its activations, so the gains decide whether the first steps train, stall or overflow.
"""

import math
from collections.abc import Mapping

from torch import nn

HE = math.sqrt(2)
"""The gain before a ReLU, which halves the mean square (He et al. 2015, arXiv 1502.01852, equation 10)."""


def initialise(
    model: nn.Module,
    *,
    classifier: nn.Conv2d | nn.Linear,
    gain: float = HE,
    exceptions: Mapping[nn.Module, float] | None = None,
) -> None:
    """Draw new weights for every convolution and linear layer of `model`, in place, from torch's global generator.

    Hidden layers: U(-b, b) with b = gain * sqrt(3 / fan_in), which is of variance gain^2 / fan_in; the gain is the
    layer's in `exceptions`, else `gain`. `classifier`, the layer that gives the logits: N(0, 0.01^2), so that training
    starts near the uniform distribution. All biases are zero.
    """
    exceptions = exceptions or {}
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if layer is classifier:
            nn.init.normal_(layer.weight, std=0.01)
        else:
            bound = exceptions.get(layer, gain) * math.sqrt(3 / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
