"""What compiled kernels do for codecs of blocks, whoever compiles them: in place of torch's operations, bit for bit.

Tensors are flat, contiguous and on one device. Values and scales are float32, codes int8, packed bytes uint8; every
block of `block` values has a scale, and a last one may be shorter.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from dtrain.compressors.codecs.workspace import Workspace


class Chunk(NamedTuple):
    """Some blocks of values.

    Where there is a `residual` from before, what is quantised is values + residual, which is written to `left`. Else
    `left` is the values. `subtract`: what codes stand for is to be subtracted from `left`; only where they are bytes.
    """

    values: Tensor
    residual: Tensor | None
    left: Tensor
    block: int
    subtract: bool


class Kernels(Protocol):
    """Of one compiler."""

    @property
    def bears_nonfinite(self) -> bool:
        """Whether they say what torch says of NaN and infinity, too; else such messages are torch's to do."""
        ...

    def quantise_by_largest(self, chunk: Chunk, levels: int, smallest: float, scales: Tensor, codes: Tensor) -> bool:
        """Of each block scale = max(max|v|, smallest) / levels and codes = v / scale, to the nearest.

        False, with what was written undefined, where a value is not finite and kernels do not bear it.
        """
        ...

    def take_magnitudes(self, chunk: Chunk, magnitudes: Tensor) -> None:
        """The magnitudes of what is left, correcting it on the way."""
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
        add: bool,
    ) -> None:
        """Values become codes * scales, or grow by them."""
        ...

    def pack_signs(self, values: Tensor, packed: Tensor) -> None:
        """Bit k of byte i is the sign of value k len(packed) + i."""
        ...

    def unpack_signs(self, packed: Tensor, scales: Tensor, block: int, values: Tensor, *, add: bool) -> None:
        """Values become 1 or -1 times their block's scale, or grow by it."""
        ...
