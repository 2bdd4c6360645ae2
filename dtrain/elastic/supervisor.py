"""Starts the workers of one host, and starts each again that is lost, beside those that live on.

A worker that ends or is stopped (SIGSTOP) is known at once, by the kernel; one that hangs by the time-out of what it
keeps others waiting in. What is to be told of workers is queued: who tells it may wait for a network that is cut.

Workers are forked from a process that has imported what they need, and does nothing else: one that is started again
is there in a moment, and takes no seconds of the cores that the others train on.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from dtrain.comm.membership import MEMBER

STOPPED_SECONDS = 1.0
"""How long a worker may be stopped; then it is ended, and started again."""
LEAVING_SECONDS = 5.0
"""How long a host that is to leave waits whether the whole job ends, and saves: a scheduler may have told all of it."""
ATTEMPTS = 3
"""How often in a row a worker may fail within a minute of its start; then the job is given up."""
MISTAKE, FAILED, STOPPED = 2, 1, (os.EX_TEMPFAIL, 130)

_PRELOADED = ("dtrain.train.entry", "hydra", "torch._dynamo", "torch.distributed.nn.functional")
"""What a training needs, some of which torch imports at its first step only. None of it starts a thread."""
_BLOCKED = (signal.SIGINT, signal.SIGTERM)

Tell = Callable[[str, str], None]


@dataclass
class _Worker:
    """One place for a worker on this host, and who has it now."""

    number: int
    starts: int = 0
    failures: int = 0
    name: str = ""
    process: ForkServerProcess | None = None
    started: float = 0.0
    stopped_since: float | None = None


@dataclass
class Supervisor:
    """Of the workers of one host, which train with `settings`.

    `address` is the store's; `tell` queues for the coordinator what happened. `is_joined`: the job is another host's,
    and goes on without this one; else it ends with it, and saves.
    """

    settings: Sequence[str]
    count: int
    address: tuple[str, int]
    tell: Tell
    say: Callable[[str], None]
    job: str
    is_joined: bool = False
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{secrets.token_hex(3)}")
    is_ending: bool = False
    exit_code: int | None = None

    def __post_init__(self) -> None:
        self._workers = [_Worker(number) for number in range(self.count)]
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.count)))
        self._forking = multiprocessing.get_context("forkserver")
        self._forking.set_forkserver_preload(list(_PRELOADED))
        self._to_send: list[signal.Signals] = []
        self._leaves_at: float | None = None

    def start(self) -> None:
        """Start all workers."""
        _begin_forking()
        for worker in self._workers:
            self._start(worker)

    @property
    def num_running(self) -> int:
        """Workers that have not ended."""
        return sum(worker.process is not None for worker in self._workers)

    def look(self) -> None:
        """Take in what happened to workers, start those again that were lost, and send what is to be sent."""
        while self._to_send:
            self._signal(self._to_send.pop(0))
        if self._leaves_at is not None and time.monotonic() >= self._leaves_at:
            self._signal(signal.SIGKILL)
        for worker in self._workers:
            if worker.process is None:
                continue
            code = worker.process.exitcode
            if code is not None:
                worker.process = None
                self._ended(worker, code)
            else:
                self._end_if_stopped(worker, worker.process)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all workers, at the next look; none is started again. A handler of signals may call it."""
        self.is_ending = True
        self._to_send.append(number)

    def stop(self, number: signal.Signals) -> None:
        """This host got a signal. A handler of signals may call it."""
        if not self.is_joined:
            self.send(number)
            return
        wait = LEAVING_SECONDS if self._leaves_at is None else 0.0  # the second one waits for nobody
        self.is_ending, self._leaves_at = True, time.monotonic() + wait

    def stay(self) -> None:
        """The whole job ends, and saves: a host that was to leave waits for that. Until the next signal."""
        if self._leaves_at is not None and self._leaves_at > time.monotonic():
            self._leaves_at = math.inf

    def end_all(self) -> None:
        """End all workers now."""
        self.is_ending = True
        self._signal(signal.SIGKILL)
        for worker in self._workers:
            if worker.process is not None:
                worker.process.join()
                worker.process = None

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.process.pid is not None and worker.process.exitcode is None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, number)

    def _start(self, worker: _Worker) -> None:
        worker.starts += 1
        worker.name = f"{self.name}.{worker.number}.{worker.starts}"
        worker.started, worker.stopped_since = time.monotonic(), None
        environ = {
            MEMBER: worker.name,
            "MASTER_ADDR": self.address[0],
            "MASTER_PORT": str(self.address[1]),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": self.job,
            "RANK": str(worker.number),  # until it is in a group: the first speaks of a mistake
            "WORLD_SIZE": str(self.count),
            "LOCAL_RANK": str(worker.number),
            "LOCAL_WORLD_SIZE": str(self.count),
        }
        worker.process = self._forking.Process(target=_train, args=(environ, tuple(self.settings), self.is_joined))
        worker.process.start()

    def _ended(self, worker: _Worker, code: int) -> None:
        who = f"worker {worker.number} on host {socket.gethostname()}"
        if code == 0:
            self.tell("done", worker.name)
            return
        self.tell("gone", worker.name)
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

    def _end_if_stopped(self, worker: _Worker, process: ForkServerProcess) -> None:
        if _state(process.pid) != "T":
            worker.stopped_since = None
            return
        worker.stopped_since = worker.stopped_since or time.monotonic()
        if time.monotonic() - worker.stopped_since > STOPPED_SECONDS:
            self.say(f"worker {worker.number} on host {socket.gethostname()} has been stopped: ending it")
            process.kill()


def _begin_forking() -> None:
    """Start the process that forks, which no signal to this one's group is to end: its workers would be unknown."""
    resource_tracker.ensure_running()  # which would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _train(environ: Mapping[str, str], settings: Sequence[str], is_joined: bool) -> None:
    """In the forked process: be `python -m dtrain.train`, in a process group of its own, out of Ctrl-C's reach."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
    os.setpgid(0, 0)
    ending = signal.SIGKILL if is_joined else signal.SIGTERM
    threading.Thread(target=_end_with_supervisor, args=(ending,), name="dtrain-supervisor", daemon=True).start()
    os.environ.update(environ)
    sys.argv[1:] = settings
    from dtrain.train.__main__ import run

    run()


def _end_with_supervisor(number: signal.Signals) -> None:
    """The process that forked this one lives as long as this one does: it tells nobody that the supervisor is gone.

    SIGTERM has all workers of the job save and end, so it is not for a host without whom the others go on.
    """
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), number)


def _state(pid: int | None) -> str:
    """A process's state as the kernel gives it in a letter; T is stopped (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
