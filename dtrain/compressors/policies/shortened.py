"""A bucket by way of a shorter vector: some elements have no place in it, and some share one (`Masked`, `Shared`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dtrain.compressors.policies.only import context_for
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, Layout, State


@dataclass(frozen=True)
class Places:
    """Where the elements of a bucket are in the shorter vector.

    `layout` is the shorter vector's: (places,) for a parameter whose elements are numbered, the parameter's own shape
    for the others. `slots` holds, for each element of the bucket, its place there, and `layout.numel` for none (int32).
    """

    layout: Layout
    slots: Tensor

    @cached_property
    def survivors(self) -> Tensor:
        """Where in the bucket the elements are that have a place (int32)."""
        return torch.nonzero(self.slots < self.layout.numel).view(-1).to(torch.int32)

    @cached_property
    def shares(self) -> Tensor:
        """1 / the number of elements that share each place, with one more for those that have none (float64)."""
        sizes = torch.bincount(self.slots, minlength=self.layout.numel + 1)
        return sizes.clamp_min(1).to(torch.float64).reciprocal()

    def spread(self, short: Tensor, out: Tensor) -> Tensor:
        """Each element of `out`, of the bucket's length, becomes what is in its place; zero where it has none."""
        padded = torch.cat([short, short.new_zeros(1)])
        return torch.index_select(padded, 0, self.slots, out=out)


def number(layout: Layout, numbers: Mapping[str, Tensor], device: torch.device) -> Places:
    """The places in a bucket of `layout`.

    `numbers` gives the elements of a parameter numbers from 0, or -1 for none. Or a mask, bool, whose True are numbered
    one after the other. Raises ValueError where the shape of a parameter is not that of its numbers.
    """
    shapes, slots, none = [], [], []
    start = 0
    for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True):
        own = numbers.get(name)
        if own is None:
            shapes.append(shape)
            slots.append(torch.arange(start, start + size, dtype=torch.int32))
            none.append(torch.zeros(size, dtype=torch.bool))
            start += size
            continue
        if tuple(own.shape) != shape:
            raise ValueError(f"parameter {name!r} has shape {shape}, what is known of its weights {tuple(own.shape)}")
        flat = own.reshape(-1).cpu()
        flat = _count(flat) if flat.dtype == torch.bool else flat.to(torch.int32)
        count = int(flat.max()) + 1 if size else 0
        shapes.append((count,))
        slots.append(flat + start)
        none.append(flat < 0)
        start += count
    every = torch.cat(slots).masked_fill_(torch.cat(none), start)
    return Places(Layout(layout.names, tuple(shapes)), every.to(device))


def _count(mask: Tensor) -> Tensor:
    chosen = mask.to(torch.int32)
    return chosen.cumsum(0, dtype=torch.int32) * chosen - 1


@dataclass(frozen=True)
class Shortened:
    """A compressor of a shorter vector in place of the bucket; how that is made of the bucket is `_shorten`.

    What has no place in it, or what its place left out, is never sent; so error feedback belongs inside: around, it
    would collect it.

    Args:
        inner: how the shorter vector is exchanged.
        numbers: as `number` takes them.
    """

    inner: Compressor
    numbers: Mapping[str, Tensor]
    _known: dict[tuple[Layout, torch.device], Places] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def init(self, bucket: Bucket) -> State:
        """The state of `inner`."""
        places = self._places(bucket)
        return self.inner.init(Bucket(bucket.value.new_empty(places.layout.numel), places.layout))

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of `inner`, none where nothing is left; its mean and what it sent are spread over the bucket."""
        places = self._places(bucket)
        mean = context.scratch.empty("spread", bucket.value)
        if places.layout.numel == 0:
            return Exchanged(mean.zero_(), state)
        short = Bucket(self._shorten(bucket.value, places), places.layout)
        own = context_for(short, context, "short")
        out = yield from self.inner.exchange(short, state, own)
        if context.remainder is not None:
            assert own.remainder is not None
            context.remainder.add_(places.spread(own.remainder, context.scratch.empty("sent", context.remainder)))
        return Exchanged(places.spread(out.mean, mean), out.state)

    def _shorten(self, value: Tensor, places: Places) -> Tensor:
        raise NotImplementedError

    def _places(self, bucket: Bucket) -> Places:
        key = (bucket.layout, bucket.value.device)
        if key not in self._known:
            self._known[key] = number(bucket.layout, self.numbers, bucket.value.device)
        return self._known[key]
