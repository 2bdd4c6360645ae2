"""Numba's loops as codecs of blocks call them: with tensors on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.compressors.codecs import numba_loops as loops
from dtrain.compressors.codecs.kernels import Chunk
from dtrain.compressors.codecs.workspace import Workspace


class NumbaKernels:
    """See `Kernels`."""

    bears_nonfinite = False

    def quantise_by_largest(self, chunk: Chunk, levels: int, smallest: float, scales: Tensor, codes: Tensor) -> bool:
        """See `Kernels`."""
        how = (levels, smallest, chunk.block, scales.numpy(), codes.numpy(), chunk.subtract)
        if chunk.residual is None:
            return bool(loops.quantise_by_largest(chunk.left.numpy(), *how))
        arrays = chunk.values.numpy(), chunk.residual.numpy(), chunk.left.numpy()
        return bool(loops.correct_and_quantise(*arrays, *how))

    def take_magnitudes(self, chunk: Chunk, magnitudes: Tensor) -> None:
        """See `Kernels`."""
        if chunk.residual is None:
            torch.abs(chunk.values, out=magnitudes)
            return
        arrays = chunk.values.numpy(), chunk.residual.numpy(), chunk.left.numpy()
        loops.correct_and_take_magnitudes(*arrays, magnitudes.numpy())

    def multiply_blocks(self, values: Tensor, factors: Tensor, block: int, out: Tensor) -> None:
        """See `Kernels`."""
        loops.multiply_blocks(values.numpy(), factors.numpy(), block, out.numpy())

    def round_to_ternary(self, values: Tensor, factors: Tensor, block: int, codes: Tensor) -> None:
        """See `Kernels`."""
        loops.round_to_ternary(values.numpy(), factors.numpy(), block, codes.numpy())

    def pack_digits(self, codes: Tensor, base: int, packed: Tensor) -> None:
        """See `Kernels`."""
        loops.pack_digits(codes.numpy(), base, packed.view(torch.int8).numpy())

    def unpack_digits(
        self,
        packed: Tensor,
        base: int,
        per_byte: int,
        scales: Tensor,
        block: int,
        values: Tensor,
        workspace: Workspace,
        *,
        add: bool,
    ) -> None:
        """See `Kernels`."""
        rest = workspace.buffer("rest", len(packed) if per_byte > 1 else 0)
        integers = packed.view(torch.int8).numpy()
        loops.unpack_digits(integers, base, per_byte, rest.numpy(), scales.numpy(), block, values.numpy(), add)

    def pack_signs(self, values: Tensor, packed: Tensor) -> None:
        """See `Kernels`."""
        loops.pack_signs(values.numpy(), packed.numpy())

    def unpack_signs(self, packed: Tensor, scales: Tensor, block: int, values: Tensor, *, add: bool) -> None:
        """See `Kernels`."""
        loops.unpack_signs(packed.numpy(), scales.numpy(), block, values.numpy(), add)
