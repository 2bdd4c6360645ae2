"""Numba's loops as codecs of blocks call them: with tensors on a CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrain.compressors.codecs import numba_loops as loops
from dtrain.compressors.codecs.kernels import Chunk, RandomKernels
from dtrain.compressors.codecs.random_bits import Source
from dtrain.compressors.codecs.workspace import Workspace

_NOTHING = np.empty(0, np.float32)


class NumbaKernels:
    """See `Kernels` and `RandomKernels`."""

    bears_nonfinite = False

    @property
    def at_random(self) -> RandomKernels:
        """See `Kernels`."""
        return self

    def quantise_by_largest(self, chunk: Chunk, levels: int, smallest: float, scales: Tensor, codes: Tensor) -> bool:
        """See `Kernels`."""
        how = (levels, smallest, chunk.block, scales.numpy(), codes.numpy(), chunk.subtract)
        if chunk.residual is None:
            return bool(loops.quantise_by_largest(chunk.left.numpy(), *how))
        arrays = chunk.values.numpy(), chunk.residual.numpy(), chunk.left.numpy()
        return bool(loops.correct_and_quantise(*arrays, *how))

    def take_magnitudes(self, chunk: Chunk, magnitudes: Tensor, signs: Tensor | None = None) -> None:
        """See `Kernels`."""
        if signs is not None:
            before = _NOTHING if chunk.residual is None else chunk.residual.numpy()
            how = (chunk.values.numpy(), before, chunk.left.numpy(), magnitudes.numpy(), signs.numpy())
            loops.take_magnitudes_and_signs(*how)
            return
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
        onto: Tensor | float,
    ) -> None:
        """See `Kernels`."""
        rest = workspace.buffer("rest", len(packed) if per_byte > 1 else 0)
        loops.unpack_digits(
            packed.view(torch.int8).numpy(),
            base,
            per_byte,
            rest.numpy(),
            scales.numpy(),
            block,
            *_as_addend(onto, values),
            values.numpy(),
        )

    def pack_signs(self, signs: Tensor, packed: Tensor) -> None:
        """See `Kernels`."""
        loops.pack_signs(signs.numpy(), packed.view(torch.int8).numpy())

    def unpack_signs(self, packed: Tensor, scales: Tensor, block: int, values: Tensor, *, onto: Tensor | float) -> None:
        """See `Kernels`."""
        loops.unpack_signs(packed.numpy(), scales.numpy(), block, *_as_addend(onto, values), values.numpy())

    def subtract_difference(self, values: Tensor, minuends: Tensor, subtrahends: Tensor) -> None:
        """See `Kernels`."""
        loops.subtract_difference(values.numpy(), minuends.numpy(), subtrahends.numpy())

    def quantise_at_random(
        self,
        values: Tensor,
        draws: Tensor,
        levels: int,
        smallest: float,
        block: int,
        scales: Tensor,
        codes: Tensor,
    ) -> bool:
        """See `RandomKernels`."""
        how = (levels, smallest, block, scales.numpy(), codes.numpy())
        return bool(loops.quantise_at_random(values.numpy(), draws.numpy(), *how))

    def divide_by_largest(self, values: Tensor, smallest: float, block: int, scales: Tensor, out: Tensor) -> bool:
        """See `RandomKernels`."""
        return bool(loops.divide_by_largest(values.numpy(), smallest, block, scales.numpy(), out.numpy()))

    def round_to_ternary_at_random(
        self, values: Tensor, factors: Tensor, draws: Tensor, block: int, codes: Tensor
    ) -> None:
        """See `RandomKernels`."""
        loops.round_to_ternary_at_random(values.numpy(), factors.numpy(), draws.numpy(), block, codes.numpy())

    def twister(self, seed: int) -> Source:
        """See `Twisters`."""
        return _Twister(seed)


class _Twister:
    def __init__(self, seed: int) -> None:
        self.position = 0
        self._state, self._following = (np.empty(loops.TWISTER_NUMBERS, np.uint32) for _ in range(2))
        self._drawn = np.empty(loops.TWISTER_NUMBERS // 2, np.uint64)
        self._used = self._drawn.size
        loops.seed_twister(np.uint32(seed & 0xFFFFFFFF), self._state)

    def fill(self, words: Tensor) -> None:
        """See `Source`."""
        out = words.numpy().view(np.uint64)
        self._used = loops.draw_words(self._state, self._following, self._drawn, self._used, out)
        self.position += words.numel()


def _as_addend(onto: Tensor | float, values: Tensor) -> tuple[npt.NDArray[np.float32], float, bool]:
    """As loops are told what `values` become a sum with: some other values, or a number, or that they grow."""
    if isinstance(onto, float):
        return _NOTHING, onto, False
    return (_NOTHING, 0.0, True) if onto is values else (onto.numpy(), 0.0, False)
