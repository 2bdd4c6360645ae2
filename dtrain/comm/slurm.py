"""What srun says to each of its tasks: which rank it is, on which hosts the others are, and where they meet.

Only inside a job step: a batch script and what it starts by itself have variables of the same names for the whole job.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress

from dtrain.meter.nic import interface_towards

_FIRST_PORT, _NUM_PORTS = 15000, 15000
"""Below those that the kernel hands out by itself (32768 and up)."""
_SCONTROL_SECONDS = 10.0


def is_task(environ: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of a job step."""
    return "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def read_task(environ: Mapping[str, str]) -> dict[str, str]:
    """This task's place under the names that torchrun gives it. Raises ValueError for variables that make no sense."""
    try:
        tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ["SLURM_STEP_NUM_TASKS"])
        return {
            "RANK": str(int(environ["SLURM_PROCID"])),
            "LOCAL_RANK": str(int(environ["SLURM_LOCALID"])),
            "WORLD_SIZE": str(int(environ["SLURM_STEP_NUM_TASKS"])),
            "LOCAL_WORLD_SIZE": str(_expand_counts(tasks)[int(environ.get("SLURM_NODEID", "0"))]),
        }
    except (KeyError, ValueError, IndexError):
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE")
        values = ", ".join(f"{name}={environ.get(name)}" for name in names)
        raise ValueError(f"srun set variables that make no sense ({values}): start the step again with srun") from None


def rendezvous(environ: Mapping[str, str]) -> dict[str, str]:
    """Everything that ranks of gloo or NCCL need to meet, as environment variables; what is set already stays.

    The store is on the host of task 0, at a port that follows from the job's and the step's number. Ranks of several
    hosts exchange through the interface that leads to the others. Raises ValueError, naming the cure, where a host's
    name leads nowhere.
    """
    place = read_task(environ)
    hosts = list(expand_hosts(environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", ""))))
    if not hosts:
        raise ValueError("SLURM_STEP_NODELIST names no host: start the step with srun, or set MASTER_ADDR")
    found = {"MASTER_ADDR": environ.get("MASTER_ADDR") or _address(hosts[0])}
    found["MASTER_PORT"] = environ.get("MASTER_PORT") or str(_port(environ))
    if len(hosts) > 1 and "GLOO_SOCKET_IFNAME" not in environ:
        is_first = environ.get("SLURM_NODEID", "0") == "0"
        with suppress(OSError):  # gloo then takes the address of this host's name, as it does anywhere
            found["GLOO_SOCKET_IFNAME"] = interface_towards(_address(hosts[1]) if is_first else found["MASTER_ADDR"])
    return {**place, **found}


def _port(environ: Mapping[str, str]) -> int:
    """Another one for each job and each of its steps, since they may run at once."""
    job, step = environ.get("SLURM_JOB_ID", ""), environ["SLURM_STEP_ID"]
    number = 101 * (int(job) if job.isdecimal() else 0) + (int(step) if step.isdecimal() else 0)
    return _FIRST_PORT + number % _NUM_PORTS


def threads_per_task(environ: Mapping[str, str]) -> int:
    """How many of this host's cores each of its tasks has."""
    here = int(read_task(environ)["LOCAL_WORLD_SIZE"])
    own = environ.get("SLURM_CPUS_PER_TASK", "")
    on_host = environ.get("SLURM_CPUS_ON_NODE", "")
    cores = int(on_host) if on_host.isdecimal() else os.cpu_count() or 1
    return int(own) if own.isdecimal() else max(1, cores // here)


def expand_hosts(text: str) -> Iterator[str]:
    """The hosts of a list as Slurm writes it: `login,node[00-02,7]` is login, node00, node01, node02, node7.

    Raises ValueError for a text that is no such list.
    """
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if ",".join(parts) != text:
        raise ValueError(f"Slurm's list of hosts is none: {text}")
    for part in parts:
        yield from _expand_one(part)


def _expand_one(part: str) -> Iterator[str]:
    opened = re.match(r"([^\[\]]*)\[([^\[\]]+)\](.*)", part)
    if opened is None:
        if re.search(r"[\[\]\s]", part):
            raise ValueError(f"Slurm's list of hosts has {part}, which is none")
        yield part
        return
    before, ranges, after = opened.groups()
    for one in ranges.split(","):
        first, dash, last = one.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"Slurm's list of hosts has [{ranges}], which are no numbers")
        for number in range(int(first), int(last or first) + 1):
            for rest in _expand_one(after) if after else ("",):
                yield f"{before}{number:0{len(first)}}{rest}"


def _expand_counts(text: str) -> list[int]:
    """`2(x3),1` is 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(text)
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _address(host: str) -> str:
    """The host as others reach it: by its name, else as Slurm's configuration has it, where names are Slurm's own."""
    if _is_resolved(host):
        return host
    with suppress(OSError, subprocess.SubprocessError):
        if (scontrol := shutil.which("scontrol")) is not None:
            said = subprocess.run(
                [scontrol, "--oneliner", "show", "node", host],
                capture_output=True,
                text=True,
                timeout=_SCONTROL_SECONDS,
            ).stdout
            address = re.search(r"\bNodeAddr=(\S+)", said)
            if address is not None and _is_resolved(address[1]):
                return address[1]
    raise ValueError(
        f"{host}, of Slurm's list of hosts, is not resolved here: add it to DNS or /etc/hosts, or set MASTER_ADDR "
        "to an address of the first host"
    )


def _is_resolved(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True
