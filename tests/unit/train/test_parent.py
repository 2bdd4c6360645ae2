"""A rank ends with the agent that started it, and with nobody else."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.train import parent

REPOSITORY = Path(__file__).resolve().parents[3]
RANK = (
    "import os, sys, time; from dtrain.train.parent import end_with_agent; end_with_agent(os.environ); "
    "print(os.getpid(), flush=True); time.sleep(60)"
)
AGENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {RANK!r}]).wait()"


def ends_with_its_parent(extra: dict[str, str]) -> bool:
    """Kill the parent of a rank, and see whether it lives on."""
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), **extra}
    agent = subprocess.Popen([sys.executable, "-c", AGENT], env=environ, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    rank = int(agent.stdout.readline())
    agent.kill()
    agent.wait()
    watched = os.pidfd_open(rank)
    try:
        return bool(select.select([watched], [], [], 1.0)[0])
    finally:
        os.close(watched)
        agent.stdout.close()
        if is_alive(rank):
            os.kill(rank, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_under_an_agent_a_rank_ends_with_it() -> None:
    assert ends_with_its_parent({"TORCHELASTIC_RUN_ID": "none"})


def test_started_from_a_shell_it_stays_with_variables_of_its_own() -> None:
    assert not ends_with_its_parent({"RANK": "0", "WORLD_SIZE": "1"})


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    sent = list[int]()
    monkeypatch.setattr(parent.ctypes, "CDLL", lambda name: type("Libc", (), {"prctl": staticmethod(lambda *a: 0)}))
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    yield sent


@pytest.mark.parametrize(
    ("first_process", "ends"),
    [(b"/sbin/init\0", True), (b"python\0-m\0torch.distributed.run\0", False), (b"/opt/bin/torchrun\0", False)],
)
def test_an_agent_that_is_gone_already_is_noticed(
    killed: list[int], monkeypatch: pytest.MonkeyPatch, first_process: bytes, ends: bool
) -> None:
    """Of which process 1 has taken over the ranks, where it is no agent itself, as in a container."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: first_process)
    parent.end_with_agent({"TORCHELASTIC_RUN_ID": "none"})
    assert killed == ([signal.SIGTERM] if ends else [])
