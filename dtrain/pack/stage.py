"""A stage of packing: one tensor becomes others that take fewer bytes, and those become a tensor again.

Stages compose: each part of what a stage made goes through the stages after it, and what is left in the end is entropy
coded (`entropy.py`). A stage that loses something says so by what its `decode` returns: that is the packed model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from dtrain.pack.tensor import Tensor

Parameter = int | float | str
Parameters = Mapping[str, Parameter]


@dataclass(frozen=True)
class Split:
    """What a stage made of a tensor: parts by name, and what JSON can hold."""

    parts: Mapping[str, Tensor]
    parameters: Parameters = field(default_factory=dict)


class Stage(Protocol):
    """A frozen dataclass of its settings."""

    name: ClassVar[str]
    part_names: ClassVar[tuple[str, ...]]

    def encode(self, name: str, tensor: Tensor) -> Split | None:
        """None: not for this tensor, which goes on as it is."""
        ...

    @staticmethod
    def decode(dtype: str, shape: tuple[int, ...], parameters: Parameters, parts: Mapping[str, Tensor]) -> Tensor:
        """The tensor of that type and shape. Raises ValueError where the parts do not make one."""
        ...
