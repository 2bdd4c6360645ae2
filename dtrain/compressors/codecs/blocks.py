"""Codecs that give each block of values a scale of its own and each value a small integer.

What the scale is and how values are rounded is a `Quantiser`; how integers lie in bytes is a `Packing`. Work goes chunk
by chunk, so that the passes over a chunk stay in the cache; by kernels, where they are in use, or by torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.compressors.codecs import compiled
from dtrain.compressors.codecs.kernels import Chunk, Kernels
from dtrain.compressors.codecs.quantiser import Packing, Quantiser
from dtrain.compressors.codecs.scales import ScaleFormat
from dtrain.compressors.codecs.workspace import Workspace

CACHED = 64 * 1024
"""Elements of which a few buffers stay in the cache of one core."""


class Span(NamedTuple):
    """Where a chunk lies: in the values, in the scales, and in the packed codes."""

    values: slice
    rows: slice
    packed: slice


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

    def encoding_kernels(self, *values: Tensor) -> Kernels | None:
        """Those that encode such values, where they are in use."""
        kernels = compiled.kernels_for(*values)
        return kernels if kernels is not None and self.quantiser.is_done_by(kernels) else None

    def encode(self, values: Tensor, message: Tensor, workspace: Workspace) -> None:
        """See `Codec`."""
        kernels, drawn = self.encoding_kernels(values), workspace.random_bits.position
        if kernels is not None and self._encode_compiled(kernels, values, message, workspace):
            return
        workspace.random_bits.position = drawn
        cut = self._cut(values.numel())
        scales = values.new_empty(self._num_blocks(values.numel()))
        for span in self._spans(values.numel(), workspace.chunk):
            scale, packed = scales[span.rows], message[cut:][span.packed]
            blocks = values[span.values].view(len(scale), -1)
            codes, by_block = self._codes(blocks, packed, workspace)
            self.quantiser.quantise(blocks, scale, by_block, workspace)
            self.packing.pack(codes, packed)
        if cut:
            self.scales.pack(scales, message[:cut])

    def decode(self, message: Tensor, values: Tensor, workspace: Workspace, *, add: float | None = None) -> None:
        """See `Codec`. The factor goes into the scales and costs nothing."""
        cut = self._cut(values.numel())
        if not cut:
            return
        scales = self.scales.unpack(message[:cut]).mul_(1.0 if add is None else add)
        kernels = compiled.kernels_for(values)
        if kernels is not None and _are_borne(kernels, scales):
            for span in self._spans(values.numel(), workspace.chunk):
                part = values[span.values]
                onto = -0.0 if add is None else part
                self._unpack(kernels, message[cut:], scales, span, part, workspace, onto=onto)
            return
        for span in self._spans(values.numel(), workspace.chunk):
            scale, packed = scales[span.rows].unsqueeze(1), message[cut:][span.packed]
            blocks = values[span.values].view(len(scale), -1)
            codes, by_block = self._codes(blocks, packed, workspace)
            self.packing.unpack(packed, codes)
            if add is not None:
                blocks.addcmul_(by_block, scale)
            else:
                torch.mul(by_block, scale, out=blocks)

    def encode_corrected(
        self, values: Tensor, residual: Tensor, left: Tensor, message: Tensor, workspace: Workspace, *, subtract: bool
    ) -> None:
        """Write values + residual, of shape (numel,), to `left`, encode it and `subtract` what the message holds."""
        kernels, drawn = self.encoding_kernels(values, residual, left), workspace.random_bits.position
        if kernels is not None and self._encode_compiled(
            kernels, values, message, workspace, residual, left, subtract=subtract
        ):
            return
        workspace.random_bits.position = drawn
        self.encode(torch.add(values, residual, out=left), message, workspace)
        if subtract:
            self.decode(message, left, workspace, add=-1.0)

    def encode_sum(
        self, others: Sequence[Tensor], own: Tensor, sum_of_others: Tensor, message: Tensor, workspace: Workspace
    ) -> None:
        """Encode the sum of what messages hold, those of `others` and then `own`; write that of `others`.

        By kernels chunk by chunk: the whole sum is never in memory. `sum_of_others` has shape (numel,).
        """
        kernels, drawn = self.encoding_kernels(sum_of_others), workspace.random_bits.position
        if kernels is None or not self._encode_sum(kernels, others, own, sum_of_others, message, workspace):
            workspace.random_bits.position = drawn
            sum_of_others.zero_()
            for other in others:
                self.decode(other, sum_of_others, workspace, add=1.0)
            total = sum_of_others.clone()
            self.decode(own, total, workspace, add=1.0)
            self.encode(total, message, workspace)

    def correct_owned(self, left: Tensor, mean: Tensor, others: Tensor) -> None:
        """Subtract `mean` - `others` from `left`. `others` may be overwritten."""
        kernels = compiled.kernels_for(left, mean, others)
        if kernels is None:
            left.sub_(torch.sub(mean, others, out=others))
        else:
            kernels.subtract_difference(left, mean, others)

    def _encode_sum(
        self,
        kernels: Kernels,
        others: Sequence[Tensor],
        own: Tensor,
        sum_of_others: Tensor,
        message: Tensor,
        workspace: Workspace,
    ) -> bool:
        """False, with all undefined, where torch must do it."""
        cut, scales = self._cut(sum_of_others.numel()), sum_of_others.new_empty(self._num_blocks(sum_of_others.numel()))
        if not cut:
            return True
        received = [(one[cut:], self.scales.unpack(one[:cut])) for one in (*others, own)]
        if not all(_are_borne(kernels, theirs) for _, theirs in received):
            return False
        if not others:
            sum_of_others.zero_()
        for span in self._spans(sum_of_others.numel(), self._cached(workspace)):
            before = sum_of_others[span.values]
            total = workspace.buffer("total", before.numel())
            onto: Tensor | float = 0.0
            for packed, theirs in received[:-1]:
                self._unpack(kernels, packed, theirs, span, before, workspace, onto=onto)
                onto = before
            self._unpack(kernels, *received[-1], span, total, workspace, onto=onto)
            chunk = Chunk(total, None, total, self.block, False)
            if not self._pack(kernels, chunk, scales[span.rows], message[cut:][span.packed], workspace):
                return False
        return self._pack_scales(kernels, scales, message[:cut])

    def _encode_compiled(
        self,
        kernels: Kernels,
        values: Tensor,
        message: Tensor,
        workspace: Workspace,
        residual: Tensor | None = None,
        left: Tensor | None = None,
        *,
        subtract: bool = False,
    ) -> bool:
        """Encode by kernels; False, with the message and `left` undefined, where torch must do it."""
        cut, left = self._cut(values.numel()), values if left is None else left
        scales = values.new_empty(self._num_blocks(values.numel()))
        at_once = subtract and self.scales.exact and self.quantiser.subtracts
        for span in self._spans(values.numel(), workspace.chunk):
            before = None if residual is None else residual[span.values]
            chunk = Chunk(values[span.values], before, left[span.values], self.block, at_once)
            if not self._pack(kernels, chunk, scales[span.rows], message[cut:][span.packed], workspace):
                return False
        if not self._pack_scales(kernels, scales, message[:cut]):
            return False
        if subtract and not at_once:
            self.decode(message, left, workspace, add=-1.0)
        return True

    def _pack(self, kernels: Kernels, chunk: Chunk, scales: Tensor, packed: Tensor, workspace: Workspace) -> bool:
        """Quantise and pack a chunk; False where torch must do it."""
        codes = packed.view(torch.int8)
        if self.packing.per_byte > 1:
            codes = workspace.buffer("integers", chunk.values.numel(), torch.int8)
        if not self.quantiser.quantise_compiled(kernels, chunk, scales, codes, workspace):
            return False
        self.packing.pack_compiled(kernels, codes, packed)
        return True

    def _pack_scales(self, kernels: Kernels, scales: Tensor, packed: Tensor) -> bool:
        """False where torch must do it, payloads of NaN and all."""
        if len(packed) and _are_borne(kernels, scales):
            self.scales.pack(scales, packed)
            return True
        return not len(packed)

    def _unpack(
        self,
        kernels: Kernels,
        packed: Tensor,
        scales: Tensor,
        span: Span,
        values: Tensor,
        workspace: Workspace,
        *,
        onto: Tensor | float,
    ) -> None:
        """Of whole messages, what belongs to `span`."""
        packed, scales = packed[span.packed], scales[span.rows]
        self.packing.unpack_compiled(kernels, packed, scales, self.block, values, workspace, onto=onto)

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _cut(self, numel: int) -> int:
        """Where codes begin."""
        return self.scales.num_bytes(self._num_blocks(numel)) if numel else 0

    def _cached(self, workspace: Workspace) -> int:
        """Elements at a time for kernels: on a CPU fewer where their codes lie in the same bytes then, too."""
        fewer = self.packing.per_byte == 1 and workspace.device.type == "cpu"
        return min(CACHED, workspace.chunk) if fewer else workspace.chunk

    def _spans(self, numel: int, chunk: int) -> Iterator[Span]:
        """Whole blocks, as many at a time as fit in a chunk; then a last block that is shorter."""
        whole, per_byte = numel // self.block, self.packing.per_byte
        step = max(1, chunk // self.block)
        for first in range(0, whole, step):
            rows = slice(first, min(first + step, whole))
            start, stop = rows.start * self.block, rows.stop * self.block
            yield Span(slice(start, stop), rows, slice(start // per_byte, stop // per_byte))
        if whole * self.block < numel:
            start = whole * self.block
            yield Span(slice(start, numel), slice(whole, whole + 1), slice(start // per_byte, -(-numel // per_byte)))

    def _codes(self, blocks: Tensor, packed: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
        """A buffer for codes, as the packing sees it and in the shape of `blocks`; what fills the last byte is zero."""
        codes = workspace.buffer("codes", len(packed) * self.packing.per_byte)
        if codes.numel() > blocks.numel():
            codes[blocks.numel() :].zero_()
        return codes.view(self.packing.per_byte, -1), codes[: blocks.numel()].view_as(blocks)


def _are_borne(kernels: Kernels, scales: Tensor) -> bool:
    """Whether no block is spoilt; kernels that bear such blocks are not asked, since on a GPU the host would wait."""
    return kernels.bears_nonfinite or bool(torch.isfinite(scales).all())
