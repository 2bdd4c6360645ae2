"""What a compressor keeps from step to step: named flat vectors that can be taken apart by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from typing_extensions import TypeVar


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


@dataclass(frozen=True)
class State:
    """What a compressor keeps from step to step for one bucket. This one: nothing.

    A compressor that keeps something has a frozen dataclass of its own below this one, whose fields are `Bucket`s or
    states. Each vector says which part of it belongs to which parameter, so a state can be taken apart by parameter
    name and put together again under another bucketing (`take_apart`, `put_together`), and by another number of workers
    (`share_out`). Names of fields, joined by dots, are the paths under which checkpoints keep them.
    """


StateT = TypeVar("StateT", bound=State, default=Any)
"""The state of a compressor. Left out, as in a registry of compressors, it is any."""

Parts: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""A state by parameter name: {parameter: {path in the state: its part}}."""

_OTHER_OPTIONS = "saved with another compressor or other options"


def take_apart(state: State) -> dict[str, dict[str, Tensor]]:
    """A state by parameter name, as views."""
    parts: dict[str, dict[str, Tensor]] = {}
    for path, bucket in _vectors(state):
        for name, piece in bucket.layout.pieces(bucket.value):
            parts.setdefault(name, {})[path] = piece
    return parts


def put_together(template: StateT, parts: Parts) -> StateT:
    """A state with the layout of `template` (a fresh `init`, which is filled) and the values of `parts`.

    A parameter of which nothing was saved stays as `init` made it, and parameters that `template` does not have count
    as those of other buckets. Raises ValueError for a parameter of which other parts were saved than `template` has, or
    of other shapes. To refuse what was not saved at all as well: `check_parts`.
    """
    for name, pieces in take_apart(template).items():
        saved = parts.get(name)
        if saved:
            _check(name, pieces, saved)
            for path, piece in pieces.items():
                piece.copy_(saved[path])
    return template


def check_parts(templates: Iterable[State], parts: Parts) -> None:
    """Raise ValueError unless `parts` are, in paths and shapes, exactly those of `templates`, one for each bucket.

    The message names the first parameter and path that is too many, missing or of another shape. Parts do not depend on
    the bucketing, so one template over all parameters will do; on the meta device it takes no memory.
    """
    needed = {name: pieces for template in templates for name, pieces in take_apart(template).items()}
    for name in (*needed, *(name for name in parts if name not in needed)):
        _check(name, needed.get(name, {}), parts.get(name, {}))


def _check(name: str, needed: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for path, piece in needed.items():
        if path not in saved:
            raise ValueError(f"no {path!r} is saved of parameter {name!r}, and this run needs it: {_OTHER_OPTIONS}")
        if saved[path].shape != piece.shape:
            raise ValueError(
                f"saved state {path!r} of parameter {name!r} has shape {tuple(saved[path].shape)}, this run needs "
                f"{tuple(piece.shape)}: {_OTHER_OPTIONS}"
            )
    for path in saved:
        if path not in needed:
            raise ValueError(f"saved state {path!r} of parameter {name!r} has no place in this run: {_OTHER_OPTIONS}")


def share_out(template: State, saved: Sequence[Parts], rank: int, world_size: int) -> Parts:
    """What rank `rank` of `world_size` takes up of a state that `len(saved)` ranks saved, under the parameters' names.

    As many ranks as before: each its own. Otherwise what is the same on every rank stays so, and of each rank's own
    vectors the sum over ranks is kept: new rank r takes the sum of old ranks r, r + world_size, ...; a rank beyond the
    old ones starts with what `template` has. A part that `template` does not have is passed on, for `put_together` to
    refuse.
    """
    if len(saved) == world_size:
        return saved[rank]
    shared = {path for path, bucket in _vectors(template) if isinstance(bucket, Replicated)}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, fresh in take_apart(template).items():
        for path in dict.fromkeys(path for source in saved for path in source.get(name, {})):
            sources = saved[:1] if path in shared or path not in fresh else saved[rank::world_size]
            found = [source[name][path] for source in sources if path in source.get(name, {})]
            parts.setdefault(name, {})[path] = torch.stack(found).sum(0) if found else fresh[path]
    return parts


def has_vectors(state: State) -> bool:
    """Whether it keeps anything at all."""
    return any(True for _ in _vectors(state))


def _vectors(state: State, path: str = "") -> Iterator[tuple[str, Bucket]]:
    """The vectors of a state and of those inside it, with their paths."""
    for field in fields(state):
        value: Bucket | State = getattr(state, field.name)
        if isinstance(value, Bucket):
            yield path + field.name, value
        else:
            yield from _vectors(value, f"{path}{field.name}.")
