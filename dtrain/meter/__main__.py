"""`python -m dtrain.meter [--json PATH] SCRIPT ARGS`: run any program, and then report what it sent.

torchrun --nproc-per-node=4 -m dtrain.meter train.py --epochs 3
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from torch._C._distributed_c10d import Store

from dtrain.files import write_whole
from dtrain.meter import c10d, script
from dtrain.meter.job_traffic import JobTraffic, gather, own_figures, read_figures
from dtrain.meter.ledger import CLOSE_EVERY, Ledger
from dtrain.meter.nic import Counters, read_counters
from dtrain.meter.roll_call import RollCall, job_store
from dtrain.meter.tally import Tally

MISTAKE = 2
GATHER_SECONDS = 30.0
"""How long rank 0 waits at its end for the figures of the others."""
FAILED_GATHER_SECONDS = 3.0
"""The same after an exception: others may have died."""


class _Meter:
    """This rank's figures, from now until `finish`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._command = arguments.command
        self._json: Path | None = arguments.json
        self._interface: str | None = arguments.nic
        self._rank, self._world_size = 0, 1
        self._store = self._meet()
        if self._json is not None and self._rank == 0:
            write_whole(self._json, "")  # a path that cannot be written to is a mistake now, and not in a week
        self._ledger = Ledger(close_every=CLOSE_EVERY)
        self._tally = Tally(self._ledger)
        self._ledger.sinks.append(self._tally)
        c10d.install(self._ledger)
        self._roll_call: RollCall | None = None
        if self._store is not None:
            self._roll_call = RollCall(self._store, self._rank, self._world_size, c10d.is_idle)
        self._process = os.getpid()
        self._nic = self._counters()
        self._start = time.perf_counter()
        self.error: BaseException | None = None

    def _meet(self) -> Store | None:
        """The job's store; None where there is none, or it does not answer: the program may do without."""
        try:
            store = job_store(os.environ)
        except RuntimeError as error:
            _say(f"this rank reports for itself alone: {' '.join(str(error).split())[:200]}")
            if os.environ["RANK"] != "0":
                self._json = None  # that of rank 0
            return None
        if store is not None:
            self._rank, self._world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return store

    def _counters(self) -> Counters | None:
        return None if self._interface is None else read_counters()[self._interface]

    def finish(self) -> None:
        """Show what was sent; called when the interpreter exits, after whatever the program itself does then."""
        if os.getpid() != self._process:  # a child that the program forked
            return
        try:
            self._finish()
        except Exception as error:  # at exit nobody is there to catch it
            _say(f"no figures of rank {self._rank}: {' '.join(str(error).split())}")

    def _finish(self) -> None:
        seconds = time.perf_counter() - self._start
        self._ledger.close()
        before, now = self._nic, self._counters()
        nic = Counters(*(b - a for a, b in zip(before, now, strict=True))) if before and now else None
        own = own_figures(self._rank, socket.gethostname(), seconds, self._tally, nic)
        self._name_the_missing()
        if self._store is not None:
            self._store.set(f"figures/{self._rank}", own)
        if self._rank == 0:
            ranks = [read_figures(own)]
            if self._store is not None:
                limit = GATHER_SECONDS if self.error is None else FAILED_GATHER_SECONDS
                ranks = gather(self._store, self._world_size, limit)
            self._show(JobTraffic(self._command, self._world_size, ranks, self._interface))
        if self._roll_call is not None:
            self._roll_call.leave()

    def _name_the_missing(self) -> None:
        if self._roll_call is not None and isinstance(self.error, Exception):
            missing = self._roll_call.call()
            if missing and self._roll_call.is_first_of_host():
                _say(f"{missing} (roll call by rank {self._rank} on host {self._roll_call.host})")

    def _show(self, traffic: JobTraffic) -> None:
        if self._json is not None:
            write_whole(self._json, json.dumps(traffic.as_json(), indent=2) + "\n")
        console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
        console.print(traffic.tables())


def _say(text: str) -> None:
    print(f"dtrain: {text}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dtrain.meter",
        usage="%(prog)s [--json PATH] [--nic INTERFACE] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        description="Run a torch.distributed program as it is, under any launcher that sets RANK, WORLD_SIZE, "
        "MASTER_ADDR and MASTER_PORT, and report on standard error what it sent.",
        epilog="The exit code is the program's; 2 for a mistake in this command.",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures of all ranks as JSON (rank 0)")
    parser.add_argument("--nic", metavar="INTERFACE", help="show what the kernel counted on this interface, too")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as python -m does")
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="a Python file, and its arguments")
    parsed = parser.parse_args(arguments)
    parsed.command = parsed.module or parsed.script
    if not parsed.command:
        parser.error("a script is missing, or -m and a module")
    return parsed


def main() -> int:
    """Run the program. Returns 2 for a mistake; otherwise the program ends the process as it would alone."""
    arguments = _parse(sys.argv[1:])
    try:
        if not dist.is_available():
            raise ValueError("this torch was built without torch.distributed: there is nothing to meter")
        if arguments.nic is not None and arguments.nic not in read_counters():
            raise ValueError(f"--nic {arguments.nic} does not exist here: choose one of {', '.join(read_counters())}")
        find = script.find_module if arguments.module else script.find_script
        program = find(arguments.command[0], arguments.command[1:])
        meter = _Meter(arguments)
    except (ValueError, OSError) as error:
        print(f"dtrain: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return MISTAKE
    atexit.register(meter.finish)  # first, and so called last
    try:
        script.run(program)
    except BaseException as error:
        meter.error = error
        raise
    return 0


if __name__ == "__main__":
    code = main()
    if code:
        sys.exit(code)
