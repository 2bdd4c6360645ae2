"""Ranks on several hosts, by ssh: the hosts are asked what is there, and the commands that start ranks made of it.

Each host runs `dtrain.launch.remote`. There are no terminals and no passwords.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtrain import __version__
from dtrain.launch.command import Command, Torchrun
from dtrain.launch.hosts import Host

_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")
_FORWARDED = ("PYTHONPATH", "OMP_NUM_THREADS", "NCCL_", "GLOO_", "TORCH_", "DTRAIN_")
"""Variables, or how their names begin, that the hosts have as this one has them."""
_PROBE_SECONDS = 60.0
_CURES = {
    "Could not resolve hostname": "correct the name, or add it to DNS, /etc/hosts or ~/.ssh/config",
    "Permission denied": "ssh has to get there without a password: ssh-copy-id {host}",
    "Host key verification failed": "see that it is the host you mean, then accept its key once: ssh {host} true",
    "No module named dtrain": "install dtrain {version} there, from its clone or its wheel, "
    "or name its Python: --python PATH",
    "No such file": "name a Python that all hosts have: --python PATH",
    "not found": "name a Python that all hosts have: --python PATH",
}
"""What ssh or the host says, and the cure."""


@dataclass(frozen=True)
class Ssh:
    """How hosts are reached: further options of ssh's, and the interpreter there."""

    options: tuple[str, ...] = ()
    python: str = sys.executable

    def command(self, host: Host, *arguments: str) -> Command:
        """`dtrain.launch.remote` with these arguments there, by whatever shell the user has there."""
        forwarded = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_FORWARDED)]
        remote = shlex.join(["env", *forwarded, self.python, "-m", "dtrain.launch.remote", *arguments])
        return Command(("ssh", *_OPTIONS, *self.options, host.name, remote))


def commands(
    ssh: Ssh, hosts: Sequence[Host], job: Torchrun, program: Sequence[str], interface: str | None
) -> list[Command]:
    """What starts the ranks, for each host; the hosts are asked for it, and nothing is started yet.

    Raises ValueError, with the host and the cure, where one cannot be reached or does not fit the others.
    """
    if shutil.which("ssh") is None:
        raise ValueError("-H needs ssh: install openssh-client")
    folder = str(Path.cwd())
    with ThreadPoolExecutor(max_workers=len(hosts)) as threads:
        found = list(threads.map(lambda host: _ask(ssh, host, folder, interface), hosts))
    _compare(hosts, found)
    addresses = _reachable([str(answer["address"]) for answer in found])
    made = []
    for node_rank, host in enumerate(hosts):
        agent = replace(
            job, ranks=host.ranks, nodes=len(hosts), node_rank=node_rank, master=addresses[0], port=found[0]["port"]
        )
        others = [address for index, address in enumerate(addresses) if index != node_rank]
        options = ["--folder", folder, "--ranks", str(host.ranks)]
        options += [] if interface is None else ["--interface", interface]
        options += ["--peers", *others[:1]] if others else []
        made.append(ssh.command(host, "run", *options, "--", *agent.arguments(program)))
    return made


def _ask(ssh: Ssh, host: Host, folder: str, interface: str | None) -> dict[str, Any]:
    options = ["--folder", folder, *([] if interface is None else ["--interface", interface])]
    try:
        said = subprocess.run(
            ssh.command(host, "probe", *options).arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{host.name} did not answer for {_PROBE_SECONDS:g} s: see that `ssh {host.name} true` works"
        ) from None
    try:
        found = json.loads(said.stdout.splitlines()[-1])  # a login shell may greet before
        missing = {"dtrain", "python", "address", "port"} - set(found)
    except (ValueError, IndexError, TypeError):
        missing = {"all"}
    if missing:
        text = (said.stderr.strip().splitlines() or [f"nothing (exit code {said.returncode})"])[-1]
        cure = next((cure for part, cure in _CURES.items() if part in text), "see that `ssh {host} true` works")
        raise ValueError(f"{host.name}: {text}: {cure.format(host=host.name, version=__version__)}")
    if "fault" in found:
        raise ValueError(f"{host.name}: {found['fault']}")
    return dict(found)


def _compare(hosts: Sequence[Host], found: Sequence[Mapping[str, Any]]) -> None:
    """Ranks speak to each other as their versions do."""
    for name in ("dtrain", "torch", "python"):
        values = [str(answer[name]) for answer in found]
        if name == "python":  # their last number is for mended faults
            values = [value.rpartition(".")[0] for value in values]
        for host, value in zip(hosts, values, strict=True):
            if value != values[0]:
                raise ValueError(
                    f"{host.name} has {name} {value}, and {hosts[0].name} has {values[0]}: install one on all hosts"
                )
    if found[0]["dtrain"] != __version__:
        raise ValueError(
            f"{hosts[0].name} has dtrain {found[0]['dtrain']}, and here is {__version__}: install the same"
        )


def _reachable(addresses: Sequence[str]) -> list[str]:
    """As the other hosts reach them: this host, asked from itself, answers with its loopback."""

    def is_loopback(address: str) -> bool:
        with suppress(ValueError):
            return ipaddress.ip_address(address).is_loopback
        return False

    others = [address for address in addresses if not is_loopback(address)]
    if not others or len(others) == len(addresses):
        return list(addresses)
    from dtrain.meter.nic import own_address_towards

    here = own_address_towards(others[0])
    return [here if is_loopback(address) else address for address in addresses]
