"""Uniform quantization, with the entropy and the sums of errors in view.

Levels are multiples of a step. Rounding each weight to the nearest keeps its error least, and forgets two things. First
the bits: a weight may go to a level nearer zero where the bits saved are worth the error (rate-distortion optimised
quantization). Second, that errors add up: the inputs of a filter are not negative after a ReLU and nearly the same over
a kernel's window, so errors of one sign in a kernel, and in a filter, act together. So some weights are then moved by a
level, those that lose least by it, until the errors of each kernel and of each filter cancel (SQuant, Guo et al. 2022,
arXiv 2202.07471). No data is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.levels import MAX_LEVEL
from dtrain.pack.stage import Parameters, Split
from dtrain.pack.tensor import FLOATS, Tensor, finite

LEVELS = "levels"

_NUMEL, _MOST = 1 << 14, 1 << 19
MOST_LEVELS = MAX_LEVEL - 2  # on either side of zero; a level may be moved up twice
_BIASES, _BIAS_STEP = ("bias", "|b"), 1 / 8
_LEAST_ERROR = 0.0  # of a weight that may be moved, in steps and in the direction in which it is moved


@dataclass(frozen=True)
class Uniform:
    """For weight tensors, and with a much finer step for biases: vectors whose name ends in "bias", or in Caffe's "|b".

    Other vectors, such as the variances of batch normalisation, may not bear it and stay exact.

    Args:
        relative_step: of weights, the step over the root mean square, for a tensor of 2**14 weights; for others it goes
            with the third root of their number, up to 2**19, since error is cheaper where it saves more bits.
        trade: the squared error, in squared steps, that a bit saved is worth. 0 rounds to the nearest.
        cancel: whether the errors of kernels and filters cancel.
    """

    relative_step: float
    trade: float = 0.05
    cancel: bool = True
    name: ClassVar[str] = "uniform"
    part_names: ClassVar[tuple[str, ...]] = (LEVELS,)

    def __post_init__(self) -> None:
        if not 0 < self.relative_step < float("inf"):
            raise ValueError(f"relative_step={self.relative_step} must be positive")
        if not 0 <= self.trade < float("inf"):
            raise ValueError(f"trade={self.trade} must not be negative")

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        is_bias = len(tensor.shape) == 1 and name.endswith(_BIASES)
        if tensor.dtype not in FLOATS or not tensor.numel or (len(tensor.shape) < 2 and not is_bias):
            return None
        weights = finite(name, tensor).astype(np.float64)
        if is_bias:
            step = self.relative_step * _BIAS_STEP * _root_mean_square(weights)
            step = max(step, float(np.abs(weights).max()) / MOST_LEVELS) or 1.0
            return Split({LEVELS: Tensor.of(np.rint(weights / step).astype(np.int32))}, {"step": step})
        step = step_size(weights, self.relative_step)
        levels = _quantize(weights / step, self.trade)
        if self.cancel:
            if weights.ndim > 2:
                levels = _cancel(weights / step, levels, weights.shape[0] * weights.shape[1])
            levels = _cancel(weights / step, levels, weights.shape[0])
        return Split({LEVELS: Tensor.of(levels)}, {"step": step})

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        levels, step = parts[LEVELS], parameters.get("step")
        if dtype not in FLOATS or levels.dtype != "I32" or levels.shape != shape:
            raise ValueError("levels that do not fit their tensor")
        if not isinstance(step, float) or not 0 < step < float("inf"):
            raise ValueError("a step that is not a positive number")
        with np.errstate(over="ignore"):  # of a step that no encoder chose
            return Tensor.of_floats(dtype, levels.integers * step)


@dataclass(frozen=True)
class OnGrid:
    """For tensors whose values are multiples of a step already, as `dtrain.slim.calibrate` makes them.

    Args:
        steps: by tensor name.
    """

    steps: Mapping[str, float]
    name: ClassVar[str] = Uniform.name
    part_names: ClassVar[tuple[str, ...]] = Uniform.part_names

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        if name not in self.steps:
            return None
        levels = np.rint(finite(name, tensor).astype(np.float64) / self.steps[name]).astype(np.int32)
        return Split({LEVELS: Tensor.of(levels)}, {"step": self.steps[name]})

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        return Uniform.decode(dtype, shape, parameters, parts)


def step_size(weights: NDArray[np.float64], relative_step: float) -> float:
    """The step of a weight tensor (see `Uniform`), and no smaller than its largest weight has levels for."""
    scale = (min(weights.size, _MOST) / _NUMEL) ** (1 / 3)
    step = relative_step * _root_mean_square(weights) * scale
    return max(step, float(np.abs(weights).max()) / MOST_LEVELS) or 1.0


def _root_mean_square(weights: NDArray[np.float64]) -> float:
    """Infinite where squares are, which makes a step that `decode` refuses."""
    with np.errstate(over="ignore"):
        return float(np.sqrt((weights**2).mean()))


def _quantize(weights: NDArray[np.float64], trade: float) -> NDArray[np.int32]:
    """Of the nearest level and the two next towards zero, that of least error + trade x bits. Weights are in steps."""
    sizes = np.abs(weights)
    nearest = np.rint(sizes).astype(np.int32)
    chosen = nearest
    for _ in range(3):  # bits depend on how often a level is chosen, which depends on the bits
        counts = np.bincount(chosen.reshape(-1), minlength=int(nearest.max()) + 1)
        bits = np.log2((counts.sum() + len(counts)) / (counts + 1.0))
        bits[1:] += 1  # the sign
        chosen = nearest
        least = (sizes - nearest) ** 2 + trade * bits[nearest]
        for fewer in (1, 2):
            candidate = np.maximum(nearest - fewer, 0)
            cost = (sizes - candidate) ** 2 + trade * bits[candidate]
            chosen = np.where(cost < least, candidate, chosen)
            least = np.minimum(cost, least)
    return (np.sign(weights) * chosen).astype(np.int32)


def _cancel(weights: NDArray[np.float64], levels: NDArray[np.int32], num_groups: int) -> NDArray[np.int32]:
    """Levels moved by one, at most, so that errors add up to half a step or less in each of as many equal groups.

    In a group those weights are moved whose error is greatest in the direction of the sum.
    """
    moved = levels.reshape(num_groups, -1).copy()
    errors = weights.reshape(num_groups, -1) - moved
    surplus = np.rint(errors.sum(axis=1)).astype(np.int64)
    for sign in (1, -1):
        groups = np.flatnonzero(sign * surplus > 0)
        gains = sign * errors[groups]
        count = np.minimum(np.abs(surplus[groups]), (gains > _LEAST_ERROR).sum(axis=1))
        order = np.argsort(-gains, axis=1, kind="stable")
        first = np.arange(order.shape[1]) < count[:, None]
        moved[groups[np.nonzero(first)[0]], order[first]] += sign
    return moved.reshape(levels.shape)
