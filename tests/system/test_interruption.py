"""Ctrl-C, a launcher's SIGTERM, an agent that is killed, a disk that is full: the run ends by itself, and what it
leaves is valid and marked incomplete; where a machine is taken away, saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import Ended, finish, read_summary, run, start, train_command, under_torchrun

from dtrain.train.checkpoint_folder import newest

pytestmark = pytest.mark.timeout(300)

SETTINGS = ("num_steps=100000", "log_every=1", "batch_size=8", "eval_every_epochs=0", "run_dir=run")
FAR = tuple("log_every=100000" if setting == "log_every=1" else setting for setting in SETTINGS)
"""The next logging point is far away."""


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
    ledger, deadline = folder / "run" / "ledger" / "rank0.jsonl", time.monotonic() + 120
    before = ledger.stat() if ledger.exists() else None  # an earlier sitting's
    process = start(training, folder)
    try:
        while not (
            ledger.exists()
            and (before is None or ledger.stat().st_ino != before.st_ino)
            and ledger.read_text().count('"step": ') >= 8
        ):
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


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def assert_saved(folder: Path, ended: Ended) -> None:
    """By all ranks after the same step, which is said in one line."""
    checkpoint, skipped = newest(folder / "run")
    assert checkpoint is not None
    assert skipped == []
    checkpoint.verify()
    line = f"stopped by SIGTERM after step {checkpoint.manifest.step} and saved in {checkpoint.folder}"
    assert ended.stdout.count(line) == 1
    assert "dtrain: error" not in ended.stderr
    assert_valid_and_incomplete(folder)


def test_a_single_process_saves_at_sigterm_and_the_same_command_goes_on(tmp_path: Path) -> None:
    settings = (*FAR, "resume=latest")
    for sitting in (1, 2):
        ended = interrupted(tmp_path, None, lambda pid: os.kill(pid, signal.SIGTERM), settings).expect(os.EX_TEMPFAIL)
        assert ended.stderr == ""
        assert_saved(tmp_path, ended)
        assert ("going on from" in ended.stdout) == (sitting == 2)
    assert read_summary(tmp_path / "run" / "earlier" / "1")["complete"] is False


@pytest.mark.parametrize("to_all", [False, True], ids=["torchrun alone", "as a scheduler does"])
def test_torchrun_s_ranks_save_at_sigterm(tmp_path: Path, to_all: bool) -> None:
    """A scheduler sends it to ranks too, and the agent sends it on to them: that is no second one."""

    def kill(pid: int) -> None:
        for process in [*(children(pid) if to_all else []), pid]:
            os.kill(process, signal.SIGTERM)

    assert_saved(tmp_path, interrupted(tmp_path, 2, kill, FAR))


def test_ranks_whose_agent_is_killed_save_and_end(tmp_path: Path) -> None:
    assert_saved(tmp_path, interrupted(tmp_path, 2, lambda pid: os.kill(pid, signal.SIGKILL), FAR))


def test_a_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    def twice(pid: int) -> None:
        for _ in range(100):  # more than two, since those that come before the first is heeded are one with it
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.01)

    ended = interrupted(tmp_path, None, twice, tuple(s.replace("batch_size=8", "batch_size=256") for s in FAR))
    assert ended.code in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert ended.stderr == ""


@pytest.mark.parametrize(("kib", "settings"), [(60, ()), (2000, ("save_every=3",))], ids=["ledger", "checkpoint"])
def test_a_disk_that_is_full_is_one_line_and_what_was_saved_is_whole(
    tmp_path: Path, kib: int, settings: tuple[str, ...]
) -> None:
    command = train_command(*SETTINGS, "observe.progress=false", *settings, ranks=2)
    ended = run(["bash", "-c", f'ulimit -f {kib}; exec "$@"', "-", *command], tmp_path).expect(1)
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"dtrain: error: {tmp_path / 'run'}/")
    assert line.endswith(": File too large")
    assert read_summary(tmp_path / "run")["complete"] is False
    for part in (tmp_path / "run" / "ledger").iterdir():
        assert part.read_text() == "" or part.read_text().endswith("}\n")


def test_a_run_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    ended = interrupted(tmp_path, 2, lambda pid: (tmp_path / "run").rename(tmp_path / "elsewhere") and None)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("dtrain: error")]
    assert errors == [f"dtrain: error: {tmp_path / 'run' / 'summary.json'}: No such file or directory"]
    assert "[rank" not in ended.stderr, "a traceback, as torch shows those of ranks"


def test_ctrl_c_in_a_single_process(tmp_path: Path) -> None:
    ended = interrupted(tmp_path, None, lambda pid: os.kill(pid, signal.SIGINT)).expect(130)
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
    def twice(pid: int) -> None:
        os.kill(pid, signal.SIGINT)
        time.sleep(0.02)  # before it can heed the first
        os.kill(pid, signal.SIGINT)

    ended = interrupted(tmp_path, None, twice, FAR).expect(130)
    assert "Traceback" not in ended.stderr
    assert read_summary(tmp_path / "run")["complete"] is False
