"""How far each layer can be pruned alone: the sensitivity scan for choosing densities (Han et al. 2015, figure 6).

Layers differ: the first convolution bears little pruning, large layers bear much. A scan prunes one weight tensor at a
time by magnitude and asks what the network is still worth. It knows nothing of what layers lose together, so its
densities are where retraining starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dtrain.pack.prune import Prune, magnitude_mask

DENSITIES = (0.1, 0.2, 0.33, 0.5, 0.7)


def scan(
    network: nn.Module, score: Callable[[nn.Module], float], *, loss: float, densities: Sequence[float] = DENSITIES
) -> dict[str, float]:
    """For each weight tensor the least of `densities` at which the score falls by `loss` at most, or 1; for `Prune`.

    Args:
        network: as it was before when this returns.
        score: of a network; more is better. It is asked once for each tensor and density that is tried.
        loss: in the score's unit.
        densities: fractions kept, above 0 and at most 1.

    Raises ValueError for settings out of range.
    """
    if loss < 0:
        raise ValueError(f"loss={loss} must not be negative: it is how far the score may fall")
    candidates = sorted(densities)
    for density in candidates:
        Prune(density)
    least = score(network) - loss
    chosen = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim >= 2:
            scores = (_score_of_pruned(network, parameter, density, score) for density in candidates)
            enough = (density for density, reached in zip(candidates, scores, strict=True) if reached >= least)
            chosen[name] = next(enough, 1.0)
    return chosen


def _score_of_pruned(
    network: nn.Module, parameter: Tensor, density: float, score: Callable[[nn.Module], float]
) -> float:
    whole = parameter.detach().clone()
    mask = torch.from_numpy(magnitude_mask(whole.cpu().numpy(), density)).to(whole.device)
    try:
        with torch.no_grad():
            parameter.mul_(mask)
        return score(network)
    finally:
        with torch.no_grad():
            parameter.copy_(whole)
