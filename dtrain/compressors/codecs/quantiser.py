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

    @property
    def subtracts(self) -> bool:
        """Whether its kernels can subtract what codes stand for while they make them."""
        ...

    def is_done_by(self, kernels: Kernels) -> bool:
        """Whether they are all that `quantise_compiled` needs."""
        ...

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

        False where torch must do it: a value is not finite and no scale will say so.
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

    def pack_compiled(self, kernels: Kernels, codes: Tensor, packed: Tensor) -> None:
        """What `pack` writes, of int8 `codes`; a last byte is filled up."""
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
        onto: Tensor | float,
    ) -> None:
        """Flat `values` become codes * scales + `onto`, as addcmul rounds: `values` themselves, others, or a number.

        There is a scale for each block. A number of -0.0 leaves zeros the sign that they have.
        """
        ...


def means_of_rows(magnitudes: Tensor, *, out: Tensor) -> Tensor:
    """`mean_magnitudes` of what has no sign any more, flat: as many rows as `out` has elements."""
    rows = magnitudes.view(len(out), -1)
    return torch.mv(rows, rows.new_full((rows.shape[1],), 1.0 / rows.shape[1]), out=out)
