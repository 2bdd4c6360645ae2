"""The meter of one rank of somebody's program: what it counts, and when it says so."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch._C._distributed_c10d import Store
from torch.optim import Optimizer

from dtrain.files import write_whole
from dtrain.meter import c10d
from dtrain.meter.job_traffic import JobTraffic, RankFigures, gather, own_figures, read_figures
from dtrain.meter.ledger import CLOSE_EVERY, Ledger
from dtrain.meter.live import LiveReport, SoFar
from dtrain.meter.nic import Counters, read_counters
from dtrain.meter.rendezvous import AddressError
from dtrain.meter.roll_call import RollCall, job_store
from dtrain.meter.sigterm import LastWord
from dtrain.meter.steps import follow_steps
from dtrain.meter.tally import Tally
from dtrain.meter.tracer import Tracer

GATHER_SECONDS = 30.0
"""How long rank 0 waits at its end for the figures of the others."""
FAILED_GATHER_SECONDS = 3.0
"""The same after an exception or SIGTERM: others may have died."""


@dataclass(frozen=True)
class Asked:
    """What is asked of the meter. `every` is in seconds, `steps` after how many it ends."""

    command: Sequence[str]
    json: Path | None = None
    interface: str | None = None
    every: float | None = None
    steps: int | None = None
    trace: Path | None = None


class ProgramMeter:
    """This rank's figures, from now until `finish`. To be made in the main thread, before the program runs.

    `advise` is asked, once the program has ended well, for what to say of its trace.
    Raises OSError where a file that is asked for cannot be written.
    """

    def __init__(self, asked: Asked, advise: Callable[[Path], str]) -> None:
        self._asked, self._advise = asked, advise
        self._rank, self._world_size = 0, 1
        self._writes = True
        self._store = self._meet()
        for path in (asked.json, asked.trace):
            if path is not None and self._writes:
                write_whole(path, "")  # a path that cannot be written to is a mistake now, and not in a week
        self._ledger = Ledger(close_every=CLOSE_EVERY)
        self._tally = Tally(self._ledger)
        self._ledger.sinks.append(self._tally)
        self._tracer: Tracer | None = None
        if asked.trace is not None and asked.steps is not None and self._writes:
            self._tracer = Tracer(asked.steps)
            self._ledger.sinks.append(self._tracer)
        c10d.install(self._ledger, is_shared=True)
        self._roll_call: RollCall | None = None
        if self._store is not None:
            self._roll_call = RollCall(self._store, self._rank, self._world_size, c10d.is_idle)
        self._process = os.getpid()
        self._nic = self._counters()
        self._start = time.perf_counter()
        self._own: str | None = None
        self._own_lock = threading.Lock()
        self._shown = self._is_traced = False
        self._ending: threading.Thread | None = None
        self.error: BaseException | None = None
        self._follow_steps()
        self._live: LiveReport | None = None
        if asked.every is not None:
            self._live = LiveReport(asked.every, self._store, self._rank, self._world_size, self._so_far, say)
        self._last_word = LastWord(lambda collected: self._report(FAILED_GATHER_SECONDS, collected))

    def _meet(self) -> Store | None:
        """The job's store; None where there is none, or it does not answer: the program may do without."""
        try:
            store = job_store(os.environ)
        except (RuntimeError, AddressError) as error:
            say(f"this rank reports for itself alone: {' '.join(str(error).split())[:300]}")
            self._writes = os.environ["RANK"] == "0"
            return None
        if store is not None:
            self._rank, self._world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            self._writes = self._rank == 0
        return store

    def _counters(self) -> Counters | None:
        return None if self._asked.interface is None else read_counters()[self._asked.interface]

    def _follow_steps(self) -> None:
        """Count them where something that is asked for is by the step."""
        self._optimizer_steps = 0
        self._follows = self._asked.every is not None or self._asked.steps is not None
        if self._follows:
            follow_steps(self._on_step, None if self._tracer is None else self._tracer.on_begin)

    @property
    def _steps(self) -> int:
        """Whole ones: from one step of the optimizer to the next."""
        return max(0, self._optimizer_steps - 1)

    def _on_step(self, optimizer: Optimizer) -> None:
        if self._ending is not None:
            return
        self._optimizer_steps += 1
        if self._tracer is not None:
            self._tracer.on_step(optimizer)
        if self._steps == self._asked.steps:
            c10d.stop()
            self._ending = threading.Thread(target=self._end_after_steps, name="dtrain-report", daemon=True)
            self._ending.start()

    def _end_after_steps(self) -> None:
        """Beside the program, which goes on."""
        if self._live is not None:
            self._live.end()
        c10d.await_completions()
        self._report(GATHER_SECONDS)

    def _so_far(self) -> SoFar:
        purposes: dict[str, float] = {}
        collectives, wire_bytes = 0, 0.0
        for key, total in self._ledger.split().items():
            purposes[key.purpose] = purposes.get(key.purpose, 0.0) + total.wire_bytes
            collectives += total.count
            wire_bytes += total.wire_bytes
        return SoFar(time.perf_counter() - self._start, self._steps, collectives, wire_bytes, purposes)

    def finish(self) -> None:
        """Show what was sent; called when the interpreter exits, after whatever the program itself does then."""
        if os.getpid() != self._process:  # a child that the program forked
            return
        if self._live is not None:
            self._live.end()
        try:
            if self._ending is None:
                self._collect()
                if self._asked.steps is not None and self._rank == 0:
                    say(f"the program ended after {self._steps} steps, before {self._asked.steps}")
            self._name_the_missing()
        except Exception as error:  # at exit nobody is there to catch it
            _say_no_figures(self._rank, error)
        if self._ending is None:
            self._report(GATHER_SECONDS if self.error is None else FAILED_GATHER_SECONDS)
        else:
            self._ending.join(GATHER_SECONDS)
        self._last_word.leave()
        if self.error is None:
            self._say_advice()
        if self._roll_call is not None:
            self._roll_call.leave()

    def _say_advice(self) -> None:
        """What the trace tells, where there is one of something that was sent."""
        path = self._asked.trace
        if path is None or not self._is_traced:
            return
        say("measuring what sending less would be worth")
        try:
            say(self._advise(path))
        except Exception as error:  # at exit nobody is there to catch it
            say(f"no advice: {' '.join(str(error).split())}")
        say(f"for other hosts and links: dtrain plan {path} --nodes N --link 1gbit")

    def _collect(self) -> str:
        """This rank's figures as they are when they are first asked for."""
        with self._own_lock:
            if self._own is None:
                seconds = time.perf_counter() - self._start
                self._ledger.close()
                before, now = self._nic, self._counters()
                nic = Counters(*(b - a for a, b in zip(before, now, strict=True))) if before and now else None
                steps = self._steps if self._follows else None
                self._own = own_figures(self._rank, socket.gethostname(), seconds, self._tally, nic, steps)
            return self._own

    def _report(self, gather_seconds: float, collected: Callable[[], None] = lambda: None) -> None:
        """Give rank 0 this rank's figures, and there show and write those of all, once."""
        try:
            own = self._collect()
            collected()
            if self._store is not None:
                self._store.set(f"figures/{self._rank}", own)
            if self._rank == 0:
                ranks = [read_figures(own)]
                if self._store is not None:
                    ranks = gather(self._store, self._world_size, gather_seconds)
                if not self._shown:
                    self._show(ranks)
                    self._shown = True
        except Exception as error:  # on a thread, or at exit: nobody is there to catch it
            _say_no_figures(self._rank, error)

    def _name_the_missing(self) -> None:
        if self._roll_call is not None and isinstance(self.error, Exception):
            missing = self._roll_call.call()
            if missing and self._roll_call.is_first_of_host():
                say(f"{missing} (roll call by rank {self._rank} on host {self._roll_call.host})")

    def _show(self, ranks: Sequence[RankFigures]) -> None:
        traffic = JobTraffic(self._asked.command, self._world_size, ranks, self._asked.interface)
        if self._asked.json is not None and self._writes:
            write_whole(self._asked.json, json.dumps(traffic.as_json(), indent=2) + "\n")
        if self._asked.trace is not None and self._tracer is not None:
            host = socket.gethostname()
            on_host = int(os.environ.get("LOCAL_WORLD_SIZE", sum(figures.host == host for figures in ranks)))
            trace = self._tracer.trace(self._world_size, on_host)
            write_whole(self._asked.trace, json.dumps(trace.as_json()) + "\n")
            say(f"trace of {len(trace.steps)} steps in {self._asked.trace}")
            self._is_traced = any(step.collectives for step in trace.steps)
        console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
        console.print(traffic.tables())


def say(text: str) -> None:
    """To people, on standard error."""
    print(f"dtrain: {text}", file=sys.stderr, flush=True)


def _say_no_figures(rank: int, error: Exception) -> None:
    say(f"no figures of rank {rank}: {' '.join(str(error).split())}")
