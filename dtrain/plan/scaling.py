"""How a job scales to thousands of ranks: the plan's own figures at each size, with stragglers and faults."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from statistics import NormalDist, mean, median
from typing import Any

from dtrain.plan.calibration import Calibration
from dtrain.plan.candidates import Candidate
from dtrain.plan.planner import Job, predict

_DRAWS = 4000
"""Of the slowest of n ranks: its mean is then known to about a hundredth of the spread."""


@dataclass(frozen=True)
class Uncertain:
    """What real ranks do besides.

    Args:
        spread: standard deviation of a rank's computing from step to step, as a share of it: all wait for the slowest.
        hours_between_faults: of one node; 0 for none.
        restart_seconds: from a fault to the first step again.
        checkpoint_seconds: between checkpoints, of which half is lost in the mean.
    """

    spread: float = 0.0
    hours_between_faults: float = 0.0
    restart_seconds: float = 60.0
    checkpoint_seconds: float = 600.0

    def lost(self, num_nodes: int) -> float:
        """The share of time that faults take: at most all of it."""
        if not self.hours_between_faults:
            return 0.0
        each = self.restart_seconds + self.checkpoint_seconds / 2
        return min(1.0, each * num_nodes / (3600 * self.hours_between_faults))


@dataclass(frozen=True)
class Point:
    """A method among so many ranks: seconds of a step, and the share of a linear speed-up that it reaches."""

    method: str
    world_size: int
    seconds: float
    efficiency: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def scale(
    calibration: Calibration,
    chosen: Sequence[Candidate],
    job: Job,
    sizes: Sequence[int],
    uncertain: Uncertain | None = None,
) -> list[Point]:
    """Each candidate at each number of ranks, batch per rank alike. One rank alone is the yardstick.

    Raises ValueError for sizes that are not whole nodes.
    """
    uncertain = uncertain or Uncertain()
    points = []
    for one in chosen:
        for n in sizes:
            if n > job.host.ranks and n % job.host.ranks:
                raise ValueError(f"{n} ranks are not whole nodes of {job.host.ranks}")
            program = calibration.program(one.label, n, median)
            alone = program.compute_seconds / program.steps
            steady = predict(program, replace(job, world_size=n)).seconds
            # spreads of the steps of a round even out
            waiting = alone * uncertain.spread * slowest(n) / program.steps**0.5
            seconds = (steady + waiting) / (1 - min(0.999, uncertain.lost(max(1, n // job.host.ranks))))
            points.append(Point(one.label, n, seconds, alone / seconds))
    return points


@cache
def slowest(world_size: int) -> float:
    """The mean of the largest of so many standard normal draws."""
    if world_size == 1:
        return 0.0
    generator, normal = random.Random(world_size), NormalDist()
    # the largest of n uniform draws is one of them to the power of 1/n
    draws = (min(generator.random() ** (1 / world_size), 1 - 1e-12) for _ in range(_DRAWS))
    return mean(normal.inv_cdf(max(draw, 1e-12)) for draw in draws)
