"""Gradients as integers of 8 or 4 bits.

Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding" (NeurIPS 2017), bucketed and
scaled by the maximum as in its experiments: Q(v_i) = max|v| / s * round(s * v_i / max|v|), where s is 127 or 7, v a
block, and a value between two integers is rounded up with the probability of its fraction. Or to the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.codecs.blocks import Blocks
from dtrain.compressors.codecs.kernels import Chunk, Kernels
from dtrain.compressors.codecs.packing import ROUND, Digits
from dtrain.compressors.codecs.scales import SMALLEST_SCALE, Float32Scales, largest_magnitudes
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.policies.rounding import Rounding, with_feedback_where_biased
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Compressor


@dataclass(frozen=True)
class MaxScaled:
    """Integers from -levels to levels; the largest magnitude of a block becomes `levels`."""

    levels: int
    rounding: Rounding

    def is_done_by(self, kernels: Kernels) -> bool:
        """See `Quantiser`."""
        return self.rounding == "nearest" or kernels.at_random is not None

    def quantise(self, blocks: Tensor, scales: Tensor, codes: Tensor, workspace: Workspace) -> None:
        """scale = max|v| / levels; code = v / scale, rounded."""
        largest_magnitudes(blocks, out=scales).mul_(1.0 / self.levels)
        inverse = scales.reciprocal().unsqueeze(1)
        if self.rounding == "nearest":
            torch.addcmul(blocks.new_full(blocks.shape[1:], ROUND), blocks, inverse, out=codes)
        else:
            torch.mul(blocks, inverse, out=codes).clamp_(-self.levels, self.levels)
            workspace.dither_(codes).add_(ROUND)

    def quantise_compiled(
        self, kernels: Kernels, chunk: Chunk, scales: Tensor, codes: Tensor, workspace: Workspace
    ) -> bool:
        """See `Quantiser`."""
        if self.rounding == "nearest":
            return kernels.quantise_by_largest(chunk, self.levels, SMALLEST_SCALE, scales, codes)
        at_random, left = kernels.at_random, chunk.correct()
        assert at_random is not None
        draws = workspace.draw(left.numel(), at_random)
        return at_random.quantise_at_random(left, draws, self.levels, SMALLEST_SCALE, chunk.block, scales, codes)

    @property
    def subtracts(self) -> bool:
        """See `Quantiser`."""
        return self.rounding == "nearest"


def int8(rounding: Rounding = "nearest") -> Compressor:
    """One byte a value and 4 bytes per 2048 values.

    A message for m values has m + 4 * ceil(m / 2048) bytes. With `nearest` in error feedback: a value under 1/254 of
    the largest of its block would otherwise never arrive.
    """
    codec = Blocks(MaxScaled(127, rounding), Digits(256, 1), block=2048, scales=Float32Scales())
    return with_feedback_where_biased(TwoPhase(codec), rounding)


def int4(rounding: Rounding = "nearest") -> Compressor:
    """Half a byte a value and 4 bytes per 1024 values.

    A message for m values has ceil(m / 2) + 4 * ceil(m / 1024) bytes. With `nearest` in error feedback.
    """
    codec = Blocks(MaxScaled(7, rounding), Digits(16, 2), block=1024, scales=Float32Scales())
    return with_feedback_where_biased(TwoPhase(codec), rounding)
