"""Small integers in bytes, by arithmetic that a CPU's vector unit and a GPU do equally well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.codecs.kernels import Kernels
from dtrain.compressors.codecs.workspace import Workspace

ROUND = 1.5 * 2.0**23
"""Added to a float32 of magnitude under 2^22 it leaves no place for a fraction: the sum is rounded to the nearest
integer, ties to even, and the low bits of its representation are that integer in two's complement."""


@dataclass(frozen=True)
class Digits:
    """Integers of magnitude (base - 1) / 2 at most as the digits of a balanced number in that base, which is an int8.

    5 trits a byte (base 3, up to 121), 2 integers from -7 to 7 (base 16, up to 119), one from -127 to 127 (base 256).
    """

    base: int
    per_byte: int

    def pack(self, codes: Tensor, packed: Tensor) -> None:
        """Byte i = sum over k of codes[k, i] * base^k, where `codes` are values after ROUND was added to them."""
        integers = codes.view(torch.int32)
        for k in range(self.per_byte - 2, -1, -1):
            integers[k].add_(integers[k + 1], alpha=self.base)
        packed.view(torch.int8).copy_(integers[0])  # the low byte

    def unpack(self, packed: Tensor, codes: Tensor) -> None:
        """A digit is what the nearest multiple of the base leaves."""
        codes[0].copy_(packed.view(torch.int8))
        for k in range(self.per_byte - 1):
            torch.mul(codes[k], 1.0 / self.base, out=codes[k + 1]).round_()
            codes[k].sub_(codes[k + 1], alpha=self.base)

    def pack_compiled(self, kernels: Kernels, codes: Tensor, packed: Tensor) -> None:
        """See `Packing`. One to a byte, the codes are the bytes already."""
        if self.per_byte > 1:
            kernels.pack_digits(codes, self.base, packed)

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
        """See `Packing`."""
        kernels.unpack_digits(packed, self.base, self.per_byte, scales, block, values, workspace, onto=onto)


class Signs:
    """Eight signs in a byte, 1 for negative; unpacked they are 1.0 and -1.0."""

    per_byte = 8

    def pack(self, codes: Tensor, packed: Tensor) -> None:
        """Bit k of byte i is set where codes[k, i], seen as int32, is -1 and not 0."""
        bits = codes.view(torch.int32).to(torch.int8).bitwise_and_(1 << _bit_numbers(packed))
        torch.sum(bits, 0, dtype=torch.int8, out=packed.view(torch.int8))

    def unpack(self, packed: Tensor, codes: Tensor) -> None:
        """Times 2^(7 - k), bit k becomes the sign of an int8, to which a 1 is added so that none is 0."""
        bits = packed.view(torch.int8) * (1 << 7 - _bit_numbers(packed))
        codes.copy_(bits.bitwise_or_(1).sign_())

    def pack_compiled(self, kernels: Kernels, codes: Tensor, packed: Tensor) -> None:
        """See `Packing`."""
        kernels.pack_signs(codes, packed)

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
        """See `Packing`."""
        kernels.unpack_signs(packed, scales, block, values, onto=onto)


def _bit_numbers(packed: Tensor) -> Tensor:
    """0 to 7, as a column."""
    return torch.arange(8, dtype=torch.int8, device=packed.device).unsqueeze(1)
