"""Random-k: a random part of each bucket, the same on every rank, so that no index is sent.

Stich, Cordonnier and Jaggi, Sparsified SGD with Memory (NeurIPS 2018), definition 2.1 (rand_k). It needs error
feedback, and is registered with it; so values are not scaled up by N / k.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.codecs.selection import num_kept
from dtrain.compressors.codecs.workspace import without_waiting
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.compressors.top_k import check_density
from dtrain.exchange import (
    NOT_KEPT,
    Bucket,
    Compressor,
    Context,
    Exchange,
    Exchanged,
    Layout,
    Op,
    Request,
    Sparse,
    State,
)


@dataclass(frozen=True)
class RandomK:
    """The mean of k = max(1, round(density x N)) of the bucket's N elements: an all_reduce of 4 k bytes of float32.

    The bucket is cut into k equal strata and one element drawn from each, so that all have the same chance (but for
    N mod k) and none is drawn twice. Draws depend on (context.seed, context.step, the bucket's layout) alone. An
    infinity or NaN that was not drawn makes the first value NaN: it must not wait unseen in a residual.
    """

    density: float = 0.01

    def __post_init__(self) -> None:
        check_density(self.density)

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange[State]:
        """One round."""
        value = bucket.value
        indices = without_waiting(_draw(self.density, bucket.layout, context), value.device)
        chosen = value[indices]
        finite = value.amax() * 0 + value.amin() * 0  # 0, or NaN where something is not finite
        contribution = NOT_KEPT
        if context.wants_contribution:  # a copy, since the sum takes the place of what was sent
            contribution = Sparse(indices, chosen.to(torch.float32, copy=True))
        chosen[0] += finite
        answer = yield Request(Op.ALL_REDUCE, chosen)
        mean = context.scratch.empty("mean", value).zero_().index_copy_(0, indices, answer)
        return Exchanged(mean, contribution, state)


def random_k(density: float = 0.01) -> Compressor:
    """Random-k with error feedback."""
    return ErrorFeedback(RandomK(density))


def _draw(density: float, layout: Layout, context: Context) -> Tensor:
    """Ascending indices, one from each stratum; from the CPU's generator, so that all devices draw the same."""
    words = repr((context.seed, context.step, layout.names, layout.shapes)).encode()
    seed = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1
    k = num_kept(density, layout.numel)
    bounds = torch.arange(k + 1) * layout.numel // k
    random = torch.rand(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return bounds[:-1] + (random * bounds.diff()).long()
