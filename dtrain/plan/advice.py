"""What the meter says at the end of a traced job: whether sending less would help it, over links of several rates."""

from __future__ import annotations

from pathlib import Path

import torch

from dtrain.exchange import Op
from dtrain.meter.trace import Trace, read_trace
from dtrain.meter.wire import wire_bytes
from dtrain.plan.calibration import calibrate
from dtrain.plan.candidates import NONE, candidates
from dtrain.plan.link import Link
from dtrain.plan.planner import Job, plan
from dtrain.plan.subject import of_trace
from dtrain.plan.timeline import Host

RATES = {"100 Mbit/s": 1e8, "1 Gbit/s": 1e9, "10 Gbit/s": 1e10}
REDUCED = (Op.ALL_REDUCE, Op.REDUCE_SCATTER)


def advise(path: Path) -> str:
    """In a sentence or two, of the job whose trace is in this file: takes some seconds, to measure codecs here.

    Raises ValueError for a job that exchanged nothing.
    """
    trace, subject = read_trace(path), of_trace(path)
    torch.set_num_threads(trace.num_threads)
    n = trace.world_size
    chosen = [
        one
        for one in candidates(subject.tried_as, n)
        if one.exchanged == "gradient" and one.known(subject.tried_as, n) == "holds"
    ]
    calibration = calibrate(subject, chosen, world_sizes=[n])
    together = trace.ranks_on_host if trace.ranks_on_host < n else 1  # of one host nothing passes a link
    host = Host(trace.cores * together / trace.ranks_on_host, together)
    said = []
    for name, rate in RATES.items():
        link = Link(rate, ranks=together)
        best = plan(calibration, chosen, Job(n, host, link, trace.backend or "gloo", subject.tried_as)).best()
        if best.candidate == NONE:
            said.append(f"at {name} change nothing")
        else:
            said.append(f"at {name} {best.candidate.label} would take {best.to_none:.2f} of the time")
    return f"{_share(trace)} On {-(-n // together)} hosts, {'; '.join(said)}."


def _share(trace: Trace) -> str:
    """Of the bytes of a step, those that a compressor of gradients would touch."""
    sent = {
        reduced: sum(
            wire_bytes(trace.backend or "gloo", one.op, one.payload_bytes, one.group_size)
            for step in trace.steps
            for one in step.collectives
            if (one.op in REDUCED) == reduced
        )
        for reduced in (True, False)
    }
    whole = sum(sent.values())
    mega = whole / len(trace.steps) / 1e6
    return f"Gradients are {sent[True] / whole:.0%} of the {mega:,.1f} MB that a rank sends a step."
