"""What a codec of blocks is made of: a quantiser, from values to small integers, and a packing, of those in bytes.

Each says what it does twice: as torch operations, and as calls of `kernels`, with the same results.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dtrain.compressors.codecs.kernels import Chunk, Kernels
from dtrain.compressors.codecs.workspace import Workspace


class Quantiser(Protocol):
    """From values to a scale for each block and a small integer for each value."""

    def quantise(self, blocks: Tensor, scales: Tensor, codes: Tensor, workspace: Workspace) -> None:
        """Write `scales`, of shape (num_blocks,), and `codes`, so that codes * scales is about `blocks`.

        `blocks` and `codes` are contiguous float32 of shape (num_blocks, block); codes have integral values, or what
        the packing makes of them. No scale may overflow for finite blocks; a block with NaN or Inf gets a scale that
        is not finite.
        """
        ...

    def quantise_compiled(
        self, kernels: Kernels, chunk: Chunk, scales: Tensor, codes: Tensor, workspace: Workspace
    ) -> bool:
        """The same by kernels, with int8 `codes` of the values' shape, without what a packing would add to them.

        False where torch must do it: there is no kernel, or a value is not finite and no scale will say so.
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

    def pack_compiled(self, kernels: Kernels, codes: Tensor, values: Tensor, packed: Tensor) -> None:
        """What `pack` writes, of int8 `codes` or the float32 `values` that were quantised; a last byte is filled up."""
        ...

    def unpack_compiled(
        self,
        kernels: Kernels,
        packed: Tensor,
        scales: Tensor,
        block: int,
        values: Tensor,
        workspace: Workspace,
        *,
        add: bool,
    ) -> None:
        """Flat `values` become codes * scales, of one for each block, or grow by them."""
        ...


def compiled_means(kernels: Kernels, chunk: Chunk, scales: Tensor, workspace: Workspace) -> Tensor:
    """`mean_magnitudes` of what is left of a chunk, correcting it on the way. Returns a buffer of its size."""
    spare = workspace.buffer("codes", chunk.values.numel())
    kernels.take_magnitudes(chunk, spare)
    rows = spare.view(len(scales), -1)
    torch.mv(rows, spare.new_full((rows.shape[1],), 1.0 / rows.shape[1]), out=scales)
    return spare
