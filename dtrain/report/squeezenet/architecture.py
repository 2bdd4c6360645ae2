"""What can be counted from a network alone, without weights and without a run: parameters, multiply-adds, activations.

The networks are built on torch's meta device, which has shapes and no memory; torch is imported when first asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtrain.vision.models import Option

CLASSES = 1000  # the paper's head


@dataclass(frozen=True)
class Complexity:
    """A network on one image. Multiply-adds are those of convolutions and fully connected layers."""

    num_parameters: int
    multiply_adds: int
    activation_bytes: int
    """In and out of the layer that has most of both, in fp32."""

    @property
    def num_bytes(self) -> int:
        """Of the parameters in fp32."""
        return 4 * self.num_parameters


@lru_cache(maxsize=64)
def complexity(model: str, *, image_size: int = 224, **options: Option) -> Complexity:
    """The network of that name (of `vision.models.MODELS`) with 1000 classes, on an image of that height and width."""
    import torch
    from torch import nn

    from dtrain.vision import models

    with torch.device("meta"):
        network = models.build(model, num_classes=CLASSES, **options).eval()
        image = torch.empty(1, 3, image_size, image_size)
    multiply_adds = activations = 0

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_adds, activations
        if not isinstance(layer, nn.ReLU | nn.Dropout | nn.Identity):  # which need no second place
            activations = max(activations, sum(one.numel() for one in inputs) + output.numel())
        if isinstance(layer, nn.Conv2d | nn.Linear):
            multiply_adds += output.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if not any(layer.children()):
            layer.register_forward_hook(look)
    with torch.no_grad():
        network(image)
    return Complexity(_num_parameters(network), multiply_adds, 4 * activations)


def _num_parameters(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
