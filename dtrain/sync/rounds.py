"""When workers that step by themselves exchange: how many steps a local round has, as a run goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rounds:
    """The lengths of local rounds, in steps.

    Raises ValueError for values out of range.

    Args:
        every: from one exchange to the next, at least 1. With `qsr` the fewest, otherwise the most.
        start_after: so many steps at the start are exchanged one by one: what differs most between workers is what
            they do with a model that knows nothing yet (post-local SGD: Lin et al., ICLR 2020).
        growth: a round has at most this fraction of the steps that were made before it; 0: as many as `every` says.
        qsr: the alpha of the quadratic synchronization rule (Gu et al., ICLR 2024): a round has
            max(every, floor((alpha / learning rate)^2)) steps, so rounds grow as the learning rate falls. 0: without.
    """

    every: int = 1
    start_after: int = 0
    growth: float = 0.0
    qsr: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1: it is the number of steps between two exchanges")
        if self.start_after < 0:
            raise ValueError(f"start_after={self.start_after} must be 0 or more steps")
        for name in ("growth", "qsr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a number, 0 (without) or more")

    def length(self, steps: int, learning_rate: float) -> int:
        """Steps of the round that begins after `steps` steps of the run, with this learning rate."""
        if steps < self.start_after:
            return 1
        length = self.every
        if self.qsr:
            length = max(length, _floor((self.qsr / learning_rate) ** 2) if learning_rate > 0 else _LONGEST)
        if self.growth:
            length = min(length, max(1, _floor(self.growth * steps)))
        return length


_LONGEST = 2**31
"""A round that no run ends: the end of the run ends it."""


def _floor(steps: float) -> int:
    """Not one less for a rounding error."""
    return min(int(steps * (1 + 1e-9)), _LONGEST)
