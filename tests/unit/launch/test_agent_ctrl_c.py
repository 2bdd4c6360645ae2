"""Ctrl-C before there are ranks: torch waits for other hosts in C++, where no handler of Python's runs."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from dtrain.arguments import INTERRUPTED

LOCKED_TWICE = """
import ctypes, os, signal, time
from dtrain.launch import agent
agent._heed_ctrl_c()
if {has_ranks}:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(7))
print("up", flush=True)
while {has_ranks}:
    time.sleep(0.05)
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex), lock(mutex)  # for ever, whatever signals come
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("has_ranks", "expected"),
    [(False, (INTERRUPTED, "dtrain: interrupted\n")), (True, (7, ""))],
)
def test_it_ends_the_agent_at_once_and_later_is_for_the_ranks(has_ranks: bool, expected: tuple[int, str]) -> None:
    program = [sys.executable, "-c", LOCKED_TWICE.format(has_ranks=has_ranks)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, stderr) == expected
