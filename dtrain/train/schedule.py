"""Learning-rate schedules: functions from the step to a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""step (0 is the first) -> factor of the base learning rate.

Steps are those of the run as it was planned: when another number of workers goes on with it, one may begin in between.
"""


def constant() -> Schedule:
    """Always the base rate."""
    return lambda step: 1.0


def poly(num_steps: int, power: float) -> Schedule:
    """(1 - step / num_steps) ** power: Caffe's "poly", which trained SqueezeNet with power 1."""
    return lambda step: (1.0 - min(step, num_steps) / num_steps) ** power


def cosine(num_steps: int) -> Schedule:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, SGDR, ICLR 2017, without restarts)."""
    return lambda step: 0.5 * (1.0 + math.cos(math.pi * min(step, num_steps) / num_steps))


def step_decay(step_size: int, gamma: float) -> Schedule:
    """gamma ** (step // step_size): Caffe's "step"."""
    return lambda step: float(gamma ** (step // step_size))


def with_warmup(schedule: Schedule, warmup_steps: int) -> Schedule:
    """A linear ramp over the first `warmup_steps` steps, times `schedule`."""
    if warmup_steps == 0:
        return schedule
    return lambda step: min(1.0, (step + 1) / warmup_steps) * schedule(step)
