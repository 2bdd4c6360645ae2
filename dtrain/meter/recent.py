"""The last collectives of a rank, kept in memory and written down when one fails: `dtrain trace` reads them.

Ranks start the same collectives of a group in the same order, so a number for each, counted by group, tells who is
behind, whatever the clocks of hosts say.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.files import write_whole
from dtrain.meter.flight import last_of_torch

if TYPE_CHECKING:
    from dtrain.meter.ledger import Ledger, Pending

_log = logging.getLogger(__name__)

KEPT = 256
"""How many collectives are remembered."""
MAX_GROUPS = 1000
"""Of which numbers are remembered; a program may make new groups for ever."""
SCHEMA = 1


class Recent:
    """Of one ledger, which calls `note` and `forget` in its lock.

    `folder` is where dumps go, None until it is known; `error` how a collective failed here, None while none did.
    """

    def __init__(self) -> None:
        self._last: deque[Pending] = deque(maxlen=KEPT)
        self._numbers: dict[str, int] = {}
        self.folder: Path | None = None
        self.error: str | None = None

    def note(self, pending: Pending, group: str) -> None:
        """A collective is about to start."""
        pending.number = self._numbers.get(group, 0) + 1
        self._numbers[group] = pending.number
        self._last.append(pending)
        if len(self._numbers) > MAX_GROUPS:
            self._numbers.pop(next(iter(self._numbers)))

    def forget(self, pending: Pending, group: str) -> None:
        """Its backend refused it, so that other ranks do not count it either."""
        if self._last and self._last[-1] is pending and self._numbers.get(group) == pending.number:
            self._last.pop()
            self._numbers[group] = pending.number - 1

    def say_last(self) -> str:
        """What this rank did last, in words; "" before the first collective."""
        last = self._last.copy()
        if not last:
            return ""
        one = _as_json(last[-1])
        ago = time.time() - one["started"]
        what = name_collective(one["op"], one["number"], one["payload_bytes"], one["purpose"])
        return f"it started {what} {ago:.0f} s ago" + (", and finished it" if one["ended"] else "")

    def dump(self, ledger: Ledger, rank: int, world_size: int) -> Path | None:
        """Write what is remembered to collectives-rank<N>.json in the folder; its path, None if it is not written.

        Where nothing was metered it is what torch remembers.
        """
        if self.folder is None:
            return None
        path = self.folder / f"collectives-rank{rank}.json"
        last = [_as_json(pending) for pending in self._last.copy()]
        content = {
            "schema": SCHEMA,
            "rank": rank,
            "world_size": world_size,
            "host": socket.gethostname(),
            "time": time.time(),
            "error": self.error,
            "groups": {name: list(group.ranks) for name, group in ledger.groups.items()},
            "collectives": last,
            "flight_recorder": None if last else last_of_torch(KEPT),
        }
        try:
            write_whole(path, json.dumps(content) + "\n")
        except OSError as failed:  # the run fails for another reason already, which is the one to tell
            _log.warning("dtrain: the last collectives of rank %d are not written: %s", rank, failed)
            return None
        return path


def name_collective(op: str, number: int, payload_bytes: int, purpose: str) -> str:
    """As people read it: `all_reduce 41 of 4,096 B (gradient)`."""
    return f"{op} {number} of {payload_bytes:,} B ({purpose})"


def _as_json(pending: Pending) -> dict[str, Any]:
    """`started` is in seconds since 1970, `seconds` None where it has not ended or its end has no time."""
    op, activity, purpose, payload_bytes, _, world_size, group = pending.fields
    has_ended, seconds = pending.end()
    return {
        "group": group,
        "number": pending.number,
        "op": op,
        "phase": activity,
        "purpose": purpose,
        "payload_bytes": payload_bytes,
        "world_size": world_size,
        "started": time.time() - (time.perf_counter() - pending.start),
        "ended": has_ended,
        "seconds": seconds,
    }
