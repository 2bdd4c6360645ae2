"""Layers as two thinner ones in a row: a low-rank network, whose factors are what is trained, exchanged and stored.

A fully connected layer becomes two; a convolution becomes one of its kernel to few channels, and a 1x1 convolution of
those. Each group of a grouped convolution is factored by itself. Biases go with the second layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


def factorise(model: nn.Module, ranks: Mapping[str, int], *, fill: bool = True) -> None:
    """Put two layers in the place of each named one, with the product of rank `ranks[name]` nearest to its weights.

    The two are `<name>.0` and `<name>.1`; their weights share the singular values evenly. For a grouped convolution the
    rank is that of each group. Without `fill` the weights are anything: for a model whose factors are then loaded.
    Raises ValueError for a name or a rank of no layer.
    """
    for name, rank in ranks.items():
        parent, _, own = name.rpartition(".")
        layer = dict(model.named_modules()).get(name)
        if not isinstance(layer, Layer) or type(rank) is not int or rank < 1:
            raise ValueError(f"{name!r:.80} is no layer that can be of rank {rank!r:.20}")
        first, second = _two(layer, rank)
        if fill:
            _fill(first, second, layer, rank)
        setattr(model.get_submodule(parent), own, nn.Sequential(first, second))


def ranks_of(model: nn.Module, energy: float) -> dict[str, int]:
    """The least rank that keeps this fraction of the sum of squares of the weights of each group, by layer.

    Of those layers alone that two of that rank are smaller than.
    """
    ranks = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, Layer) or not layer.weight.numel():
            continue
        matrices = _matrices(layer)
        rank = max(_rank(torch.linalg.svdvals(matrix), energy) for matrix in matrices)
        groups, rows, columns = matrices.shape
        if groups * rank * (rows + columns) < layer.weight.numel():
            ranks[name] = rank
    return ranks


def _matrices(layer: Layer) -> Tensor:
    """(groups, output channels of a group, the rest), in float64."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return layer.weight.detach().double().reshape(groups, layer.weight.shape[0] // groups, -1)


def _rank(values: Tensor, energy: float) -> int:
    kept = values.square().cumsum(0)
    return int(torch.searchsorted(kept, energy * kept[-1])) + 1


def _two(layer: Layer, rank: int) -> tuple[Layer, Layer]:
    device, dtype, has_bias = layer.weight.device, layer.weight.dtype, layer.bias is not None
    if isinstance(layer, nn.Linear):
        return (
            nn.Linear(layer.in_features, rank, bias=False, device=device, dtype=dtype),
            nn.Linear(rank, layer.out_features, bias=has_bias, device=device, dtype=dtype),
        )
    width, groups = rank * layer.groups, layer.groups
    first = nn.Conv2d(layer.in_channels, width, 1, groups=groups, bias=False, device=device, dtype=dtype)
    first.kernel_size, first.stride, first.padding = layer.kernel_size, layer.stride, layer.padding
    first.dilation = layer.dilation
    first.weight = nn.Parameter(layer.weight.new_empty(width, *layer.weight.shape[1:]))
    return first, nn.Conv2d(width, layer.out_channels, 1, groups=groups, bias=has_bias, device=device, dtype=dtype)


def _fill(first: Layer, second: Layer, layer: Layer, rank: int) -> None:
    u, s, vt = torch.linalg.svd(_matrices(layer), full_matrices=False)
    root = s[:, :rank].sqrt()
    with torch.no_grad():
        first.weight.copy_((root[:, :, None] * vt[:, :rank]).reshape(first.weight.shape))
        second.weight.copy_((u[:, :, :rank] * root[:, None]).reshape(second.weight.shape))
        if layer.bias is not None and second.bias is not None:
            second.bias.copy_(layer.bias)
