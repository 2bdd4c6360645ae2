"""Starts the workers of one host, and starts each again that is lost, beside those that live on.

The first supervisor of a job keeps its store and the coordinator; those of other hosts join it there. A worker that is
stopped (SIGSTOP) or ends is known at once, by the kernel; a host that is cut off by its supervisor's silence.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from dtrain.comm.membership import MEMBER, PREFIX, tell
from dtrain.elastic.coordinator import Coordinator

STOPPED_SECONDS = 2.0
"""How long a worker may be stopped; then it is ended, and started again."""
SILENT_SECONDS = 5.0
"""How long a host's supervisor may be silent; then its workers count as lost, and it ends them."""
ENDING_SECONDS = 60.0
"""How long workers have to end after SIGTERM, and to save, or after others came to the end."""
ATTEMPTS = 3
"""How often in a row a worker may fail within a minute of its start; then the job is given up."""
POLL_SECONDS = 0.05
OVER, BEAT = "over", "beat"
MISTAKE, FAILED, STOPPED = 2, 1, (os.EX_TEMPFAIL, 130)


@dataclass
class _Worker:
    """One place for a worker on this host, and who has it now."""

    number: int
    starts: int = 0
    failures: int = 0
    name: str = ""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    stopped_since: float | None = None


@dataclass
class Supervisor:
    """Of the workers of one host. `store` is under the prefix of members; `address` where it is."""

    command: Sequence[str]
    count: int
    store: Store
    address: tuple[str, int]
    say: Callable[[str], None]
    job: str
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{secrets.token_hex(3)}")
    is_ending: bool = False
    exit_code: int | None = None

    def __post_init__(self) -> None:
        self._workers = [_Worker(number) for number in range(self.count)]

    def start(self) -> None:
        """Start all workers."""
        for worker in self._workers:
            self._start(worker)

    @property
    def num_running(self) -> int:
        """Workers that have not ended."""
        return sum(worker.process is not None for worker in self._workers)

    def look(self) -> None:
        """Take in what happened to workers, and start those again that were lost."""
        for worker in self._workers:
            if worker.process is None:
                continue
            code = worker.process.poll()
            if code is not None:
                worker.process = None
                self._ended(worker, code)
            else:
                self._end_if_stopped(worker, worker.process)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all workers; none is started again."""
        self.is_ending = True
        for worker in self._workers:
            if worker.process is not None:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)

    def end_all(self) -> None:
        """End all workers now."""
        self.send(signal.SIGKILL)
        for worker in self._workers:
            if worker.process is not None:
                worker.process.wait()
                worker.process = None

    def _start(self, worker: _Worker) -> None:
        worker.starts += 1
        worker.name = f"{self.name}.{worker.number}.{worker.starts}"
        worker.started, worker.stopped_since = time.monotonic(), None
        environ = {
            **os.environ,
            MEMBER: worker.name,
            "MASTER_ADDR": self.address[0],
            "MASTER_PORT": str(self.address[1]),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": self.job,
            "LOCAL_RANK": str(worker.number),
        }
        environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.count)))
        worker.process = subprocess.Popen(list(self.command), env=environ, process_group=0)

    def _ended(self, worker: _Worker, code: int) -> None:
        who = f"worker {worker.number} on host {socket.gethostname()}"
        if code == 0:
            tell(self.store, "done", name=worker.name)
            return
        tell(self.store, "gone", name=worker.name)
        if code == MISTAKE or code in STOPPED:
            self.exit_code = code
        if self.is_ending or self.exit_code is not None:
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        early = time.monotonic() - worker.started < 60.0 and code > 0
        worker.failures = worker.failures + 1 if early else 0
        if worker.failures == ATTEMPTS:
            self.say(f"{who} {how}, {ATTEMPTS} times in a row: giving the job up")
            self.exit_code = FAILED
            return
        self.say(f"{who} {how}: starting it again")
        self._start(worker)

    def _end_if_stopped(self, worker: _Worker, process: subprocess.Popen[bytes]) -> None:
        if _state(process.pid) != "T":
            worker.stopped_since = None
            return
        worker.stopped_since = worker.stopped_since or time.monotonic()
        if time.monotonic() - worker.stopped_since > STOPPED_SECONDS:
            self.say(f"worker {worker.number} on host {socket.gethostname()} has been stopped: ending it")
            process.kill()


def _state(pid: int) -> str:
    """A process's state as the kernel gives it in a letter; T is stopped (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def serve(command: Sequence[str], *, count: int, minimum: int, maximum: int, port: int = 0, host: str = "") -> int:
    """Run a job of `minimum` to `maximum` workers, `count` of them on this host. Returns its exit code.

    `host`: the address at which other hosts reach this one; loopback alone if there is none.
    """
    address = host or "127.0.0.1"
    master = TCPStore(address, port, None, True, timedelta(seconds=60), wait_for_workers=False, multi_tenant=False)
    store = PrefixStore(f"dtrain/{PREFIX}", master)
    say = _say
    supervisor = Supervisor(command, count, store, (address, master.port), say, f"elastic-{secrets.token_hex(8)}")
    coordinator = Coordinator(store, minimum, maximum, say)
    with _forwarding(supervisor):
        supervisor.start()
        ending_since: float | None = None
        while True:
            supervisor.look()
            coordinator.look()
            supervisor.is_ending = supervisor.is_ending or coordinator.is_ending
            if supervisor.is_ending or supervisor.exit_code is not None:
                ending_since = ending_since or time.monotonic()
                if supervisor.exit_code is not None and not supervisor.is_ending:
                    supervisor.send(signal.SIGTERM)
                if supervisor.num_running == 0 or time.monotonic() - ending_since > ENDING_SECONDS:
                    break
            time.sleep(POLL_SECONDS)
        coordinator.look()
        supervisor.end_all()
    if coordinator.is_complete:
        return 0
    return supervisor.exit_code if supervisor.exit_code is not None else FAILED


def _say(line: str) -> None:
    print(f"dtrain: {line}", file=sys.stderr, flush=True)


@contextmanager
def _forwarding(supervisor: Supervisor) -> Any:
    """SIGTERM and Ctrl-C go to the workers, who save and end."""

    def forward(number: int, frame: Any) -> None:
        supervisor.send(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
