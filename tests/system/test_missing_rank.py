"""A rank that dies or hangs is named with its host, by torchrun or by the roll call, and nothing stays behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from programs import Ended, dtrain_command, environment, finish, run, start

pytestmark = pytest.mark.alone  # ranks that get no processor look like ranks that hang

METER = ["-m", "dtrain.meter"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TIMEOUT_SECONDS = 10
UNDER_WAY_SECONDS = 6
PROGRAMS = Path(__file__).parent / "programs"
PROGRAM = f"""
import os, signal, sys, time
from datetime import timedelta
import torch, torch.distributed as dist

dist.init_process_group("gloo", timeout=timedelta(seconds={TIMEOUT_SECONDS}))
value = torch.ones(100_000)
for step in range(1_000_000):
    dist.all_reduce(value)
    if step == 20 and str(dist.get_rank()) == sys.argv[1]:
        if sys.argv[2] == "sleep":
            time.sleep(600)
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""
HOST = socket.gethostname()


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def assert_nothing_is_left(folder: Path) -> None:
    def left() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(folder) in (process / "cmdline").read_text():
                    found.append(process.name)
            except OSError:  # ended meanwhile
                continue
        return found

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []


def on_one_host(program: str, folder: Path, *arguments: str) -> Ended:
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=3", *METER, program, *arguments]
    process = start(command, folder)
    if arguments[1] == "SIGSTOP":
        kill_once_alone(program, rank=int(arguments[0]))
    ended = finish(process, 150)
    assert_nothing_is_left(folder)
    return ended


def kill_once_alone(program: str, rank: int) -> None:
    """Kill a rank that is stopped when the two others are gone: torchrun would leave it 30 s to end by itself."""
    others, deadline = [other for other in range(3) if other != rank], time.monotonic() + 120
    while not all(process_of(program, other) for other in others):
        assert time.monotonic() < deadline, "they did not start"
        time.sleep(0.2)
    while any(process_of(program, other) for other in others):
        assert time.monotonic() < deadline, "they did not end"
        time.sleep(0.2)
    left = process_of(program, rank)
    assert left is not None
    os.kill(left, signal.SIGKILL)


def test_torchrun_itself_names_a_rank_of_its_host_that_died(tmp_path: Path, program: str) -> None:
    ended = on_one_host(program, tmp_path, "1", "SIGKILL").expect(1)
    root_cause = ended.stderr.partition("Root Cause")[2]
    assert re.search(r"rank +: 1 ", root_cause), ended.stderr[-3000:]
    assert "Signal 9 (SIGKILL)" in root_cause


def test_a_rank_that_is_stopped_does_not_answer(tmp_path: Path, program: str) -> None:
    ended = on_one_host(program, tmp_path, "1", "SIGSTOP").expect(1)
    assert re.findall(rf"^dtrain: rank 1 on host {HOST} does not answer", ended.stderr, re.MULTILINE)


def test_a_rank_that_does_something_else_is_told_from_those_that_wait(tmp_path: Path, program: str) -> None:
    ended = on_one_host(program, tmp_path, "0", "sleep").expect(1)
    assert re.findall(rf"^dtrain: rank 0 on host {HOST} is alive but in no collective", ended.stderr, re.MULTILINE)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def on_two_hosts(folder: Path, *program: str) -> list[subprocess.Popen[str]]:
    """Two agents of torchrun with a rank each, that think they are on hosts node0 and node1."""
    master = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    agents = []
    for node in range(2):
        agent = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}", *master, *program]
        host = ["unshare", "--uts", "sh", "-c", f'hostname node{node}; exec "$@"', "sh"]
        agents.append(start([*host, *agent], folder, environment({"GLOO_SOCKET_IFNAME": "lo"})))
    return agents


two_hosts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="another host name needs root and unshare (util-linux)"
)


OTHERS = ["pipeline", "subgroups"] if os.environ.get("DTRAIN_FULL") == "1" else []


@two_hosts
@pytest.mark.parametrize("name", ["ddp", "fsdp2", *OTHERS])
def test_a_rank_killed_on_another_host_is_named_here(tmp_path: Path, name: str) -> None:
    program = tmp_path / "program.py"
    shutil.copy(PROGRAMS / f"{name}.py", program)
    here, there = on_two_hosts(tmp_path, *METER, str(program), "1000000")
    killed = once_under_way(there, program, 1)
    os.kill(killed, signal.SIGKILL)
    begun = time.monotonic()
    ended = finish(here, 120)
    assert time.monotonic() - begun < 60
    finish(there, 60).expect(1)
    assert ended.code != 0
    assert re.findall(r"^dtrain: rank 1 on host node1 does not answer .*on host node0\)$", ended.stderr, re.MULTILINE)
    assert_nothing_is_left(tmp_path)


@two_hosts
def test_rank_0_and_the_job_s_store_on_its_host_may_be_gone_too(tmp_path: Path, program: str) -> None:
    away, here = on_two_hosts(tmp_path, *METER, program, "0", "SIGKILL")
    ended = finish(here, 120)
    finish(away, 60).expect(1)
    assert ended.code != 0
    assert re.findall(
        r"^dtrain: .*(rank 0 on host node0 does not answer|on the host of rank 0, does not answer)",
        ended.stderr,
        re.MULTILINE,
    ), ended.stderr[-3000:]
    assert_nothing_is_left(tmp_path)


def rank_of(pid: str) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((v.partition(b"=")[2].decode() for v in variables if v.startswith(b"RANK=")), None)


def process_of(argument: str, rank: int) -> int | None:
    """The rank's process, not torchrun's, that has this argument."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = argument.encode() in (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mine and rank_of(process.name) == str(rank):
            return int(process.name)
    return None


def once_under_way(agent: subprocess.Popen[str], program: Path, rank: int) -> int:
    """The rank's process once it has computed for longer than its imports take."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert agent.poll() is None, agent.communicate()
        process = process_of(str(program), rank)
        if process is not None:
            user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
            if int(user) + int(system) > UNDER_WAY_SECONDS * os.sysconf("SC_CLK_TCK"):
                return process
        time.sleep(0.2)
    raise AssertionError("no progress")


@two_hosts
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_training_names_the_rank_in_one_line(tmp_path: Path, number: signal.Signals) -> None:
    settings = ["num_steps=100000", "log_every=1", "batch_size=4", "eval_every_epochs=0", f"run_dir={tmp_path}/run"]
    settings += ["observe.progress=false", f"backend.timeout_seconds={TIMEOUT_SECONDS}"]
    here, there = on_two_hosts(tmp_path, "-m", "dtrain.train", *settings)
    try:
        ledger, deadline = tmp_path / "run" / "ledger" / "rank0.jsonl", time.monotonic() + 120
        while not (ledger.exists() and ledger.read_text().count('"step": ') >= 5):
            assert here.poll() is None, here.communicate()
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.1)
        training = process_of(f"run_dir={tmp_path}/run", 1)
        assert training is not None
        os.kill(training, number)
        begun = time.monotonic()
        ended = finish(here, 120).expect(1)
        assert time.monotonic() - begun < TIMEOUT_SECONDS + 30
        with suppress(ProcessLookupError):
            os.kill(training, signal.SIGKILL)  # its agent would wait for one that is stopped
        finish(there, 60).expect(1)
    finally:
        for agent in (here, there):
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGTERM)
                finish(agent, 60)
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("dtrain: error: "))
    assert re.match(r"dtrain: error: rank 1 on host node1 does not answer: all_(reduce|gather) failed: ", line)
    assert re.search(r"; rank 0 itself: it started all_\w+ \d+ of [\d,]+ B \(\w+\) \d+ s ago; see dtrain trace ", line)
    assert "rank 1 left no dump, and so died" in run(dtrain_command("trace", "run"), tmp_path).expect(0).stdout
    assert_nothing_is_left(tmp_path)
