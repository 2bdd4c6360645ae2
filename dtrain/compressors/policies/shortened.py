"""A bucket by way of a shorter vector: some elements have no slot in it, and some share one (`Masked`, `Shared`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic

import torch
from torch import Tensor

from dtrain.exchange import (
    NOT_KEPT,
    Bucket,
    Compressor,
    Context,
    Contribution,
    Dense,
    Exchange,
    Exchanged,
    Layout,
    Scratch,
    StateT,
)


@dataclass(frozen=True)
class Slots:
    """Which slot of the shorter vector each element of a bucket has.

    `layout` is the shorter vector's: (slots,) for a parameter whose elements are numbered, the parameter's own shape
    for the others. `of_element` holds, for each element of the bucket, its slot, and `layout.numel` for none (int32).
    """

    layout: Layout
    of_element: Tensor

    @cached_property
    def survivors(self) -> Tensor:
        """Where in the bucket the elements are that have a slot (int32)."""
        return torch.nonzero(self.of_element < self.layout.numel).view(-1).to(torch.int32)

    @cached_property
    def shares(self) -> Tensor:
        """1 / the number of elements that share each slot, with one more for those that have none (float64)."""
        sizes = torch.bincount(self.of_element, minlength=self.layout.numel + 1)
        return sizes.clamp_min(1).to(torch.float64).reciprocal()

    def spread(self, short: Tensor, out: Tensor) -> Tensor:
        """Each element of `out`, of the bucket's length, becomes what is in its slot; zero where it has none."""
        padded = torch.cat([short, short.new_zeros(1)])
        return torch.index_select(padded, 0, self.of_element, out=out)


def assign_slots(layout: Layout, numbers: Mapping[str, Tensor], device: torch.device) -> Slots:
    """The slots of a bucket of `layout`.

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
    return Slots(Layout(layout.names, tuple(shapes)), every.to(device))


def _count(mask: Tensor) -> Tensor:
    chosen = mask.to(torch.int32)
    return chosen.cumsum(0, dtype=torch.int32) * chosen - 1


@dataclass(frozen=True, slots=True)
class Spread:
    """A contribution to the shorter vector, spread over the bucket."""

    slots: Slots
    contribution: Contribution
    scratch: Scratch

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        short = residual.new_zeros(self.slots.layout.numel)
        self.contribution.subtract_from(short)
        residual.add_(self.slots.spread(short, self.scratch.empty("sent", residual)))


@dataclass(frozen=True)
class Shortened(Generic[StateT]):
    """A compressor of a shorter vector in place of the bucket; how that is made of the bucket is `_shorten`.

    What has no slot in it, or what its slot left out, is never sent; so error feedback belongs inside: around, it
    would collect it.

    Args:
        inner: how the shorter vector is exchanged.
        numbers: as `assign_slots` takes them.
    """

    inner: Compressor[StateT]
    numbers: Mapping[str, Tensor]
    _known: dict[tuple[Layout, torch.device], Slots] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def init(self, bucket: Bucket) -> StateT:
        """The state of `inner`."""
        slots = self._slots(bucket)
        return self.inner.init(Bucket(bucket.value.new_empty(slots.layout.numel), slots.layout))

    def exchange(self, bucket: Bucket, state: StateT, context: Context) -> Exchange[StateT]:
        """The rounds of `inner`, none where nothing is left; its mean and contribution are spread over the bucket."""
        slots, wanted = self._slots(bucket), context.wants_contribution
        mean = context.scratch.empty("spread", bucket.value)
        if slots.layout.numel == 0:
            return Exchanged(mean.zero_(), Dense(mean.new_zeros(())) if wanted else NOT_KEPT, state)
        short = Bucket(self._shorten(bucket.value, slots), slots.layout)
        own = replace(context, scratch=context.scratch.inner("short"))
        out = yield from self.inner.exchange(short, state, own)
        contribution = Spread(slots, out.contribution, context.scratch) if wanted else NOT_KEPT
        return Exchanged(slots.spread(out.mean, mean), contribution, out.state)

    def _shorten(self, value: Tensor, slots: Slots) -> Tensor:
        raise NotImplementedError

    def _slots(self, bucket: Bucket) -> Slots:
        key = (bucket.layout, bucket.value.device)
        if key not in self._known:
            self._known[key] = assign_slots(bucket.layout, self.numbers, bucket.value.device)
        return self._known[key]
