"""Compress only some parameters; the others go apart, in one message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dtrain.compressors.none import NoCompression
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, Layout, State, together

Predicate = Callable[[str, tuple[int, ...]], bool]
"""(parameter name, shape) -> whether it is compressed."""


def at_least(numel: int) -> Predicate:
    """Parameters of at least so many elements."""

    def large(name: str, shape: tuple[int, ...]) -> bool:
        return torch.Size(shape).numel() >= numel

    return large


@dataclass(frozen=True)
class Only:
    """`inner` for the parameters that `predicate` chooses, `others` for the rest, both at once."""

    inner: Compressor
    predicate: Predicate
    others: Compressor = field(default_factory=NoCompression)

    def init(self, bucket: Bucket) -> State:
        """The states of both, each over its own parameters."""
        chosen, rest = self._split(bucket)
        return {"chosen": self.inner.init(chosen), "others": self.others.init(rest)}

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of both, side by side; a part without parameters asks for nothing."""
        chosen, rest = self._split(bucket)
        if rest.layout.numel == 0 or chosen.layout.numel == 0:
            key, active = ("chosen", self.inner) if rest.layout.numel == 0 else ("others", self.others)
            out = yield from active.exchange(bucket, _inner(state, key), context)
            return Exchanged(out.mean, {**state, key: out.state})
        first, second = context_for(chosen, context, "chosen"), context_for(rest, context, "others")
        one, two = yield from together(
            self.inner.exchange(chosen, _inner(state, "chosen"), first),
            self.others.exchange(rest, _inner(state, "others"), second),
        )
        if context.remainder is not None:
            assert first.remainder is not None and second.remainder is not None
            context.remainder.add_(self._join(bucket.layout, first.remainder, second.remainder))
        mean = self._join(bucket.layout, one.mean, two.mean)
        return Exchanged(mean, {"chosen": one.state, "others": two.state})

    def _mask(self, layout: Layout) -> list[bool]:
        return [self.predicate(name, shape) for name, shape in zip(layout.names, layout.shapes, strict=True)]

    def _split(self, bucket: Bucket) -> tuple[Bucket, Bucket]:
        mask = self._mask(bucket.layout)
        parts = bucket.value.split(bucket.layout.sizes)
        empty = bucket.value.new_empty(0)
        chosen = [part for part, yes in zip(parts, mask, strict=True) if yes]
        rest = [part for part, yes in zip(parts, mask, strict=True) if not yes]
        return (
            Bucket(torch.cat(chosen) if chosen else empty, bucket.layout.keep(mask)),
            Bucket(torch.cat(rest) if rest else empty, bucket.layout.keep([not yes for yes in mask])),
        )

    def _join(self, layout: Layout, chosen: Tensor, rest: Tensor) -> Tensor:
        mask = self._mask(layout)
        chosen_parts = iter(chosen.split(layout.keep(mask).sizes))
        rest_parts = iter(rest.split(layout.keep([not yes for yes in mask]).sizes))
        return torch.cat([next(chosen_parts if yes else rest_parts) for yes in mask])


def context_for(part: Bucket, context: Context, name: str) -> Context:
    """With buffers of its own and, where somebody asks for the remainder, one of its own that starts from zero."""
    remainder = None if context.remainder is None else torch.zeros_like(part.value, dtype=torch.float32)
    return replace(context, remainder=remainder, scratch=context.scratch.inner(name))


def _inner(state: State, key: str) -> State:
    inner = state[key]
    assert not isinstance(inner, Bucket)
    return inner
