"""What a plan's page draws, as plain data: step time over links of all rates, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import log10
from statistics import median
from typing import Any

from dtrain.plan.calibration import Calibration
from dtrain.plan.candidates import FP16, NONE, Candidate
from dtrain.plan.planner import Job, Plan, Row, predict
from dtrain.plan.program import Program, Work
from dtrain.plan.timeline import Span

LOWEST, HIGHEST, PER_DECADE = 1e6, 1e11, 8
"""Bits per second that are drawn, and how many in each decade."""
MOST = 8
"""Methods that are drawn."""
FINEST = 1 / 1000
"""Of the time drawn: what is closer together is drawn as one."""


def rates() -> list[float]:
    """Bits per second, evenly on a logarithmic axis."""
    last = round(PER_DECADE * log10(HIGHEST / LOWEST))
    return [LOWEST * 10 ** (i / PER_DECADE) for i in range(last + 1)]


def seconds_at(calibration: Calibration, candidate: Candidate, job: Job, rates: Iterable[float]) -> list[float]:
    """Of a step over links of these rates, bits per second, all else as in the job."""
    program = calibration.program(candidate.label, job.world_size, median)
    jobs = (replace(job, link=replace(job.link, bits_per_second=rate)) for rate in rates)
    return [predict(program, one).seconds for one in jobs]


def drawn(planned: Plan) -> list[Row]:
    """Those known to train, the fastest first, with none and fp16; where nothing is known of any, all."""
    shown = [row for row in planned.rows if row.known == "holds" or planned.job.optimizer is None]
    simple = [planned.row(NONE), planned.row(FP16)]
    others = [row for row in shown if row not in simple]
    return [*simple, *others[: MOST - len(simple)]]


def curves(calibration: Calibration, planned: Plan) -> dict[str, Any]:
    """Plain JSON data: rates in bits per second, and each drawn method's seconds of a step at them."""
    at = rates()
    methods = [
        {"label": row.candidate.label, "seconds": seconds_at(calibration, row.candidate, planned.job, at)}
        for row in drawn(planned)
    ]
    return {"bits_per_second": at, "methods": methods}


def timelines(calibration: Calibration, planned: Plan) -> list[dict[str, Any]]:
    """Plain JSON data: one step of none, fp16 and what is advised; of each kind of work, spans [from, to] in seconds.

    Of a round of several steps it is the last, in which the exchange is.
    """
    advised = planned.row(NONE), planned.row(FP16), planned.best("gradient"), planned.best()
    chosen = {row.candidate.label: row for row in advised}
    found = []
    for label, row in chosen.items():
        program = calibration.program(label, planned.job.world_size, median)
        timeline = predict(program, planned.job)
        begin, end = _last_step(program, planned.job), timeline.seconds * program.steps
        spans = {
            what: _merged([one for one in timeline.spans if one.what == what and one.end > begin], begin, end)
            for what in ("compute", "codec", "wire")
        }
        found.append(
            {"label": label, "seconds": row.seconds, "steps": program.steps, "drawn_seconds": end - begin} | spans
        )
    return found


def _last_step(program: Program, job: Job) -> float:
    """When it begins: those before it exchange nothing, so they are no more than work one after another."""
    if program.steps == 1:
        return 0.0
    last = max(i for i, one in enumerate(program.compute) if isinstance(one, Work) and one.whole_step)
    before = sum(one.seconds for one in program.compute[:last] if isinstance(one, Work))
    return before / min(1.0, job.host.cores_per_rank)


def _merged(spans: Sequence[Span], begin: float, end: float) -> list[list[float]]:
    """From the beginning of what is drawn, in order; what touches, overlaps or nearly does is one."""
    merged: list[list[float]] = []
    for start, stop in sorted((max(one.start, begin) - begin, one.end - begin) for one in spans):
        if merged and start - merged[-1][1] < FINEST * (end - begin):
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    return merged
