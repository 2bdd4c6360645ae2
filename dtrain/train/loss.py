"""What training minimises: a sum over images, of their logits against labels or against what a teacher says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits in float32, labels) -> a number."""


def against_labels(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy."""
    return functional.cross_entropy(logits, labels, reduction="sum")


def against(teacher: nn.Module, temperature: float) -> Loss:
    """Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), section 2: T^2 KL(teacher, model).

    Of both logits divided by the temperature T. Labels do not count. `teacher` is put into evaluation mode.
    """
    teacher.eval()

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(images).float() / temperature, 1)
        own = functional.log_softmax(logits / temperature, 1)
        return temperature**2 * functional.kl_div(own, wanted, reduction="sum", log_target=True)

    return loss
