"""What a compressor keeps from step to step: named flat vectors that can be taken apart by parameter name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


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
