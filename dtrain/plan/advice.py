"""What the meter says at the end of a traced job: whether sending less would help it, over links of several rates."""

from __future__ import annotations

from pathlib import Path

import torch

from dtrain.exchange import Op
from dtrain.meter.trace import Trace, read_trace
from dtrain.meter.wire import wire_bytes
from dtrain.plan.calibration import calibrate
from dtrain.plan.candidates import FP16, NONE, candidates
from dtrain.plan.link import Link
from dtrain.plan.planner import Job, plan
from dtrain.plan.subject import of_trace
from dtrain.plan.timeline import Host

RATES = {"100 Mbit/s": 1e8, "1 Gbit/s": 1e9, "10 Gbit/s": 1e10}
REDUCED = (Op.ALL_REDUCE, Op.REDUCE_SCATTER)


def advise(path: Path) -> str:
    """In a few sentences, of the job whose trace is in this file: takes some seconds, to measure codecs here.

    Raises ValueError for a job that exchanged nothing, and for one on a device where codecs are not measured.
    """
    trace = read_trace(path)
    n = trace.world_size
    if n == 1:
        raise ValueError("a worker alone sends nothing")
    if trace.device != "cpu":
        raise ValueError(f"the job trains on {trace.device}, and codecs are measured on cpu")
    subject = of_trace(path)
    torch.set_num_threads(trace.num_threads)
    chosen = [
        one
        for one in candidates(subject.tried_as, n)
        if one.exchanged == "gradient" and one.known(subject.tried_as, n) == "holds"
    ]
    calibration = calibrate(subject, chosen, world_sizes=[n])
    together = trace.ranks_on_host if trace.ranks_on_host < n else 1  # of one host nothing passes a link
    host = Host(trace.cores * together / trace.ranks_on_host, together)
    said, trained = [], dict[str, str]()
    for name, rate in RATES.items():
        link = Link(rate, ranks=together)
        best = plan(calibration, chosen, Job(n, host, link, trace.backend or "gloo", subject.tried_as)).best()
        if best.candidate == NONE:
            said.append(f"at {name} change nothing")
        else:
            fp16 = "" if best.candidate == FP16 else f" ({best.to_fp16:.2f} of fp16's)"
            said.append(f"at {name} {best.candidate.label} would take {best.to_none:.2f} of the time{fp16}")
            if best.evidence:
                trained[best.candidate.label] = ", ".join(best.evidence)
    as_tried = "".join(f" As tried, {label} {evidence}." for label, evidence in trained.items())
    return f"{_share(trace)} On {-(-n // together)} hosts, {'; '.join(said)}.{as_tried}"


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
