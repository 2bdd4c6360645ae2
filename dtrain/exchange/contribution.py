"""What one rank contributed to the mean of an exchange, as something that can subtract itself from a residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Contribution(Protocol):
    """What this rank contributed: over ranks, contributions add up to the mean.

    It may be encoded, and is decoded as it is subtracted. It lies in the bucket's value and in its scratch memory, so
    it is valid until either is written again: at the bucket's next exchange, or by subtracting from the value itself,
    which is allowed once.
    """

    def subtract_from(self, residual: Tensor) -> None:
        """residual -= the contribution; float32, of the shape of what this rank put into the exchange."""
        ...


class _NotKept:
    def subtract_from(self, residual: Tensor) -> None:
        raise AssertionError("nobody asked for this contribution: set Context.wants_contribution")


NOT_KEPT: Contribution = _NotKept()
"""In place of a contribution that nobody wanted."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A whole vector, of the residual's shape."""

    value: Tensor

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        residual.sub_(self.value)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Some elements of a vector: int64 indices and float32 values, both of shape (k,). No index may come twice,
    but with zeros."""

    indices: Tensor
    values: Tensor

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        residual.index_add_(0, self.indices, self.values, alpha=-1.0)
