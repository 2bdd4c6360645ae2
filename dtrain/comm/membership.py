"""Which workers train together now, in a job whose workers come and go while others live on.

A coordinator (`dtrain.elastic`) keeps the job's store. A worker tells it that it is ready for a group, and how far its
model has come; the coordinator forms groups, one after the other, of those that are ready. So a worker that loses
another leaves the broken group and asks for the next; one that comes waits until the others ask.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch._C._distributed_c10d import Store

from dtrain.comm.communicator import CollectiveError
from dtrain.comm.launcher import Launch
from dtrain.meter.rendezvous import RendezvousError, join_store

MEMBER = "DTRAIN_MEMBER"
"""The variable with a worker's name, which is another after each start; set by `dtrain elastic`."""
PREFIX, EVENTS, LATEST, WAITING = "members", "events", "latest", "waiting"
NOTHING = -1
"""The step of a worker that has no model yet."""
_POLL_SECONDS = 0.02
_JOIN_SECONDS = 60.0


@dataclass(frozen=True)
class Group:
    """The workers that train together, until one of them is lost or another comes. `rank` is this worker's.

    `steps` says how far each had come, by rank; rank 0 has come as far as any. `lost` and `joined`: workers of the job
    since its first group began.
    """

    generation: int
    rank: int
    steps: tuple[int, ...]
    launch: Launch
    lost: int = 0
    joined: int = 0

    @property
    def name(self) -> str:
        """What tells it from groups before it."""
        return f"group{self.generation}"

    def lacks_state(self, rank: int) -> bool:
        """Whether a rank is to take the model of rank 0, who has come further."""
        return self.steps[rank] < self.steps[0]


class Member:
    """This worker, for its whole life. Raises CollectiveError where the coordinator cannot be reached."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.name = environ[MEMBER]
        alone = {**environ, "RANK": "0", "WORLD_SIZE": "1"}
        try:
            self._store = join_store(alone, _JOIN_SECONDS, PREFIX)
        except RendezvousError as error:
            raise CollectiveError(str(error)) from None
        self._generation = 0

    @property
    def restarts(self) -> int:
        """How often it was started again, by the name that `dtrain elastic` gave it."""
        return int(self.name.rpartition(".")[2]) - 1

    def join(self, step: int) -> Group:
        """The next group that this worker is in; waits for as long as there are too few workers.

        `step`: how far its model has come; NOTHING if it has none.
        """
        try:
            tell(self._store, "ready", name=self.name, host=socket.gethostname(), step=step)
            while (group := self._look()) is None:
                time.sleep(_POLL_SECONDS)
        except RuntimeError as error:
            raise CollectiveError(f"the coordinator is gone ({_first_line(error)})") from None
        self._generation = group.generation
        os.environ |= {"RANK": str(group.rank), "WORLD_SIZE": str(group.launch.world_size)}
        os.environ |= {"LOCAL_RANK": str(group.launch.local_rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(group.launch.local_world_size)}
        return group

    def is_waited_for(self) -> bool:
        """Whether other workers wait for this group to end, to be in the next."""
        try:
            return int(self._store.get(WAITING)) > 0
        except RuntimeError as error:
            raise CollectiveError(f"the coordinator is gone ({_first_line(error)})") from None

    def _look(self) -> Group | None:
        latest = json.loads(self._store.get(LATEST))
        names = [member["name"] for member in latest["members"]]
        if latest["generation"] <= self._generation or self.name not in names:
            return None
        rank, hosts = names.index(self.name), [member["host"] for member in latest["members"]]
        steps = tuple(int(member["step"]) for member in latest["members"])
        lost, joined = int(latest["lost"]), int(latest["joined"])
        return Group(int(latest["generation"]), rank, steps, _launch(rank, hosts), lost, joined)


def tell(store: Store, kind: str, **event: Any) -> None:
    """Tell the coordinator: `ready`, `gone` or `done`, and of whom."""
    number = store.add(EVENTS, 1)
    store.set(f"{EVENTS}/{number}", json.dumps({"kind": kind, **event}))


def _launch(rank: int, hosts: Sequence[str]) -> Launch:
    here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    return Launch("torchrun", rank, here.index(rank), len(hosts), len(here))


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
