"""Codebooks: distinct values in ascending order, by their differences.

Of a difference the number of bits is coded, by how often it came before, and the bits below the first one as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.coder import Coder
from dtrain.pack.tensor import Tensor, ascending_keys, num_bytes, words_of_keys

_BLOCK = 16


def is_ascending(tensor: Tensor) -> bool:
    """Whether this codec has a form for it."""
    if len(tensor.shape) != 1 or len(tensor.words) != tensor.numel:
        return False
    keys = ascending_keys(tensor.dtype, tensor.words)
    return bool((keys[1:] > keys[:-1]).all())


def code_ascending(coder: Coder, dtype: str, shape: tuple[int, ...], known: Tensor | None) -> Tensor:
    """A vector of that type whose values ascend.

    Raises ValueError for a type that has no codebooks, and for a stream that no encoder writes.
    """
    blank = Tensor(dtype, shape, np.zeros(num_bytes(dtype, shape), np.uint8)) if known is None else known
    if len(blank.words) != blank.numel or blank.numel > 1 << 8 * blank.word_bytes:
        raise ValueError(f"a codebook of {blank.numel} values of type {dtype}")
    differences = None
    if known is not None:
        differences = np.diff(ascending_keys(dtype, known.words), prepend=np.uint64(0))
    differences = _code_differences(coder, blank.numel, 8 * blank.word_bytes, differences)
    words = words_of_keys(dtype, np.cumsum(differences, dtype=np.uint64), like=blank.words)
    vector = Tensor(dtype, shape, words.view(np.uint8))
    if not is_ascending(vector):
        raise ValueError("values that do not ascend")
    return vector


def _code_differences(coder: Coder, size: int, word_bits: int, known: NDArray[np.uint64] | None) -> NDArray[np.uint64]:
    lengths = np.zeros(size, np.int32)
    if known is not None:
        for bit in range(word_bits):
            lengths += known >> np.uint64(bit) > 0
    counts = np.ones(word_bits + 1, np.int64)
    for start in range(0, size, _BLOCK):
        block = lengths[start : start + _BLOCK]
        block[:] = coder.symbols(counts, len(block), None if known is None else block)
        counts += 8 * np.bincount(block, minlength=len(counts))
    differences = np.where(lengths > 0, np.uint64(1) << np.maximum(lengths - 1, 0).astype(np.uint64), np.uint64(0))
    for bit in range(word_bits - 1):
        has = np.flatnonzero(lengths - 1 > bit)
        bits = None if known is None else (known[has] >> np.uint64(bit) & np.uint64(1)).astype(np.int32)
        differences[has] |= coder.bits(np.full(len(has), 0.5), bits).astype(np.uint64) << np.uint64(bit)
    return differences
