"""A command line and the variables that go with it; of torchrun's agent, on one host of one or several."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

DEFAULT_PORT = 29500
TRAINER = ("-m", "dtrain.train")


@dataclass(frozen=True)
class Command:
    """What is run, with what it has in its environment beside ours."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """For a POSIX shell."""
        return shlex.join([*(f"{name}={value}" for name, value in self.variables.items()), *self.arguments])

    def become(self) -> NoReturn:
        """Run it in the place of this process, so that signals and the exit code are its own.

        Raises ValueError where there is no such program.
        """
        sys.stdout.flush()
        try:
            os.execvpe(self.arguments[0], self.arguments, {**os.environ, **self.variables})
        except OSError as error:
            raise ValueError(f"{self.arguments[0]} cannot be run ({error.strerror}): correct its path") from None


@dataclass(frozen=True)
class Torchrun:
    """An agent of torchrun's, and the ranks of its host.

    ranks: how many on this host.
    nodes, node_rank, master, port: how many hosts, which of them this is, and where they meet. None of them: one host.
    elastic: at least and at most so many hosts, in place of `nodes`; all ranks start again when one comes or goes.
    id: the job's name; a later start under it goes on with what this one leaves (ADR 20).
    restarts: how often all ranks are started again after one failed.
    by_environment: the environment says how hosts meet (PET_*), as in `dtrain cluster run` and Kubeflow's pods.
    """

    ranks: int
    nodes: int = 1
    node_rank: int = 0
    master: str | None = None
    port: int = DEFAULT_PORT
    elastic: tuple[int, int] | None = None
    id: str | None = None
    restarts: int | None = None
    by_environment: bool = False

    def arguments(self, program: Sequence[str]) -> tuple[str, ...]:
        """Those of the agent, and then the program, as `program_of` has it."""
        options = [f"--nproc-per-node={self.ranks}"]
        if self.by_environment:
            pass
        elif self.elastic is not None:
            options += ["--nnodes={}:{}".format(*self.elastic), "--rdzv-backend=c10d"]
            options += [f"--rdzv-endpoint={self.master}:{self.port}"]
        elif self.nodes > 1:
            options += [f"--nnodes={self.nodes}", f"--node-rank={self.node_rank}"]
            options += [f"--master-addr={self.master}", f"--master-port={self.port}"]
        elif self.id is None:
            options += ["--standalone"]
        else:  # what --standalone does, which has no place for a name
            options += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        if self.id is not None:
            options += [f"--rdzv-id={self.id}"]
        if self.restarts is not None:
            options += [f"--max-restarts={self.restarts}"]
        return (*options, *program)

    def command(self, program: Sequence[str], *, threads: int, interface: str | None = None) -> Command:
        """To be run on this host.

        threads: of each rank. interface: the one that carries the exchange; None leaves it to the backend.
        """
        variables = {"OMP_NUM_THREADS": str(threads), **({} if interface is None else on_interface(interface))}
        return Command((sys.executable, "-m", "dtrain.launch.agent", *self.arguments(program)), variables)


def program_of(settings: Sequence[str], command: Sequence[str] | None = None) -> tuple[str, ...]:
    """What every rank runs, as torchrun takes it: our training with these settings, or somebody's own program.

    `command` is `-m MODULE ...`, `SCRIPT.py ...`, or any program with its arguments. Raises ValueError for none.
    """
    if command is None:
        return (*TRAINER, *settings)
    if settings:
        raise ValueError(
            f"{settings[0]} is a setting of dtrain's training: a program's arguments go behind the program"
        )
    if not command or command == ["-m"]:
        raise ValueError("name a program: -- script.py ARGUMENTS, -- -m MODULE ARGUMENTS, or any command")
    if command[0] == "-m" or command[0].endswith(".py"):
        return tuple(command)
    return ("--no-python", *command)


def as_process(program: Sequence[str]) -> tuple[str, ...]:
    """The command line of one rank of it, without torchrun."""
    return tuple(program[1:]) if program[0] == "--no-python" else (sys.executable, *program)


def check_program(program: Sequence[str]) -> None:
    """Raises ValueError for a program that is not on this host."""
    if program[0] == "--no-python" and shutil.which(program[1]) is None:
        raise ValueError(f"{program[1]} is not in PATH: give the program's full path")
    if program[0].endswith(".py") and not Path(program[0]).is_file():
        raise ValueError(f"{program[0]} is no file here: correct its path")


def on_interface(name: str) -> dict[str, str]:
    """The variables by which gloo and NCCL use this interface, and no other."""
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}


def check_interface(name: str) -> None:
    """Raises ValueError for one that this host does not have."""
    from dtrain.meter.nic import read_counters

    if name not in read_counters():
        raise ValueError(f"--interface {name} does not exist here: choose one of {', '.join(read_counters())}")


def threads_per_rank(ranks: int) -> int:
    """What the user set, else this host's cores shared out. Raises ValueError for a setting that is no number."""
    text = os.environ.get("OMP_NUM_THREADS")
    if text is None:
        from dtrain.comm import usable_cores

        return max(1, usable_cores() // ranks)
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"OMP_NUM_THREADS={text} is not a number of threads: correct or unset it")
    return int(text)


def parse_master(text: str) -> tuple[str, int]:
    """HOST or HOST:PORT. Raises ValueError for anything else."""
    match = re.fullmatch(r"([^:\s]+)(?::([1-9]\d{0,4}))?", text)
    if match is None or int(match[2] or 1) >= 2**16:
        raise ValueError(f"--master {text} is not HOST or HOST:PORT")
    return match[1], int(match[2] or DEFAULT_PORT)
