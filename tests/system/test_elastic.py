"""Workers are killed and stopped while a job runs: the others go on without starting again, and they come back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import Popen
from urllib.request import urlopen

import pytest
from programs import dtrain_command, finish, read_summary, run, start

SETTINGS = ("model.name=squeezenet1_1", "compressor=int4", "log_every=5", "eval_every_epochs=0", "run_dir=run")
RUN = Path("run")
PORT = 9487
WATCHED = ("observe.prometheus.enabled=true", f"observe.prometheus.port={PORT}")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sorted(int(child) for task in tasks for child in (task / "children").read_text().split())


def workers(pid: int) -> list[int]:
    """Those of `dtrain elastic`, which are forked by a process of its own."""
    forking = [
        child for child in children(pid) if b"multiprocessing.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return sorted(worker for process in forking for worker in children(process))


def is_running(pid: int) -> bool:
    """Whether it has not ended; nobody may have asked yet how it did (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], process: Popen[str], what: str, seconds: float = 100.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def sittings(run_dir: Path) -> Iterator[Path]:
    """The folders of a run's groups of workers, in their order."""
    yield from sorted((run_dir / "earlier").glob("*"), key=lambda folder: int(folder.name))
    yield run_dir


def steps_of(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "ledger" / "rank0.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["step"] is not None]


def world_sizes(run_dir: Path) -> list[int]:
    return [
        json.loads((folder / "environment.json").read_text())["launch"]["world_size"] for folder in sittings(run_dir)
    ]


def is_training(run_dir: Path, after: int, wanted: tuple[int, ...]) -> bool:
    """Whether a group later than so many has one of these numbers of workers and has made two steps."""
    try:
        sizes = world_sizes(run_dir)
        return len(sizes) > after and sizes[-1] in wanted and len(steps_of(run_dir)) >= 2
    except (OSError, ValueError):  # it is being written
        return False


def told(path: str) -> str:
    """What the first worker of the group serves; "" between two groups."""
    try:
        with urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def are_watched(world_size: int, changes: int) -> bool:
    """Whether that many ranks are where Prometheus finds them, and so many workers were lost and have joined so far."""
    named = [entry["labels"]["rank"] for entry in json.loads(told("/targets") or "[]")]
    counted = re.findall(r"^dtrain_workers_(?:lost|joined)_total\{.*\} (\S+)$", told("/metrics"), re.MULTILINE)
    return named == [str(rank) for rank in range(world_size)] and [float(text) for text in counted] == [changes] * 2


@pytest.mark.alone
def test_others_go_on_without_a_worker_that_is_lost_and_take_it_in_again(tmp_path: Path) -> None:
    command = dtrain_command("elastic", "-n", "3", "--min", "2", "num_epochs=40", *SETTINGS, *WATCHED)
    process, run_dir = start(command, tmp_path), tmp_path / RUN
    try:
        wait_until(partial(is_training, run_dir, 0, (3,)), process, "the first group")
        first = set(workers(process.pid))
        assert len(first) == 3
        killed, stopped = min(first), max(first)
        for changes, (number, lost) in enumerate(((signal.SIGKILL, killed), (signal.SIGSTOP, stopped)), start=1):
            groups = len(world_sizes(run_dir))
            os.kill(lost, number)
            wait_until(partial(is_training, run_dir, groups, (2, 3)), process, "others go on, or all do", 15.0)
            wait_until(partial(is_training, run_dir, groups, (3,)), process, "it is back", 75.0)
            wait_until(partial(are_watched, 3, changes), process, "Prometheus finds those who train now", 15.0)
            first.remove(lost)
            assert first < set(workers(process.pid)), "the others live on"
        os.kill(process.pid, signal.SIGTERM)
        ended = finish(process, 60.0).expect(os.EX_TEMPFAIL)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # and the one that forks: its workers end with it
        raise
    assert [line.partition(" on host")[0] for line in ended.stderr.splitlines() if " on host" in line] == [
        "dtrain: worker 0",
        "dtrain: worker 2",
        "dtrain: worker 2",
    ]
    assert ended.stderr.count("was killed by SIGKILL: starting it again") == 2
    assert ended.stderr.count("has been stopped: ending it") == 1
    assert "Traceback" not in ended.stderr
    made = [step for folder in sittings(run_dir) for step in steps_of(folder)]
    assert made == list(range(len(made))), "every step is made once, with as many samples, so every sample is seen once"
    saved = run(dtrain_command("checkpoint", "list", "run", "--json"), tmp_path).expect().json
    assert [found["step"] for found in saved] == [len(made)]


@pytest.mark.parametrize("how", ["its supervisor is killed", "SIGTERM to all of its group"])
def test_no_worker_outlives_its_supervisor(tmp_path: Path, how: str) -> None:
    process = start(dtrain_command("elastic", "-n", "2", "num_epochs=400", *SETTINGS), tmp_path)
    try:
        wait_until(partial(is_training, tmp_path / RUN, 0, (2,)), process, "the first group")
        left = workers(process.pid)
        if how.startswith("SIGTERM"):
            os.killpg(process.pid, signal.SIGTERM)
            finish(process, 60.0).expect(os.EX_TEMPFAIL)
            assert run(dtrain_command("checkpoint", "list", "run", "--json"), tmp_path).expect().json
        else:
            process.kill()
        deadline = time.monotonic() + 60.0
        while any(map(is_running, left)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_mistake_ends_the_job_at_once_in_one_line(tmp_path: Path) -> None:
    ended = run(dtrain_command("elastic", "-n", "2", "compressor=int4", "sync=streaming"), tmp_path).expect(2)
    assert ended.stderr == "dtrain: error: sync=streaming cannot go on without a worker that is lost: use sync=local\n"


def test_a_job_without_losses_ends_as_one_under_torchrun_does(tmp_path: Path) -> None:
    ended = run(dtrain_command("elastic", "-n", "2", "num_steps=6", *SETTINGS), tmp_path).expect()
    assert ended.stdout.splitlines()[-1] == f"results in {tmp_path / RUN}"
    assert ended.stderr == ""
    summary = read_summary(tmp_path / RUN)
    assert summary["complete"]
    assert summary["num_steps"] == 6
    assert summary["world_size"] == 2


@pytest.mark.alone
def test_a_host_joins_is_lost_joins_again_leaves_and_says_when_the_first_is_lost(tmp_path: Path) -> None:
    run_dir, place = tmp_path / RUN, f"127.0.0.1:{free_port()}"
    address, port = place.split(":")
    settings = ("num_epochs=40", "backend.timeout_seconds=3", *SETTINGS)
    hosts = ("--host", address, "--port", port, "--min", "1", "--max", "2")
    first = start(dtrain_command("elastic", "-n", "1", *hosts, *settings), tmp_path)
    join = dtrain_command("elastic", "-n", "1", "--join", place, *settings)
    second = start(join, tmp_path)
    stopped: list[int] = []
    try:
        wait_until(partial(is_training, run_dir, 0, (2,)), first, "the first group is of both hosts")
        stopped += [second.pid, *workers(second.pid)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wait_until(partial(is_training, run_dir, 1, (1,)), first, "one goes on", 30.0)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait_until(partial(is_training, run_dir, 2, (2,)), first, "the other has joined again", 75.0)
        left = workers(second.pid)
        second.kill()  # and its worker ends with it, by which the job does not end
        second.communicate()
        wait_until(partial(is_training, run_dir, 3, (1,)), first, "one goes on without a host that was killed", 30.0)
        assert not any(map(is_running, left))
        second = start(join, tmp_path)
        wait_until(partial(is_training, run_dir, 4, (2,)), first, "it is there again", 75.0)
        second.terminate()
        finish(second, 30.0).expect(os.EX_TEMPFAIL)
        wait_until(partial(is_training, run_dir, 5, (1,)), first, "one goes on without a host that left", 30.0)
        second = start(join, tmp_path)
        wait_until(partial(is_training, run_dir, 6, (2,)), first, "it is there once more", 75.0)
        first.kill()
        said = finish(first, 30.0).stderr
        wait_until(lambda: not workers(second.pid), second, "it ends its worker", 30.0)
        time.sleep(1.0)  # and says so
    finally:
        for process in (first, second):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and the one that forks: its workers end with it
    assert re.search(r"^dtrain: host \S+ is silent: its workers count as lost$", said, re.MULTILINE)
    lost = (
        f"dtrain: nothing was heard of {place} for 2 s: ended the workers here, joining again. If that host is lost, "
    )
    lost += "so is the job: start it there with resume=latest, and it goes on from its last checkpoint\n"
    assert lost in finish(second, 30.0).stderr
