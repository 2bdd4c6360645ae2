"""Compress only some parameters; the others go apart, in one message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic

import torch
from torch import Tensor

from dtrain.compressors.none import NoCompression
from dtrain.exchange import (
    NOT_KEPT,
    Bucket,
    Compressor,
    Context,
    Contribution,
    Exchange,
    Exchanged,
    Layout,
    State,
    StateT,
    together,
)

Predicate = Callable[[str, tuple[int, ...]], bool]
"""(parameter name, shape) -> whether it is compressed."""


def at_least(numel: int) -> Predicate:
    """Parameters of at least so many elements."""

    def large(name: str, shape: tuple[int, ...]) -> bool:
        return torch.Size(shape).numel() >= numel

    return large


@dataclass(frozen=True)
class Parted(State, Generic[StateT]):
    """The states of both methods, each over its own parameters."""

    chosen: StateT
    others: State


@dataclass(frozen=True)
class Parting:
    """Which parameters of `layout` are chosen, in their order."""

    layout: Layout
    mask: tuple[bool, ...]

    @cached_property
    def chosen(self) -> Layout:
        """The layout of those."""
        return self.layout.keep(self.mask)

    @cached_property
    def others(self) -> Layout:
        """The layout of the rest."""
        return self.layout.keep([not yes for yes in self.mask])

    def split(self, bucket: Bucket) -> tuple[Bucket, Bucket]:
        """The chosen parameters and the others, as copies."""
        parts = bucket.value.split(self.layout.sizes)
        empty = bucket.value.new_empty(0)
        chosen = [part for part, yes in zip(parts, self.mask, strict=True) if yes]
        others = [part for part, yes in zip(parts, self.mask, strict=True) if not yes]
        return (
            Bucket(torch.cat(chosen) if chosen else empty, self.chosen),
            Bucket(torch.cat(others) if others else empty, self.others),
        )

    def join(self, chosen: Tensor, others: Tensor) -> Tensor:
        """The reverse."""
        chosen_parts, other_parts = iter(chosen.split(self.chosen.sizes)), iter(others.split(self.others.sizes))
        return torch.cat([next(chosen_parts if yes else other_parts) for yes in self.mask])


@dataclass(frozen=True, slots=True)
class Joined:
    """The contributions to both parts."""

    parting: Parting
    chosen: Contribution
    others: Contribution

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        parting = self.parting
        chosen, others = residual.new_zeros(parting.chosen.numel), residual.new_zeros(parting.others.numel)
        self.chosen.subtract_from(chosen)
        self.others.subtract_from(others)
        residual.add_(parting.join(chosen, others))


@dataclass(frozen=True)
class Only(Generic[StateT]):
    """`inner` for the parameters that `predicate` chooses, `others` for the rest, both at once."""

    inner: Compressor[StateT]
    predicate: Predicate
    others: Compressor = field(default_factory=NoCompression)

    def init(self, bucket: Bucket) -> Parted[StateT]:
        """The states of both, each over its own parameters."""
        chosen, others = self._parting(bucket.layout).split(bucket)
        return Parted(self.inner.init(chosen), self.others.init(others))

    def exchange(self, bucket: Bucket, state: Parted[StateT], context: Context) -> Exchange[Parted[StateT]]:
        """The rounds of both, side by side; a part without parameters asks for nothing."""
        parting = self._parting(bucket.layout)
        if parting.others.numel == 0:
            one = yield from self.inner.exchange(bucket, state.chosen, context)
            return Exchanged(one.mean, one.contribution, replace(state, chosen=one.state))
        if parting.chosen.numel == 0:
            two = yield from self.others.exchange(bucket, state.others, context)
            return Exchanged(two.mean, two.contribution, replace(state, others=two.state))
        chosen, others = parting.split(bucket)
        first = replace(context, scratch=context.scratch.inner("chosen"))
        second = replace(context, scratch=context.scratch.inner("others"))
        one, two = yield from together(
            self.inner.exchange(chosen, state.chosen, first), self.others.exchange(others, state.others, second)
        )
        contribution = Joined(parting, one.contribution, two.contribution) if context.wants_contribution else NOT_KEPT
        return Exchanged(parting.join(one.mean, two.mean), contribution, Parted(one.state, two.state))

    def _parting(self, layout: Layout) -> Parting:
        return Parting(layout, tuple(map(self.predicate, layout.names, layout.shapes)))
