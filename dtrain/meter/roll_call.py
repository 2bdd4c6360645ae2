"""Who is missing: ranks answer a roll call through the job's store, so that a failed collective can name who does not.

A collective that fails says at best which connection broke. On one host torchrun sees a dead process and names it;
nobody names a rank that hangs, or one that died on another host. So each rank writes its host into the store when it
starts, and a thread of its own answers when the roll is called. A rank that does not answer is dead, stopped or cut
off; one that answers but is in no collective while others wait in one is named too.

The store is the one of the launcher's rendezvous: torchrun's agent keeps it, or rank 0 without an agent. It carries a
few bytes a second of this, which are no collective and are not counted.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from torch._C._distributed_c10d import Store

from dtrain.meter.rendezvous import RendezvousError, join_store, read_place

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL_SECONDS = 1.0
"""How often a rank looks whether the roll is called."""
ANSWER_SECONDS = 5.0
"""How long the others have to answer."""

ALIVE, IDLE, FAILED, LEFT = "alive", "idle", "failed", "left"


def job_store(environ: Mapping[str, str], timeout_seconds: float = 60.0) -> Store | None:
    """The store of this job's rendezvous, as `join_store` gives it; None for a single process.

    Whoever keeps it, rank 0 without an agent, waits for the others to come. Raises as `join_store` does.
    """
    if any(name not in environ for name in VARIABLES) or int(environ["WORLD_SIZE"]) < 2:
        return None
    store = join_store(environ, timeout_seconds)
    place = read_place(environ)
    store.set(f"came/{place.rank}", "")
    if place.serves:
        await_ranks(store, "came", place.rank, place.world_size, timeout_seconds)
    return store


def await_ranks(store: Store, key: str, rank: int, world_size: int, timeout_seconds: float) -> None:
    """Until every rank has set `key`/rank. Raises RendezvousError naming those that have not in time."""
    try:
        late = await_keys(store, [f"{key}/{other}" for other in range(world_size)], timeout_seconds)
    except RuntimeError:
        raise RendezvousError(f"{_store_is_gone()}: see what rank 0 says") from None
    if late:
        raise _late(rank, [key.partition("/")[2] for key in late], timeout_seconds)


def name_start(store: Store, rank: int, world_size: int, timeout_seconds: float) -> str:
    """A name of this start of the job's ranks, the same on all and like none before.

    An agent keeps one store for as long as it runs, and what ranks wrote into it before they were started again is
    still there: a rank that reads where another could be reached then waits for a process that is gone.
    TORCHELASTIC_RESTART_COUNT tells starts apart on one host only: it differs between agents, and stays as it is
    where workers come or leave. So rank 0 makes up a name, and answers questions that only those ask who start now.

    `store` is the same for all starts. Raises RendezvousError, naming the ranks that did not start in time.
    """
    try:
        if rank == 0:
            return _tell_name(store, range(1, world_size), timeout_seconds)
        question = secrets.token_hex(8)
        store.set(f"question/{rank}", question)
        if await_keys(store, [f"answer/{question}"], timeout_seconds):
            raise _late(rank, ["0"], timeout_seconds)
        name = store.get(f"answer/{question}").decode()
        store.set(f"{name}/heard/{rank}", "")
        return name
    except RendezvousError:
        raise
    except RuntimeError:
        raise RendezvousError(f"{_store_is_gone()}: see what rank 0 says") from None


def _tell_name(store: Store, others: Sequence[int], timeout_seconds: float) -> str:
    name, deadline = secrets.token_hex(8), time.monotonic() + timeout_seconds
    while late := [rank for rank in others if not store.check([f"{name}/heard/{rank}"])]:
        for rank in late:
            if store.check([f"question/{rank}"]):
                store.set(f"answer/{store.get(f'question/{rank}').decode()}", name)
        if time.monotonic() >= deadline:
            raise _late(0, [str(rank) for rank in late], timeout_seconds)
        time.sleep(0.05)
    return name


def _late(rank: int, others: Sequence[str], timeout_seconds: float) -> RendezvousError:
    return RendezvousError(
        f"rank {rank} on host {socket.gethostname()} waited {timeout_seconds:g} s at the job's store ({_address()}) "
        f"for rank {', '.join(others)} to start: look at what it says on its host, or start it"
    )


def await_keys(store: Store, keys: Sequence[str], timeout_seconds: float) -> list[str]:
    """The keys that are not in the store when all are or time is up.

    It looks again and again: `Store.wait` would keep other threads of this process from the store meanwhile.
    """
    deadline = time.monotonic() + timeout_seconds
    missing = list(keys)
    while missing := [key for key in missing if not store.check([key])]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return missing


class RollCall:
    """This rank's part in roll calls, from now until `leave`.

    Args:
        store: shared by all ranks of the job, with keys that nobody else uses.
        is_idle: whether this rank is in no collective now; None if that is not known.
        say_last: what this rank did last, in words; asked, in a thread, when others call the roll.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        is_idle: Callable[[], bool | None] = lambda: None,
        say_last: Callable[[], str] = lambda: "",
    ) -> None:
        self._store, self._rank, self._world_size, self._is_idle = store, rank, world_size, is_idle
        self._say_last = say_last
        self.host = socket.gethostname()
        store.set(f"host/{rank}", self.host)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="dtrain-roll-call", daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        try:
            while not self._over.wait(POLL_SECONDS):
                if self._store.check(["call"]):
                    state = IDLE if self._is_idle() else ALIVE
                    self._store.set(f"answer/{self._rank}", f"{state} {self._say_last()}")
                    return
        except RuntimeError:  # the store is gone, and whoever calls the roll will find out
            return

    def await_all(self, timeout_seconds: float) -> None:
        """Until every rank of the job has begun its part. Raises RendezvousError naming those that have not in time."""
        await_ranks(self._store, "host", self._rank, self._world_size, timeout_seconds)

    def call(self) -> str:
        """Call the roll after a failure of this rank, and say who is missing; "" where nobody is.

        It takes ANSWER_SECONDS if somebody does not answer, and never much longer.
        """
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(self._call()), daemon=True)
        thread.start()
        thread.join(2 * ANSWER_SECONDS)  # a host that is cut off leaves a connection that never ends
        return said[0] if said else _store_is_gone()

    def _call(self) -> str:
        try:
            self._over.set()
            self._thread.join()
            self._store.set(f"answer/{self._rank}", FAILED)
            self._store.set("call", "")
            ranks = range(self._world_size)
            silent = await_keys(self._store, [f"answer/{rank}" for rank in ranks], ANSWER_SECONDS)
            missing = [rank for rank in ranks if f"answer/{rank}" in silent]
            faults = [self._describe(rank, "does not answer") for rank in missing]
            for rank in ranks:
                if rank in missing:
                    continue
                state, _, last = self._store.get(f"answer/{rank}").decode().partition(" ")
                if state == IDLE:
                    faults.append(self._describe(rank, f"is alive but in no collective{last and f' ({last})'}"))
        except RuntimeError:
            return _store_is_gone()
        return "; ".join(faults)

    def _describe(self, rank: int, fault: str) -> str:
        if not self._store.check([f"host/{rank}"]):
            return f"rank {rank} never started"
        return f"rank {rank} on host {self._store.get(f'host/{rank}').decode()} {fault}"

    def is_first_of_host(self) -> bool:
        """Whether no other rank of this host has asked this before: then it speaks for the host."""
        try:
            return bool(self._store.add(f"spoken/{self.host}", 1) == 1)
        except RuntimeError:  # the store is gone, and nobody can ask
            return True

    def leave(self) -> None:
        """End the thread, and tell those who call the roll later that this rank ended on its own account."""
        self._over.set()
        self._thread.join(1.0)
        try:
            if not self._store.check([f"answer/{self._rank}"]):
                self._store.set(f"answer/{self._rank}", LEFT)
        except RuntimeError:  # nobody is there any more to call it
            pass


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _store_is_gone() -> str:
    return f"the job's store at {_address()}, on the host of rank 0, does not answer"
