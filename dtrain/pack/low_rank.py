"""Singular value decomposition: a weight matrix as the product of two thin ones.

A convolution (out, in, height, width) is a matrix of out rows. The factors are rounded to 16-bit integers, whose
products' sums a float64 holds exactly, so that the product is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.stage import Parameters, Split
from dtrain.pack.tensor import FLOATS, Tensor, finite

LEFT, RIGHT = "left", "right"
_LARGEST = (1 << 15) - 1


@dataclass(frozen=True)
class LowRank:
    """For weight tensors where the factors are smaller than the product.

    Args:
        energy: the fraction of the sum of squares to keep, at least.
    """

    energy: float
    name: ClassVar[str] = "low_rank"
    part_names: ClassVar[tuple[str, ...]] = (LEFT, RIGHT)

    def __post_init__(self) -> None:
        if not 0 < self.energy < 1:
            raise ValueError(f"energy={self.energy} must be between 0 and 1")

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        if tensor.dtype not in FLOATS or len(tensor.shape) < 2 or not tensor.numel:
            return None
        matrix = finite(name, tensor).reshape(tensor.shape[0], -1).astype(np.float64)
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        kept = np.cumsum(s**2) / max(float((s**2).sum()), 1e-300)
        rank = int(np.searchsorted(kept, self.energy)) + 1
        if rank * sum(matrix.shape) >= matrix.size:
            return None
        left, left_unit = _integers(u[:, :rank] * np.sqrt(s[:rank]))
        right, right_unit = _integers(vt[:rank] * np.sqrt(s[:rank])[:, None])
        return Split({LEFT: Tensor.of(left), RIGHT: Tensor.of(right)}, {"unit": left_unit * right_unit})

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        left, right, unit = parts[LEFT], parts[RIGHT], parameters.get("unit")
        if dtype not in FLOATS or len(shape) < 2 or (left.dtype, right.dtype) != ("I16", "I16"):
            raise ValueError("factors that do not fit their tensor")
        rank, columns = left.shape[-1] if len(left.shape) == 2 else -1, math.prod(shape[1:])
        if left.shape != (shape[0], rank) or right.shape != (rank, columns):
            raise ValueError("factors that do not fit their tensor")
        if rank * (shape[0] + columns) >= shape[0] * columns:  # bounds the time of the product
            raise ValueError("factors that are not smaller than their tensor")
        if not isinstance(unit, float) or not 0 < unit < float("inf"):
            raise ValueError("a unit that is not a positive number")
        product = _matrix(left) @ _matrix(right)
        with np.errstate(over="ignore"):  # of a unit that no encoder chose
            return Tensor.of_floats(dtype, (product * unit).reshape(shape))


def _integers(factor: NDArray[np.float64]) -> tuple[NDArray[np.int16], float]:
    """The factor in units, and the unit."""
    unit = float(np.abs(factor).max()) / _LARGEST or 1.0
    return np.rint(factor / unit).astype(np.int16), unit


def _matrix(factor: Tensor) -> NDArray[np.float64]:
    return factor.data.view("<i2").reshape(factor.shape).astype(np.float64)
