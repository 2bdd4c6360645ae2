"""What a step's time and bytes come to over a whole run, and what its nodes cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Total:
    """Of a run: hours, GB (10^9 bytes) sent by all nodes over their links, and its cost in the price's currency."""

    hours: float
    gigabytes: float
    cost: float | None


@dataclass(frozen=True)
class WholeRun:
    """A run of so many steps. `price` is that of one node for an hour, in any currency; None for no cost."""

    num_steps: int
    price: float | None = None

    def total(self, *, seconds: float, sent_bytes: float, num_nodes: int) -> Total:
        """Of steps of so many seconds, in each of which a node sends so many bytes."""
        hours = self.num_steps * seconds / 3600
        cost = None if self.price is None else hours * num_nodes * self.price
        return Total(hours, self.num_steps * num_nodes * sent_bytes / 1e9, cost)


def whole_run(num_steps: int | None, price: float | None) -> WholeRun | None:
    """The run that a request names, if any. Raises ValueError, with the cure, for one that cannot be."""
    if num_steps is None:
        if price is not None:
            raise ValueError(f"--price {price:g} needs the length of the run: add --num-steps N")
        return None
    if num_steps < 1:
        raise ValueError(f"--num-steps {num_steps} must be at least 1")
    if price is not None and price < 0:
        raise ValueError(f"--price {price:g} must not be below 0: it is that of a node for an hour")
    return WholeRun(num_steps, price)
