"""Who trains together: one process decides, for all workers of a job (docs/adr/0023-survivors-go-on.md).

Workers tell it what happens to them (`comm.membership.tell`); it tells them in which group they are. A group ends when
one of its workers is lost: the others' collectives fail, and they ask for another. Or it ends since workers wait to
come in: all of it agree to, between two steps, and ask.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch._C._distributed_c10d import Store

from dtrain.comm.membership import EVENTS, LATEST, WAITING

OVER, ENDING, _BEAT = "over", "ending", "beat"
SILENT_SECONDS = 2.0
"""How long another host may be silent; then its workers count as lost."""
LATE_SECONDS = 5.0
"""How long a group waits for those of the last one that neither ask for it nor are known to be gone."""
START_SECONDS = 60.0
"""How long the first group, or one of workers that all come anew, waits for as many as there may be."""


@dataclass(frozen=True)
class _Ready:
    host: str
    step: int
    since: float


class Coordinator:
    """Forms groups of at least `minimum` and at most `maximum` workers. `look` is called again and again.

    `say` tells people what changed.
    """

    def __init__(
        self,
        store: Store,
        minimum: int,
        maximum: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._minimum, self._maximum, self._say, self._clock = store, minimum, maximum, say, clock
        self._read, self._generation, self._waiting = 0, 0, 0
        self._missing_since: float | None = None
        self._group: list[str] = []
        self._gone: set[str] = set()
        self._done: set[str] = set()
        self._ready: dict[str, _Ready] = {}
        self._hosts: dict[str, tuple[bytes, float]] = {}  # of each other host the last beat, and when it came
        self.exit_code: int | None = None
        self._lacks = self._lost = self._joined = 0
        store.set(WAITING, "0")
        self._tell([])

    @property
    def is_complete(self) -> bool:
        """Whether the worker that writes results, rank 0 of the last group, has come to its end."""
        return bool(self._group) and self._group[0] in self._done

    @property
    def awaits_results(self) -> bool:
        """Whether that worker, which may be another host's, is still at it when others have come to their end."""
        return bool(self._group) and self._group[0] not in self._done | self._gone

    @property
    def is_ending(self) -> bool:
        """Whether some worker has: none is started any more."""
        return bool(self._done)

    def look(self) -> None:
        """Take in what workers told, and form the next group if it is time."""
        for event in self._events():
            self._take(event)
        for host in self._silent():
            self._say(f"host {host} is silent: its workers count as lost")
            self._lose(host)
        alive = [name for name in self._group if name not in self._gone]
        asking = [name for name in alive if name in self._ready]
        self._note_waiting(0 if asking else min(len(self._ready), self._maximum - len(alive)))
        if self._ready and not self._done and self._is_time(alive, asking):
            self._form()

    def _is_time(self, alive: list[str], asking: list[str]) -> bool:
        now, came = self._clock(), [one.since for one in self._ready.values()]
        if alive and not asking:
            return False  # they train; who is ready waits until they agree to let it in
        if asking and len(asking) < len(alive) and now - min(self._ready[name].since for name in asking) < LATE_SECONDS:
            return False
        if not alive and len(self._ready) < self._maximum and now - min(came) < START_SECONDS:
            return False
        if len(self._ready) < self._minimum:
            self._note_lack(self._minimum - len(self._ready))
            return False
        return True

    def _form(self) -> None:
        before = set(self._group)
        former = {name: rank for rank, name in enumerate(self._group)}  # rank 0 writes results where it did
        key = {name: (-one.step, former.get(name, len(former))) for name, one in self._ready.items()}
        order = sorted(key, key=lambda name: key[name])[: self._maximum]
        lost, came = len(before.difference(order)), len(set(order) - before)
        members = [{"name": name, "host": self._ready[name].host, "step": self._ready[name].step} for name in order]
        self._group, self._generation, self._lacks = order, self._generation + 1, 0
        for name in order:
            del self._ready[name]
        self._note_waiting(0)
        if self._generation > 1:
            self._lost, self._joined = self._lost + lost, self._joined + came
        self._tell(members)
        if self._generation > 1:
            changes = [f"{number} {what}" for number, what in ((lost, "lost"), (came, "came")) if number]
            self._say(f"{len(order)} workers go on from step {members[0]['step']} ({', '.join(changes) or 'the same'})")

    def _take(self, event: dict[str, Any]) -> None:
        name = str(event["name"])
        match event["kind"]:
            case "ready":
                self._ready[name] = _Ready(str(event["host"]), int(event["step"]), self._clock())
            case "gone":
                self._gone.add(name)
                self._ready.pop(name, None)
            case "done":
                self._done.add(name)
            case "host":
                self._hosts[name] = (b"", self._clock())
            case exit_:
                self.exit_code = int(exit_.removeprefix("exit "))  # another host's worker ended the job

    def await_hosts(self, seconds: float = 3.0) -> None:
        """Leave other hosts the time to hear that the job is over."""
        if self._hosts:
            time.sleep(seconds)

    def _silent(self) -> list[str]:
        """The hosts that have not been heard for too long."""
        silent, now = [], self._clock()
        for host, (last, since) in self._hosts.items():
            key = f"{_BEAT}/{host}"
            found = self._store.get(key) if self._store.check([key]) else b""
            if found != last:
                self._hosts[host] = (found, now)
            elif now - since > SILENT_SECONDS:
                silent.append(host)
        return silent

    def _lose(self, host: str) -> None:
        """Its supervisor starts others, under another name, once it hears of us again."""
        del self._hosts[host]
        for name in {*self._group, *self._ready}:
            if name.startswith(f"{host}."):
                self._gone.add(name)
                self._ready.pop(name, None)

    def _events(self) -> Iterator[dict[str, Any]]:
        while self._read < self._store.add(EVENTS, 0):
            key = f"{EVENTS}/{self._read + 1}"
            if self._store.check([key]):
                yield json.loads(self._store.get(key))
                self._store.delete_key(key)
            else:  # who has the number is about to tell, or is lost, and must not keep all others waiting
                if self._missing_since is None:
                    self._missing_since = self._clock()
                if self._clock() - self._missing_since <= SILENT_SECONDS:
                    return
            self._read, self._missing_since = self._read + 1, None

    def _tell(self, members: list[dict[str, Any]]) -> None:
        group = {"generation": self._generation, "members": members, "lost": self._lost, "joined": self._joined}
        self._store.set(LATEST, json.dumps(group))

    def _note_waiting(self, number: int) -> None:
        if number != self._waiting:
            self._waiting = number
            self._store.set(WAITING, str(number))

    def _note_lack(self, number: int) -> None:
        if number != self._lacks:
            self._lacks = number
            self._say(f"waiting for {number} more workers: at least {self._minimum} are to train together")


def beat(store: Store, host: str, number: int) -> None:
    """A host's sign of life: another number each time."""
    store.set(f"{_BEAT}/{host}", str(number))
