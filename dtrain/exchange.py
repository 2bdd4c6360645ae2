"""The words everything else is written in: what a compressor may ask of the network, and what it answers.

A gradient compressor asks for collectives and never performs one. It is a generator that yields requests and is sent
their answers, so that one implementation serves every backend and bytes are counted in one place.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor


class Op(StrEnum):
    """A collective operation. A compressor may request the first three; the meter knows them all."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"
    REDUCE = "reduce"
    REDUCE_SCATTER = "reduce_scatter"
    GATHER = "gather"
    SCATTER = "scatter"
    SEND = "send"
    RECV = "recv"
    BARRIER = "barrier"


@dataclass(frozen=True, slots=True)
class Request:
    """One collective that a compressor, or the trainer, asks for.

    The answer depends on `op`: `all_reduce` gives the SUM over ranks, in the payload's shape; `all_gather` gives
    (world_size, *payload.shape), rank k's payload in row k; `all_to_all` takes a payload of shape (world_size, *part),
    row k for rank k, and gives the same shape, row k from rank k; `broadcast` gives rank 0's payload.
    The payload must be contiguous; the backend may overwrite it. An answer belongs to whoever asked.
    """

    op: Op
    payload: Tensor

    @property
    def payload_bytes(self) -> int:
        """Bytes that this rank hands over."""
        return self.payload.numel() * self.payload.element_size()


@dataclass(frozen=True)
class Layout:
    """Which parameters lie in a flat vector, one after the other, and in which shapes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def numel(self) -> int:
        """Elements in all."""
        return sum(self.sizes)

    def pieces(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's name and its part of `flat`, of shape (numel,), as a view in the parameter's own shape."""
        for name, shape, part in zip(self.names, self.shapes, flat.split(self.sizes), strict=True):
            yield name, part.view(shape)

    def keep(self, chosen: Sequence[bool]) -> Layout:
        """The layout of the chosen parameters alone, in the same order."""
        return Layout(
            tuple(name for name, yes in zip(self.names, chosen, strict=True) if yes),
            tuple(shape for shape, yes in zip(self.shapes, chosen, strict=True) if yes),
        )


class Bucket(NamedTuple):
    """A flat vector, of shape (layout.numel,), with the parameters that lie in it."""

    value: Tensor
    layout: Layout


class Replicated(Bucket):
    """A vector of a compressor's state that is the same on every rank. Others are each rank's own."""


State: TypeAlias = Mapping[str, "Bucket | State"]
"""What a compressor keeps from step to step for one bucket: named flat vectors, each with its own layout.

Each vector says which part of it belongs to which parameter, so a state can be taken apart by parameter name and put
together again under another bucketing (`take_apart`, `put_together`), and by another number of workers (`share_out`).
"""

Parts: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""A state by parameter name: {parameter: {path in the state: its part}}."""


class Scratch:
    """Buffers that outlive a step, so that a codec does not pay for fresh memory each time it runs.

    A buffer is valid until the same name is asked for again. One `Scratch` belongs to one bucket.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def empty(self, name: str, like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor of the shape and device of `like`, and of its dtype unless another is given."""
        dtype = dtype or like.dtype
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != dtype or buffer.device != like.device:
            buffer = torch.empty_like(like, dtype=dtype)
            self._buffers[name] = buffer
        return buffer

    def alternate(self, name: str, current: Tensor) -> Tensor:
        """Of two buffers like `current`, one that `current` does not lie in.

        For a state that is written anew in each step: the old one stays as it is until the step is known to count.
        """
        first = self.empty(f"{name} 0", current)
        return first if first.data_ptr() != current.data_ptr() else self.empty(f"{name} 1", current)

    def inner(self, name: str) -> Scratch:
        """Buffers for a compressor inside this one: the same store under a prefix of its own."""
        return _Prefixed(self, name)


class _Prefixed(Scratch):
    def __init__(self, outer: Scratch, prefix: str) -> None:
        self._outer, self._prefix = outer, prefix

    def empty(self, name: str, like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        return self._outer.empty(f"{self._prefix}/{name}", like, dtype=dtype)


@dataclass(frozen=True)
class Context:
    """Where and when an exchange runs.

    `remainder`, where somebody asks for what was not sent: a float32 vector of the bucket's length, from which the
    exchange subtracts what this rank contributed. Over ranks these contributions add up to the mean. It may be the
    bucket's own value: subtract once that is needed no more.
    """

    rank: int
    world_size: int
    step: int
    seed: int = 0
    remainder: Tensor | None = field(default=None, compare=False)
    scratch: Scratch = field(default_factory=Scratch, compare=False)


class Exchanged(NamedTuple):
    """What an exchange returns.

    `mean`: the mean over ranks, which every rank applies, bitwise the same on all; it lies in memory that the bucket's
    next exchange overwrites. `state`: kept for the next step once this step is known to count.
    """

    mean: Tensor
    state: State


Exchange: TypeAlias = Generator[Request | tuple[Request, ...], Any, Exchanged]
"""Yields a request and is sent its answer; or yields a tuple, whose requests go out together, and is sent a tuple."""


class Compressor(Protocol):
    """How a bucket meets the network."""

    def init(self, bucket: Bucket) -> State:
        """The state before the first step. Only the layout, dtype and device of `bucket` count."""
        ...

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """Exchange this rank's share of the mean: its gradients divided by the number of workers.

        `bucket.value` is given away: the exchange may overwrite it, and the result may lie in it. `state` is not
        changed.
        """
        ...


def together(*exchanges: Exchange) -> Generator[tuple[Request, ...], tuple[Tensor, ...], tuple[Exchanged, ...]]:
    """Run several exchanges side by side: round by round, the requests of all of them go out in one tuple."""
    results: dict[int, Exchanged] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(exchanges)))
    while answers:
        asked: dict[int, Request | tuple[Request, ...]] = {}
        for i, answer in answers.items():
            try:
                asked[i] = exchanges[i].send(answer)
            except StopIteration as done:
                results[i] = done.value
        if not asked:
            break
        received = iter((yield tuple(r for req in asked.values() for r in (req if isinstance(req, tuple) else (req,)))))
        answers = {
            i: tuple(next(received) for _ in req) if isinstance(req, tuple) else next(received)
            for i, req in asked.items()
        }
    return tuple(results[i] for i in range(len(exchanges)))


def take_apart(state: State) -> dict[str, dict[str, Tensor]]:
    """A state by parameter name, as views."""
    parts: dict[str, dict[str, Tensor]] = {}
    for path, bucket in _leaves(state):
        for name, piece in bucket.layout.pieces(bucket.value):
            parts.setdefault(name, {})[path] = piece
    return parts


def put_together(template: State, parts: Parts) -> State:
    """A state with the layout of `template` (a fresh `init`) and the values of `parts`, where they have them.

    Raises ValueError for a part whose shape is not the template's.
    """
    for path, bucket in _leaves(template):
        for name, piece in bucket.layout.pieces(bucket.value):
            saved = parts.get(name, {}).get(path)
            if saved is None:
                continue
            if saved.shape != piece.shape:
                raise ValueError(
                    f"saved state {path!r} of parameter {name!r} has shape {tuple(saved.shape)}, this run needs "
                    f"{tuple(piece.shape)}: resume with the model and compressor it was saved with"
                )
            piece.copy_(saved)
    return template


def share_out(template: State, saved: Sequence[Parts], rank: int, world_size: int) -> Parts:
    """What rank `rank` of `world_size` takes up of a state that `len(saved)` ranks saved, under the parameters' names.

    As many ranks as before: each its own. Otherwise what is the same on every rank stays so, and of each rank's own
    vectors the sum over ranks is kept: new rank r takes the sum of old ranks r, r + world_size, ...; a rank beyond the
    old ones starts as a fresh one does.
    """
    if len(saved) == world_size:
        return saved[rank]
    parts: dict[str, dict[str, Tensor]] = {}
    for path, bucket in _leaves(template):
        sources = saved[:1] if isinstance(bucket, Replicated) else saved[rank::world_size]
        for name in bucket.layout.names:
            found = [source[name][path] for source in sources if path in source.get(name, {})]
            if found:
                parts.setdefault(name, {})[path] = torch.stack(found).sum(0)
    return parts


def _leaves(state: State, path: str = "") -> Iterator[tuple[str, Bucket]]:
    for key, value in state.items():
        if isinstance(value, Bucket):
            yield path + key, value
        else:
            yield from _leaves(value, f"{path}{key}.")
