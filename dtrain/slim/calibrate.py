"""Quantising a network with images at hand, so that what its layers put out changes least. No labels, no training.

The inputs of a layer are correlated, so the error of one rounded weight can be made good by the weights that are not
rounded yet: column by column, by the inverse of the inputs' second moments (optimal brain surgeon; as GPTQ, Frantar et
al. 2022, arXiv 2210.17323). A bias counts as the weight of an input that is always 1, and is rounded last.

All happens in one pass of the images through the network. Each goes through twice, side by side: as the network is, and
through the layers that are rounded already. A layer's weights are first fitted to give, of the inputs that the rounded
layers before it leave, what it gave before; then they are rounded.

Where there are no images, `dead_leaves` stand in for them, and what they show is mixed with what holds after any ReLU:
inputs are not negative, so they have much in common, and those of a kernel's window have more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, unfold

from dtrain.pack.uniform import MOST_LEVELS, step_size

Floats = NDArray[np.float64]

_DAMPING = 0.05  # of the mean second moment, added to each
_STAND_IN_PRIOR = 0.3  # likewise, of what holds of any layer
_BLOCK = 64
_BIAS_STEP = 0.5  # over the step at which a bias would do as much harm as a weight


@dataclass(frozen=True)
class Calibrated:
    """By tensor name: values on a grid (float32, of the tensor's shape), and the step of the grid."""

    values: Mapping[str, NDArray[np.float32]]
    steps: Mapping[str, float]


def calibrate(network: nn.Module, images: Tensor, relative_step: float, *, stand_in: bool = False) -> Calibrated:
    """Rounded weights and biases of the convolutions and fully connected layers that the images reach.

    Args:
        network: in eval mode; unchanged when this returns.
        images: (N, ...), as the network takes them. Their activations are in memory at once, twice.
        relative_step: of weights, as in `dtrain.pack.Uniform`.
        stand_in: whether the images are only `dead_leaves`. Of the inputs of deep layers they say too little to fit
            weights to or to correct biases by, and of second moments only that much is taken from them.
    """
    names: dict[nn.Module, str] = {
        module: name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    rounded: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
    values, steps = {}, {}

    def after(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        whole, behind = inputs[0].chunk(2)
        if module not in rounded:
            fitted, found = _round_layer(module, whole, behind, relative_step, stand_in=stand_in)
            rounded[module] = fitted
            for kind, value, step in zip(("weight", "bias"), fitted, found, strict=True):
                if value is not None:
                    values[f"{names[module]}.{kind}"], steps[f"{names[module]}.{kind}"] = value.numpy(), step
        return torch.cat([output.chunk(2)[0], _forward(module, behind, *rounded[module])])

    hooks = [module.register_forward_hook(after) for module in names]
    try:
        with torch.no_grad():
            network(torch.cat([images, images]))
    finally:
        for hook in hooks:
            hook.remove()
    return Calibrated(values, steps)


def dead_leaves(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images (count, 3, size, size) without any data: discs that hide one another, with texture.

    Their edges, and how contrast goes with scale, are those of natural images (Lee, Mumford, Huang 2001).
    """
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size]
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    images = np.empty((count, 3, size, size), np.uint8)
    for image in images:
        leaves = np.zeros((3, size, size)) + rng.uniform(0, 255, (3, 1, 1))
        for radius in np.sort(size / (2 + 120 * rng.uniform(size=200)))[::-1]:
            y, x = rng.uniform(0, size, 2)
            colour = rng.uniform(0, 255) + rng.normal(0, 35, 3)
            leaves[:, (row - y) ** 2 + (column - x) ** 2 < radius**2] = colour.clip(0, 255)[:, None]
        spectrum = rng.normal(size=(4, *frequency.shape, 2)).view(complex)[..., 0] / frequency ** rng.uniform(0.7, 1.3)
        grey, *colours = np.fft.irfft2(spectrum, s=(size, size))
        texture = grey / grey.std() + 0.3 * np.stack([plane / plane.std() for plane in colours])
        image[:] = (leaves + rng.uniform(5, 40) * texture).clip(0, 255)
    return images


def _forward(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return conv2d(inputs, weight, bias, layer.stride, _padding(layer), layer.dilation, layer.groups)
    return linear(inputs, weight, bias)


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(f"cannot calibrate a convolution with padding {layer.padding_mode} {layer.padding!r}")
    return layer.padding


def _round_layer(
    layer: nn.Module, whole: Tensor, behind: Tensor, relative_step: float, *, stand_in: bool
) -> tuple[tuple[Tensor, Tensor | None], tuple[float, float]]:
    """Weight and bias on their grids, and the steps of both. Groups of a convolution are layers of their own."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach().double().numpy()
    targets = weight.reshape(groups, len(weight) // groups, -1)
    columns = targets.shape[2]
    own, cross = _moments(layer, whole, behind, groups)
    step = step_size(weight, relative_step)
    bias = None if layer.bias is None else layer.bias.detach().double().numpy().reshape(groups, -1, 1)
    if bias is None or stand_in:
        own, cross = own[:, :-1, :-1], cross[:, :-1, :-1]
    else:
        targets = np.concatenate([targets, bias], axis=2)
    size = own.shape[1]
    scale = np.trace(own, axis1=1, axis2=2)[:, None, None] / size
    scale[scale == 0] = 1  # inputs that are all zero
    added = _common(size, math.prod(layer.weight.shape[2:])) if stand_in else _DAMPING * np.eye(size)
    inverse = np.linalg.inv(own + scale * added)
    if not stand_in:
        targets = targets + targets @ (cross - own) @ inverse

    bias_step = 1.0
    if bias is not None:
        harm = float(np.exp(-np.log(np.diagonal(inverse, axis1=1, axis2=2)[:, :columns]).mean()))
        largest = max(float(np.abs(bias).max()), float(np.abs(targets[:, :, columns:]).max(initial=0)))
        bias_step = max(_BIAS_STEP * step * math.sqrt(harm), largest / MOST_LEVELS) or 1.0
    steps = np.array([step] * columns + [bias_step] * (size - columns))
    values = np.concatenate(
        [_round(target, of_group, steps) for target, of_group in zip(targets, inverse, strict=True)]
    )
    if bias is not None and size == columns:
        values = np.concatenate([values, np.rint(bias.reshape(-1, 1) / bias_step) * bias_step], axis=1)
    rounded = torch.from_numpy(values.astype(np.float32))
    biases = None if bias is None else rounded[:, -1].contiguous()
    return (rounded[:, :columns].reshape(weight.shape), biases), (step, bias_step)


def _common(size: int, taps: int) -> Floats:
    """Second moments of inputs that have some of their sum in common, and more of it within a kernel's window."""
    window = np.kron(np.eye(size // taps), np.ones((taps, taps)))
    return _STAND_IN_PRIOR * (np.eye(size) + 1 + 3 * window * (taps > 1))


def _moments(layer: nn.Module, whole: Tensor, behind: Tensor, groups: int) -> tuple[Floats, Floats]:
    """For each group, of inputs and a 1: second moments of the rounded network's, and of the whole one's with them."""
    own, cross = torch.zeros(()), torch.zeros(())
    for one, other in zip(whole.split(1), behind.split(1), strict=True):  # image by image, for memory
        x, y = _columns(layer, one, groups), _columns(layer, other, groups)
        own, cross = own + (y @ y.mT).double(), cross + (x @ y.mT).double()
    count = own[0, -1, -1]
    return (own / count).numpy(), (cross / count).numpy()


def _columns(layer: nn.Module, inputs: Tensor, groups: int) -> Tensor:
    """What each output sees: (groups, inputs of it and a 1, positions)."""
    if isinstance(layer, nn.Conv2d):
        seen = unfold(inputs, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)[0]
    else:
        seen = inputs.reshape(-1, inputs.shape[-1]).T
    seen = seen.reshape(groups, -1, seen.shape[-1])
    return torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)


def _round(targets: Floats, inverse: Floats, grid: Floats) -> Floats:
    """Each column to multiples of its step, those of the strongest inputs first and the bias last."""
    order = np.argsort(np.diag(inverse), kind="stable")
    order = np.concatenate([order[order != len(grid) - 1], [len(grid) - 1]])
    upper = np.linalg.cholesky(inverse[np.ix_(order, order)]).T
    left, steps = targets[:, order].copy(), grid[order]
    rounded = np.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, left.shape[1]))
        errors = np.empty((len(left), block.stop - start))
        for place in range(start, block.stop):
            limit = MOST_LEVELS * steps[place]
            rounded[:, place] = np.rint(left[:, place].clip(-limit, limit) / steps[place]) * steps[place]
            errors[:, place - start] = (left[:, place] - rounded[:, place]) / upper[place, place]
            left[:, place + 1 : block.stop] -= np.outer(errors[:, place - start], upper[place, place + 1 : block.stop])
        left[:, block.stop :] -= errors @ upper[block, block.stop :]
    values = np.empty_like(rounded)
    values[:, order] = rounded
    return values
