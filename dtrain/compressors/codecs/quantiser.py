"""What a codec of blocks is made of: a quantiser, from values to small integers, and a packing, of those in bytes.

Each says what it does twice: as torch operations, and as calls of `kernels`, with the same results.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain.compressors.codecs.workspace import Workspace

NOTHING = np.empty(0, np.float32)


class Chunk(NamedTuple):
    """Some blocks of values, as kernels take them: flat.

    Where there is a `residual` from before, what is quantised is values + residual, which is written to `left`. Else
    `left` is the values. `subtract`: what codes stand for is to be subtracted from `left`; for a quantiser that does.
    """

    values: Tensor
    residual: Tensor | None
    left: Tensor
    block: int
    subtract: bool

    def correct(self) -> Tensor:
        """Write `left`, where there is a residual. Returns it."""
        return self.left if self.residual is None else torch.add(self.values, self.residual, out=self.left)


class Quantiser(Protocol):
    """From values to a scale for each block and a small integer for each value."""

    @property
    def subtracts(self) -> bool:
        """Whether its kernels can subtract what codes stand for while they make them."""
        ...

    def quantise(self, blocks: Tensor, scales: Tensor, codes: Tensor, workspace: Workspace) -> None:
        """Write `scales`, of shape (num_blocks,), and `codes`, so that codes * scales is about `blocks`.

        `blocks` and `codes` are contiguous float32 of shape (num_blocks, block); codes have integral values, or what
        the packing makes of them. No scale may overflow for finite blocks; a block with NaN or Inf gets a scale that
        is not finite.
        """
        ...

    def quantise_compiled(
        self, kernels: ModuleType, chunk: Chunk, scales: Tensor, codes: Tensor, workspace: Workspace
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

    def pack_compiled(self, kernels: ModuleType, codes: Tensor, packed: Tensor) -> None:
        """What `pack` writes, of int8 `codes`; a last byte is filled up."""
        ...

    def unpack_compiled(
        self,
        kernels: ModuleType,
        packed: Tensor,
        scales: Tensor,
        block: int,
        values: Tensor,
        workspace: Workspace,
        *,
        onto: Tensor | float,
    ) -> None:
        """Flat `values` become codes * scales + `onto`, rounded once: `values` themselves, others, or a number.

        There is a scale for each block. A number of -0.0 leaves zeros the sign that they have.
        """
        ...


def as_addend(onto: Tensor | float, values: Tensor) -> tuple[npt.NDArray[np.float32], float, bool]:
    """As kernels are told what `values` become a sum with: some other values, or a number, or that they grow."""
    if isinstance(onto, float):
        return NOTHING, onto, False
    return (NOTHING, 0.0, True) if onto is values else (onto.numpy(), 0.0, False)


def compiled_magnitudes(kernels: ModuleType, chunk: Chunk, workspace: Workspace) -> Tensor:
    """Of what is left of a chunk, correcting it on the way: a buffer of its size."""
    spare = workspace.buffer("codes", chunk.values.numel())
    if chunk.residual is None:
        return torch.abs(chunk.values, out=spare)
    arrays = chunk.values.numpy(), chunk.residual.numpy(), chunk.left.numpy()
    kernels.correct_and_take_magnitudes(*arrays, spare.numpy())
    return spare


def means_of_rows(magnitudes: Tensor, *, out: Tensor) -> Tensor:
    """`mean_magnitudes` of what has no sign any more, flat: as many rows as `out` has elements."""
    rows = magnitudes.view(len(out), -1)
    return torch.mv(rows, rows.new_full((rows.shape[1],), 1.0 / rows.shape[1]), out=out)
