"""`dtrain launch -H` over real sshd's, in network namespaces of this machine: it trains, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("pyroute2", reason="pip install 'dtrain[cluster]'")
from programs import finish, read_summary, start

from dtrain.cluster.namespaces import Node, network

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(SSHD is None or shutil.which("ssh-keygen") is None, reason="no sshd: install openssh-server"),
]


class Cluster(NamedTuple):
    """The hosts node0 to node3, and the configuration with which ssh gets from one to the others."""

    nodes: list[Node]
    configuration: Path

    def launch(self, *arguments: str) -> list[str]:
        """`dtrain launch` on node0."""
        options = f"-F {self.configuration}"
        command = [sys.executable, "-m", "dtrain.cli", "launch", "--ssh-options", options, *arguments]
        return [*inside(self.nodes[0]), *command]


def inside(node: Node) -> list[str]:
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{node.namespace}"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    Path("/run/sshd").mkdir(exist_ok=True)
    daemons = []
    with network(4, None) as nodes:
        try:
            for node in nodes:
                with (folder / "known_hosts").open("a") as known:
                    known.write(f"[{node.address}]:2222 {host_key}\n")
                with (folder / "config").open("a") as configuration:
                    configuration.write(f"Host {node.name}\n  HostName {node.address}\n")
                settings = {
                    "Port": 2222,
                    "ListenAddress": node.address,
                    "HostKey": folder / "host_key",
                    "AuthorizedKeysFile": folder / "user_key.pub",
                    "PermitRootLogin": "yes",
                    "StrictModes": "no",
                    "UsePAM": "no",
                    "PidFile": "none",
                }
                options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
                sshd = [*inside(node), str(SSHD), "-D", "-e", "-f", "/dev/null", *options]
                log = (folder / f"{node.name}.log").open("w")
                daemons.append(subprocess.Popen(sshd, stdin=subprocess.DEVNULL, stderr=log))
                log.close()
            with (folder / "config").open("a") as configuration:
                configuration.write(
                    "Host *\n  Port 2222\n  User root\n  IdentitiesOnly yes\n"
                    f"  IdentityFile {folder}/user_key\n  UserKnownHostsFile {folder}/known_hosts\n"
                )
            deadline = time.monotonic() + 20
            while any("listening" not in (folder / f"{node.name}.log").read_text() for node in nodes):
                assert time.monotonic() < deadline, [path.read_text() for path in folder.glob("*.log")]
                time.sleep(0.05)
            yield Cluster(nodes, folder / "config")
        finally:
            for daemon in daemons:
                daemon.terminate()
                daemon.wait()


def test_ranks_of_four_hosts_train_over_the_interface_between_them(tmp_path: Path, cluster: Cluster) -> None:
    before = [node.counters().transmitted_bytes for node in cluster.nodes]
    hosts = ",".join(node.name for node in cluster.nodes)
    settings = ["num_steps=2", "batch_size=8", "run_dir=a run", "observe.progress=false"]
    ended = finish(start(cluster.launch("-H", hosts, *settings), tmp_path), 240).expect(0)
    assert "[node0] results in " in ended.stdout
    summary = read_summary(tmp_path / "a run")
    assert (summary["world_size"], summary["num_steps"], summary["complete"]) == (4, 2, True)
    for node, sent in zip(cluster.nodes, before, strict=True):
        assert node.counters().transmitted_bytes - sent > summary["payload_bytes_per_step"]


def processes_of(word: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in command and int(folder.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_however_it_ends_no_rank_is_left(tmp_path: Path, cluster: Cluster, number: signal.Signals) -> None:
    word = f"rank-{os.getpid()}-{number}"
    program = ["--", "bash", "-c", f"echo up; exec -a {word} sleep 600"]
    # two ranks on one host and one on the other
    process = start(cluster.launch("-H", "node1:2,node2:1", *program), tmp_path)
    assert process.stdout is not None
    up = [process.stdout.readline() for _ in range(3)]
    assert sorted(up) == ["[node1] up\n", "[node1] up\n", "[node2] up\n"]
    os.kill(process.pid, number)
    if number == signal.SIGINT:
        finish(process, 60).expect(130)
    else:
        finish(process, 60)
    deadline = time.monotonic() + 20
    while (left := processes_of(word)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@pytest.mark.parametrize(
    ("pattern", "instead", "cure"),
    [
        (r"Port 2222", "Port 2223", "Connection refused: see that `ssh node1 true` works"),
        (r"/user_key\n", "/host_key\n", "ssh has to get there without a password: ssh-copy-id node1"),
        (r"/known_hosts\n", "/unknown\n", "accept its key once: ssh node1 true"),
    ],
    ids=["nobody listens", "a password is asked for", "an unknown key"],
)
def test_a_host_out_of_reach_is_one_line(
    tmp_path: Path, cluster: Cluster, pattern: str, instead: str, cure: str
) -> None:
    spoilt = tmp_path / "config"
    spoilt.write_text(re.sub(pattern, instead, cluster.configuration.read_text()))
    (line,) = (
        finish(start(cluster._replace(configuration=spoilt).launch("-H", "node1", "seed=1"), tmp_path), 60)
        .expect(2)
        .stderr.splitlines()
    )
    assert line.startswith("dtrain: error: node1: ")
    assert cure in line
