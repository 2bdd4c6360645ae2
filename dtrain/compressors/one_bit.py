"""The sign of each value, and a scale for each block.

Seide et al., "1-Bit Stochastic Gradient Descent" (Interspeech 2014); with the scale of Karimireddy et al., "Error
Feedback Fixes SignSGD" (ICML 2019), Algorithm 1: C(v) = (||v||_1 / d) sign(v), d values in a block. Of all scales that
one leaves the smallest error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.compressors.codecs.blocks import Blocks
from dtrain.compressors.codecs.kernels import Chunk, Kernels
from dtrain.compressors.codecs.packing import Signs
from dtrain.compressors.codecs.quantiser import means_of_rows
from dtrain.compressors.codecs.scales import Float8Scales, mean_magnitudes
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Compressor


class SignScaled:
    """One or minus one, times the mean magnitude of the block."""

    subtracts = False

    def is_done_by(self, kernels: Kernels) -> bool:
        """See `Quantiser`."""
        return True

    def quantise(self, blocks: Tensor, scales: Tensor, codes: Tensor, workspace: Workspace) -> None:
        """scale = ||v||_1 / d; a code has the bits of -1 for what is negative, else of 0, as an int32."""
        mean_magnitudes(blocks, out=scales, spare=codes)
        torch.bitwise_right_shift(blocks.view(torch.int32), 31, out=codes.view(torch.int32))

    def quantise_compiled(
        self, kernels: Kernels, chunk: Chunk, scales: Tensor, codes: Tensor, workspace: Workspace
    ) -> bool:
        """See `Quantiser`. A code is -1 for what is negative, else 0."""
        spare = workspace.buffer("codes", chunk.values.numel())
        kernels.take_magnitudes(chunk, spare, codes)
        means_of_rows(spare, out=scales)
        return True


def one_bit() -> Compressor:
    """Eight values a byte and one byte per 256 values.

    A message for m > 0 values has ceil(m / 8) + ceil(m / 256) + 4 bytes. In error feedback.

    A step delivers of each value no more than the mean magnitude of its block, and the rest later: train without
    momentum, which on top of delays diverges (docs/compressors.md).
    """
    return ErrorFeedback(TwoPhase(Blocks(SignScaled(), Signs(), block=256, scales=Float8Scales())))
