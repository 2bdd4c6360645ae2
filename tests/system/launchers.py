"""MPI's launcher and Horovod's, as far as tests of training with them need to tell the two apart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from programs import REPOSITORY, environment, start

ENVIRONMENT = environment({"PYTHON": sys.executable})


@dataclass(frozen=True)
class Launcher:
    """How ranks are started with one, and how it words what becomes of them."""

    backend: str
    script: str
    """In launch/."""
    known_as: str
    """What a run writes down as its launcher."""
    starts: tuple[str, ...]
    """Without the script: the command line before the number of ranks, and then any program."""
    rank_variable: str
    killed: str
    """What is said of rank 1 after SIGKILL, by the script."""
    prefix: str = ""
    """Of a line that rank 0 says; with 1 in the place of 0, of rank 1."""
    failed: str = ""
    """What is said of rank 0 when it ends with exit code 2."""
    options: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return str(REPOSITORY / "launch" / self.script)

    def training(self, *settings: str, ranks: int = 2) -> list[str]:
        """The command line of a training run; ENVIRONMENT goes with it."""
        return [self.path, *self.options, "-n", str(ranks), *settings]

    def program(self, ranks: int, *arguments: str) -> list[str]:
        """The command line that runs a program in Python on ranks, without the script."""
        return [*self.starts, str(ranks), sys.executable, *arguments]

    def ranks_in(self, folder: Path) -> dict[int, int]:
        """The processes of Python that train in this folder, by rank."""
        found = {}
        for process in Path("/proc").iterdir():
            try:
                if (process / "cwd").readlink() != folder or not (process / "comm").read_text().startswith("python"):
                    continue
                environ = dict(part.partition("=")[::2] for part in (process / "environ").read_text().split("\0"))
                if self.rank_variable in environ and "dtrain.train" in (process / "cmdline").read_text():
                    found[int(environ[self.rank_variable])] = int(process.name)
            except OSError:
                continue
        return found

    @contextmanager
    def under_way(self, folder: Path, *settings: str, ranks: int) -> Iterator[subprocess.Popen[str]]:
        """A training run there that has taken its first step; nothing of it is left afterwards."""
        training = self.training(
            "num_steps=100000", "batch_size=8", "log_every=1", "run_dir=run", *settings, ranks=ranks
        )
        process = start(training, folder, ENVIRONMENT)
        try:
            deadline = time.monotonic() + 200
            while not (folder / "run" / "metrics.jsonl").exists() or len(self.ranks_in(folder)) < ranks:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        deadline = time.monotonic() + 10
        while self.ranks_in(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.ranks_in(folder) == {}


MPI = Launcher(
    backend="mpi",
    script="mpirun.sh",
    known_as="mpirun",
    starts=(str(Path(sys.executable).with_name("mpiexec")), "-n"),
    rank_variable="PMI_RANK",
    killed=f"dtrain launch: rank 1 on {socket.gethostname()} was killed by SIGKILL; the job ends",
)
HOROVOD = Launcher(
    backend="horovod",
    script="horovodrun.sh",
    known_as="horovodrun",
    starts=(sys.executable, "-m", "horovod.runner.launch", "--gloo", "--network-interfaces", "lo", "-np"),
    rank_variable="HOROVOD_RANK",
    killed="dtrain launch: rank 1 on localhost was killed by signal 9, so the others were ended",
    prefix="[0]<stderr>:",
    failed="rank 0 on localhost ended with exit code 2",
)
needs_mpi = pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed: pip install 'dtrain[mpi]'")
needs_horovod = pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod")
BOTH = [pytest.param(MPI, id="mpi", marks=needs_mpi), pytest.param(HOROVOD, id="horovod", marks=needs_horovod)]
