"""Run dtrain as its users do: in processes of their own, from another folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fork_server import ForkedProgram, can_fork

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ended(NamedTuple):
    """How a program ended, and what it said."""

    code: int
    stdout: str
    stderr: str

    def expect(self, code: int = 0) -> Ended:
        """Itself; fails with its output unless it ended with `code`."""
        assert self.code == code, f"exit code {self.code}\n{self.stdout[-3000:]}\n{self.stderr[-3000:]}"
        return self

    @property
    def json(self) -> Any:
        """Its standard output as JSON."""
        return json.loads(self.stdout)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, one thread per process, with the dtrain of this repository and of no launcher."""
    environ = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    return {**environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **(extra or {})}


def start(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a program at the head of a process group of its own."""
    env = env or environment()
    kind = ForkedProgram if can_fork(command, env) else subprocess.Popen
    return kind(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float) -> Ended:
    """Wait for its end; after `timeout` seconds it and its children are killed, which is an error."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"not done after {timeout} s\n{stdout[-3000:]}\n{stderr[-3000:]}") from None
    return Ended(process.returncode, stdout, stderr)


def run(command: Sequence[str], cwd: Path, *, timeout: float = 240.0, env: Mapping[str, str] | None = None) -> Ended:
    """Run a program to its end."""
    return finish(start(command, cwd, env), timeout)


def on_ranks(ranks: int, *program: str) -> list[str]:
    """The command line that runs a program (`-m module ...` or a file) on ranks of this host: plain_launcher.py."""
    return [sys.executable, str(REPOSITORY / "tests" / "plain_launcher.py"), str(ranks), *program]


def under_torchrun(ranks: int, *program: str) -> list[str]:
    """The same with torchrun, which takes longer to start: for what is about torchrun."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *program]


def train_command(*settings: str, ranks: int | None = None) -> list[str]:
    """The command line of a training run, of one process or on ranks of this host."""
    program = ["-m", "dtrain.train", *settings]
    return on_ranks(ranks, *program) if ranks else [sys.executable, *program]


def dtrain_command(*arguments: str) -> list[str]:
    """`dtrain ...` as a command line."""
    return [sys.executable, "-m", "dtrain.cli", *arguments]


def read_summary(run_dir: Path) -> dict[str, Any]:
    """A run's summary.json, which must be JSON as the standard has it: no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in summary.json")

    content: dict[str, Any] = json.loads((run_dir / "summary.json").read_text(), parse_constant=refuse)
    return content
