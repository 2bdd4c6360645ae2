"""What was measured of a job on this machine: its step, and what each way to exchange takes. Kept as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any

import torch

from dtrain import compressors
from dtrain.compressors.codecs import compiled
from dtrain.compressors.registry import sends_few
from dtrain.files import parse_json, read_file, short, write_whole
from dtrain.plan.candidates import Candidate
from dtrain.plan.measure import record_gradients, record_updates
from dtrain.plan.program import Lane, Program, as_json, combined, from_json, with_steps
from dtrain.plan.subject import Subject
from dtrain.sync.local import Method
from dtrain.sync.rounds import Rounds

VERSION = 1
_MAX_BYTES = 1 << 26
MEASURED_WITH = (2, 4, 8)
"""Workers that are pretended where there are more than the last: work grows by a fixed amount with each."""
GROWS = 1.5
"""With the most of them against the fewest; what grows less is taken as fixed."""


@dataclass(frozen=True)
class Recording:
    """Several recordings of a way to exchange: exchange lanes; for updates, compute lanes and the steps they are of."""

    exchange: tuple[Lane, ...]
    compute: tuple[Lane, ...] = ()
    steps: int = 1


@dataclass(frozen=True)
class Calibration:
    """Of one job. `recordings`: of each candidate, by its label, and by the number of workers pretended."""

    subject: str
    machine: Mapping[str, Any]
    step: tuple[Lane, ...]
    recordings: Mapping[str, Mapping[int, Recording]]

    def program(self, label: str, world_size: int, of: Callable[[Sequence[float]], float]) -> Program:
        """What a rank among so many does; of several recordings of a piece of work what `of` makes of them."""
        measured = {n: self._program(recording, of) for n, recording in self.recordings[label].items()}
        if world_size in measured:
            return measured[world_size]
        sizes = sorted(measured)
        if len(sizes) == 1:
            raise ValueError(f"{label} was measured for {sizes[0]} workers, not for {world_size}: measure again")

        def at(values: Sequence[float]) -> float:
            if values[-1] < GROWS * values[0]:
                return median(values)
            slope, intercept = linear_regression(sizes, values)
            return max(0.0, slope * world_size + intercept)

        first = measured[sizes[0]]
        return Program(
            combined([measured[n].compute for n in sizes], at),
            combined([measured[n].exchange for n in sizes], at),
            first.steps,
        )

    def _program(self, recording: Recording, of: Callable[[Sequence[float]], float]) -> Program:
        step = combined(self.step, of)
        exchange = combined(recording.exchange, of)
        if not recording.compute:
            return Program(step, exchange)
        seconds = Program(step, ()).compute_seconds
        return Program(with_steps(combined(recording.compute, of), seconds), exchange, recording.steps)


def calibrate(
    subject: Subject,
    chosen: Sequence[Candidate],
    *,
    world_sizes: Sequence[int],
    on_progress: Callable[[str], None] = lambda label: None,
) -> Calibration:
    """Measure a step of this job, and every candidate on it for these numbers of workers.

    `on_progress` is told what is measured next.
    """
    sizes = {n for n in world_sizes if n <= MEASURED_WITH[-1]}
    sizes |= set(MEASURED_WITH) if max(world_sizes) > MEASURED_WITH[-1] else set()
    on_progress("a step")
    step = subject.measured_step()
    recordings: dict[str, dict[int, Recording]] = {}
    for candidate in chosen:
        on_progress(candidate.label)
        recordings[candidate.label] = {n: _record(subject, candidate, n) for n in sorted(sizes)}
    return Calibration(subject.name, this_machine(), step, recordings)


def _record(subject: Subject, candidate: Candidate, world_size: int) -> Recording:
    model, optimizer = subject.model, subject.optimizer
    compressor = compressors.build(candidate.compressor, **candidate.options)
    if candidate.exchanged == "gradient":
        return Recording(tuple(record_gradients(model, compressor, world_size=world_size)))
    method = Method(Rounds(candidate.every), masks_momentum=sends_few(candidate.compressor))
    programs = record_updates(model, optimizer, compressor, method, world_size=world_size)
    exchange, compute = ([getattr(p, lane) for p in programs] for lane in ("exchange", "compute"))
    return Recording(tuple(exchange), tuple(compute), candidate.every)


def lower(values: Sequence[float]) -> float:
    """The lower quartile."""
    return quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]


def upper(values: Sequence[float]) -> float:
    """The upper quartile."""
    return quantiles(values, n=4, method="inclusive")[2] if len(values) > 1 else values[0]


def this_machine() -> dict[str, Any]:
    """What measured times depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "codec": compiled.in_use(),
    }


def save(calibration: Calibration, path: Path) -> None:
    """Write it whole."""
    told = {
        "version": VERSION,
        "subject": calibration.subject,
        "machine": dict(calibration.machine),
        "step": [as_json(lane) for lane in calibration.step],
        "recordings": {
            label: {
                str(n): {
                    "steps": recording.steps,
                    "exchange": [as_json(lane) for lane in recording.exchange],
                    "compute": [as_json(lane) for lane in recording.compute],
                }
                for n, recording in by_size.items()
            }
            for label, by_size in calibration.recordings.items()
        },
    }
    write_whole(path, json.dumps(told))


def load(path: Path, subject: str, labels: Sequence[str]) -> Calibration | None:
    """Read what `save` wrote of this job; None where it was measured with another codec, or none was named yet.

    Raises ValueError for anything else, or where another machine measured it.
    """
    cure = "delete it, and it is measured anew"
    content = read_file(path, _MAX_BYTES)
    try:
        told = parse_json(content)
        version, machine = told["version"], told["machine"]
        recordings = {
            label: {
                int(n): Recording(
                    tuple(map(from_json, one["exchange"])), tuple(map(from_json, one["compute"])), int(one["steps"])
                )
                for n, one in by_size.items()
            }
            for label, by_size in told["recordings"].items()
        }
        calibration = Calibration(str(told["subject"]), machine, tuple(map(from_json, told["step"])), recordings)
        _check(calibration)
        machine = dict(machine)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no calibration ({short(error)}): {cure}") from error
    if machine != this_machine() and {**machine, "codec": compiled.in_use()} == this_machine():
        return None
    if version != VERSION or machine != this_machine():
        raise ValueError(f"{path} is of another machine, torch or dtrain: {cure}")
    if calibration.subject != subject:
        raise ValueError(f"{path} is of {short(calibration.subject)}, not of {subject}: {cure}")
    if missing := [label for label in labels if label not in recordings]:
        raise ValueError(f"{path} has no {missing[0]}: {cure}")
    return calibration


def _check(calibration: Calibration) -> None:
    """Raises ValueError where there is nothing measured, or not of the same work."""
    for by_size in calibration.recordings.values():
        sizes = sorted(by_size)
        if not sizes or sizes[0] < 1 or any(one.steps < 1 or not one.exchange for one in by_size.values()):
            raise ValueError("a recording of nothing")
        for lane in ("exchange", "compute"):
            combined([made for one in by_size.values() for made in getattr(one, lane)] or [()], max)
    if not calibration.step:
        raise ValueError("no step was measured")
    combined(calibration.step, max)
