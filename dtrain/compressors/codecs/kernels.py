"""What compiled kernels do for codecs of blocks, whoever compiles them: in place of torch's operations, bit for bit.

Tensors are flat, contiguous and on one device. Values and scales are float32, codes int8, packed bytes uint8; every
block of `block` values has a scale, and a last one may be shorter.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dtrain.compressors.codecs.random_bits import Twisters
from dtrain.compressors.codecs.workspace import Workspace


class Chunk(NamedTuple):
    """Some blocks of values.

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


class Kernels(Protocol):
    """Of one compiler."""

    @property
    def bears_nonfinite(self) -> bool:
        """Whether they say what torch says of NaN and infinity, too; else such messages are torch's to do."""
        ...

    @property
    def at_random(self) -> RandomKernels | None:
        """Those that round by random bits; None where torch rounds so."""
        ...

    def quantise_by_largest(self, chunk: Chunk, levels: int, smallest: float, scales: Tensor, codes: Tensor) -> bool:
        """Of each block scale = max(max|v|, smallest) / levels and codes = v / scale, to the nearest.

        False, with what was written undefined, where a value is not finite and kernels do not bear it.
        """
        ...

    def take_magnitudes(self, chunk: Chunk, magnitudes: Tensor, signs: Tensor | None = None) -> None:
        """Of what is left, correcting it on the way; int8 `signs` become -1 for what is negative, else 0."""
        ...

    def multiply_blocks(self, values: Tensor, factors: Tensor, block: int, out: Tensor) -> None:
        """Each block by a factor of its own."""
        ...

    def round_to_ternary(self, values: Tensor, factors: Tensor, block: int, codes: Tensor) -> None:
        """Codes are each block's values by a factor of its own, to the nearest of -1, 0 and 1."""
        ...

    def pack_digits(self, codes: Tensor, base: int, packed: Tensor) -> None:
        """Byte i = sum over k of codes[k len(packed) + i] base^k; codes may end before the last digits, which are 0."""
        ...

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
        """Values become codes * scales + `onto`: `values` themselves, others, or a number. See `Packing`."""
        ...

    def pack_signs(self, signs: Tensor, packed: Tensor) -> None:
        """Bit k of byte i is that of sign k len(packed) + i, which is -1 or 0."""
        ...

    def unpack_signs(self, packed: Tensor, scales: Tensor, block: int, values: Tensor, *, onto: Tensor | float) -> None:
        """`unpack_digits` of 1 and -1."""
        ...

    def subtract_difference(self, values: Tensor, minuends: Tensor, subtrahends: Tensor) -> None:
        """Values become less by minuends - subtrahends, each difference rounded."""
        ...


class RandomKernels(Twisters, Protocol):
    """Stochastic rounding, with the bits that torch's generator draws."""

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
        """`quantise_by_largest`, rounded up with the probability of the fraction; `draws` are int16."""
        ...

    def divide_by_largest(self, values: Tensor, smallest: float, block: int, scales: Tensor, out: Tensor) -> bool:
        """Of each block scale = max(max|v|, smallest) and out = v / scale. False where a value is not finite."""
        ...

    def round_to_ternary_at_random(
        self, values: Tensor, factors: Tensor, draws: Tensor, block: int, codes: Tensor
    ) -> None:
        """`round_to_ternary`, rounded away from 0 with the probability of the fraction."""
        ...
