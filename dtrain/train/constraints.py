"""What pruning and weight sharing fix in a model: which weights are zero, and which are equal.

Both are read from the weights themselves when a phase begins (zero: pruned; equal: shared), on every rank alike. While
it lasts they are kept, since two centroids may meet by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtrain.arguments import nearest
from dtrain.compressors import Masked, Shared
from dtrain.exchange import Compressor
from dtrain.pack import Tensor as Packed
from dtrain.pack.prune import Prune
from dtrain.pack.share import KMeans
from dtrain.pack.stage import Stage
from dtrain.sync.buckets import trainable
from dtrain.train.config import Phase

Constraints = Mapping[str, Tensor]
"""By parameter name, of its shape: bool masks of the weights that are left, or the int32 number of each weight's
centroid in its tensor, -1 for none. Parameters that are not named are free."""


def compress(model: nn.Module, phase: Phase) -> None:
    """What the phase makes of the weights before it trains them: the same everywhere, from the same weights.

    Raises ValueError for the name of a weight that the model does not have.
    """
    weights = _weights(model)
    for setting, named in (("densities", phase.densities), ("bits_of", phase.bits_of)):
        unknown = sorted(set(named) - set(weights))
        if unknown:
            like = nearest(unknown[0], weights)
            raise ValueError(
                f"{setting} names {unknown[0]!r}, which is no weight{like}: choose of {', '.join(weights)}"
            )
    with torch.no_grad():
        for name, weight in weights.items():
            for stage in _stages(phase, name):
                weight.copy_(torch.from_numpy(_through(stage, name, _numpy(weight))))


def constraints_of(model: nn.Module, *, pruned: bool, shared: bool) -> dict[str, Tensor]:
    """Read from the weights: masks where they were pruned, centroids where they are shared, nothing where neither."""
    found = {}
    for name, weight in _weights(model).items():
        values = _numpy(weight)
        numbers = _numbers(values) if shared else None
        if numbers is not None and 4 * (int(numbers.max()) + 1) <= numbers.size:  # as `pack.share.Distinct` has it
            found[name] = torch.from_numpy(numbers)
        elif pruned and not values.all():
            found[name] = torch.from_numpy(values != 0)
    return found


def exchanged_as(compressor: Compressor, constraints: Constraints) -> Compressor:
    """`compressor` for what the constraints leave free."""
    if not constraints:
        return compressor
    shared = any(tensor.dtype != torch.bool for tensor in constraints.values())
    return Shared(compressor, constraints) if shared else Masked(compressor, constraints)


def num_values(model: nn.Module, constraints: Constraints) -> int:
    """How many numbers a step exchanges before compression: parameters, survivors or centroids."""
    total = 0
    for name, parameter in trainable(model):
        own = constraints.get(name)
        if own is None:
            total += parameter.numel()
        else:
            total += int(own.sum() if own.dtype == torch.bool else own.max() + 1)
    return total


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What stages compress: parameters of two dimensions and more."""
    return {name: parameter for name, parameter in trainable(model) if parameter.dim() > 1}


def _stages(phase: Phase, name: str) -> Iterator[Stage]:
    """Of one weight."""
    density, bits = phase.densities.get(name, phase.density), phase.bits_of.get(name, phase.bits)
    if density is not None:
        yield Prune(density)
    if bits is not None:
        yield KMeans(bits, phase.initialisation)


def _numpy(weight: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = weight.detach().cpu().numpy()
    return array


def _through(stage: Stage, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """What is left of the values after the stage."""
    tensor = Packed.of(values)
    split = stage.encode(name, tensor)
    if split is None:
        return values
    return stage.decode(tensor.dtype, tensor.shape, split.parameters, split.parts).floats.copy()


def _numbers(values: NDArray[Any]) -> NDArray[np.int32]:
    distinct, places = np.unique(values, return_inverse=True)
    zero = np.searchsorted(distinct, 0)
    numbers = places.reshape(values.shape).astype(np.int32)
    if zero < len(distinct) and distinct[zero] == 0:
        numbers = np.where(numbers == zero, -1, numbers - (numbers > zero)).astype(np.int32)
    return numbers
