"""A job's first host, which keeps the store and decides, and the other hosts, which join it there."""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from dtrain.arguments import on_signals
from dtrain.comm.membership import PREFIX, tell
from dtrain.elastic.coordinator import ENDING, OVER, Coordinator, beat
from dtrain.elastic.supervisor import FAILED, Supervisor
from dtrain.meter.rendezvous import RendezvousError, join_store

SILENT_SECONDS = 2.0
"""How long a host may hear nothing of the first one; then it ends its workers, who have been given up there."""
ENDING_SECONDS = 60.0
"""How long workers have to end after SIGTERM, and to save, or after others came to the end."""
JOIN_SECONDS = 300.0
"""How long a host looks for the first one, at the start or after the network was cut."""
_POLL_SECONDS = 0.05


def serve(settings: Sequence[str], *, count: int, minimum: int, maximum: int, port: int = 0, host: str = "") -> int:
    """Run a job of `minimum` to `maximum` workers, `count` of them on this host. Returns its exit code.

    `settings`: of the training, as for `python -m dtrain.train`. `host`: the address at which other hosts reach this
    one; loopback alone if there is none. Raises ValueError for an address that cannot be had.
    """
    address = host or "127.0.0.1"
    master = _listen(address, port)
    store = PrefixStore(f"dtrain/{PREFIX}", master)
    job = f"elastic-{secrets.token_hex(8)}"
    store.set("job", job)
    coordinator = Coordinator(store, minimum, maximum, _say)
    here = Supervisor(
        settings, count, (address, master.port), lambda kind, name: tell(store, kind, name=name), _say, job
    )
    if host:
        _say(f"other hosts join with --join {host}:{master.port}")
    with _attended(here):
        here.start()
        ending_since: float | None = None
        while True:
            here.look()
            coordinator.look()
            here.is_ending = here.is_ending or coordinator.is_ending
            if coordinator.exit_code is not None and here.exit_code is None:
                here.exit_code = coordinator.exit_code
            if here.is_ending or here.exit_code is not None:
                if ending_since is None:
                    ending_since = time.monotonic()
                    store.set(ENDING, "")
                if here.exit_code is not None and not here.is_ending:
                    here.send(signal.SIGTERM)
                is_over = here.exit_code is not None or not coordinator.awaits_results
                if (here.num_running == 0 and is_over) or time.monotonic() - ending_since > ENDING_SECONDS:
                    break
            time.sleep(_POLL_SECONDS)
    coordinator.look()
    code = 0 if coordinator.is_complete else here.exit_code if here.exit_code is not None else FAILED
    store.set(OVER, str(code))
    coordinator.await_hosts()
    return code


def join(settings: Sequence[str], *, count: int, host: str, port: int) -> int:
    """Run `count` workers of a job whose first host is there. Returns the job's exit code.

    Workers of a host that is cut off are ended, and started again once it hears of the first one. After SIGTERM or
    Ctrl-C this host leaves, and the others go on. Raises ValueError where the first one cannot be reached.
    """
    link = _Link(host, port)
    link.await_first()
    while True:
        here = Supervisor(settings, count, (host, port), link.tell, _say, link.job, is_joined=True)
        link.begin(here.name)
        with _attended(here):
            here.start()
            while link.exit_code is None and not link.is_silent:
                here.look()
                if link.is_ending:
                    here.stay()
                if here.exit_code is not None and not here.is_ending:
                    link.tell(f"exit {here.exit_code}", here.name)
                    here.send(signal.SIGTERM)
                if here.is_ending and here.num_running == 0:
                    break
                time.sleep(_POLL_SECONDS)
            if link.exit_code is not None:
                _await_end(here)
            is_ending = here.is_ending  # by itself, or since it was told to
        if link.exit_code is not None:
            return link.exit_code
        if is_ending:
            link.await_told()
            return here.exit_code if here.exit_code is not None else os.EX_TEMPFAIL
        _say(
            f"nothing was heard of {host}:{port} for {SILENT_SECONDS:g} s: ended the workers here, joining again. "
            "If that host is lost, so is the job: start it there with resume=latest, and it goes on from its last "
            "checkpoint"
        )
        link = _Link(host, port)
        link.await_first()


def _listen(address: str, port: int) -> TCPStore:
    """The job's store, at this address alone: one that torch binds itself is reached at every address of the host."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {address}:{port} ({error.strerror}): choose another --host or --port"
        ) from None
    port = int(listener.getsockname()[1])
    wait = timedelta(seconds=60)
    return TCPStore(address, port, None, True, wait, wait_for_workers=False, master_listen_fd=listener.detach())


def _await_end(here: Supervisor) -> None:
    here.is_ending, deadline = True, time.monotonic() + ENDING_SECONDS
    while here.num_running and time.monotonic() < deadline:
        here.look()
        time.sleep(_POLL_SECONDS)


class _Link(threading.Thread):
    """A host's connection to the first one, in a thread, which may wait for ever where the network is cut."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="dtrain-elastic", daemon=True)
        self._environ = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
        self._environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        self._events: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._name, self._heard = "", time.monotonic()
        self._store: Store | None = None
        self.exit_code: int | None = None
        self.is_ending = False
        """Whether the whole job comes to its end, or was told to."""
        self.job = ""
        self._is_told = threading.Event()

    def await_first(self) -> None:
        """Until the first host answers. Raises ValueError, in time, where it does not."""
        try:
            self._store = join_store(self._environ, JOIN_SECONDS, PREFIX)
            self.job = self._store.get("job").decode()
        except (RendezvousError, RuntimeError) as error:
            raise ValueError(f"{' '.join(str(error).split())}: is `dtrain elastic` running there?") from None

    def begin(self, name: str) -> None:
        """Beat, and tell what is queued, from now on, as the host of this name."""
        self._name, self._heard = name, time.monotonic()
        self.start()

    def tell(self, kind: str, name: str) -> None:
        """Queue an event for the coordinator."""
        self._events.put((kind, name))

    def await_told(self) -> None:
        """Until the coordinator has been told what is queued, if it is heard of."""
        self._is_told.clear()
        self._is_told.wait(SILENT_SECONDS)

    @property
    def is_silent(self) -> bool:
        """Whether nothing was heard for too long."""
        return time.monotonic() - self._heard > SILENT_SECONDS

    def run(self) -> None:
        store, number = self._store, 0
        assert store is not None
        try:
            tell(store, "host", name=self._name)
            while self.exit_code is None:
                is_all = not self._is_told.is_set()  # who waits has queued before
                while not self._events.empty():
                    kind, name = self._events.get()
                    tell(store, kind, name=name)
                if is_all:
                    self._is_told.set()
                number += 1
                self.is_ending = self.is_ending or store.check([ENDING])
                beat(store, self._name, number)
                if store.check([OVER]):
                    self.exit_code = int(store.get(OVER))
                self._heard = time.monotonic()
                time.sleep(0.2)
        except RuntimeError:
            self._heard = float("-inf")


def _say(line: str) -> None:
    print(f"dtrain: {line}", file=sys.stderr, flush=True)


@contextmanager
def _attended(supervisor: Supervisor) -> Iterator[None]:
    """After SIGTERM or Ctrl-C workers save and end, or leave the job; however this ends, none of them is left."""
    with on_signals(supervisor.stop, signal.SIGINT, signal.SIGTERM):
        try:
            yield
        finally:
            supervisor.end_all()
