"""The launchers of MPI (MPICH or Open MPI) and of Horovod."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dtrain.launch.command import Command, as_process, threads_per_rank
from dtrain.launch.hosts import Host

_SCRIPT = Path(__file__).with_name("mpi_rank.sh")
_VERSION_SECONDS = 20.0
_OPEN_MPI = ("Open MPI", "OpenRTE", "PRRTE")


def mpirun(program: Sequence[str], ranks: int, hosts: Sequence[Host], hostfile: Path | None) -> Command:
    """That many ranks by mpiexec, spread over the hosts of a list or of a file, if any.

    It is $MPIEXEC, else the one beside this interpreter, whose mpi4py takes the MPI of its own environment, else that
    in PATH. Raises ValueError where there is none.
    """
    mpiexec = _find_mpiexec()
    num_hosts = max(1, len(hosts))
    threads = {"OMP_NUM_THREADS": str(threads_per_rank(-(-ranks // num_hosts)))}
    options: list[str] = ["-n", str(ranks)]
    listed = ",".join(f"{host.name}:{host.ranks}" for host in hosts)
    if any(name in _version(mpiexec) for name in _OPEN_MPI):
        options += ["--bind-to", "none"]  # a rank has several threads, which must not share a core
        options += ["--allow-run-as-root"] if os.getuid() == 0 else []
        if hostfile is not None:
            options += ["--hostfile", str(hostfile)]
        elif hosts:
            options += ["--host", listed]
        options += ["-x", "OMP_NUM_THREADS"] if hosts else ["--oversubscribe"]
    elif hostfile is not None:
        options += ["-f", str(hostfile)]
    elif hosts:
        options += ["-hosts", listed]
    return Command((mpiexec, *options, "bash", str(_SCRIPT), *as_process(program)), threads)


def horovodrun(program: Sequence[str], ranks: int, hosts: Sequence[Host], interface: str | None) -> Command:
    """That many ranks by Horovod's launcher over gloo. Raises ValueError where Horovod is not installed."""
    if find_spec("horovod") is None:
        raise ValueError(f"{sys.executable} has no Horovod: run make horovod")
    options = ["--gloo", "-np", str(ranks)]
    options += ["--hosts", ",".join(f"{host.name}:{host.ranks}" for host in hosts)] if hosts else []
    interface = interface or (None if hosts else "lo")
    options += ["--network-interfaces", interface] if interface else []
    return Command((sys.executable, "-m", "dtrain.launch.horovodrun", *options, *as_process(program)))


def _find_mpiexec() -> str:
    wanted = os.environ.get("MPIEXEC")
    beside = Path(sys.executable).with_name("mpiexec")
    found = wanted or (str(beside) if os.access(beside, os.X_OK) else "mpiexec")
    path = shutil.which(found)
    if path is None:
        cure = "correct $MPIEXEC" if wanted else "pip install 'dtrain[mpi]'"
        raise ValueError(f"no {found}: {cure}")
    return path


def _version(mpiexec: str) -> str:
    said = subprocess.run(
        [mpiexec, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_VERSION_SECONDS
    )
    return said.stdout + said.stderr
