"""summary.json: what a run came to. Written anew as the run goes, so that it is valid whenever the run ends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dtrain.files import write_whole
from dtrain.meter.ledger import Activity, Ledger, Purpose, StepRecord
from dtrain.meter.nic import read_counters
from dtrain.meter.saving import Savings, savings
from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures
from dtrain.observe.sample import Sample

SCHEMA = 1
_SECONDS_BETWEEN_WRITES = 5.0

STRAGGLER_SHARE = 0.05
"""A rank for which the others waited, on average, longer than this part of the steps' time, is named a straggler."""
MOST_STRAGGLERS = 8
"""How many are named, the worst."""

_OF_STEPS = {
    "step_seconds_median": "step",
    "exposed_comm_seconds_median": "exposed_comm",
    "codec_seconds_median": "codec",
}
_OF_INTERVALS = {
    "images_per_second": "images_per_second",
    "transfer_seconds_median": "transfer_seconds",
    "straggler_wait_seconds_median": "straggler_wait_seconds",
}
"""Medians, by the field of Times or TrainFigures that they are of."""


@dataclass(frozen=True)
class NicWindow:
    """The interface that carries nothing but this job's traffic, and how many ranks of this host share it."""

    interface: str
    local_world_size: int


@dataclass
class _PhaseBegun:
    """A phase of training: how things stood when it began, and the accuracy of its last evaluation."""

    name: str
    num_values: int
    first_step: int
    payload_bytes: int
    wire_bytes: float
    accuracy: float | None = None


class Summary:
    """Collects rank 0's figures: a sink of its ledger and an observer of the trainer.

    Args:
        path: where summary.json goes.
        facts: what is known before the first step (run, model, world_size, backend, compressor, grad_bytes, ...).
        ledger: rank 0's.
        nic: where interface counters are to be read; None where no interface is isolated.
        hosts: every rank's, by rank.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], ledger: Ledger, nic: NicWindow | None, hosts: Sequence[str]
    ) -> None:
        self._path, self._facts, self._ledger, self._nic, self._hosts = path, dict(facts), ledger, nic, hosts
        self._step_seconds, self._wait_by_rank = 0.0, [0.0] * len(hosts)
        self._num_steps = 0
        self._samples = {name: Sample() for name in (*_OF_STEPS, *_OF_INTERVALS)}
        self._phases: list[_PhaseBegun] = []
        self._packed_bytes: int | None = None
        self._train: TrainFigures | None = None
        self._eval: EvalFigures | None = None
        self._nic_start = self._nic_end = 0
        self._written = 0.0
        self._started = time.monotonic()
        ledger.sinks.append(self._on_record)

    def start(self) -> None:
        """Training begins: what the interface sent so far was not training."""
        self._started = time.monotonic()
        self._nic_start = self._nic_end = self._transmitted()
        self.write()

    def on_phase(self, name: str, num_values: int) -> None:
        """A phase begins whose steps exchange so many numbers each, before compression; without a name, the run."""
        if name:
            self._phases.append(_PhaseBegun(name, num_values, self._num_steps, *self._gradients()))

    def on_plan(self, figures: PlanFigures) -> None:
        """A method was chosen: the last one counts."""
        self._facts |= {"chosen": figures.chosen}

    def on_packed(self, num_bytes: int) -> None:
        """The trained model was packed into so many bytes beside it."""
        self._packed_bytes = num_bytes

    def phase_lines(self) -> list[str]:
        """For people: what each phase exchanged."""
        lines = []
        for phase in self._phase_figures():
            payload, wire = phase["payload_bytes_per_step"], phase["wire_bytes_per_step"]
            sent = "" if wire is None else f", {payload:,.0f} B handed over and {wire:,.0f} B sent a step"
            accuracy = "" if phase["accuracy"] is None else f", accuracy {phase['accuracy']:.2%}"
            steps = f"{phase['steps']:,} steps, {phase['exchanged_values']:,} values"
            lines.append(f"phase {phase['name']}: {steps}{sent}{accuracy}")
        return lines

    def on_train(self, figures: TrainFigures) -> None:
        self._train = figures
        for name, field in _OF_INTERVALS.items():
            self._samples[name].add(getattr(figures, field))
        if figures.wait_by_rank is not None:
            for rank, seconds in enumerate(figures.wait_by_rank):
                self._wait_by_rank[rank] += seconds
        self._nic_end = self._transmitted()
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()

    def on_eval(self, figures: EvalFigures) -> None:
        self._eval = figures
        if self._phases:
            self._phases[-1].accuracy = figures.accuracy
        self.write()

    def write(self, *, complete: bool = False, total_wire_bytes_all_ranks: float | None = None) -> dict[str, Any]:
        """Write the file as things stand, whole or not at all, and return its content."""
        content = self._content(complete, total_wire_bytes_all_ranks)
        write_whole(self._path, json.dumps(content, indent=2) + "\n")
        self._written = time.monotonic()
        return content

    def _on_record(self, record: StepRecord) -> None:
        if record.step is not None:
            self._num_steps += 1
        if record.step is not None and record.times is not None:
            self._step_seconds += record.times.step
            for name, time_of in _OF_STEPS.items():
                self._samples[name].add(getattr(record.times, time_of))

    def _transmitted(self) -> int:
        return read_counters()[self._nic.interface].transmitted_bytes if self._nic else 0

    def _content(self, complete: bool, total_wire: float | None) -> dict[str, Any]:
        num_steps, last = self._num_steps, self._train
        gradient = self._ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT)
        metered = self._ledger.total().count > 0  # else nothing was counted, which is not the same as nothing sent
        if total_wire is None:
            total_wire = last.total_wire_bytes_all_ranks if last else self._ledger.total().wire_bytes
        payload, wire = (gradient.payload_bytes, gradient.wire_bytes) if num_steps and metered else (None, None)
        return {
            "schema": SCHEMA,
            **self._facts,
            "num_steps": num_steps,
            "num_rounds": self._ledger.rounds,
            "payload_bytes_per_step": None if payload is None else _exact(payload / num_steps),
            "wire_bytes_per_step": None if wire is None else _exact(wire / num_steps),
            "nic_bytes_per_step": self._nic_bytes_per_step(num_steps),
            "init_wire_bytes": _exact(self._ledger.total(activity=Activity.INIT).wire_bytes) if metered else None,
            **self._savings(None if wire is None else wire / num_steps)._asdict(),
            "accuracy": self._eval.accuracy if self._eval else None,
            "loss": self._eval.loss if self._eval else None,
            "seconds": time.monotonic() - self._started,
            **{name: sample.median() for name, sample in self._samples.items()},
            "stragglers": self._stragglers(),
            "total_wire_bytes_all_ranks": _exact(total_wire) if metered else None,
            "wire_bytes_by_phase_and_purpose": {
                f"{activity}/{purpose}": _exact(self._ledger.total(activity=activity, purpose=purpose).wire_bytes)
                for activity in Activity
                for purpose in Purpose
                if self._ledger.total(activity=activity, purpose=purpose).count
            },
            "phases": self._phase_figures(),
            "packed_bytes": self._packed_bytes,
            "complete": complete,
        }

    def _stragglers(self) -> list[dict[str, Any]] | None:
        """The ranks that the others waited for, worst first; None where that is not known."""
        if self._train is None or self._train.wait_by_rank is None:
            return None
        waited, named = sum(self._wait_by_rank), []
        for rank in sorted(range(len(self._hosts)), key=lambda rank: -self._wait_by_rank[rank])[:MOST_STRAGGLERS]:
            seconds = self._wait_by_rank[rank]
            if seconds > STRAGGLER_SHARE * self._step_seconds:
                of_step, of_wait = seconds / self._step_seconds, seconds / waited
                named.append(
                    {"rank": rank, "host": self._hosts[rank], "share_of_wait": of_wait, "share_of_step": of_step}
                )
        return named

    def _gradients(self) -> tuple[int, float]:
        """Payload and wire bytes so far."""
        total = self._ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT)
        return total.payload_bytes, total.wire_bytes

    def _phase_figures(self) -> list[dict[str, Any]]:
        end = _PhaseBegun("", 0, self._num_steps, *self._gradients())
        metered = self._ledger.total().count > 0
        figures = []
        for phase, following in pairwise([*self._phases, end]):
            steps = following.first_step - phase.first_step
            payload, wire = following.payload_bytes - phase.payload_bytes, following.wire_bytes - phase.wire_bytes
            figures.append(
                {
                    "name": phase.name,
                    "steps": steps,
                    "exchanged_values": phase.num_values,
                    "payload_bytes_per_step": _exact(payload / steps) if steps and metered else None,
                    "wire_bytes_per_step": _exact(wire / steps) if steps and metered else None,
                    "accuracy": phase.accuracy,
                }
            )
        return figures

    def _nic_bytes_per_step(self, num_steps: int) -> float | None:
        """Everything that the interface sent during training, metrics included, per rank of this host and step."""
        if self._nic is None or num_steps == 0:
            return None
        return (self._nic_end - self._nic_start) / self._nic.local_world_size / num_steps

    def _savings(self, wire: float | None) -> Savings:
        facts = self._facts
        return savings(wire, backend=facts["backend"], grad_bytes=facts["grad_bytes"], world_size=facts["world_size"])


def _exact(value: float) -> int | float:
    """Whole numbers of bytes as integers; a ring's share of an odd payload stays a fraction."""
    return int(value) if float(value).is_integer() else value
