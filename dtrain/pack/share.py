"""Weight sharing: a tensor of few distinct values is a codebook of them and, for each weight, a place in it.

`Distinct` finds the values that are there already, so nothing is lost. `KMeans` makes there be few: trained
quantization (Han, Mao, Dally: Deep Compression, arXiv 1510.00149, section 3), one codebook for each tensor.

A place in the codebook is counted from that of zero: small numbers, signed as the weights are, 0 for a pruned weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dtrain.arguments import check_name
from dtrain.pack.levels import MAX_LEVEL, are_levels
from dtrain.pack.stage import Parameters, Split
from dtrain.pack.tensor import FLOATS, Tensor, ascending_keys, finite, words_of_keys

LEVELS, CODEBOOK = "levels", "codebook"
_LEAST_NUMEL = 256


@dataclass(frozen=True)
class Distinct:
    """For tensors with at least four weights to a distinct value; bit for bit."""

    name: ClassVar[str] = "distinct"
    part_names: ClassVar[tuple[str, ...]] = (LEVELS, CODEBOOK)

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        words = tensor.words
        if len(words) != tensor.numel or tensor.numel < _LEAST_NUMEL or are_levels(tensor):
            return None
        keys, places = np.unique(ascending_keys(tensor.dtype, words), return_inverse=True)
        if len(keys) > min(MAX_LEVEL, tensor.numel // 4):
            return None
        levels = places - _place_of_zero(tensor.dtype, keys, words)
        codebook = words_of_keys(tensor.dtype, keys, like=words)
        return Split(
            {
                LEVELS: Tensor.of(levels.astype(np.int32).reshape(tensor.shape)),
                CODEBOOK: Tensor(tensor.dtype, (len(keys),), codebook.view(np.uint8)),
            }
        )

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        levels, codebook = parts[LEVELS], parts[CODEBOOK]
        if levels.dtype != "I32" or levels.shape != shape or codebook.dtype != dtype:
            raise ValueError("levels and a codebook that do not fit their tensor")
        if not codebook.numel or len(codebook.words) != codebook.numel:
            raise ValueError("levels and a codebook that do not fit their tensor")
        words = codebook.words
        places = levels.integers.reshape(-1) + _place_of_zero(dtype, ascending_keys(dtype, words), words)
        if places.size and not 0 <= places.min() <= places.max() < len(words):
            raise ValueError("levels beyond the codebook")
        return Tensor(dtype, shape, words[places].view(np.uint8))


def _place_of_zero(dtype: str, keys: NDArray[np.uint64], words: NDArray[Any]) -> int:
    """Where zero is in ascending keys, or would be."""
    zero = ascending_keys(dtype, np.zeros(1, words.dtype))
    return min(int(np.searchsorted(keys, zero)[0]), len(keys) - 1)


INITIALISATIONS = ("linear", "density", "random")


@dataclass(frozen=True)
class KMeans:
    """At most 2**num_bits values for each weight tensor, zero among them if any weight is zero.

    Args:
        num_bits: of a place in the codebook, 1 to 12.
        initialisation: of centroids: "linear" (evenly from the least to the greatest weight, which keeps the few large
            ones apart), "density" (as many weights to each), "random" (weights drawn with a fixed seed).
        num_iterations: of Lloyd's algorithm. More lower the error and raise the entropy of the places.
    """

    num_bits: int
    initialisation: str = "linear"
    num_iterations: int = 20
    name: ClassVar[str] = "k_means"
    part_names: ClassVar[tuple[str, ...]] = (LEVELS, CODEBOOK)

    def __post_init__(self) -> None:
        if not 1 <= self.num_bits <= 12:
            raise ValueError(f"num_bits={self.num_bits} must be from 1 to 12")
        check_name("initialisation ", self.initialisation, INITIALISATIONS)

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        if tensor.dtype not in FLOATS or len(tensor.shape) < 2 or not tensor.numel:
            return None
        weights = finite(name, tensor).reshape(-1)
        kept = weights[weights != 0].astype(np.float64)
        size = min((1 << self.num_bits) - (len(kept) < len(weights)), len(kept))
        if len(kept):
            centroids = _lloyd(np.sort(kept), _initial(kept, size, self.initialisation), self.num_iterations)
            shared = np.where(weights != 0, centroids[_nearest(centroids, weights)], 0).astype(weights.dtype)
        else:
            shared = weights
        return Distinct().encode(name, Tensor.of_floats(tensor.dtype, shared.reshape(tensor.shape)))

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        return Distinct.decode(dtype, shape, parameters, parts)


def _initial(weights: NDArray[np.float64], size: int, initialisation: str) -> NDArray[np.float64]:
    if initialisation == "linear":
        return np.linspace(weights.min(), weights.max(), size)
    if initialisation == "density":
        return np.quantile(weights, (np.arange(size) + 0.5) / size)
    return np.sort(np.random.default_rng(0).choice(weights, size, replace=False))


def _nearest(centroids: NDArray[np.float64], weights: NDArray[Any]) -> NDArray[np.int64]:
    """The place of the nearest of ascending centroids."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, weights)


def _lloyd(weights: NDArray[np.float64], centroids: NDArray[np.float64], iterations: int) -> NDArray[np.float64]:
    """Of ascending weights; a centroid without weights stays where it is."""
    totals = np.concatenate([[0.0], np.cumsum(weights)])
    for _ in range(iterations):
        borders = np.searchsorted(weights, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], borders, [len(weights)]])
        sizes = np.diff(ends)
        centroids = np.where(sizes > 0, np.diff(totals[ends]) / np.maximum(sizes, 1), centroids)
    return np.sort(centroids)
