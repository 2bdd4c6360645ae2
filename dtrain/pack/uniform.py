"""Uniform quantization with the entropy in view: a weight goes to the level that costs least, error and bits together.

Levels are multiples of a step. Rounding to the nearest keeps the error least and forgets the bits; here a weight may go
to the next level towards zero where the bits saved are worth the error (rate-distortion optimised quantization).
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


@dataclass(frozen=True)
class Uniform:
    """For weight tensors.

    Args:
        relative_step: the step over the tensor's root mean square.
        trade: the squared error, in squared steps, that a bit saved is worth. 0 rounds to the nearest.
    """

    relative_step: float
    trade: float = 0.1
    name: ClassVar[str] = "uniform"
    part_names: ClassVar[tuple[str, ...]] = (LEVELS,)

    def __post_init__(self) -> None:
        if not 0 < self.relative_step < float("inf"):
            raise ValueError(f"relative_step={self.relative_step} must be positive")
        if not 0 <= self.trade < float("inf"):
            raise ValueError(f"trade={self.trade} must not be negative")

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        if tensor.dtype not in FLOATS or len(tensor.shape) < 2 or not tensor.numel:
            return None
        weights = finite(name, tensor).astype(np.float64)
        largest = float(np.abs(weights).max())
        step = max(self.relative_step * float(np.sqrt((weights**2).mean())), largest / MAX_LEVEL) or 1.0
        levels = _quantize(weights / step, self.trade)
        return Split({LEVELS: Tensor.of(levels)}, {"step": step})

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        levels, step = parts[LEVELS], parameters.get("step")
        if dtype not in FLOATS or levels.dtype != "I32" or levels.shape != shape:
            raise ValueError("levels that do not fit their tensor")
        if not isinstance(step, float) or not 0 < step < float("inf"):
            raise ValueError("a step that is not a positive number")
        with np.errstate(over="ignore"):
            return Tensor.of((levels.integers * step).astype(FLOATS[dtype]))


def _quantize(weights: NDArray[np.float64], trade: float) -> NDArray[np.int32]:
    """Of the nearest level and the two next towards zero, that of least error + trade x bits. Weights are in steps."""
    sizes = np.abs(weights)
    nearest = np.rint(sizes).astype(np.int64)
    chosen = nearest
    for _ in range(3):  # bits depend on how often a level is chosen, which depends on the bits
        counts = np.bincount(chosen.reshape(-1), minlength=int(nearest.max()) + 1)
        bits = np.log2((counts.sum() + len(counts)) / (counts + 1.0))
        bits[1:] += 1  # the sign
        candidates = np.stack([np.maximum(nearest - fewer, 0) for fewer in range(3)])
        costs = (sizes - candidates) ** 2 + trade * bits[candidates]
        chosen = np.take_along_axis(candidates, costs.argmin(axis=0)[None], axis=0)[0]
    return (np.sign(weights) * chosen).astype(np.int32)
