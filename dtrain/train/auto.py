"""`compressor=auto`: measure this job and its link, exchange in the fastest way, and look again when the link changes.

What is chosen from are the methods that are known to train under this optimizer (`plan.candidates`).
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dtrain import compressors
from dtrain.comm import Communicator, all_gather
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.plan.calibration import Calibration, calibrate
from dtrain.plan.candidates import NONE, Candidate, candidates, parse
from dtrain.plan.planner import Job, Plan, plan, verdict
from dtrain.plan.probe import probe
from dtrain.plan.subject import Subject
from dtrain.plan.timeline import Host
from dtrain.sync.synchronizer import Spent, Synchronizer
from dtrain.train.synchronizers import EveryStepSync, Exchanging, LocalSync

LOOK = 20
"""Steps, or as many as a round has, between two looks at what they wait for their exchange."""
CHANGED = 0.25
"""Of a step: waiting so much longer or shorter than when the choice was made means that the link has changed."""
CROWDED = 0.9
"""A rank that gets less of a core than this shares it with others."""

Tell = Callable[[str], None]


@dataclass
class Chooser:
    """Plans for this job as it is. The calibration is made once; the link is measured each time.

    Args:
        model, optimizer: what is trained; copies of them are measured.
        loss: of a model, one batch's.
        tried_as: how trials of methods know the optimizer.
        communicator: of the gradients.
        ranks_on_host: of this job.
        less_often: choose also among ways that exchange every few steps (`sync=auto`).
        tell: called on every rank with what is done, and with the reason for a choice.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module], Tensor]
    tried_as: str | None
    communicator: Communicator
    ledger: Ledger
    ranks_on_host: int
    less_often: bool
    tell: Tell = lambda reason: None
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
        model = copy.deepcopy(self.model)
        optimizer = type(self.optimizer)(model.parameters(), **{**self.optimizer.defaults, "lr": 0.0})
        subject = Subject("this job", model, optimizer, self.tried_as, lambda: self.loss(model))
        all_gather(self.communicator, torch.zeros(1))
        cpu, begun = time.process_time(), time.perf_counter()
        with torch.random.fork_rng():
            calibration = calibrate(subject, chosen, world_sizes=[self.communicator.world_size])
        share = (time.process_time() - cpu) / (time.perf_counter() - begun)
        shares = all_gather(self.communicator, torch.tensor([share], dtype=torch.float64))
        if float(shares.min()) < CROWDED:
            return calibration, Host(float(shares.mean()))
        return calibration, Host(os.cpu_count() or 1, self.ranks_on_host)


def build(candidate: Candidate, model: nn.Module, optimizer: torch.optim.Optimizer, parts: Exchanging) -> Synchronizer:
    """The synchroniser of a choice."""
    made = replace(
        parts,
        compressor=compressors.build(candidate.compressor, **candidate.options),
        sends_few=compressors.sends_few(candidate.compressor),
    )
    every = candidate.every
    sync = EveryStepSync() if candidate.exchanged == "gradient" else LocalSync(every=every)
    return sync.build(model, optimizer, made)


def _with_seconds(planned: Plan, chosen: Sequence[Candidate], seconds: Sequence[float]) -> Plan:
    """The plan with what all ranks agreed on."""
    agreed = {one.label: value for one, value in zip(chosen, seconds, strict=True)}
    rows = (replace(row, seconds=agreed[row.candidate.label]) for row in planned.rows)
    return replace(planned, rows=tuple(sorted(rows, key=lambda row: row.seconds)))


class Auto:
    """A `Synchronizer` that is one of others, and changes which when the link does.

    At a change a local round is brought to its end; what the old compressor had kept back is let go of.

    Args:
        build: makes the synchroniser of a choice.
        choose: makes the choice, on every rank alike.
        communicator: on which ranks tell each other what steps take.
    """

    def __init__(
        self,
        build: Callable[[Candidate], Synchronizer],
        choose: Callable[[], Candidate],
        communicator: Communicator,
        ledger: Ledger,
    ) -> None:
        self._build, self._choose = build, choose
        self._communicator, self._ledger = communicator, ledger
        self.candidate = NONE
        self._inner: Synchronizer | None = None
        self._usual: tuple[float, float] | None = None
        self._spent, self._took, self._ended = list[float](), list[float](), time.perf_counter()

    @property
    def inner(self) -> Synchronizer:
        """That of the choice, which is made with the first step."""
        if self._inner is None:
            self._take(self._choose())
        assert self._inner is not None
        return self._inner

    @property
    def ends_with_step(self) -> bool:
        """See `Synchronizer`."""
        return self.inner.ends_with_step

    def no_sync(self) -> AbstractContextManager[None]:
        """See `Synchronizer`."""
        return self.inner.no_sync()

    def before_step(self) -> Spent:
        """See `Synchronizer`."""
        spent = self.inner.before_step()
        self._spent.append(spent.exposed)
        return spent

    def after_step(self) -> Spent:
        """See `Synchronizer`."""
        spent = self.inner.after_step()
        self._spent.append(spent.exposed)
        now = time.perf_counter()
        self._took.append(now - self._ended)
        if len(self._took) == max(LOOK, self.candidate.every):
            self._look()
        self._ended = time.perf_counter()
        return spent

    def align(self) -> Spent:
        """See `Synchronizer`."""
        return self.inner.align()

    def discard(self) -> None:
        """See `Synchronizer`."""
        self.inner.discard()

    def state_dict(self) -> dict[str, Any]:
        """That of the choice, with its label."""
        return {**self.inner.state_dict(), "choice": self.candidate.label}

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """Take up the choice that was saved, and its state."""
        self._take(parse(str(saved[0].get("choice", NONE.label))))
        self.inner.load_state_dict(*({key: part for key, part in state.items() if key != "choice"} for state in saved))

    def close(self) -> None:
        """See `Synchronizer`."""
        if self._inner is not None:
            self._inner.close()

    def _take(self, candidate: Candidate) -> None:
        if self._inner is not None and candidate != self.candidate:
            self._inner.align()
            self._inner.close()
            self._inner = None
        if self._inner is None:
            self.candidate, self._inner = candidate, self._build(candidate)
        self._usual = None

    def _look(self) -> None:
        """Whether steps wait about as long as when this was chosen, in the eyes of all ranks.

        Evaluations and checkpoints between steps do not count: of whole steps the median is taken.
        """
        mine = torch.tensor([sum(self._spent) / len(self._took), median(self._took)], dtype=torch.float64)
        self._spent, self._took = [], []
        with self._ledger.scope(purpose=Purpose.CONTROL):
            waited, took = all_gather(self._communicator, mine).mean(0).tolist()
        if self._usual is None:
            self._usual = waited, took
        elif abs(waited - self._usual[0]) > CHANGED * self._usual[1]:
            self._take(self._choose())
