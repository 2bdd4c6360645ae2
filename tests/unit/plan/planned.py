"""A plan of lanes made by hand: one bucket, ready after 60 ms of 90, whose codec takes a few ms."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.exchange import Op
from dtrain.plan.calibration import Calibration, Recording
from dtrain.plan.candidates import FP16, NONE, Candidate
from dtrain.plan.link import Link
from dtrain.plan.planner import Job, Plan, plan
from dtrain.plan.program import Await, Lane, Signal, Start, Work
from dtrain.plan.timeline import Host
from dtrain.plan.whole_run import WholeRun

INT4 = Candidate("int4")
LOCAL = Candidate("ternary", {"rounding": "stochastic"}, "update", 4)
SIZE = 10_000_000
STEP: Lane = (Work(0.06), Signal(("ready", 0)), Work(0.03), Await(("finished", 0)))


def exchange(payload_bytes: int, codec_seconds: float) -> Lane:
    collective = ("collective", 0)
    start = Start(collective, Op.ALL_REDUCE, payload_bytes)
    return Await(("ready", 0)), Work(codec_seconds), start, Await(collective), Signal(("finished", 0))


def calibration(more: Sequence[Candidate] = ()) -> Calibration:
    machine = {"processor": "a <b>", "host": "here", "cores": 2, "torch": "2.13", "threads": 1}
    whole = Work(0.0, whole_step=True)
    of_round: Lane = (whole, whole, whole, whole, Signal(("ready", 0)), Await(("finished", 0)))
    recordings = {
        NONE.label: Recording((exchange(SIZE, 0.0),)),
        FP16.label: Recording((exchange(SIZE // 2, 0.002),)),
        LOCAL.label: Recording((exchange(SIZE // 20, 0.02),), (of_round,), 4),
        **{one.label: Recording((exchange(SIZE // 8, 0.02), exchange(SIZE // 8, 0.03))) for one in (INT4, *more)},
    }
    return Calibration("a model", machine, (STEP,), {label: {2: one} for label, one in recordings.items()})


def job(optimizer: str | None = "adamw", bits_per_second: float = 1e8) -> Job:
    return Job(2, Host(2.0), Link(bits_per_second), optimizer=optimizer)


def planned(
    optimizer: str | None = "adamw", *, run: WholeRun | None = None, more: Sequence[Candidate] = ()
) -> tuple[Calibration, Plan]:
    measured = calibration(more)
    return measured, plan(measured, [NONE, FP16, INT4, LOCAL, *more], job(optimizer), run)
