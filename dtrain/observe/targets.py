"""Where all ranks of a run are, as Prometheus asks it over HTTP (`http_sd_configs`): any rank says it.

Prometheus keeps the last list where nobody answers any more. So a list outlives a rank that was killed, for the alert
that it is gone; and a run that ends well first says, for as long as Prometheus needs to ask again, that there is none.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

PATH = "/targets"
INTERVAL_HEADER = "X-Prometheus-Refresh-Interval-Seconds"
LONGEST_SECONDS = 10.0
"""A run whose ranks are asked for less often than this does not wait to be asked again."""

NOT_MET = "the ranks have not met yet"
ONLY_HERE = (
    "ranks of several hosts listen on loopback, where nobody else reaches them: start the run with "
    "observe.prometheus.host=0.0.0.0, or the address of each host"
)


class Answer(NamedTuple):
    """Of an HTTP server: `status` and text."""

    status: int
    text: str


class Targets:
    """The list that this rank answers with. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answer = Answer(503, NOT_MET)
        self._asked, self._interval = -math.inf, 0.0

    def show(self, run: str, addresses: Sequence[str]) -> None:
        """The addresses of all ranks, host:port, in their order; "" for one that other hosts do not reach."""
        found = [
            {"targets": [address], "labels": {"run": run, "rank": str(rank)}} for rank, address in enumerate(addresses)
        ]
        with self._lock:
            self._answer = Answer(200, json.dumps(found)) if all(addresses) else Answer(503, ONLY_HERE)

    def answer(self, interval: str | None) -> Answer:
        """To somebody who asks every `interval` seconds, as the header says it; None who says nothing of it."""
        seconds = _seconds(interval)
        with self._lock:
            if seconds is not None:
                self._asked, self._interval = time.monotonic(), seconds
            return self._answer

    def withdraw(self) -> float:
        """There is no rank any more. Returns for how long that has to be said, until all have asked who did so far."""
        with self._lock:
            if self._answer.status != 200:
                return 0.0
            self._answer = Answer(200, "[]")
            late = time.monotonic() - self._asked > 2 * self._interval
            return 0.0 if late or self._interval > LONGEST_SECONDS else self._interval + 1.0


def _seconds(interval: str | None) -> float | None:
    try:
        seconds = float(interval or "")
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
