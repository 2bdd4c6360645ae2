"""A Slurm of several "hosts" on this machine, each a slurmd of its own, that ends with the test."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_min_interval=0
{nodes}
PartitionName=all Nodes=node[0-{last}] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What of Slurm is not installed here."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in DAEMONS if shutil.which(name, path=path) is None]


@contextmanager
def slurm(folder: Path, num_nodes: int) -> Iterator[Mapping[str, str]]:
    """Such a cluster with nodes of one core; yields the variables by which Slurm's commands find it."""
    ports = _free_ports(1 + num_nodes)
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(
        f"NodeName=node{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=500 State=UNKNOWN"
        for index, port in enumerate(ports[1:])
    )
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            host=f"{host}(127.0.0.1)", controller_port=ports[0], folder=folder, nodes=nodes, last=num_nodes - 1
        )
    )
    for name in ("state", *(f"spool/node{index}" for index in range(num_nodes))):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    env = {**os.environ, "SLURM_CONF": str(configuration), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    with ExitStack() as stack:

        def begin(*command: str) -> None:
            log = stack.enter_context((folder / f"{command[0]}.out").open("a"))
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.callback(_end, process)

        files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
        options = ["--foreground", "--force", f"--socket={files['socket']}", f"--key-file={key}"]
        options += [f"--{name}-file={files[name]}" for name in ("pid", "log", "seed")]
        begin("munged", *options)
        _await(lambda: Path(files["socket"]).exists(), folder)
        begin("slurmctld", "-D", "-i")
        for index in range(num_nodes):
            begin("slurmd", "-D", "-N", f"node{index}")
        states = ["sinfo", "--noheader", "--format=%T %D"]
        _await(lambda: _said(states, env) == f"idle {num_nodes}", folder)
        try:
            yield {"SLURM_CONF": env["SLURM_CONF"]}
        finally:  # what daemons started would outlive them
            _said(["scancel", "--state=PENDING"], env)
            _said(["scancel", "--signal=KILL", "--full", "--state=RUNNING"], env)
            _await(lambda: _said(["squeue", "--noheader"], env) == "", folder)


def _said(command: list[str], env: Mapping[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30).stdout.strip()


def _await(is_there: object, folder: Path) -> None:
    deadline = time.monotonic() + 60
    assert callable(is_there)
    while not is_there():
        logs = {path.name: path.read_text()[-500:] for path in [*folder.glob("*.log"), *folder.glob("*.out")]}
        assert time.monotonic() < deadline, logs
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
