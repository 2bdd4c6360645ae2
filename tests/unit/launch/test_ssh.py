"""Hosts that are reached by ssh, with an `ssh` that runs what it is given on this machine, or says what ssh would."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dtrain.launch import ssh
from dtrain.launch.command import Command, Torchrun, program_of
from dtrain.launch.hosts import Host
from dtrain.launch.processes import run_on_all
from dtrain.meter import nic

HOSTS = (Host("node0", 2), Host("node1", 1))
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a shell script in the place of ssh: $host and $command are what it was given."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "ssh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\nhost=${{@: -2:1}} command=${{@: -1}}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


def ask(**options: str | tuple[str, ...] | None) -> list[Command]:
    how = ssh.Ssh(**options)  # type: ignore[arg-type]
    return ssh.commands(how, HOSTS, Torchrun(0, id="mine"), program_of(["run_dir=a b"]), None)


LOCALLY = 'SSH_CONNECTION="10.0.0.9 1 127.0.0.1 22" exec sh -c "$command"'


def test_each_host_gets_an_agent_that_knows_its_place(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(LOCALLY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NCCL_DEBUG", "two words")
    first, second = (command.arguments for command in ask(options=("-p", "2222")))
    assert first[:2] == ("ssh", "-T")
    assert first[-4:-1] == ("-p", "2222", "node0")
    words = shlex.split(second[-1])
    assert words[0] == "env"
    assert "NCCL_DEBUG=two words" in words
    port = words[words.index("--master-addr=127.0.0.1") + 1]
    options = [
        "--folder",
        str(tmp_path),
        "--ranks",
        "1",
        "--peers",
        "127.0.0.1",
        "--",
        "--nproc-per-node=1",
        "--nnodes=2",
    ]
    place = ["--node-rank=1", "--master-addr=127.0.0.1", port, "--rdzv-id=mine", "-m", "dtrain.train", "run_dir=a b"]
    assert words[words.index("dtrain.launch.remote") :] == ["dtrain.launch.remote", "run", *options, *place]
    assert "--node-rank=0" in first[-1]


PROBED = """echo '{"dtrain": "0.1.0", "torch": "'$torch'", "python": "3.11.1", "address": "10.0.0.1", "port": 1}'"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            'echo "ssh: Could not resolve hostname $host: Name or service not known" >&2; exit 255',
            r"node0: ssh: Could not resolve hostname node0.*: correct the name, or add it to DNS",
        ),
        (
            'echo "me@$host: Permission denied (publickey,password)." >&2; exit 255',
            r"without a password: ssh-copy-id node0",
        ),
        ("echo Host key verification failed. >&2; exit 255", r"accept its key once: ssh node0 true"),
        ('echo "ssh: connect to host $host port 22: Connection refused" >&2; exit 255', "that `ssh node0 true` works"),
        ("echo No module named dtrain >&2; exit 1", r"node0: No module named dtrain: install dtrain \S+ there"),
        ("echo env: /x/python: No such file or directory >&2; exit 127", r"--python PATH"),
        ("exit 1", r"node0: nothing \(exit code 1\)"),
        (
            f"torch=2.10; [ $host = node0 ] || torch=2.11; {PROBED}",
            r"node1 has torch 2.11, and node0 has 2.10: install one",
        ),
        (PROBED.replace("0.1.0", "9.9"), r"node0 has dtrain 9.9, and here is 0.1.0"),
        (PROBED.replace("}", ', "fault": "no"}'), "node0: no"),
    ],
)
def test_a_host_that_cannot_take_part_is_named_with_the_cure(install: Install, script: str, said: str) -> None:
    install(script)
    with pytest.raises(ValueError, match=said) as raised:
        ask()
    assert "\n" not in str(raised.value)


def test_a_folder_or_an_interface_that_a_host_does_not_have_is_named(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(LOCALLY)
    with pytest.raises(ValueError, match=r"node0: --interface eth99 has no address there: choose one of lo"):
        ssh.commands(ssh.Ssh(), HOSTS[:1], Torchrun(0), program_of([]), "eth99")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(ssh.Path, "cwd", lambda: tmp_path / "here")
    with pytest.raises(ValueError, match=r"there is no folder .*/here: make it there"):
        ask()


def test_without_ssh_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="-H needs ssh: install openssh-client"):
        ask()


def test_this_host_s_loopback_is_no_address_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nic, "own_address_towards", lambda host: f"own towards {host}")
    assert ssh._reachable(["127.0.1.1", "10.0.0.2"]) == ["own towards 10.0.0.2", "10.0.0.2"]
    assert ssh._reachable(["127.0.0.1", "::1"]) == ["127.0.0.1", "::1"]


def shells(*scripts: str) -> list[Command]:
    return [Command(("bash", "-c", script)) for script in scripts]


def test_output_has_its_host_and_the_first_exit_code_is_ours(capfd: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    # as the agent on a host: it ends by the signal whose name it reads
    code = run_on_all(HOSTS, shells("echo out; echo err >&2; sleep 0.3; exit 7", 'read -r name; echo "told $name"'))
    assert code == 7
    assert time.monotonic() - begun < 10
    said = capfd.readouterr()
    assert said.out == "[node0] out\n[node1] told SIGTERM\n"
    assert said.err == "[node0] err\ndtrain launch: node0 ended with exit code 7, so the other hosts are ended\n"


def test_a_lost_connection_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_on_all(HOSTS, shells("read -r name", "exit 255")) == 1
    assert "node1 is lost, or its ssh ended, so the other hosts are ended" in capfd.readouterr().err


def test_all_done_is_0() -> None:
    assert run_on_all(HOSTS, shells("exit 0", "sleep 0.1")) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_goes_to_every_host(capfd: pytest.CaptureFixture[str], number: signal.Signals, code: int) -> None:
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    assert run_on_all(HOSTS, shells(*['read -r name; echo "told $name"'] * 2)) == code
    assert sorted(capfd.readouterr().out.splitlines()) == [f"[node{n}] told {number.name}" for n in range(2)]


def test_the_second_signal_waits_for_nobody() -> None:
    for seconds in (0.5, 1.0):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    assert run_on_all(HOSTS[:1], shells("while read -r name && [ $name != SIGKILL ]; do :; done")) == 130
    assert time.monotonic() - begun < 5


def test_what_runs_on_a_host_ends_with_its_standard_input(tmp_path: Path) -> None:
    """Whatever became of the other end: nothing is left."""
    remote = [sys.executable, "-m", "dtrain.launch.remote", "run", "--folder", str(tmp_path), "--ranks", "1", "--"]
    program = "trap '' TERM; echo $BASHPID; cat; echo nothing to read; sleep 600"
    agent = ["--standalone", "--nproc-per-node=1", "--no-python", "bash", "-c", program]
    process = subprocess.Popen([*remote, *agent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    rank = int(process.stdout.readline())
    assert process.stdout.readline() == "nothing to read\n"  # not what is meant for the agent
    process.stdin.write("SIGKILL\n")
    process.stdin.close()
    assert process.wait(20) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while Path(f"/proc/{rank}/status").exists() and "Z (zombie)" not in Path(f"/proc/{rank}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.stdout.close()
