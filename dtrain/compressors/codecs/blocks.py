"""Codecs that give each block of values a scale of its own and each value a small integer.

What the scale is and how values are rounded is a `Quantiser`; how integers lie in bytes is a `Packing`. Work goes chunk
by chunk, so that the passes over a chunk stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dtrain.compressors.codecs.workspace import Workspace

SMALLEST_SCALE = 1e-30
"""Below it scales stop: 1 / scale must be finite. What is so small is sent as zeros, and error feedback keeps it."""


class Quantiser(Protocol):
    """From values to a scale for each block and a small integer for each value."""

    def quantise(self, blocks: Tensor, scales: Tensor, codes: Tensor, workspace: Workspace) -> None:
        """Write `scales`, of shape (num_blocks,), and `codes`, so that codes * scales is about `blocks`.

        `blocks` and `codes` are contiguous float32 of shape (num_blocks, block); codes have integral values, or what
        the packing makes of them. No scale may overflow for finite blocks; a block with NaN or Inf gets a scale that
        is not finite.
        """
        ...


class Packing(Protocol):
    """Small integers in bytes. `codes` is contiguous float32 of shape (per_byte, len(packed)), `packed` is uint8."""

    @property
    def per_byte(self) -> int:
        """Codes in a byte."""
        ...

    def pack(self, codes: Tensor, packed: Tensor) -> None:
        """Write column i of `codes` to byte i. `codes` may be overwritten."""
        ...

    def unpack(self, packed: Tensor, codes: Tensor) -> None:
        """The reverse."""
        ...


def largest_magnitudes(blocks: Tensor, *, out: Tensor) -> Tensor:
    """max|v| of each row, or SMALLEST_SCALE; NaN where a row has one. |v| itself would be one more chunk to write."""
    return torch.maximum(blocks.amax(1), blocks.amin(1).neg_(), out=out).clamp_min_(SMALLEST_SCALE)


def mean_magnitudes(blocks: Tensor, *, out: Tensor, spare: Tensor) -> Tensor:
    """||v||_1 / d of each row, of d values; NaN where a row has one. `spare`, of the shape of `blocks`, is overwritten.

    As a product with a vector of 1/d, it cannot overflow as a sum would, and spares a division of all values.
    """
    width = blocks.shape[1]
    return torch.mv(torch.abs(blocks, out=spare), spare.new_full((width,), 1.0 / width), out=out)


class ScaleFormat(Protocol):
    """How the scales of a message, one or more, become bytes."""

    def num_bytes(self, num_blocks: int) -> int:
        """Their size."""
        ...

    def pack(self, scales: Tensor, packed: Tensor) -> None:
        """Write float32 `scales` to `packed`: uint8, of shape (num_bytes(len(scales)),), not aligned."""
        ...

    def unpack(self, packed: Tensor) -> Tensor:
        """The scales, as new float32."""
        ...


class Float32Scales:
    """As they are."""

    def num_bytes(self, num_blocks: int) -> int:
        """4 for each."""
        return 4 * num_blocks

    def pack(self, scales: Tensor, packed: Tensor) -> None:
        """See `ScaleFormat`."""
        packed.copy_(scales.view(torch.uint8))

    def unpack(self, packed: Tensor) -> Tensor:
        """See `ScaleFormat`."""
        return packed.clone().view(torch.float32)


class Float8Scales:
    """The largest as float32, and each one's share of it as a float8 of 5 bits of exponent (e5m2), off by up to 1/8.

    For codes that need no exact scale. Four times as many blocks for the same bytes leave less of a gradient behind
    than the rounding does: of SqueezeNet's, signs with a scale for 2048 values leave 0.68 to 0.84 of the energy, with
    one for 256 values 0.56 to 0.73. Scales under 1/130,000 of the largest become zero.
    """

    def num_bytes(self, num_blocks: int) -> int:
        """1 for each, and 4."""
        return 4 + num_blocks

    def pack(self, scales: Tensor, packed: Tensor) -> None:
        """See `ScaleFormat`. A scale that is not finite stays so, and spoils no other."""
        largest = scales.nan_to_num(0.0, 0.0, 0.0).amax(0, keepdim=True).clamp_min_(SMALLEST_SCALE)
        packed[:4].copy_(largest.view(torch.uint8))
        packed[4:].copy_((scales / largest).to(torch.float8_e5m2).view(torch.uint8))

    def unpack(self, packed: Tensor) -> Tensor:
        """See `ScaleFormat`."""
        return packed[4:].view(torch.float8_e5m2).to(torch.float32).mul_(packed[:4].clone().view(torch.float32))


@dataclass(frozen=True)
class Blocks:
    """A message is a scale per block, then the packed codes of all values; that of no values is empty.

    These are scales.num_bytes(ceil(numel / block)) + ceil(numel / per_byte) bytes. A last block may be shorter than
    `block`, which must be a multiple of per_byte.
    """

    quantiser: Quantiser
    packing: Packing
    block: int
    scales: ScaleFormat

    def __post_init__(self) -> None:
        assert self.block % self.packing.per_byte == 0

    def num_bytes(self, numel: int) -> int:
        """Scales and codes of `numel` values."""
        return self._cut(numel) + -(-numel // self.packing.per_byte)

    def encode(self, values: Tensor, message: Tensor, workspace: Workspace) -> None:
        """See `Codec`."""
        cut = self._cut(values.numel())
        scales = values.new_empty(self._num_blocks(values.numel()))
        for blocks, scale, packed in self._chunks(values, scales, message[cut:], workspace):
            codes, rows = self._codes(blocks, packed, workspace)
            self.quantiser.quantise(blocks, scale, rows, workspace)
            self.packing.pack(codes, packed)
        if cut:
            self.scales.pack(scales, message[:cut])

    def decode(self, message: Tensor, values: Tensor, workspace: Workspace, *, add: float | None = None) -> None:
        """See `Codec`. The factor goes into the scales and costs nothing."""
        cut = self._cut(values.numel())
        if not cut:
            return
        scales = self.scales.unpack(message[:cut]).mul_(1.0 if add is None else add)
        for blocks, scale, packed in self._chunks(values, scales.unsqueeze(1), message[cut:], workspace):
            codes, rows = self._codes(blocks, packed, workspace)
            self.packing.unpack(packed, codes)
            if add is not None:
                blocks.addcmul_(rows, scale)
            else:
                torch.mul(rows, scale, out=blocks)

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _cut(self, numel: int) -> int:
        """Where codes begin."""
        return self.scales.num_bytes(self._num_blocks(numel)) if numel else 0

    def _chunks(
        self, values: Tensor, scales: Tensor, packed: Tensor, workspace: Workspace
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Views of whole blocks, as many at a time as fit in a chunk; then of a last block that is shorter."""
        whole = values.numel() // self.block
        cut, packed_cut = whole * self.block, whole * self.block // self.packing.per_byte
        step = max(1, workspace.chunk // self.block)
        if whole > 0:
            yield from zip(
                values[:cut].view(whole, self.block).split(step),
                scales[:whole].split(step),
                packed[:packed_cut].split(step * self.block // self.packing.per_byte),
                strict=True,
            )
        if cut < values.numel():
            yield values[cut:].unsqueeze(0), scales[whole:], packed[packed_cut:]

    def _codes(self, blocks: Tensor, packed: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
        """A buffer for codes, as the packing sees it and in the shape of `blocks`; what fills the last byte is zero."""
        codes = workspace.buffer("codes", len(packed) * self.packing.per_byte)
        if codes.numel() > blocks.numel():
            codes[blocks.numel() :].zero_()
        return codes.view(self.packing.per_byte, -1), codes[: blocks.numel()].view_as(blocks)
