"""Choosing how a job exchanges while it runs: measure it and its link, take the fastest way, and see when that changes.

What is chosen from are the methods that are known to train under this optimizer (`plan.candidates`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import torch

from dtrain import compressors
from dtrain.comm import Communicator, all_gather
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.plan.calibration import Calibration, calibrate
from dtrain.plan.candidates import FP16, NONE, Candidate, candidates
from dtrain.plan.planner import Job, Plan, plan, verdict
from dtrain.plan.probe import probe
from dtrain.plan.subject import Subject
from dtrain.plan.timeline import Host

LOOK = 20
"""Steps, or as many as a round has, between two looks at what they wait for their exchange."""
CHANGED = 0.25
"""Of a step: waiting so much longer or shorter than when the choice was made means that the link has changed."""
OTHER_LINK = 3.0
"""A ping so many times as long, or as short, means another link."""
PING_BYTES, PINGS = 1 << 16, 3
"""From each rank to all, once a look; more of them where that looks like another link."""
SHORTEST_SECONDS = 1e-5
"""Of a ping; shorter ones are all alike."""
CROWDED = 0.9
"""A rank that gets less of a core than this shares it with others."""

Tell = Callable[[str], None]


class Forecast(NamedTuple):
    """Seconds of a step as all ranks predicted them: with what was chosen, with a dense exchange, and with fp16."""

    chosen: float
    dense: float
    fp16: float


@dataclass
class Chooser:
    """Plans for this job as it is. The calibration is made once; the link is measured each time.

    Args:
        subject: what is trained, for measuring: of copies, since gradients and weights are written over.
        tried_as: how trials of methods know the optimizer.
        communicator: of the gradients.
        ranks_on_host: of this job.
        less_often: choose also among ways that exchange every few steps (`sync=auto`).
        tell: called on every rank with what is done, and with the reason for a choice.
        forecast: of the last choice, once there was one among several workers.
    """

    subject: Callable[[], Subject]
    tried_as: str | None
    communicator: Communicator
    ledger: Ledger
    ranks_on_host: int
    less_often: bool
    tell: Tell = lambda reason: None
    forecast: Forecast | None = None
    _calibration: Calibration | None = None
    _host: Host | None = None

    def choose(self) -> Candidate:
        """The same on every rank, by one message. A single worker has nothing to choose."""
        n = self.communicator.world_size
        if n == 1:
            return NONE
        self.tell("compressor=auto: measuring this job's step and its link")
        with self.ledger.scope(purpose=Purpose.CONTROL):
            chosen = self._known()
            if self._calibration is None:
                self._calibration, self._host = self._measured(chosen)
            assert self._host is not None
            link = replace(probe(self.communicator), ranks=self.ranks_on_host)
            job = Job(n, self._host, link, self.communicator.backend, self.tried_as)
            planned = plan(self._calibration, chosen, job)
            seconds = torch.tensor([planned.row(one).seconds for one in chosen], dtype=torch.float64)
            agreed = all_gather(self.communicator, seconds).mean(0).tolist()
        together = _with_seconds(planned, chosen, agreed)
        best = together.best(None if self.less_often else "gradient")
        self.forecast = Forecast(best.seconds, together.row(NONE).seconds, together.row(FP16).seconds)
        self.tell(f"auto: {best.candidate.label}. {verdict(together)}")
        return best.candidate

    def _known(self) -> list[Candidate]:
        n, exchanged = self.communicator.world_size, ("gradient", "update") if self.less_often else ("gradient",)
        return [
            one
            for one in candidates(self.tried_as, n)
            if one.exchanged in exchanged
            and one.known(self.tried_as, n) == "holds"
            and not compressors.keeps_momentum(one.compressor)  # the optimizer has it
        ]

    def _measured(self, chosen: Sequence[Candidate]) -> tuple[Calibration, Host]:
        """All ranks at once, as they train. What each gets of a core meanwhile tells how many share it."""
        subject = self.subject()
        all_gather(self.communicator, torch.zeros(1))
        cpu, begun = time.process_time(), time.perf_counter()
        with torch.random.fork_rng():
            calibration = calibrate(subject, chosen, world_sizes=[self.communicator.world_size])
        share = (time.process_time() - cpu) / (time.perf_counter() - begun)
        shares = all_gather(self.communicator, torch.tensor([share], dtype=torch.float64))
        if float(shares.min()) < CROWDED:
            return calibration, Host(float(shares.mean()))
        return calibration, Host(os.cpu_count() or 1, self.ranks_on_host)


class Watch:
    """Sees whether the link is still the one that a choice was made for: by what steps wait for their exchange, and,
    since what sends little waits little over any link, by how long a message of `PING_BYTES` takes.

    Evaluations and checkpoints between steps do not count: of whole steps the median is taken.
    """

    def __init__(self, communicator: Communicator, ledger: Ledger) -> None:
        self._communicator, self._ledger = communicator, ledger
        self.begin(1)

    def begin(self, every: int) -> None:
        """A choice was made, of rounds of so many steps: the next of them say what is usual."""
        self._num_steps = max(LOOK, every)
        self._usual: _Look | None = None
        self._waited, self._took = list[float](), list[float]()

    def has_changed(self, *, waited: float, took: float) -> bool:
        """After a step that took so many seconds, so many of them waiting; the same on every rank, by a message.

        To be called where no exchange is under way.
        """
        self._waited.append(waited)
        self._took.append(took)
        if len(self._took) < self._num_steps:
            return False
        mine = [sum(self._waited) / len(self._took), median(self._took)]
        self._waited, self._took = [], []
        with self._ledger.scope(purpose=Purpose.CONTROL):
            mean_waited, mean_took = self._mean(*mine)
            look = _Look(mean_waited, mean_took, self._ping(1))
            if self._usual is None:
                self._usual = look._replace(ping=self._ping(PINGS))
                return False
            if look.is_other_link(self._usual):  # one slow message is nothing yet
                look = look._replace(ping=min(look.ping, self._ping(PINGS)))
        return look.waits_otherwise(self._usual) or look.is_other_link(self._usual)

    def _mean(self, *mine: float) -> list[float]:
        everyones = all_gather(self._communicator, torch.tensor(mine, dtype=torch.float64))
        means: list[float] = everyones.mean(0).tolist()
        return means

    def _ping(self, count: int) -> float:
        """The quickest of so many; all ranks start them together."""
        payload, quickest = torch.zeros(PING_BYTES, dtype=torch.uint8), float("inf")
        for _ in range(count):
            begun = time.perf_counter()
            all_gather(self._communicator, payload)
            quickest = min(quickest, time.perf_counter() - begun)
        (mean,) = self._mean(quickest)
        return max(mean, SHORTEST_SECONDS)


class _Look(NamedTuple):
    """In seconds: what a step waited and took, and the ping."""

    waited: float
    took: float
    ping: float

    def waits_otherwise(self, usual: _Look) -> bool:
        return abs(self.waited - usual.waited) > CHANGED * usual.took

    def is_other_link(self, usual: _Look) -> bool:
        return max(self.ping / usual.ping, usual.ping / self.ping) > OTHER_LINK


def _with_seconds(planned: Plan, chosen: Sequence[Candidate], seconds: Sequence[float]) -> Plan:
    """The plan with what all ranks agreed on."""
    agreed = {one.label: value for one, value in zip(chosen, seconds, strict=True)}
    rows = (replace(row, seconds=agreed[row.candidate.label]) for row in planned.rows)
    return replace(planned, rows=tuple(sorted(rows, key=lambda row: row.seconds)))
