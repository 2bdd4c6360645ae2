"""PowerSGD with one all_reduce a step: each step improves one of the two factors, and the next the other.

The power iteration of Vogels, Karimireddy and Jaggi (NeurIPS 2019), Algorithm 1, with its two halves in two steps; each
half is a projection of that step's gradient on the space that the one before found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dtrain.compressors.codecs.matrices import Products, matrices_of, orthonormal, random_factors, where_found
from dtrain.exchange import (
    NOT_KEPT,
    Bucket,
    Context,
    Exchange,
    Exchanged,
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
        matrices = matrices_of(bucket.layout, self.power_sgd_rank)
        p, q = (random_factors(layout, bucket.value.device) for layout in (matrices.p_layout, matrices.q_layout))
        return BothFactors(p, q)

    def exchange(self, bucket: Bucket, state: BothFactors, context: Context) -> Exchange[BothFactors]:
        """One round."""
        matrices, is_even = matrices_of(bucket.layout, self.power_sgd_rank), context.step % 2 == 0
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
            contribution = Products(matrices, *((minus, bases) if is_even else (bases, minus)), value)
        total = yield Request(Op.ALL_REDUCE, torch.cat(parts) if parts else value)

        mean = context.scratch.empty("mean", value)
        summed, rest = total.split([before.value.numel(), total.numel() - before.value.numel()])
        sums = matrices.ps_of(summed) if is_even else matrices.qs(summed)
        matrices.put_products(*((sums, bases) if is_even else (bases, sums)), mean)
        targets = matrices.others(mean)
        for target, part in zip(targets, rest.split([target.numel() for target in targets]), strict=True):
            target.copy_(part)
        kept = where_found(summed, before)
        return Exchanged(
            mean.to(dtype), contribution, BothFactors(kept, state.q) if is_even else BothFactors(state.p, kept)
        )
