"""summary.json: what a run came to. Written anew as the run goes, so that it is valid whenever the run ends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from dtrain.exchange import Op
from dtrain.files import write_whole
from dtrain.meter.ledger import Activity, Ledger, Purpose, StepRecord
from dtrain.meter.nic import read_counters
from dtrain.meter.wire import wire_bytes
from dtrain.observe.figures import EvalFigures, TrainFigures

SCHEMA = 1
_SECONDS_BETWEEN_WRITES = 5.0


@dataclass(frozen=True)
class NicWindow:
    """The interface that carries nothing but this job's traffic, and how many ranks of this host share it."""

    interface: str
    local_world_size: int


@dataclass
class _Phase:
    """How things stood when it began, and the accuracy of its last evaluation."""

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
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], ledger: Ledger, nic: NicWindow | None) -> None:
        self._path, self._facts, self._ledger, self._nic = path, dict(facts), ledger, nic
        self._steps: list[StepRecord] = []
        self._phases: list[_Phase] = []
        self.packed_bytes: int | None = None
        """Of the packed model beside the trained one, once there is one."""
        self._train: list[TrainFigures] = []
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

    def begin_phase(self, name: str, num_values: int) -> None:
        """A phase begins whose steps exchange so many numbers each, before compression."""
        self._phases.append(_Phase(name, num_values, len(self._steps), *self._gradients()))

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

    def on_train(self, metrics: TrainFigures) -> None:
        self._train.append(metrics)
        self._nic_end = self._transmitted()
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()

    def on_eval(self, metrics: EvalFigures) -> None:
        self._eval = metrics
        if self._phases:
            self._phases[-1].accuracy = metrics.accuracy
        self.write()

    def write(self, *, complete: bool = False, total_wire_bytes_all_ranks: float | None = None) -> dict[str, Any]:
        """Write the file as things stand, whole or not at all, and return its content."""
        content = self._content(complete, total_wire_bytes_all_ranks)
        write_whole(self._path, json.dumps(content, indent=2) + "\n")
        self._written = time.monotonic()
        return content

    def _on_record(self, record: StepRecord) -> None:
        if record.step is not None:
            self._steps.append(StepRecord(record.step, (), record.times))

    def _transmitted(self) -> int:
        return read_counters()[self._nic.interface].transmitted_bytes if self._nic else 0

    def _content(self, complete: bool, total_wire: float | None) -> dict[str, Any]:
        num_steps = len(self._steps)
        gradient = self._ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT)
        last = self._train[-1] if self._train else None
        times = [record.times for record in self._steps if record.times is not None]
        metered = self._ledger.total().count > 0  # else nothing was counted, which is not the same as nothing sent
        if total_wire is None:
            total_wire = last.total_wire_bytes_all_ranks if last else self._ledger.total().wire_bytes
        payload, wire = (gradient.payload_bytes, gradient.wire_bytes) if num_steps and metered else (None, None)
        return {
            "schema": SCHEMA,
            **self._facts,
            "num_steps": num_steps,
            "payload_bytes_per_step": None if payload is None else _exact(payload / num_steps),
            "wire_bytes_per_step": None if wire is None else _exact(wire / num_steps),
            "nic_bytes_per_step": self._nic_bytes_per_step(num_steps),
            "init_wire_bytes": _exact(self._ledger.total(activity=Activity.INIT).wire_bytes) if metered else None,
            **self._savings(None if wire is None else wire / num_steps),
            "accuracy": self._eval.accuracy if self._eval else None,
            "loss": self._eval.loss if self._eval else None,
            "seconds": time.monotonic() - self._started,
            "images_per_second": _median([m.images_per_second for m in self._train]),
            "step_seconds_median": _median([t.step for t in times]),
            "exposed_comm_seconds_median": _median([t.exposed_comm for t in times]),
            "codec_seconds_median": _median([t.codec for t in times]),
            "transfer_seconds_median": _median([m.transfer_seconds for m in self._train]),
            "straggler_wait_seconds_median": _median([m.straggler_wait_seconds for m in self._train]),
            "total_wire_bytes_all_ranks": _exact(total_wire) if metered else None,
            "wire_bytes_by_phase_and_purpose": {
                f"{activity}/{purpose}": _exact(self._ledger.total(activity=activity, purpose=purpose).wire_bytes)
                for activity in Activity
                for purpose in Purpose
                if self._ledger.total(activity=activity, purpose=purpose).count
            },
            "phases": self._phase_figures(),
            "packed_bytes": self.packed_bytes,
            "complete": complete,
        }

    def _gradients(self) -> tuple[int, float]:
        """Payload and wire bytes so far."""
        total = self._ledger.total(activity=Activity.TRAIN, purpose=Purpose.GRADIENT)
        return total.payload_bytes, total.wire_bytes

    def _phase_figures(self) -> list[dict[str, Any]]:
        end = _Phase("", 0, len(self._steps), *self._gradients())
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

    def _savings(self, wire: float | None) -> dict[str, float | None]:
        """Against a dense all_reduce of the gradients in fp32 and in fp16, at the same number of workers."""
        if self._facts["world_size"] == 1 or not wire:
            return {"saving_vs_fp32": None, "saving_vs_fp16": None}
        dense = wire_bytes(self._facts["backend"], Op.ALL_REDUCE, self._facts["grad_bytes"], self._facts["world_size"])
        return {"saving_vs_fp32": dense / wire, "saving_vs_fp16": dense / 2 / wire}


def _median(values: list[float] | list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _exact(value: float) -> int | float:
    """Whole numbers of bytes as integers; a ring's share of an odd payload stays a fraction."""
    return int(value) if float(value).is_integer() else value
