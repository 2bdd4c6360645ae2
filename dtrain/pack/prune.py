"""Magnitude pruning: the smallest weights of each tensor become zero (Han et al. 2015, arXiv 1506.02626).

`Prune` does that, and `Sparse` stores it: where weights are, and the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.levels import are_levels
from dtrain.pack.stage import Parameters, Split
from dtrain.pack.tensor import FLOATS, Tensor, finite

KEPT = "kept"


@dataclass(frozen=True)
class Prune:
    """Keeps the greatest weights of tensors with two dimensions or more.

    Args:
        density: the fraction kept, or one by tensor name; tensors that are not named stay whole.
    """

    density: float | Mapping[str, float]
    name: ClassVar[str] = "prune"
    part_names: ClassVar[tuple[str, ...]] = (KEPT,)

    def __post_init__(self) -> None:
        for density in self.density.values() if isinstance(self.density, Mapping) else (self.density,):
            if not 0 < density <= 1:
                raise ValueError(f"density={density} must be above 0 and at most 1: it is the fraction kept")

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        density = self.density.get(name, 1.0) if isinstance(self.density, Mapping) else self.density
        if tensor.dtype not in FLOATS or len(tensor.shape) < 2 or density == 1.0 or not tensor.numel:
            return None
        weights = finite(name, tensor)
        return Split({KEPT: Tensor.of_floats(tensor.dtype, np.where(magnitude_mask(weights, density), weights, 0))})

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        kept = parts[KEPT]
        if (kept.dtype, kept.shape) != (dtype, shape):
            raise ValueError("kept weights that do not fit their tensor")
        return kept


def magnitude_mask(weights: NDArray[Any], density: float) -> NDArray[np.bool_]:
    """Where the greatest weights are, that fraction of all and one at least; of equals, the first."""
    order = np.argsort(-np.abs(weights), axis=None, kind="stable")
    mask = np.zeros(weights.size, np.bool_)
    mask[order[: max(1, round(density * weights.size))]] = True
    return mask.reshape(weights.shape)


MASK, VALUES = "mask", "values"


@dataclass(frozen=True)
class Sparse:
    """For tensors of which at least a quarter of the elements are zero; bit for bit."""

    name: ClassVar[str] = "sparse"
    part_names: ClassVar[tuple[str, ...]] = (MASK, VALUES)

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        words = tensor.words
        if len(words) != tensor.numel or tensor.numel < _LEAST_NUMEL or are_levels(tensor):
            return None
        mask = words != 0  # of the bits: -0.0 is a value
        if 4 * np.count_nonzero(mask) > 3 * len(mask):
            return None
        values = words[mask]
        return Split(
            {
                MASK: Tensor.of(mask.astype(np.int32).reshape(tensor.shape)),
                VALUES: Tensor(tensor.dtype, values.shape, values.view(np.uint8)),
            }
        )

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        mask, values = parts[MASK], parts[VALUES]
        if mask.dtype != "I32" or mask.shape != shape or values.dtype != dtype or len(values.words) != values.numel:
            raise ValueError("a mask and values that do not fit their tensor")
        places = np.flatnonzero(mask.integers)
        if len(places) != values.numel:
            raise ValueError("another number of values than its mask has places")
        words = np.zeros(mask.numel, values.words.dtype)
        words[places] = values.words
        return Tensor(dtype, shape, words.view(np.uint8))


_LEAST_NUMEL = 256
