"""Packed models (.dtz) in a run directory: their sizes, and what was done to their weights, as the files show it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dtrain.files import read_file
from dtrain.pack import Container, from_bytes, unpack
from dtrain.pack.container import Node, Staged
from dtrain.pack.tensor import FLOATS
from dtrain.report import units


@dataclass(frozen=True)
class Packed:
    """One file. `shared_bits` of a place in the largest codebook of a weight tensor; None without codebooks."""

    path: Path
    num_bytes: int
    low_rank: bool
    shared_bits: int | None

    @cached_property
    def kept(self) -> float:
        """The fraction of weights that are not zero, in tensors with two dimensions or more. Unpacks the file."""
        container, _ = _open(self.path)
        try:
            tensors = unpack(container).tensors.values()
        except ValueError as error:
            raise _refusal(self.path, error) from None
        weights = [tensor for tensor in tensors if len(tensor.shape) > 1]
        values = [tensor.floats if tensor.dtype in FLOATS else tensor.words for tensor in weights]  # -0.0 is zero
        size = sum(one.size for one in values)
        return sum(int(np.count_nonzero(one)) for one in values) / size if size else 1.0

    @property
    def pruned(self) -> bool:
        """Whether more weights are zero than come to be so by themselves."""
        return self.kept < MOST_KEPT

    @property
    def how(self) -> str:
        """For people."""
        done = [f"{units.percent(self.kept)} of weights kept"]
        if self.shared_bits is not None:
            done.append(f"shared in {self.shared_bits} bits")
        return ", ".join(["low rank"] * self.low_rank + done)


MOST_KEPT = 0.9
"""Of the weights of what counts as pruned."""


def read_packed(directory: Path) -> tuple[Packed, ...]:
    """Every .dtz file of a run directory, by name. Raises ValueError for one that is damaged, naming the cure."""
    return tuple(_read(path) for path in sorted(directory.glob("*.dtz")))


def _open(path: Path) -> tuple[Container, int]:
    try:
        data = read_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): mend its permissions, or move it") from error
    try:
        return from_bytes(data), len(data)
    except ValueError as error:
        raise _refusal(path, error) from None


def _refusal(path: Path, error: ValueError) -> ValueError:
    return ValueError(f"{path}: {error}; pack the model again, or move the file out of the run")


def _read(path: Path) -> Packed:
    container, num_bytes = _open(path)
    sizes = [size for node in container.tensors.values() if len(node.shape) > 1 for size in _codebooks(node)]
    bits = max(1, (max(sizes) - 1).bit_length()) if sizes else None
    return Packed(path, num_bytes, "low_rank" in set(_stages(container)), bits)


def _stages(container: Container) -> Iterator[str]:
    waiting: Sequence[Node] = list(container.tensors.values())
    while waiting:
        staged = [node for node in waiting if isinstance(node, Staged)]
        yield from (node.stage for node in staged)
        waiting = [part for node in staged for part in node.parts.values()]


def _codebooks(node: Node) -> Iterator[int]:
    """Their sizes."""
    if isinstance(node, Staged):
        for name, part in node.parts.items():
            if name == "codebook":
                yield math.prod(part.shape)
            else:
                yield from _codebooks(part)
