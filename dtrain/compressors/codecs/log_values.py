"""Float32 values in 8 or 16 bits, at even steps of their own bit pattern: a logarithmic scale that fits any range.

The bits of a float without its sign, read as an integer, are its logarithm but for a small error (Mitchell 1962).
A message stores its largest magnitude, a step of 2^shift, and of each value the sign and how many steps it lies below
the largest. The error is relative, at most half a step; with 8 bits 2.2% of the value where magnitudes span a factor
of 30, as in a top-k, and a third where one is 1e30 times another. Integer arithmetic alone, so every rank and device
decodes the same bits. An infinity or NaN is the largest, and stays one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.compressors.codecs import compiled

MAGNITUDE = 0x7FFFFFFF
HEADER_BYTES = 5
"""The largest magnitude as a float32, and the shift."""
CODES = {8: torch.uint8, 16: torch.int16, 32: torch.float32}
"""Bits of a value -> what it is sent as. 32 bits are the value itself, without a header."""


def num_bytes(k: int, value_bits: int) -> int:
    """k x value_bits / 8, and a header of 5 below 32 bits."""
    return k * value_bits // 8 + (HEADER_BYTES if value_bits < 32 else 0)


def encode(values: Tensor, value_bits: int) -> Tensor:
    """Float32 of shape (k,) -> uint8 of shape (num_bytes(k, value_bits),)."""
    if value_bits == 32:
        return values.contiguous().view(torch.uint8)
    loops = compiled.sparse_loops_for(values)
    if loops is not None:
        data = torch.empty(num_bytes(values.numel(), value_bits), dtype=torch.uint8)
        loops.encode_logarithms(values.view(torch.int32).numpy(), value_bits, data.numpy())
        return data
    zero = _zero_level(value_bits)
    pattern = values.view(torch.int32).to(torch.int64)
    magnitude = pattern & MAGNITUDE
    top = magnitude.amax()
    spread = top - magnitude.masked_fill(magnitude == 0, MAGNITUDE).amin().clamp(max=top)
    shift = ((spread >> torch.arange(32, device=values.device)) + 2 > zero).sum()  # the least at which all levels fit
    level = (top - magnitude + ((1 << shift) >> 1)) >> shift
    level = level.masked_fill_(magnitude == 0, zero)
    code = level | ((pattern < 0).to(torch.int64) << (value_bits - 1))
    header = torch.cat((top.to(torch.int32).view(1).view(torch.uint8), shift.to(torch.uint8).view(1)))
    return torch.cat((code.to(torch.int32).to(CODES[value_bits]).view(torch.uint8), header))


def decode(data: Tensor, k: int, value_bits: int) -> Tensor:
    """uint8 of shape (n, num_bytes(k, value_bits)), a row from each rank -> float32 of shape (n, k)."""
    loops = compiled.sparse_loops_for(data[0], torch.uint8)
    if loops is not None and value_bits < 32:
        patterns = torch.empty(len(data), k, dtype=torch.int32)
        for row, pattern in zip(data, patterns, strict=True):
            loops.decode_logarithms(row.numpy(), value_bits, pattern.numpy())
        return patterns.view(torch.float32)
    code_bytes = k * value_bits // 8
    code = data[:, :code_bytes].clone(memory_format=torch.contiguous_format).view(CODES[value_bits])
    if value_bits == 32:
        return code
    zero = _zero_level(value_bits)
    header = data[:, code_bytes:].clone(memory_format=torch.contiguous_format)
    top = header[:, :4].clone(memory_format=torch.contiguous_format).view(torch.int32).to(torch.int64)
    shift = header[:, 4:].to(torch.int64) & 31
    wide = code.to(torch.int64)
    level = wide & zero
    magnitude = (top - (level << shift)).clamp_(min=0).masked_fill_(level == zero, 0)
    sign = ((wide >> (value_bits - 1)) & 1) << 31
    return (magnitude | sign).to(torch.int32).view(torch.float32)


def _zero_level(value_bits: int) -> int:
    """The level that stands for 0: the last one."""
    return (1 << (value_bits - 1)) - 1
