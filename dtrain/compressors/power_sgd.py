"""PowerSGD: each gradient matrix as a product of two thin ones, found by one step of power iteration.

Vogels, Karimireddy and Jaggi, PowerSGD: Practical Low-Rank Gradient Compression (NeurIPS 2019), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.codecs.matrices import Products, matrices_of, orthonormal, random_factors, where_found
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.compressors.power_sgd_alternating import AlternatingPowerSgd
from dtrain.exchange import (
    NOT_KEPT,
    Bucket,
    Compressor,
    Context,
    Exchange,
    Exchanged,
    Op,
    Replicated,
    Request,
    State,
)


@dataclass(frozen=True)
class Factors(State):
    """Q of every matrix, float32; P is found anew in each step."""

    q: Replicated


@dataclass(frozen=True)
class PowerSgd:
    """With the sum over ranks of M Q, made orthonormal, as P, and then the sum of M^T P as Q: the mean is P Q^T.

    M is this rank's share of a parameter's mean gradient, as a matrix of (shape[0], the rest). It is compressed where
    that gains, r (rows + columns) < rows x columns; other parameters go uncompressed beside the P of the first round.
    Two all_reduces of float32: 4 (sum of r rows + elements of the others) bytes, then 4 (sum of r columns); one alone
    where there is nothing to compress. Warm start: the state is Q, from step to step.

    A rank of the sum that carries nothing (a gradient of zeros, or of lower rank) leaves its column of Q as it was, so
    that what comes later is still found. All ranks compute P and the mean from the same sums, so they agree bitwise
    where they run the same code on the same kind of processor. An infinity or NaN makes the mean of its parameter NaN.
    """

    power_sgd_rank: int = 4

    def __post_init__(self) -> None:
        if self.power_sgd_rank < 1:
            raise ValueError(f"power_sgd_rank={self.power_sgd_rank} must be at least 1")

    def init(self, bucket: Bucket) -> Factors:
        """Random Q, of shape (r, columns), drawn by the parameter's name: the same on every rank, in every bucket."""
        return Factors(random_factors(matrices_of(bucket.layout, self.power_sgd_rank).q_layout, bucket.value.device))

    def exchange(self, bucket: Bucket, state: Factors, context: Context) -> Exchange[Factors]:
        """Two rounds, or one."""
        before, wanted = state.q, context.wants_contribution
        matrices = matrices_of(bucket.layout, self.power_sgd_rank)
        dtype, value = bucket.value.dtype, bucket.value.to(torch.float32)

        first = context.scratch.empty("first", value.new_empty(()).expand(matrices.first_numel))
        for matrix, q, p in zip(matrices.of(value), matrices.qs(before.value), matrices.ps(first), strict=True):
            torch.mm(orthonormal(q), matrix.t(), out=p)
        _copy(matrices.others(value), matrices.others_in(first))
        first = yield Request(Op.ALL_REDUCE, first)

        ps = [orthonormal(p) for p in matrices.ps(first)]
        own = torch.empty_like(before.value)
        if not ps:
            return Exchanged(first.to(dtype), Products(matrices, ps, ps, value) if wanted else NOT_KEPT, state)
        for matrix, p, q in zip(matrices.of(value), ps, matrices.qs(own), strict=True):
            torch.mm(p, matrix, out=q)
        # the sum takes the place of `own`
        contribution = Products(matrices, ps, matrices.qs(-own), value) if wanted else NOT_KEPT
        total = yield Request(Op.ALL_REDUCE, own)

        mean = context.scratch.empty("mean", value)
        matrices.put_products(ps, matrices.qs(total), mean)
        _copy(matrices.others_in(first), matrices.others(mean))
        return Exchanged(mean.to(dtype), contribution, Factors(where_found(total, before)))


def power_sgd(power_sgd_rank: int = 4, all_reduces: int = 2) -> Compressor:
    """PowerSGD with error feedback. `all_reduces` in a step: 2, or 1, in which steps improve P and Q by turns."""
    if all_reduces not in (1, 2):
        raise ValueError(f"all_reduces={all_reduces} must be 1 or 2: it is how many a step takes")
    return ErrorFeedback(PowerSgd(power_sgd_rank) if all_reduces == 2 else AlternatingPowerSgd(power_sgd_rank))


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
