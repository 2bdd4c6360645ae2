"""What a rank sent, added up as it goes: a program may run for weeks, so no entry is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

from dtrain.exchange import Op
from dtrain.meter.ledger import MAX_GROUPS, Activity, Entry, Group, Ledger, Purpose, StepRecord
from dtrain.meter.wire import bus_bytes

FURTHER_GROUPS = Group("further groups", ())
"""What is sent in groups beyond the first MAX_GROUPS is told apart no more."""


N = TypeVar("N", int, float)


def checked(number: N) -> N:
    """A count, or seconds, of another rank. Raises ValueError for what is none."""
    if type(number) not in (int, float) or not 0 <= number < 1 << 64:
        raise ValueError(f"{number!r:.40} is no figure")
    return number


class Kind(NamedTuple):
    """What collectives are told apart by. `size` is the power of two at or below the payload of one, 0 for none."""

    op: Op
    activity: Activity
    purpose: Purpose
    group: Group
    size: int


@dataclass(slots=True)
class Sum:
    """Collectives of one kind added up, or of several.

    `timed` counts those whose time is known. `seconds` and `bus_bytes` are of those among them that handed something
    over; their ratio is the bus bandwidth. Times run from the start on a rank to completion, waiting for slower ranks
    included.
    """

    collectives: int = 0
    timed: int = 0
    payload_bytes: int = 0
    wire_bytes: float = 0.0
    bus_bytes: float = 0.0
    seconds: float = 0.0

    def add(self, other: Sum) -> None:
        """Add another sum to this one."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def bus_bytes_per_second(self) -> float | None:
        """busbw as nccl-tests define it; None where nothing was timed."""
        return self.bus_bytes / self.seconds if self.seconds else None


class Tally:
    """A ledger's sink. `under_way_seconds` is how long at least one collective was under way so far."""

    def __init__(self, ledger: Ledger) -> None:
        self.sums: dict[Kind, Sum] = {}
        self.under_way_seconds = 0.0
        self._ledger = ledger
        self._groups: set[Group] = set()
        self._known_until = 0.0
        self._lock = threading.Lock()

    @property
    def uncounted(self) -> dict[Op, int]:
        """How many calls of each operation are in no sum, since counting them failed."""
        return dict(self._ledger.uncounted)

    def __call__(self, record: StepRecord) -> None:
        with self._lock:
            for entry in record.entries:
                self._add(entry)

    def _add(self, entry: Entry) -> None:
        group = self._ledger.groups.get(entry.group) or Group(entry.group, ())
        size = 1 << entry.payload_bytes.bit_length() >> 1
        if group not in self._groups:
            if len(self._groups) < MAX_GROUPS:
                self._groups.add(group)
            else:
                group = FURTHER_GROUPS
        kind = Kind(entry.op, entry.activity, entry.purpose, group, size)
        total = self.sums.setdefault(kind, Sum())
        total.collectives += 1
        total.payload_bytes += entry.payload_bytes
        total.wire_bytes += entry.wire_bytes
        if entry.seconds is None:
            return
        total.timed += 1
        if entry.payload_bytes:
            total.bus_bytes += bus_bytes(entry.op, entry.payload_bytes, entry.world_size)
            total.seconds += entry.seconds
        end = entry.start + entry.seconds  # entries come in the order of their starts
        self.under_way_seconds += max(0.0, end - max(entry.start, self._known_until))
        self._known_until = max(end, self._known_until)

    def as_json(self) -> list[dict[str, Any]]:
        """The sums as plain JSON data, one object per kind."""
        with self._lock:
            return [
                {
                    "op": kind.op,
                    "phase": kind.activity,
                    "purpose": kind.purpose,
                    "group": kind.group.name,
                    "group_ranks": list(kind.group.ranks),
                    "size": kind.size,
                    **asdict(total),
                }
                for kind, total in self.sums.items()
            ]


def from_json(data: Iterable[dict[str, Any]]) -> dict[Kind, Sum]:
    """The sums that `Tally.as_json` gave. Raises ValueError, KeyError or TypeError for anything else."""
    return {
        Kind(
            Op(item["op"]),
            Activity(item["phase"]),
            Purpose(item["purpose"]),
            Group(str(item["group"]), tuple(map(checked, item["group_ranks"]))),
            checked(item["size"]),
        ): Sum(**{field.name: checked(item[field.name]) for field in fields(Sum)})
        for item in data
    }
