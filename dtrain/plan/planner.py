"""Which way to exchange is fastest, what bounds each, and from which link on it no longer pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, sqrt
from statistics import median
from typing import Any, Literal

from dtrain.compressors.trials import Exchanged
from dtrain.plan.calibration import Calibration, lower, upper
from dtrain.plan.candidates import FP16, NONE, Candidate, Known
from dtrain.plan.link import Link, passage
from dtrain.plan.program import Program, Work
from dtrain.plan.timeline import Host, Timeline, run
from dtrain.plan.whole_run import Total, WholeRun

Bound = Literal["compute", "codec", "bandwidth", "latency"]

SLOWEST, FASTEST = 1e6, 1e12
"""Bits per second between which a break-even is looked for."""
WORTH = 0.97
"""A step this much of the time is worth a change: less is within what predictions are off by."""


@dataclass(frozen=True)
class Job:
    """What is planned: how many workers on what hosts, over which link, and how the optimizer is called in trials."""

    world_size: int
    host: Host
    link: Link
    backend: str = "gloo"
    optimizer: str | None = None

    @property
    def num_nodes(self) -> int:
        """With the host's number of ranks on each."""
        return -(-self.world_size // self.host.ranks)


@dataclass(frozen=True)
class Row:
    """A way to exchange. Seconds are of a step: predicted with the median of what was measured, and its quartiles.

    Ratios below 1 are faster. `pays_below_bits_per_second` is the link from which on none or fp16 is at least as fast:
    infinite where this is the faster over every link, 0 where over none.
    """

    candidate: Candidate
    seconds: float
    low: float
    high: float
    exposed_seconds: float
    codec_seconds: float
    sent_bytes: float
    bound: Bound
    to_none: float
    to_fp16: float
    pays_below_bits_per_second: float
    known: Known
    evidence: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        told = asdict(self)
        told["candidate"] = {**told["candidate"], "label": self.candidate.label}
        if self.pays_below_bits_per_second == inf:
            told["pays_below_bits_per_second"] = None
        return told


@dataclass(frozen=True)
class Plan:
    """Rows, the fastest first; and the run whose hours, bytes and cost are told with them."""

    job: Job
    rows: tuple[Row, ...]
    whole_run: WholeRun | None = None

    def row(self, candidate: Candidate) -> Row:
        """That of this candidate."""
        return next(row for row in self.rows if row.candidate.label == candidate.label)

    def best(self, exchanged: Exchanged | None = None) -> Row:
        """The fastest of those that are known to train, or of those that exchange gradients or updates.

        Where the difference is not worth a change, what is simpler: fp16, or nothing.
        """
        held = [row for row in self.rows if row.known == "holds"]
        best = min((row for row in held if exchanged in (None, row.candidate.exchanged)), key=lambda row: row.seconds)
        for simple in (FP16, NONE):
            row = self.row(simple)
            best = row if best.seconds > WORTH * row.seconds else best
        return best

    def total(self, row: Row) -> Total | None:
        """Of the whole run, where one was named."""
        if self.whole_run is None:
            return None
        return self.whole_run.total(seconds=row.seconds, sent_bytes=row.sent_bytes, num_nodes=self.job.num_nodes)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        totals = [self.total(row) for row in self.rows]
        return {
            "job": asdict(self.job),
            "verdict": verdict(self),
            "best": self.best().candidate.label,
            "whole_run": asdict(self.whole_run) if self.whole_run else None,
            "rows": [
                row.as_json() | {"total": asdict(total) if total else None}
                for row, total in zip(self.rows, totals, strict=True)
            ],
        }


def plan(calibration: Calibration, chosen: Sequence[Candidate], job: Job, whole_run: WholeRun | None = None) -> Plan:
    """Predict each candidate; none and fp16 must be among them."""
    programs = {one.label: calibration.program(one.label, job.world_size, median) for one in chosen}
    seconds = {label: predict(program, job).seconds for label, program in programs.items()}
    rows = []
    for one in chosen:
        program = programs[one.label]
        timeline = predict(program, job)
        low, high = (predict(calibration.program(one.label, job.world_size, of), job).seconds for of in (lower, upper))
        rows.append(
            Row(
                candidate=one,
                seconds=timeline.seconds,
                low=min(low, timeline.seconds),
                high=max(high, timeline.seconds),
                exposed_seconds=timeline.exposed_seconds,
                codec_seconds=program.codec_seconds / program.steps,
                sent_bytes=sent_bytes(program, job),
                bound=bound(program, job, timeline.seconds),
                to_none=timeline.seconds / seconds[NONE.label],
                to_fp16=timeline.seconds / seconds[FP16.label],
                pays_below_bits_per_second=_break_even(program, [programs[NONE.label], programs[FP16.label]], job),
                known=one.known(job.optimizer, job.world_size),
                evidence=_evidence(one, job),
            )
        )
    return Plan(job, tuple(sorted(rows, key=lambda row: row.seconds)), whole_run)


def _evidence(candidate: Candidate, job: Job) -> tuple[str, ...]:
    if job.optimizer is None:
        return ()
    return tuple(trial.cost_in_words() for trial in candidate.trials(job.optimizer, job.world_size))


def predict(program: Program, job: Job) -> Timeline:
    """A step of it."""
    return run(program, job.link, job.host, backend=job.backend, world_size=job.world_size)


def sent_bytes(program: Program, job: Job) -> float:
    """What a node sends over its link a step, without headers."""
    ways = [
        passage(job.backend, one.op, one.payload_bytes, job.world_size, ranks=job.link.ranks)
        for one in program.collectives
    ]
    return sum(way.sent_bytes for way in ways) / program.steps


def bound(program: Program, job: Job, seconds: float) -> Bound:
    """What a step would be shortest without."""
    free: dict[Bound, float] = {
        "compute": predict(replace(program, compute=_without_work(program.compute)), job).seconds,
        "codec": predict(replace(program, exchange=_without_work(program.exchange)), job).seconds,
        "bandwidth": _with_link(program, job, bits_per_second=1e15, core_seconds_per_byte=0.0),
        "latency": _with_link(program, job, latency_seconds=0.0, busy_latency_seconds=0.0),
    }
    return min(free, key=lambda what: free[what]) if seconds else "compute"


def verdict(planned: Plan) -> str:
    """The advice: of what is exchanged every step, and of exchanging less often where that is worth more."""
    dense, every_step, best = planned.row(NONE), planned.best("gradient"), planned.best()
    fp32 = f"fp32's {_ms(dense.seconds)}"
    if every_step is dense:
        said = f"Change nothing: a step takes {_ms(dense.seconds)}, bound by {dense.bound}"
    else:
        said = f"Use {every_step.candidate.label}: a step takes {_ms(every_step.seconds)}, "
        said += f"{every_step.to_none:.2f} of {fp32}"
        said += "" if every_step.candidate == FP16 else f" and {every_step.to_fp16:.2f} of fp16's"
    if best.candidate.exchanged == "update" and best.seconds < WORTH * every_step.seconds:
        said += (
            f". Exchanged less often, {best.candidate.label} takes {_ms(best.seconds)}, {best.to_none:.2f} of fp32's"
        )
    return f"{said}."


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def _without_work(lane: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one for one in lane if not isinstance(one, Work))


def _with_link(program: Program, job: Job, **changes: Any) -> float:
    return predict(program, replace(job, link=replace(job.link, **changes))).seconds


def _break_even(program: Program, simple: Sequence[Program], job: Job) -> float:
    """The rate from which on a simple way is as fast: by bisection, since the gain falls with the rate."""

    def pays(rate: float) -> bool:
        mine, *others = (_with_link(one, job, bits_per_second=rate) for one in (program, *simple))
        return mine < (1 - 1e-6) * min(others)

    if pays(FASTEST):
        return inf
    if not pays(SLOWEST):
        return 0.0
    low, high = SLOWEST, FASTEST
    while high / low > 1.01:
        middle = sqrt(low * high)
        low, high = (middle, high) if pays(middle) else (low, middle)
    return sqrt(low * high)
