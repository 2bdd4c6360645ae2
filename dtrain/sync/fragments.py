"""A model in fragments that are exchanged in turn, each beside the steps that follow: a lower peak, and no waiting.

Douillard et al., Streaming DiLoCo with overlapping communication (2025), Algorithm 2: fragments, tau and alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from dtrain.sync.buckets import NamedParameter, held


@dataclass(frozen=True)
class Fragments:
    """How a local round is spread over its steps. As it stands: all at its end, while everybody waits.

    Raises ValueError for values out of range.

    Args:
        count: fragments, exchanged one after the other at even distances within a round; each once a round.
        delay: steps that go on while a fragment is exchanged, before what came of it is taken up. No more than there
            are until the next fragment's turn, less one.
        kept: the fraction of this worker's own weights that remains in them when it is, from 0 to below 1; what the
            worker learned during the delay is in them.
    """

    count: int = 1
    delay: int = 0
    kept: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"fragments={self.count} must be at least 1")
        if self.delay < 0:
            raise ValueError(f"delay={self.delay} must be 0 or more steps")
        if not 0 <= self.kept < 1:
            raise ValueError(
                f"kept={self.kept} must be from 0 to below 1: it is the fraction of a worker's own weights"
            )
        if self.kept and not self.delay:
            raise ValueError("kept is for delay > 0: without a delay there is nothing that a worker learned meanwhile")

    def due(self, position: int, length: int) -> list[int]:
        """Which fragments' turn it is after `position` steps of a round of `length`."""
        return [i for i in range(self.count) if -(-(i + 1) * length // self.count) == position]

    def delay_within(self, length: int) -> int:
        """Of a fragment in a round of that length: the next one finds nothing under way."""
        return min(self.delay, max(0, length // self.count - 1))

    def split(self, parameters: Sequence[NamedParameter]) -> list[list[NamedParameter]]:
        """The parameters of each fragment, about as many elements in each, in order.

        Raises ValueError where there are fewer parameters than fragments.
        """
        if len(parameters) < self.count:
            raise ValueError(f"fragments={self.count}, but the model has {len(parameters)} parameters: give fewer")
        sizes = [held(parameter).numel() for _, parameter in parameters]
        fragments: list[list[NamedParameter]] = [[] for _ in range(self.count)]
        total, current = sum(sizes), 0
        for i, (named, end, size) in enumerate(zip(parameters, accumulate(sizes), sizes, strict=True)):
            wanted = min(self.count - 1, int((end - size / 2) * self.count / total))  # by its middle
            left = len(parameters) - i  # none may stay empty
            current = max(current, min(wanted, current + bool(fragments[current])), self.count - left)
            fragments[current].append(named)
        return fragments
