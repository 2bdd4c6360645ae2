"""Two ways for the largest elements of every rank to meet; both need no exchange of sizes.

`split` is made of two halves, as `halves` are those of dense codecs, and either can be used alone. Shards are those of
`halves.shards`, and a contribution to a half is, too, to what was put in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from dtrain.arguments import check_name
from dtrain.compressors.codecs.selection import largest_among, num_kept
from dtrain.compressors.codecs.sparse import SparseFormat
from dtrain.compressors.halves import shards
from dtrain.exchange import Context, Contribution, Op, Request, Sparse


class Sent(NamedTuple):
    """What came of a sparse exchange: the mean, what this rank contributed, and the indices of what it sent."""

    mean: Tensor
    contribution: Contribution
    indices: Tensor


Route: TypeAlias = Callable[[Tensor, float, int, Context], Generator[Request, Tensor, Sent]]
"""(float32 vector, density, value_bits, context) -> the requests of a sparse exchange, and what came of it."""


def all_gather(value: Tensor, density: float, value_bits: int, context: Context) -> Generator[Request, Tensor, Sent]:
    """Every rank sends its `num_kept(density, N)` largest to all: `SparseFormat(k, N, value_bits).num_bytes` each.

    On the wire (n - 1) times that, so the saving against a dense all_reduce falls with n.
    """
    form = SparseFormat(num_kept(density, value.numel()), value.numel(), value_bits)
    everyone = yield Request(Op.ALL_GATHER, form.pack_largest(value))
    indices, values = form.unpack(everyone)
    mean = context.scratch.empty("mean", value).zero_()
    for index, part in zip(indices, values, strict=True):
        mean.index_add_(0, index, part)  # one rank at a time: a fixed order of additions, also on CUDA
    own = Sparse(indices[context.rank], values[context.rank])
    return Sent(mean, own, own.indices)


class SparseReduced(NamedTuple):
    """What a sparse reduce-scatter gives a rank: of its own shard the sum over ranks, and where that is not zero.

    `total` has ceil(N / n) elements on every rank, zeros beyond the end of a shorter shard; `support` holds the
    indices in it that ranks sent (int64), one for each of their messages that has it.
    """

    total: Tensor
    support: Tensor
    contribution: Sparse


def sparse_reduce_scatter(
    value: Tensor, density: float, value_bits: int, context: Context
) -> Generator[Request, Tensor, SparseReduced]:
    """Sum the largest elements that ranks have of each shard: each rank gets the sum of its own.

    Each rank sends the k' = `num_kept(density, N')` largest of each shard, N' = ceil(N / n), to its owner: one
    all_to_all of n messages of `SparseFormat(k', N', value_bits).num_bytes`. Contributions over ranks add up to
    exactly what arrived but for the order of the sum.
    """
    n, numel = context.world_size, value.numel()
    form = _form(numel, density, value_bits, n)
    part = form.numel
    messages = torch.stack([form.pack_largest(value[i * part : (i + 1) * part]) for i in range(n)])
    received = yield Request(Op.ALL_TO_ALL, messages)

    total = context.scratch.empty("share", value[:part]).zero_()
    received_indices, parts = form.unpack(received)
    for index, values in zip(received_indices, parts, strict=True):
        total.index_add_(0, index, values)

    indices, values = form.unpack(messages)
    # fillers of shorter shards come last in their messages
    real = [min(form.k, shard.stop - shard.start) for shard in shards(numel, n)]
    sent = torch.cat([indices[i, :count] + i * part for i, count in enumerate(real)])
    sent_values = torch.cat([values[i, :count] for i, count in enumerate(real)])
    return SparseReduced(total, received_indices.view(-1), Sparse(sent, sent_values))


class SparseGathered(NamedTuple):
    """What a sparse all-gather gives every rank: the whole vector. The contribution is to the rank's own shard."""

    value: Tensor
    contribution: Sparse


def sparse_all_gather(
    shard: Tensor, numel: int, density: float, value_bits: int, context: Context, support: Tensor | None = None
) -> Generator[Request, Tensor, SparseGathered]:
    """Bring the largest elements of every rank's `shard`, float32, together in a vector of `numel` elements.

    One round: all_gather of S = `SparseFormat(k', N', value_bits).num_bytes`, of which (n - 1) S go on the wire. A
    shard may be continued with zeros up to N'. `support`: indices, in any order, outside of which it is zero.
    """
    n = context.world_size
    form = _form(numel, density, value_bits, n)
    if support is None:
        message = form.pack_largest(shard)
    else:  # at least the k' of one rank
        chosen = largest_among(shard, support, form.k)
        message = form.pack(chosen, shard[chosen])
    indices, values = form.unpack((yield Request(Op.ALL_GATHER, message)))
    offsets = torch.arange(n, device=shard.device)[:, None] * form.numel
    whole = context.scratch.empty("mean", shard.new_empty(()).expand(numel)).zero_()
    # fillers beyond the end are zeros, and fall on the last element
    whole.index_add_(0, (indices + offsets).clamp_(max=numel - 1).view(-1), values.view(-1))
    own = Sparse(indices[context.rank], values[context.rank])
    if shard.numel() < form.numel:
        real = min(form.k, shard.numel())
        own = Sparse(own.indices[:real], own.values[:real])
    return SparseGathered(whole, own)


@dataclass(frozen=True, slots=True)
class SplitContribution:
    """What a rank contributed to both halves: what it sent, less what it left out of its own shard's sum."""

    sent: Sparse
    start: int
    left_out: Tensor

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        self.sent.subtract_from(residual)
        residual[self.start : self.start + self.left_out.numel()].add_(self.left_out)


def split(value: Tensor, density: float, value_bits: int, context: Context) -> Generator[Request, Tensor, Sent]:
    """The two halves, one after the other: the largest of each shard's sum come to all.

    On the wire 2 (n - 1) S with S falling as 1/n: the saving does not depend on n. What the owner leaves out, and its
    rounding, are part of its own contribution, so that contributions add up to what was sent.
    """
    numel = value.numel()
    total, support, sent = yield from sparse_reduce_scatter(value, density, value_bits, context)
    mean, gathered = yield from sparse_all_gather(total, numel, density, value_bits, context, support)
    gathered.subtract_from(total)
    start = min(context.rank * total.numel(), numel)
    return Sent(mean, SplitContribution(sent, start, total[: numel - start]), sent.indices)


ROUTES: Mapping[str, Route] = MappingProxyType({"all_gather": all_gather, "split": split})


def route(name: str) -> Route:
    """The route of that name. Raises ValueError for one that does not exist."""
    check_name("exchange=", name, ROUTES)
    return ROUTES[name]


def _form(numel: int, density: float, value_bits: int, world_size: int) -> SparseFormat:
    """Of the message for one shard."""
    part = -(-numel // world_size)
    return SparseFormat(num_kept(density, part), part, value_bits)
