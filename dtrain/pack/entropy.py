"""The last step: a tensor into bytes, by the codec that fits it."""

from __future__ import annotations

import math

from dtrain.pack.ascending import code_ascending, is_ascending
from dtrain.pack.coder import Decoder, Encoder
from dtrain.pack.huffman import decode_levels, encode_levels
from dtrain.pack.levels import are_levels, code_levels
from dtrain.pack.planes import code_planes
from dtrain.pack.tensor import Tensor

CODECS = ("levels", "huffman", "ascending", "planes")

CODERS = ("contexts", "huffman")
"""What small integers may be coded by."""


def encode(tensor: Tensor, coder: str = "contexts") -> tuple[str, bytes]:
    """The codec's name and the bytes. `coder`: one of CODERS."""
    encoder = Encoder()
    if are_levels(tensor) and coder == "huffman":
        return "huffman", encode_levels(tensor.integers)
    if are_levels(tensor):
        code_levels(encoder, tensor.shape, tensor.integers)
        return "levels", encoder.finish()
    if tensor.numel > 1 and is_ascending(tensor):
        code_ascending(encoder, tensor.dtype, tensor.shape, tensor)
        return "ascending", encoder.finish()
    code_planes(encoder, tensor.dtype, tensor.shape, tensor)
    return "planes", encoder.finish()


def decode(codec: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    """The tensor. Takes memory and time in proportion to the elements of `shape`, whatever `data` is.

    Raises ValueError for bytes that no encoder writes.
    """
    if codec in ("levels", "huffman") and dtype != "I32":
        raise ValueError(f"levels of type {dtype}")
    if codec != "planes" and math.prod(shape) < 2:  # so a dimension is at most the number of elements
        raise ValueError(f"fewer elements than codec {codec} is for")
    if codec == "huffman":
        return Tensor.of(decode_levels(shape, data))
    decoder = Decoder(data)
    if codec == "levels":
        return Tensor.of(code_levels(decoder, shape, None))
    if codec == "ascending":
        return code_ascending(decoder, dtype, shape, None)
    if codec == "planes":
        return code_planes(decoder, dtype, shape, None)
    raise ValueError(f"unknown codec {codec!r}")
