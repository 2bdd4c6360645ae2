"""A tensor as a file has it: a type, a shape and bytes. Any type of safetensors, also those that numpy lacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_BITS = {
    64: ("I64", "U64", "F64", "C64"),
    32: ("I32", "U32", "F32"),
    16: ("I16", "U16", "F16", "BF16"),
    8: ("BOOL", "I8", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    6: ("F6_E2M3", "F6_E3M2"),
    4: ("F4",),
}
BITS = {dtype: bits for bits, dtypes in _BITS.items() for dtype in dtypes}
"""Bits of an element, by safetensors' name of the type."""

FLOATS = {"F16": "<f2", "BF16": "<f4", "F32": "<f4", "F64": "<f8"}
"""Types of weights that stages may change, and the numpy type that holds their values. Other types stay exact."""

_MAX_NDIM = 16
_MAX_NUMEL = 1 << 40


@dataclass(frozen=True)
class Tensor:
    """`data`: little-endian bytes, as many as `num_bytes(dtype, shape)`; raises ValueError for others."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def __post_init__(self) -> None:
        if len(self.data) != num_bytes(self.dtype, self.shape):
            raise ValueError(f"{len(self.data)} bytes that are no {self.dtype} of shape {self.shape}")

    @classmethod
    def of(cls, array: NDArray[Any]) -> Tensor:
        """From numpy; float16, float32, float64 or an integer."""
        dtype = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        assert dtype in BITS, array.dtype
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return cls(dtype, array.shape, little.reshape(-1).view(np.uint8))

    @classmethod
    def of_floats(cls, dtype: str, values: NDArray[Any]) -> Tensor:
        """Of a type in FLOATS: each value rounded to the nearest that the type has, of two the even one."""
        with np.errstate(over="ignore"):
            floats = values.astype(FLOATS[dtype])
        if dtype != "BF16":
            return cls.of(floats)
        words = np.ascontiguousarray(floats).reshape(-1).view("<u4")
        rounded = (words + np.uint32(0x7FFF) + (words >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        return cls(dtype, values.shape, rounded.astype("<u2").view(np.uint8))

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def word_bytes(self) -> int:
        """Bytes of an element, or of a half of a complex one, or of several small ones."""
        return 4 if self.dtype == "C64" else max(1, BITS[self.dtype] // 8)

    @property
    def words(self) -> NDArray[Any]:
        """Unsigned, flat."""
        return self.data.view(f"<u{self.word_bytes}")

    @property
    def floats(self) -> NDArray[Any]:
        """As numpy's floats, of the tensor's shape."""
        data = self.data
        if self.dtype == "BF16":
            data = (data.view("<u2").astype("<u4") << np.uint32(16)).view(np.uint8)
        floats: NDArray[Any] = data.view(FLOATS[self.dtype]).reshape(self.shape)
        return floats

    @property
    def integers(self) -> NDArray[np.int32]:
        """Of a tensor of type I32."""
        assert self.dtype == "I32"
        return self.data.view("<i4").reshape(self.shape).astype(np.int32, copy=False)


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Of a tensor's data: what decides, for packing as for unpacking, which tensors there are.

    A shape with a zero in it has no elements, and its other dimensions are held to the same bound. Raises ValueError
    for an unknown type, for a shape that no tensor has, and where a type of less than a byte does not fill its last.
    """
    if dtype not in BITS:
        raise ValueError(f"unknown type {dtype!r:.40}")
    if len(shape) > _MAX_NDIM or math.prod(max(1, size) for size in shape) > _MAX_NUMEL:
        raise ValueError(f"a shape that no tensor has: at most {_MAX_NDIM} dimensions, of {_MAX_NUMEL:,} elements")
    bits = BITS[dtype] * math.prod(shape)
    if bits % 8:
        raise ValueError(f"{math.prod(shape)} elements of {dtype} are not a whole number of bytes")
    return bits // 8


def finite(name: str, tensor: Tensor) -> NDArray[Any]:
    """`tensor.floats`. Raises ValueError for infinities and nan."""
    if not np.isfinite(tensor.floats).all():
        raise ValueError(f"{name} has weights that are not finite: only the preset lossless packs those")
    return tensor.floats


def ascending_keys(dtype: str, words: NDArray[Any]) -> NDArray[np.uint64]:
    """Words of a type as unsigned integers in the order of the values that they stand for."""
    top, every = _bits(words)
    keys = words.astype(np.uint64)
    if dtype.startswith("I"):
        return keys ^ top
    if dtype.startswith(("F", "BF")):
        return np.where(keys & top, keys ^ every, keys | top)
    return keys


def words_of_keys(dtype: str, keys: NDArray[np.uint64], like: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `ascending_keys`; the words are as wide as those of `like`."""
    top, every = _bits(like)
    words = keys
    if dtype.startswith("I"):
        words = keys ^ top
    elif dtype.startswith(("F", "BF")):
        words = np.where(keys & top, keys ^ top, keys ^ every)
    return words.astype(like.dtype)


def _bits(words: NDArray[Any]) -> tuple[np.uint64, np.uint64]:
    """The top bit of such words, and all bits."""
    bits = 8 * words.dtype.itemsize
    return np.uint64(1 << (bits - 1)), np.uint64((1 << bits) - 1)
