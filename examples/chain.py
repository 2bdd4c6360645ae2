"""Sequences that follow a rule, for the examples with wrappers: each token is drawn by the one before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

VOCABULARY, CONTEXT = 32, 32


def sequences(number: int, seed: int) -> Tensor:
    """Of one Markov chain, whatever the seed: (number, CONTEXT + 1)."""
    odds = (2 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))).softmax(1)
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(VOCABULARY, (number,), generator=generator)]
    for _ in range(CONTEXT):
        tokens.append(torch.multinomial(odds[tokens[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(tokens, 1)


@torch.no_grad()
def validation_loss(logits: Callable[[Tensor], Tensor]) -> float:
    """The mean over sequences that are in no training; the best there is has 1.855."""
    tokens = sequences(256, seed=2)
    return cross_entropy(logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()
