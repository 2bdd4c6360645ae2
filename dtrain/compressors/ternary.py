"""Minus one, zero or one for each value, and a scale for each block.

Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning" (NeurIPS 2017):
s * sign(v) * b, where s = max|v| after clipping at 2.5 standard deviations and P(b = 1) = |v| / s. That is
`stochastic`. `nearest` rounds to the nearest of -s, 0 and s in error feedback, with s = ||v||_2^2 / ||v||_1.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from dtrain.compressors.codecs.blocks import Blocks
from dtrain.compressors.codecs.kernels import Chunk, Kernels
from dtrain.compressors.codecs.packing import ROUND, Digits
from dtrain.compressors.codecs.quantiser import means_of_rows
from dtrain.compressors.codecs.scales import SMALLEST_SCALE, Float8Scales, largest_magnitudes, mean_magnitudes
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.policies.rounding import Rounding, with_feedback_where_biased
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Compressor


class NearestTernary:
    """The nearest of -s, 0 and s, for a scale close to the one that leaves the smallest error.

    Lloyd's optimum is the mean magnitude of what is not rounded to zero, found by iteration. s = ||v||_2^2 / ||v||_1 is
    that optimum for Laplacian values and for those of one magnitude among zeros, 2% above it for Gaussian ones, and
    adapts to heavy tails: on gradients of SqueezeNet it left 0.29 to 0.34 of the energy, the optimum 0.28 to 0.33,
    the scale max|v| 0.63 to 0.75. It is never above max|v|.
    """

    subtracts = False

    def is_done_by(self, kernels: Kernels) -> bool:
        """See `Quantiser`."""
        return True

    def quantise(self, blocks: Tensor, scales: Tensor, codes: Tensor, workspace: Workspace) -> None:
        """With the mean magnitude m, w = v / m and e = mean(w^2) >= 1: scale = m * e, code = w / e, rounded."""
        mean_magnitudes(blocks, out=scales, spare=codes).clamp_min_(SMALLEST_SCALE)
        torch.mul(blocks, scales.reciprocal().unsqueeze(1), out=codes)
        width = blocks.shape[1]
        energy = torch.linalg.vector_norm(codes, dim=1).square_().mul_(1.0 / width).clamp_min_(1.0)
        scales.mul_(energy)
        torch.addcmul(codes.new_full((width,), ROUND), codes, energy.reciprocal_().unsqueeze(1), out=codes)
        codes.clamp_(ROUND - 1, ROUND + 1)

    def quantise_compiled(
        self, kernels: Kernels, chunk: Chunk, scales: Tensor, codes: Tensor, workspace: Workspace
    ) -> bool:
        """See `Quantiser`."""
        spare, block = workspace.buffer("codes", chunk.values.numel()), chunk.block
        kernels.take_magnitudes(chunk, spare)
        means_of_rows(spare, out=scales).clamp_min_(SMALLEST_SCALE)
        kernels.multiply_blocks(chunk.left, scales.reciprocal(), block, spare)
        rows = spare.view(len(scales), -1)
        energy = torch.linalg.vector_norm(rows, dim=1).square_().mul_(1.0 / rows.shape[1]).clamp_min_(1.0)
        scales.mul_(energy)
        kernels.round_to_ternary(spare, energy.reciprocal_(), block, codes)
        return True


class TernGrad:
    """The paper's: unbiased but for the clipping. A block's mean is taken for zero in its standard deviation."""

    subtracts = False

    def is_done_by(self, kernels: Kernels) -> bool:
        """See `Quantiser`."""
        return kernels.at_random is not None

    def quantise(self, blocks: Tensor, scales: Tensor, codes: Tensor, workspace: Workspace) -> None:
        """scale = min(max|v|, 2.5 sigma); code = sign(v) with probability |v| / scale, else 0."""
        torch.mul(blocks, largest_magnitudes(blocks, out=scales).reciprocal().unsqueeze(1), out=codes)
        clip = _clip(codes)
        scales.mul_(clip)
        codes.mul_(clip.reciprocal_().unsqueeze(1)).clamp_(-1, 1)
        workspace.dither_(codes).add_(ROUND)

    def quantise_compiled(
        self, kernels: Kernels, chunk: Chunk, scales: Tensor, codes: Tensor, workspace: Workspace
    ) -> bool:
        """See `Quantiser`."""
        at_random, left, block = kernels.at_random, chunk.correct(), chunk.block
        assert at_random is not None
        spare = workspace.buffer("codes", left.numel())
        if not at_random.divide_by_largest(left, SMALLEST_SCALE, block, scales, spare):
            return False
        clip = _clip(spare.view(len(scales), -1))
        scales.mul_(clip)
        draws = workspace.draw(left.numel(), at_random)
        at_random.round_to_ternary_at_random(spare, clip.reciprocal_(), draws, block, codes)
        return True


def _clip(blocks: Tensor) -> Tensor:
    """2.5 standard deviations of each row, whose largest magnitude is 1, which they are at most."""
    sigma = torch.linalg.vector_norm(blocks, dim=1).mul_(1.0 / sqrt(blocks.shape[1]))
    clip: Tensor = sigma.mul_(2.5).clamp_(1e-3, 1.0)  # 1e-3 is for a block of zeros
    return clip


def ternary(rounding: Rounding = "stochastic") -> Compressor:
    """Five values a byte and one byte per 640 values.

    A message for m > 0 values has ceil(m / 5) + ceil(m / 640) + 4 bytes. `stochastic` errs in either
    phase by about as much as there is (a relative squared error of 0.3 to 1), and is right on average; `nearest` errs
    less and sends the rest later, in error feedback, which momentum and AdamW do not bear (docs/compressors.md).
    """
    quantiser = NearestTernary() if rounding == "nearest" else TernGrad()
    codec = Blocks(quantiser, Digits(3, 5), block=640, scales=Float8Scales())
    return with_feedback_where_biased(TwoPhase(codec), rounding)
