"""Which parameters share a message: the same buckets on every backend, from the parameters' order and sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from dtrain.exchange import Layout

MIB = 1024 * 1024
FIRST_BUCKET_BYTES = 1 * MIB
BUCKET_BYTES = 25 * MIB


class NamedParameter(NamedTuple):
    """A parameter and the name that its model gives it."""

    name: str
    parameter: nn.Parameter


def trainable(model: nn.Module) -> list[NamedParameter]:
    """The parameters that get a gradient, in the model's order, each once under its first name.

    Raises ValueError for a complex one, which only DDP makes real.
    """
    parameters = [NamedParameter(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in parameters:
        if parameter.is_complex():
            raise ValueError(f"{name} is complex: such are exchanged with DistributedDataParallel and dtrain.compress")
    return parameters


def held(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it; of one that is sharded (a DTensor), its shard, as a view."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def assign(
    parameters: Sequence[NamedParameter], *, first_bytes: int = FIRST_BUCKET_BYTES, cap_bytes: int = BUCKET_BYTES
) -> list[list[NamedParameter]]:
    """Buckets in reverse parameter order, which is about the order in which backward fills them.

    A bucket closes once it holds at least `first_bytes` (the first one, small so that the network starts early) or
    `cap_bytes`; these are DDP's rule and default sizes, so that the layouts agree wherever backward runs in reverse
    parameter order. Parameters of different dtype or device never share a bucket.
    """
    buckets: list[list[NamedParameter]] = []
    open_buckets: dict[object, list[NamedParameter]] = {}
    for named in reversed(parameters):
        kind = (named.parameter.dtype, named.parameter.device)
        bucket = open_buckets.setdefault(kind, [])
        if not bucket:
            buckets.append(bucket)
        bucket.append(named)
        limit = first_bytes if bucket is buckets[0] else cap_bytes
        if sum(held(p).numel() * p.element_size() for _, p in bucket) >= limit:
            del open_buckets[kind]
    return buckets


def layout_of(parameters: Sequence[tuple[str, Tensor]]) -> Layout:
    """The layout of a bucket's flat vector, of what this rank holds.

    A complex parameter lies in it as its real view, as DDP has it.
    """
    return Layout(tuple(n for n, _ in parameters), tuple(_real_shape(p) for _, p in parameters))


def _real_shape(parameter: Tensor) -> tuple[int, ...]:
    shape = tuple(held(parameter).shape)
    return (*shape, 2) if parameter.is_complex() else shape
