"""Any bytes, without loss: a plane for each byte of an element, coded by how often each value came before.

Weights in floating point have exponents of a few values and fractions that look random. Rotated left by a bit, an
element's first byte is its exponent (float32, bfloat16) or most of it; the sign goes last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.coder import Coder
from dtrain.pack.tensor import Bytes, Tensor, num_bytes

_FIRST_BLOCK, _LAST_BLOCK = 64, 1 << 16
_MAX_COUNT = 1 << 40


def code_planes(coder: Coder, dtype: str, shape: tuple[int, ...], known: Tensor | None) -> Tensor:
    """A tensor of that type and shape."""
    blank = Tensor(dtype, shape, np.zeros(num_bytes(dtype, shape), np.uint8)) if known is None else known
    words = _rotate(blank.words, 1) if dtype.startswith(("F", "BF", "C")) else blank.words
    planes = words.view(np.uint8).reshape(-1, blank.word_bytes)
    columns = [
        _code_plane(coder, len(planes), None if known is None else planes[:, place]) for place in range(planes.shape[1])
    ]
    if known is not None:
        return known
    words = np.ascontiguousarray(np.stack(columns, axis=1)).reshape(-1).view(words.dtype)
    words = _rotate(words, -1) if dtype.startswith(("F", "BF", "C")) else words
    return Tensor(dtype, shape, words.view(np.uint8))


def _rotate(words: NDArray[Any], by: int) -> NDArray[Any]:
    bits = 8 * words.dtype.itemsize
    left, right = words.dtype.type(by % bits), words.dtype.type(-by % bits)
    rotated: NDArray[Any] = (words << left) | (words >> right)
    return rotated


def _code_plane(coder: Coder, size: int, known: Bytes | None) -> Bytes:
    """One byte of each element: under equal probabilities where that is as short, else by counts of those before."""
    counted = coder.number(1, None if known is None else int(_counts_pay(known)))
    counts = np.ones(256, np.int64)
    plane = np.zeros(size, np.uint8)
    start, block = 0, _FIRST_BLOCK
    while start < size:
        end = min(size, start + block)
        symbols = coder.symbols(counts, end - start, None if known is None else known[start:end].astype(np.int32))
        plane[start:end] = symbols
        if counted:
            counts += 16 * np.bincount(symbols, minlength=256)
        start, block = end, min(2 * block, _LAST_BLOCK)
    return plane


def _counts_pay(plane: Bytes) -> bool:
    counts = np.bincount(plane, minlength=256)
    used = counts[counts > 0]
    entropy = float((used * np.log2(len(plane) / used)).sum())
    learning = float(len(used) * np.log2(len(plane) + 1) / 2)
    return entropy + learning < 8 * len(plane)
