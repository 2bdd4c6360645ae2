"""The ledger: one immutable entry per collective, closed step by step into records that everything else reads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from dtrain.exchange import Op
from dtrain.meter.clock import HOST_CLOCK, UNTIMED, Clock
from dtrain.meter.recent import Recent

_log = logging.getLogger(__name__)


class Activity(StrEnum):
    """What the program is doing."""

    INIT = "init"
    TRAIN = "train"
    EVAL = "eval"
    CHECKPOINT = "checkpoint"
    EXPORT = "export"


class Purpose(StrEnum):
    """What the traffic is for; unknown where nobody states it and the meter cannot tell (`meter/purpose.py`)."""

    GRADIENT = "gradient"
    PARAMETERS = "parameters"
    BUFFERS = "buffers"
    METRICS = "metrics"
    CONTROL = "control"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Entry:
    """One collective, as this rank saw it.

    `seconds` runs from its start on this rank to its completion, waiting for slower ranks included; None where the
    backend does not say when it completed. `start` is time.perf_counter() where it was issued. `dtype` is that of what
    is handed over, as torch names it ("float32"); None where that is not known.
    """

    op: Op
    activity: Activity
    purpose: Purpose
    payload_bytes: int
    wire_bytes: float
    world_size: int
    group: str
    start: float
    seconds: float | None
    dtype: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry as plain JSON data, in which the activity is called phase."""
        return {"phase" if name == "activity" else name: value for name, value in asdict(self).items()}


class Times(NamedTuple):
    """How a step's time was spent, in seconds. Codec time is off the critical path where it overlaps with backward.

    `exposed_comm` is what the step waited for its exchange, codec included, once backward was done.
    """

    step: float
    codec: float
    exposed_comm: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one rank exchanged between two closings of the ledger. `step` is None for what is not a training step."""

    step: int | None
    entries: tuple[Entry, ...]
    times: Times | None

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON data."""
        times = self.times._asdict() if self.times else None
        return {"step": self.step, "times": times, "entries": [entry.as_json() for entry in self.entries]}


class Group(NamedTuple):
    """Who communicates in a process group: its description, or name where it has none, and its ranks in the job."""

    name: str
    ranks: tuple[int, ...]


class Key(NamedTuple):
    """What the totals are split by."""

    op: Op
    activity: Activity
    purpose: Purpose


@dataclass(slots=True)
class Total:
    """Running totals since the ledger was opened."""

    count: int = 0
    payload_bytes: int = 0
    wire_bytes: float = 0.0


class Pending:
    """A collective under way. `complete()` may be called from any thread."""

    __slots__ = ("_clock", "_dtype", "_end", "_mark", "fields", "has_failed", "number", "start")

    def __init__(
        self, fields: tuple[Op, Activity, Purpose, int, float, int, str], clock: Clock, dtype: str | None = None
    ) -> None:
        self.fields, self._clock, self._dtype = fields, clock, dtype
        self.has_failed = False
        self.number = 0
        """Of its group, from 1 on, given by `Recent`."""
        self.start = time.perf_counter()
        self._mark: Any = clock.mark()
        self._end: Any = None

    def complete(self) -> None:
        """Note the time of completion; on CUDA, call it with a stream current that has waited for the collective."""
        self._end = self._clock.mark()

    def entry(self) -> Entry:
        """The immutable entry, as far as it is known now; on CUDA this waits for the collective."""
        seconds = None if self._end is None else self._clock.seconds(self._mark, self._end)
        return Entry(*self.fields, self.start, seconds, self._dtype)

    def end(self) -> tuple[bool, float | None]:
        """Whether it has ended well, and after how many seconds; nobody waits."""
        if self.has_failed or self._end is None or not self._clock.is_reached(self._end):
            return False, None
        return True, self._clock.seconds(self._mark, self._end)


Sink = Callable[[StepRecord], None]

CLOSE_EVERY = 512
"""For programs that never close: enough that what is closed has completed, a few hundred KB of memory."""
MAX_GROUPS = 1000
"""Groups of torch.distributed that are known at once; a program may make new ones for ever."""


class _OfThread(threading.local):
    """What each thread has for itself; a default of the class is found faster than an attribute that is missing."""

    activity: Activity | None = None
    purpose: Purpose | None = None


class Ledger:
    """Counts every collective of one rank. Recording is thread-safe; closing belongs to the training thread.

    The activity holds for the whole process, since its threads take part in the same; the purpose holds for the thread
    that opened the scope. What synchronisers send is told apart by `exchange`.

    `recent` remembers the last collectives, for when one fails.

    `rounds` is how many exchanges of gradients or updates dtrain's synchronisers made: one a step, or one in several.

    `uncounted` is how many calls of each operation are missing, since counting them failed: a meter must not fail the
    program.

    What was recorded is kept until it is closed. `close_every` is for programs that never close: whenever so many
    collectives are waiting for it, the older half is closed, in the thread that recorded the last. The newer half
    stays, since it may be under way and has its times only once it is done. A sink that fails then is logged, once.
    """

    def __init__(self, *sinks: Sink, close_every: int | None = None) -> None:
        self.sinks = list(sinks)
        self.activity = Activity.INIT
        self.totals: dict[Key, Total] = {}
        self.groups: dict[str, Group] = {}
        """The groups of torch.distributed that were seen last, by the name that entries have."""
        self.recent = Recent()
        self.rounds = 0
        self.uncounted: dict[Op, int] = {}
        self._close_every = close_every
        self._sink_failed = False
        self._pending: list[Pending] = []
        self._lock = threading.RLock()  # a signal's handler may communicate, wherever this thread is just then
        self._closing = threading.Lock()
        self._thread = _OfThread()

    def note_group(self, name: str, group: Group) -> None:
        """Remember who communicates in the group of this name; beyond MAX_GROUPS the oldest is forgotten."""
        self.groups.pop(name, None)
        self.groups[name] = group
        while len(self.groups) > MAX_GROUPS:
            self.groups.pop(next(iter(self.groups)))

    @contextmanager
    def scope(self, *, activity: Activity | None = None, purpose: Purpose | None = None) -> Iterator[None]:
        """Say what the traffic inside is for."""
        before_activity, before_purpose = self.activity, self.purpose
        if activity is not None:
            self.activity = activity
        self._thread.purpose = purpose or before_purpose
        try:
            yield
        finally:
            if activity is not None:
                self.activity = before_activity
            self._thread.purpose = before_purpose

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """What this thread sends inside keeps replicas together: training's bytes, for gradients unless it is said.

        Whatever the process does meanwhile: an exchange may go on beside it, or be made up for after training.
        """
        before, self._thread.activity = self._thread.activity, Activity.TRAIN
        try:
            with self.scope(purpose=Purpose.GRADIENT):
                yield
        finally:
            self._thread.activity = before

    @property
    def purpose(self) -> Purpose | None:
        """The purpose that this thread's scope states, or None outside any."""
        return self._thread.purpose

    @purpose.setter
    def purpose(self, purpose: Purpose | None) -> None:
        self._thread.purpose = purpose

    def record(
        self,
        op: Op,
        payload_bytes: int,
        wire_bytes: float,
        *,
        world_size: int,
        group: str,
        purpose: Purpose = Purpose.UNKNOWN,
        clock: Clock = HOST_CLOCK,
        dtype: str | None = None,
    ) -> Pending:
        """Record a collective that is about to start. `purpose` applies where no scope states one."""
        activity, purpose = self._thread.activity or self.activity, self.purpose or purpose
        pending = Pending((op, activity, purpose, payload_bytes, wire_bytes, world_size, group), clock, dtype)
        with self._lock:
            self._pending.append(pending)
            self.recent.note(pending, group)
            key = Key(op, activity, purpose)
            total = self.totals.get(key) or self.totals.setdefault(key, Total())
            total.count += 1
            total.payload_bytes += payload_bytes
            total.wire_bytes += wire_bytes
            num_pending = len(self._pending)
        # a stream that is being captured into a graph must not be waited for
        if self._close_every is not None and num_pending >= self._close_every and clock is not UNTIMED:
            self._close_older(num_pending // 2)
        return pending

    def _close_older(self, count: int) -> None:
        if not self._closing.acquire(blocking=False):
            return
        try:
            self._close(count, None, None)
        except Exception as error:  # of a sink, which the program that is in the middle of a collective does not know
            if not self._sink_failed:
                _log.warning("dtrain: a sink of the ledger failed: %s: %s", type(error).__name__, error)
            self._sink_failed = True
        finally:
            self._closing.release()

    def withdraw(self, pending: Pending) -> None:
        """Take back what was recorded of a collective that its backend refused, unless it is closed already."""
        op, activity, purpose, payload_bytes, wire_bytes, _, group = pending.fields
        with self._lock:
            self.recent.forget(pending, group)
            if pending not in self._pending:
                return
            self._pending.remove(pending)
            key = Key(op, activity, purpose)
            total = self.totals[key]
            total.count -= 1
            total.payload_bytes -= payload_bytes
            total.wire_bytes -= wire_bytes
            if not total.count:
                del self.totals[key]

    def note_uncounted(self, op: Op, fault: str) -> None:
        """A call of this operation is in no total, for this reason; the first of each operation is logged."""
        with self._lock:
            is_first = op not in self.uncounted
            self.uncounted[op] = self.uncounted.get(op, 0) + 1
        if is_first:
            _log.warning(
                "dtrain: a call of %s was not counted, and figures are incomplete: %s", op, " ".join(fault.split())
            )

    def close(self, step: int | None = None, times: Times | None = None) -> StepRecord:
        """Close what was recorded since the last closing into one immutable record, and hand it to every sink."""
        with self._closing:
            return self._close(None, step, times)

    def _close(self, count: int | None, step: int | None, times: Times | None) -> StepRecord:
        with self._lock:
            pending = self._pending[:count]
            del self._pending[:count]
        record = StepRecord(step, tuple(p.entry() for p in pending), times)
        for sink in self.sinks:
            sink(record)
        return record

    def total(self, *, activity: Activity | None = None, purpose: Purpose | None = None) -> Total:
        """The totals so far, of all operations, in one activity or purpose or in all."""
        result = Total()
        for key, total in self.split().items():
            if activity in (None, key.activity) and purpose in (None, key.purpose):
                result.count += total.count
                result.payload_bytes += total.payload_bytes
                result.wire_bytes += total.wire_bytes
        return result

    def split(self) -> dict[Key, Total]:
        """The totals so far, each as it was at one moment; may be called from any thread."""
        with self._lock:
            return {key: copy(total) for key, total in self.totals.items()}
