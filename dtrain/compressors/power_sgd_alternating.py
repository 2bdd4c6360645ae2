"""PowerSGD with one all_reduce a step: each step improves one of the two factors, and the next the other.

The power iteration of Vogels, Karimireddy and Jaggi (NeurIPS 2019), Algorithm 1, with its two halves in two steps; each
half is a projection of that step's gradient on the space that the one before found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.codecs.matrices import Matrices, orthonormal
from dtrain.exchange import (
    NOT_KEPT,
    Bucket,
    Context,
    Exchange,
    Exchanged,
    Layout,
    Op,
    Replicated,
    Request,
    State,
)


@dataclass(frozen=True)
class BothFactors(State):
    """The last sums of both factors, float32."""

    p: Replicated
    q: Replicated


@dataclass(frozen=True, slots=True)
class Projection:
    """What this rank contributed: minus left^T right for each matrix, and the other parameters as they were."""

    matrices: Matrices
    lefts: Sequence[Tensor]
    minus_rights: Sequence[Tensor]
    value: Tensor

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        for other, left in zip(self.matrices.others(self.value), self.matrices.others(residual), strict=True):
            left.sub_(other)
        for p, minus_q, matrix in zip(self.lefts, self.minus_rights, self.matrices.of(residual), strict=True):
            matrix.addmm_(p.t(), minus_q)


@dataclass(frozen=True)
class AlternatingPowerSgd:
    """In even steps the mean is (sum of M Q) Q^T for the orthonormal Q of before, in odd ones P (sum of P^T M).

    M is as in `PowerSgd`, and so is which parameters are compressed. One all_reduce of float32 a step: 4 (sum of r rows
    + elements of the others) bytes in even steps, 4 (sum of r columns + elements of the others) in odd ones.
    """

    power_sgd_rank: int = 4

    def __post_init__(self) -> None:
        if self.power_sgd_rank < 1:
            raise ValueError(f"power_sgd_rank={self.power_sgd_rank} must be at least 1")

    def init(self, bucket: Bucket) -> BothFactors:
        """Random factors, drawn by the parameter's name: the same on every rank, in every bucket."""
        matrices = Matrices(bucket.layout, self.power_sgd_rank)
        p, q = (random_factors(layout, bucket.value.device) for layout in (matrices.p_layout, matrices.q_layout))
        return BothFactors(p, q)

    def exchange(self, bucket: Bucket, state: BothFactors, context: Context) -> Exchange[BothFactors]:
        """One round."""
        matrices, is_even = Matrices(bucket.layout, self.power_sgd_rank), context.step % 2 == 0
        dtype, value = bucket.value.dtype, bucket.value.to(torch.float32)
        before = state.p if is_even else state.q
        known = matrices.qs(state.q.value) if is_even else matrices.ps_of(state.p.value)
        bases = [orthonormal(factor) for factor in known]
        found = [
            torch.mm(basis, matrix.t() if is_even else matrix)
            for basis, matrix in zip(bases, matrices.of(value), strict=True)
        ]
        parts = [factor.reshape(-1) for factor in (*found, *matrices.others(value))]
        contribution = NOT_KEPT
        if context.wants_contribution:
            minus = [-factor for factor in found]
            lefts, rights = (minus, bases) if is_even else (bases, minus)
            contribution = Projection(matrices, lefts, rights, value)
        total = yield Request(Op.ALL_REDUCE, torch.cat(parts) if parts else value)

        mean = context.scratch.empty("mean", value)
        summed, rest = total.split([before.value.numel(), total.numel() - before.value.numel()])
        sums = matrices.ps_of(summed) if is_even else matrices.qs(summed)
        for basis, factor, matrix in zip(bases, sums, matrices.of(mean), strict=True):
            left, right = (factor, basis) if is_even else (basis, factor)
            torch.outer(left[0], right[0], out=matrix)
            for left_row, right_row in zip(left[1:], right[1:], strict=True):
                matrix.addr_(left_row, right_row)
        targets = matrices.others(mean)
        for target, part in zip(targets, rest.split([target.numel() for target in targets]), strict=True):
            target.copy_(part)
        after = torch.empty_like(before.value)
        views = matrices.ps_of if is_even else matrices.qs
        for new, old, out in zip(sums, views(before.value), views(after), strict=True):
            torch.where(new.any(1, keepdim=True), new, old, out=out)
        kept = before._replace(value=after)
        return Exchanged(
            mean.to(dtype), contribution, BothFactors(kept, state.q) if is_even else BothFactors(state.p, kept)
        )


def random_factors(layout: Layout, device: torch.device) -> Replicated:
    """Normal numbers of shape (r, length) for each parameter, drawn by its name."""
    value = torch.empty(layout.numel, device=device)
    for name, piece in layout.pieces(value):
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
        piece.copy_(torch.randn(piece.shape, generator=torch.Generator().manual_seed(seed)))
    return Replicated(value, layout)
