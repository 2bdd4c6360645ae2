"""Ctrl-C, and a launcher's SIGTERM: the run ends by itself, and what it leaves is valid and marked incomplete."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import Ended, finish, read_summary, start, train_command, under_torchrun

pytestmark = pytest.mark.timeout(300)

SETTINGS = ("num_steps=100000", "log_every=1", "batch_size=8", "eval_every_epochs=0", "run_dir=run")


def processes_about(path: Path) -> list[str]:
    """The command lines of all processes that name `path` or run in it."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(path) in command or (folder / "cwd").resolve() == path:
                    found.append(command)
            except OSError:  # ended meanwhile
                continue
    return found


def interrupted(
    folder: Path, ranks: int | None, kill: Callable[[int], None], settings: tuple[str, ...] = SETTINGS
) -> Ended:
    """Start training, let it take a few steps, send the signal, and wait for the end."""
    training = under_torchrun(ranks, "-m", "dtrain.train", *settings) if ranks else train_command(*settings)
    process = start(training, folder)
    try:
        ledger, deadline = folder / "run" / "ledger" / "rank0.jsonl", time.monotonic() + 120
        while not (ledger.exists() and ledger.read_text().count('"step": ') >= 8):  # twice a step
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.1)
        kill(process.pid)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return finish(process, 60)


def assert_valid_and_incomplete(folder: Path) -> None:
    summary = read_summary(folder / "run")
    assert summary["complete"] is False
    assert 3 <= summary["num_steps"] < 100000
    assert summary["payload_bytes_per_step"] == 4 * summary["num_parameters"]
    assert (folder / "run" / "model.safetensors").exists()
    deadline = time.monotonic() + 20
    while processes_about(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_about(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_single_process(tmp_path: Path, number: signal.Signals) -> None:
    ended = interrupted(tmp_path, None, lambda pid: os.kill(pid, number)).expect(130)
    assert "stopped after step" in ended.stdout
    assert "marked incomplete" in ended.stdout
    assert ended.stderr == ""
    assert_valid_and_incomplete(tmp_path)


@pytest.mark.parametrize("to_all", [False, True], ids=["torchrun alone", "as a terminal does"])
def test_torchrun(tmp_path: Path, to_all: bool) -> None:
    kill = os.killpg if to_all else os.kill
    ended = interrupted(tmp_path, 2, lambda pid: kill(pid, signal.SIGINT))
    assert ended.code not in (0, None)
    assert "dtrain: error" not in ended.stderr
    assert_valid_and_incomplete(tmp_path)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """Where the first would have to wait for a logging point that is far away."""

    def twice(pid: int) -> None:
        os.kill(pid, signal.SIGINT)
        time.sleep(1.0)
        os.kill(pid, signal.SIGINT)

    settings = tuple("log_every=100000" if s.startswith("log_every") else s for s in SETTINGS)
    ended = interrupted(tmp_path, None, twice, settings).expect(130)
    assert "Traceback" not in ended.stderr
    assert read_summary(tmp_path / "run")["complete"] is False
