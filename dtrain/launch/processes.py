"""The commands of several hosts, run and ended together, whatever ends this process.

What runs on a host ends with its standard input (`remote.py`), which closes with this process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from dtrain.arguments import on_signals
from dtrain.launch.command import Command
from dtrain.launch.hosts import Host
from dtrain.launch.remote import GRACE_SECONDS, KILL

FAILED, LOST = 1, 255
_POLL_SECONDS = 0.05
_KILLED_SECONDS = 5.0


def run_on_all(hosts: Sequence[Host], made: Sequence[Command]) -> int:
    """Run each host's command to its end; its output is ours, each line with its host.

    Returns 0, the exit code of the host that failed first, or 130 after SIGINT and 143 after SIGTERM. The other hosts
    are then sent SIGTERM, or the signal that came, and their ranks are killed 40 s later or at the next signal.
    """
    programs: list[_Program] = []
    whole_lines = threading.Lock()
    received: list[signal.Signals] = []
    with on_signals(received.append, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        try:
            programs += [_Program(host, command, whole_lines) for host, command in zip(hosts, made, strict=True)]
            return _watch(programs, received)
        finally:
            for program in programs:
                program.kill()


def _watch(programs: Sequence[_Program], received: list[signal.Signals]) -> int:
    while not received:
        codes = [program.exit_code() for program in programs]
        for program, code in zip(programs, codes, strict=True):
            if code:
                how = "is lost, or its ssh ended" if code == LOST else f"ended with exit code {code}"
                print(f"dtrain launch: {program.host.name} {how}, so the other hosts are ended", file=sys.stderr)
                _end(programs, signal.SIGTERM, received)
                return FAILED if code == LOST else code
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)
    number = received[0]
    _end(programs, number, received)
    return 128 + number


def _end(programs: Sequence[_Program], number: signal.Signals, received: list[signal.Signals]) -> None:
    """Ask for an end, and wait for it until patience runs out: the clock's or the user's."""
    already, deadline = len(received), time.monotonic() + GRACE_SECONDS
    for program in programs:
        program.tell(number.name)
    while time.monotonic() < deadline and len(received) == already:
        if all(program.exit_code() is not None for program in programs):
            return
        time.sleep(_POLL_SECONDS)


class _Program:
    """ssh to one host."""

    def __init__(self, host: Host, command: Command, whole_lines: threading.Lock) -> None:
        self.host, self._whole_lines = host, whole_lines
        self._process = subprocess.Popen(
            command.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the ranks through this process alone
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        streams = ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        self._copying = [threading.Thread(target=self._copy, args=pair, daemon=True) for pair in streams]
        for thread in self._copying:
            thread.start()

    def exit_code(self) -> int | None:
        """None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def tell(self, name: str) -> None:
        """Send the signal of this name to the host's agent."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End whatever still runs there, and wait until its output has been copied."""
        assert self._process.stdin is not None
        self.tell(KILL)
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_KILLED_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._copying:
            thread.join()

    def _copy(self, lines: TextIO, output: TextIO) -> None:
        with suppress(BrokenPipeError), lines:  # nobody reads on: nor do we, and the host sees it
            for line in lines:
                with self._whole_lines:
                    output.write(f"[{self.host.name}] {line.rstrip()}\n")
                    output.flush()
