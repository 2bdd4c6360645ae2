"""Two ways for the largest elements of every rank to meet; both need no exchange of sizes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from dtrain.compressors.codecs.selection import largest, num_kept
from dtrain.compressors.codecs.sparse import Contribution, Sent, SparseFormat
from dtrain.exchange import Context, Op, Request

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
    return Sent(mean, Contribution(indices[context.rank], values[context.rank], 0, None))


def split(value: Tensor, density: float, value_bits: int, context: Context) -> Generator[Request, Tensor, Sent]:
    """Rank k owns the k-th of n equal shares of the index space, of N' = ceil(N / n) elements (the last may be short).

    Each rank sends the k' = `num_kept(density, N')` largest of each share to its owner (all_to_all of n messages of
    S = `SparseFormat(k', N', value_bits).num_bytes`); the owner adds them up and sends as many of the sum to all
    (all_gather of S). On the wire 2 (n - 1) S with S falling as 1/n: the saving does not depend on n. What the owner
    leaves out, and its rounding, are part of its own contribution, so that contributions add up to what was sent.
    """
    n, numel = context.world_size, value.numel()
    share = -(-numel // n)
    form = SparseFormat(num_kept(density, share), share, value_bits)
    messages = torch.stack([form.pack_largest(value[i * share : (i + 1) * share]) for i in range(n)])
    indices, values = form.unpack(messages)  # before the message is handed over
    offsets = torch.arange(n, device=value.device)[:, None] * share

    received = yield Request(Op.ALL_TO_ALL, messages)
    total = context.scratch.empty("share", value[:share]).zero_()
    received_indices, parts = form.unpack(received)
    for index, part in zip(received_indices, parts, strict=True):
        total.index_add_(0, index, part)

    support = received_indices.unique()  # ascending, and at least the k' of one rank
    chosen = support[largest(total[support], form.k)]
    reduced = yield Request(Op.ALL_GATHER, form.pack(chosen, total[chosen]))
    sent_indices, sent = form.unpack(reduced)
    mean = context.scratch.empty("mean", value).zero_()
    # fillers beyond the end are zeros, and fall on the last element
    mean.index_add_(0, (sent_indices + offsets).clamp_(max=numel - 1).view(-1), sent.view(-1))

    start = min(context.rank * share, numel)
    left = total.index_add_(0, sent_indices[context.rank], sent[context.rank], alpha=-1.0)[: numel - start]
    mine = (indices + offsets).view(-1)
    real = mine < numel
    return Sent(mean, Contribution(mine[real], values.view(-1)[real], start, left.neg_()))


ROUTES: Mapping[str, Route] = MappingProxyType({"all_gather": all_gather, "split": split})


def route(name: str) -> Route:
    """The route of that name. Raises ValueError for one that does not exist."""
    if name not in ROUTES:
        raise ValueError(f"exchange={name!r} does not exist: choose one of {', '.join(ROUTES)}")
    return ROUTES[name]
