"""The signs of randomly rotated values: one bit a value, right on average.

Vargaftik, Ben-Basat, Portnoy, Mendelson, Ben-Itzhak and Mitzenmacher, "DRIVE: One-bit Distributed Mean Estimation"
(NeurIPS 2021), Algorithm 1 with the scale of its Theorem 3, S = ||x||_2^2 / ||R x||_1, which makes it unbiased.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dtrain.compressors.codecs.packing import Signs
from dtrain.compressors.codecs.rotation import BLOCK, GAIN, Rotation
from dtrain.compressors.codecs.scales import SMALLEST_SCALE, Float32Scales, largest_magnitudes, mean_magnitudes
from dtrain.compressors.codecs.workspace import Workspace, without_waiting
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Compressor

SEED_BYTES = 8


class RotatedSigns:
    """A message is the number of its rotation, a float32 scale per block, then the signs; that of no values is empty.

    The last block is filled up with zeros: with b = ceil(numel / 1024), 8 + 132 b bytes. The squared error is
    pi / 2 - 1 = 0.571 of the squared values, whatever they are, and of mean zero over rotations.
    """

    _scales, _signs = Float32Scales(), Signs()

    def num_bytes(self, numel: int) -> int:
        """See `Codec`."""
        blocks = _num_blocks(numel)
        return SEED_BYTES + self._scales.num_bytes(blocks) + blocks * BLOCK // 8 if blocks else 0

    def encode(self, values: Tensor, message: Tensor, workspace: Workspace) -> None:
        """See `Codec`."""
        blocks = _num_blocks(values.numel())
        if not blocks:
            return
        seed = workspace.new_seed()
        message[:SEED_BYTES].copy_(without_waiting(torch.tensor([seed]).view(torch.uint8), message.device))
        rotation = Rotation(seed, values.device)
        scales = values.new_empty(blocks)
        for piece, scale, packed in self._chunks(values, scales, message, workspace):
            rows, spare = self._rows(len(scale), workspace)
            rows.view(-1)[piece.numel() :].zero_()
            rows.view(-1)[: piece.numel()].copy_(piece)
            rows.mul_(largest_magnitudes(rows, out=scale).reciprocal().unsqueeze(1))  # now no square overflows
            energy = torch.linalg.vector_norm(rows, dim=1).square_()
            rotated = rotation.rotate(rows, spare)
            magnitude = mean_magnitudes(rotated, out=torch.empty_like(energy), spare=rows).clamp_min_(SMALLEST_SCALE)
            scale.mul_(energy.div_(magnitude.mul_(BLOCK * GAIN)))
            torch.bitwise_right_shift(rotated.view(torch.int32), 31, out=rows.view(torch.int32))
            self._signs.pack(rows.view(8, -1), packed)
        self._scales.pack(scales, message[SEED_BYTES:][: self._scales.num_bytes(blocks)])

    def decode(self, message: Tensor, values: Tensor, workspace: Workspace, *, add: float | None = None) -> None:
        """See `Codec`. The same bits on every machine: what is summed are small integers."""
        blocks = _num_blocks(values.numel())
        if not blocks:
            return
        # the host draws the rotation, so it waits for the sender's number, on whatever device that is
        rotation = Rotation(int(message[:SEED_BYTES].clone().view(torch.int64)), values.device)
        scales = self._scales.unpack(message[SEED_BYTES:][: self._scales.num_bytes(blocks)])
        scales.mul_(1.0 if add is None else add)
        for piece, scale, packed in self._chunks(values, scales, message, workspace):
            rows, spare = self._rows(len(scale), workspace)
            self._signs.unpack(packed, rows.view(8, -1))
            decoded = rotation.unrotate(rows, spare).mul_(scale.unsqueeze(1)).view(-1)[: piece.numel()]
            if add is None:
                piece.copy_(decoded)
            else:
                piece.add_(decoded)

    def _chunks(
        self, values: Tensor, scales: Tensor, message: Tensor, workspace: Workspace
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Views of values, scales and packed signs, as many blocks at a time as fit in a chunk."""
        step = max(1, workspace.chunk // BLOCK)
        packed = message[SEED_BYTES + self._scales.num_bytes(len(scales)) :]
        yield from zip(values.split(step * BLOCK), scales.split(step), packed.split(step * BLOCK // 8), strict=True)

    @staticmethod
    def _rows(blocks: int, workspace: Workspace) -> tuple[Tensor, Tensor]:
        rows, spare = (workspace.buffer(name, blocks * BLOCK).view(blocks, BLOCK) for name in ("rows", "spare"))
        return rows, spare


def rotated_signs() -> Compressor:
    """Eight values a byte and 4 bytes per 1024 values.

    A message for m > 0 values has 8 + 132 * ceil(m / 1024) bytes. Without error feedback: either phase errs by 0.57 of
    the energy of what it encodes, and is right on average.
    """
    return TwoPhase(RotatedSigns())


def _num_blocks(numel: int) -> int:
    return -(-numel // BLOCK)
