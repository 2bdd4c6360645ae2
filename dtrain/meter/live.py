"""What a job has sent so far, in a line every so often while it runs.

Each rank's thread puts its own figures into the job's store once a second; rank 0's reads those of all. A line is made
of the ledger's totals: nothing is closed and no collective waited for.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch._C._distributed_c10d import Store

from dtrain.files import parse_json
from dtrain.meter.job_traffic import count_of, with_unit
from dtrain.meter.tally import checked

PUBLISH_SECONDS = 1.0
_FIGURES = ("seconds", "steps", "collectives", "wire_bytes")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class SoFar:
    """One rank's figures since its program began, at one moment. `purposes` are wire bytes."""

    seconds: float
    steps: int
    collectives: int
    wire_bytes: float
    purposes: dict[str, float]


def parse_interval(text: str) -> float:
    """Seconds of "30s", "5m", "1h" or "30". Raises ValueError for less than one second, or more than a week."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not 1 <= seconds <= 604_800:
        raise ValueError(f"--every {text}: give a time such as 30s, 5m or 1h, at least 1s")
    return seconds


class LiveReport:
    """Says on rank 0, `every` so many seconds from now on until `end`, what all ranks sent."""

    def __init__(
        self,
        every: float,
        store: Store | None,
        rank: int,
        world_size: int,
        read: Callable[[], SoFar],
        say: Callable[[str], None],
    ) -> None:
        self._every, self._store, self._rank, self._read, self._say = every, store, rank, read, say
        self._ranks = range(world_size if store is not None else 1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dtrain-live", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Say no more."""
        self._over.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        try:
            before: list[SoFar | None] = [None for _ in self._ranks]
            own = self._read()
            due = own.seconds + self._every
            while not self._over.wait(min(PUBLISH_SECONDS, max(0.0, due - own.seconds))):
                own = self._read()
                if self._store is not None:
                    self._store.set(f"so_far/{self._rank}", json.dumps(asdict(own)))
                if own.seconds >= due:
                    due = own.seconds + self._every
                    if self._rank == 0:
                        now = self._gathered(own)
                        self._say(line(before, now))
                        before = now
        except RuntimeError:  # the store is gone, as the job will be
            return

    def _gathered(self, own: SoFar) -> list[SoFar | None]:
        """The newest figures of each rank; None of one that has none yet."""
        found: list[SoFar | None] = [own]
        for rank in self._ranks[1:]:
            assert self._store is not None
            key = f"so_far/{rank}"
            found.append(read_so_far(self._store.get(key)) if self._store.check([key]) else None)
        return found


def read_so_far(text: bytes) -> SoFar | None:
    """What another rank said of itself; None for what is damaged, as for one that said nothing yet."""
    try:
        told = parse_json(text)
        purposes = {str(name): checked(sent) for name, sent in told["purposes"].items()}
        seconds, steps, collectives, wire = (checked(told[name]) for name in _FIGURES)
        return SoFar(seconds, steps, collectives, wire, purposes)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def line(before: Sequence[SoFar | None], now: Sequence[SoFar | None]) -> str:
    """What is said of the figures of all ranks, rank 0's first, and those of the last time."""
    known = [figures for figures in now if figures is not None]
    own, since = known[0], before[0]
    begun = SoFar(0.0, 0, 0, 0.0, {})
    parts = [
        f"{own.seconds:,.0f} s: {count_of(len(now), 'rank')} sent {with_unit(sum(s.wire_bytes for s in known))} in "
        f"{sum(s.collectives for s in known):,} collectives{_purposes(known)}"
    ]
    rates = [
        (figures.wire_bytes - past.wire_bytes) / (figures.seconds - past.seconds)
        for figures, past in zip(now, (past or begun for past in before), strict=True)
        if figures is not None and figures.seconds > past.seconds
    ]
    parts.append(f"{with_unit(sum(rates))}/s of late")
    if own.steps:
        steps = own.steps - (since.steps if since else 0)
        took = own.seconds - (since.seconds if since else 0.0)
        rate = f"{1000 * took / steps:,.0f} ms each of late" if steps else "none of late"
        parts.append(f"{count_of(own.steps, 'step')}, {rate}")
    silent = [
        str(rank)
        for rank, (figures, past) in enumerate(zip(now, before, strict=True))
        if figures is None or (past is not None and figures.seconds <= past.seconds)
    ]
    if silent:
        parts.append(f"silent: rank {', '.join(silent[:8])}{' and others' if len(silent) > 8 else ''}")
    return "; ".join(parts)


def _purposes(known: Sequence[SoFar]) -> str:
    sums: dict[str, float] = {}
    for figures in known:
        for purpose, wire_bytes in figures.purposes.items():
            sums[purpose] = sums.get(purpose, 0.0) + wire_bytes
    total = sum(sums.values())
    if not total:
        return ""
    largest = sorted(sums.items(), key=lambda item: -item[1])[:3]
    return f" ({', '.join(f'{purpose} {wire_bytes / total:.0%}' for purpose, wire_bytes in largest)})"
