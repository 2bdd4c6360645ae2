"""How long a program takes on a host and over a link: lanes, collectives and the cores that all of them share.

A fluid model: what works at a time shares the cores of its host fairly, none more than one core, and collectives share
the link. Ranks do the same at the same time, so one stands for all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from dtrain.plan.link import Link, passage
from dtrain.plan.program import Await, Event, Instruction, Program, Signal, Start, Work

_NOTHING = 1e-12
"""Seconds, bytes: what is left by rounding."""


@dataclass(frozen=True)
class Host:
    """What ranks of a host share: its cores."""

    cores: float
    ranks: int = 1

    @property
    def cores_per_rank(self) -> float:
        """A rank's fair share."""
        return self.cores / self.ranks


@dataclass(frozen=True, slots=True)
class Span:
    """Something that went on from one second to another: "compute", "codec" or "wire"."""

    what: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A program's run. Seconds from its start; `seconds` is per step of training, as `exposed_seconds` is.

    Exposed is what the compute lane waited, but for what its own work waited for a core.
    """

    seconds: float
    exposed_seconds: float
    spans: tuple[Span, ...]


@dataclass
class _Worker:
    """A lane on its way: what it works on, or waits for."""

    what: str
    left: deque[Instruction]
    work: float = 0.0
    awaits: Event | None = None
    since: float = 0.0

    @property
    def ended(self) -> bool:
        return not self.left and self.work <= 0.0 and self.awaits is None


@dataclass
class _Transfer:
    """A collective on its way: first its messages, one after another, then its bytes."""

    event: Event
    messages: float
    bytes: float
    core_seconds_per_byte: float
    reached: float
    since: float = field(default=-1.0)


def run(program: Program, link: Link, host: Host, *, backend: str, world_size: int) -> Timeline:
    """Go through a program. Raises ValueError where it waits for what never happens."""
    now, exposed, spans = 0.0, 0.0, []
    workers = [_Worker("compute", deque(program.compute)), _Worker("codec", deque(program.exchange))]
    happened: set[Event] = set()
    waiting: deque[_Transfer] = deque()
    active: list[_Transfer] = []

    def start(one: Start) -> None:
        way = passage(backend, one.op, one.payload_bytes, world_size, ranks=link.ranks)
        if not way.messages:
            happened.add(one.event)
            return
        messages = way.messages if link.latency_seconds or link.busy_latency_seconds else 0
        reached = link.reached(one.op)
        waiting.append(_Transfer(one.event, messages, way.sent_bytes, link.core_seconds_per_byte, reached))

    def proceed(worker: _Worker) -> None:
        """To the next work, or wait."""
        while worker.work <= 0.0:
            if worker.awaits is not None:
                if worker.awaits not in happened:
                    return
                if now > worker.since:
                    nonlocal exposed
                    exposed += now - worker.since if worker.what == "compute" else 0.0
                worker.awaits = None
            if not worker.left:
                return
            match worker.left.popleft():
                case Work(seconds):
                    worker.work = seconds
                    worker.since = now
                case Signal(event):
                    happened.add(event)
                case Start() as one:
                    start(one)
                case Await(event):
                    worker.awaits, worker.since = event, now

    while True:
        before = -1
        while before != len(happened):  # what one lane signals lets another go on
            before = len(happened)
            for worker in workers:
                proceed(worker)
        while waiting and len(active) < (1 if backend == "nccl" else link.concurrent):
            active.append(waiting.popleft())
            active[-1].since = now
        working = [worker for worker in workers if worker.work > 0.0]
        if not working and not active:
            break
        passing = [transfer for transfer in active if transfer.messages <= 0.0]
        speed, shares, latency = _shares(len(working), passing, link, host)
        lasting = [worker.work / speed for worker in working]
        lasting += [transfer.messages * latency for transfer in active if transfer.messages > 0.0]
        lasting += [transfer.bytes / share for transfer, share in zip(passing, shares, strict=True)]
        step = min(lasting)
        now += step
        for worker in working:
            worker.work -= step * speed
            if worker.work <= _NOTHING:
                worker.work = 0.0
                spans.append(Span(worker.what, worker.since, now))
        for transfer, share in zip(passing, shares, strict=True):
            transfer.bytes -= step * share
        for transfer in active:
            if transfer not in passing:
                left = transfer.messages - step / latency
                transfer.messages = left if left > _NOTHING else 0.0
            if transfer.messages <= 0.0 and transfer.bytes <= 1e-6:
                happened.add(transfer.event)
                spans.append(Span("wire", transfer.since, now))
        active = [transfer for transfer in active if transfer.event not in happened]
    if stuck := [worker.awaits for worker in workers if not worker.ended]:
        raise ValueError(f"a program waits for {stuck[0]}, which never happens")
    return Timeline(now / program.steps, exposed / program.steps, tuple(_joined(spans)))


def _shares(num_working: int, passing: Sequence[_Transfer], link: Link, host: Host) -> tuple[float, list[float], float]:
    """Cores of each lane that works, bytes per second of each transfer, and seconds of a message.

    Cores go in fair shares, to the most that each can use.
    """
    fair = link.bytes_per_second / max(1, len(passing))
    wanted = [min(1.0, fair * one.reached * one.core_seconds_per_byte) for one in passing]
    level = _level([1.0] * num_working + wanted, host.cores_per_rank)
    rates = []
    for one in passing:
        cores, most = min(1.0, level), fair * one.reached
        rates.append(min(most, cores / one.core_seconds_per_byte) if one.core_seconds_per_byte else most)
    idle = link.latency_seconds
    busy = idle if link.busy_latency_seconds is None else link.busy_latency_seconds
    return min(1.0, level), rates, busy if level < 1.0 else idle


def _level(demands: Iterable[float], capacity: float) -> float:
    """How much each may take at most, so that all together take no more than there is (max-min fairness)."""
    left, demands = capacity, sorted(demands)
    for i, demand in enumerate(demands):
        share = left / (len(demands) - i)
        if demand > share:
            return share
        left -= demand
    return inf


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Pieces of work that follow one another as one."""
    joined: list[Span] = []
    last: dict[str, int] = {}
    for span in sorted(spans, key=lambda span: span.start):
        i = last.get(span.what)
        if i is not None and span.what != "wire" and span.start - joined[i].end < 1e-6:
            joined[i] = Span(span.what, joined[i].start, span.end)
        else:
            last[span.what] = len(joined)
            joined.append(span)
    return joined
