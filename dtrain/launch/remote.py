"""What runs on a host that `dtrain launch` reaches by ssh: it says what is there, then runs the host's ranks.

Nothing is left behind on the host: the ranks live as long as standard input is open, which it is while `dtrain launch`
and the connection are. Signals come that way too, a line each with the signal's name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dtrain import __version__
from dtrain.launch.command import on_interface, threads_per_rank

KILL = "SIGKILL"
GRACE_SECONDS = 40.0
"""From SIGTERM to SIGKILL: torchrun's agent gives its ranks 30 s."""
_MISTAKE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """`probe`, or `run FOLDER ... -- ARGUMENTS` of the agent."""
    parser = argparse.ArgumentParser(prog="dtrain.launch.remote")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("probe", "run"):
        added = verbs.add_parser(verb)
        added.add_argument("--interface")
        added.add_argument("--folder", required=True)
    added.add_argument("--ranks", type=int, required=True)
    added.add_argument("--peers", nargs="*", default=[])
    added.add_argument("agent", nargs="+")
    parsed = parser.parse_args(arguments)
    if parsed.verb == "probe":
        print(json.dumps(_probe(parsed.folder, parsed.interface)))
        return 0
    commands = os.fdopen(os.dup(0), encoding="ascii", errors="replace")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # no rank reads what is meant for this process
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the agent is begun
    threading.Thread(target=_obey, args=(commands,), daemon=True).start()
    try:
        _prepare(parsed)
    except (ValueError, OSError) as error:
        print(f"dtrain launch: {error}", file=sys.stderr)
        return _MISTAKE
    from dtrain.launch.agent import main as run_agent

    return run_agent(parsed.agent)


def _probe(folder: str, interface: str | None) -> dict[str, object]:
    """What `dtrain launch` has to know; under `fault` what is in the way, with the cure."""
    found: dict[str, object] = {"dtrain": __version__, "python": platform.python_version()}
    try:
        found["torch"] = version("torch")
    except PackageNotFoundError:
        found["fault"] = f"{sys.executable} has no torch: install dtrain with pip there"
    if not Path(folder).is_dir():
        found["fault"] = f"there is no folder {folder}: make it there, or start in one that all hosts have"
    # where sshd accepted the connection: "client port server port"
    address = (os.environ.get("SSH_CONNECTION", "").split() or [""])[2:3]
    found["address"] = address[0] if address else ""
    if interface is not None:
        from dtrain.meter.nic import addresses

        found["address"] = addresses().get(interface)
        if found["address"] is None:
            with_address = ", ".join(name for name, address in addresses().items() if address)
            found["fault"] = f"--interface {interface} has no address there: choose one of {with_address}"
    with socket.socket() as probe:
        probe.bind(("", 0))
        found["port"] = probe.getsockname()[1]
    return found


def _prepare(parsed: argparse.Namespace) -> None:
    """The folder, threads for each rank, and the interface that leads to the other hosts."""
    from dtrain.meter.nic import interface_towards

    os.chdir(parsed.folder)
    os.environ["OMP_NUM_THREADS"] = str(threads_per_rank(parsed.ranks))
    if parsed.interface is not None:
        os.environ.update(on_interface(parsed.interface))
    elif parsed.peers and "GLOO_SOCKET_IFNAME" not in os.environ:
        os.environ.update(on_interface(interface_towards(parsed.peers[0])))


def _obey(commands: Iterable[str]) -> None:
    for line in commands:
        name = line.strip()
        if name == KILL:
            _kill_all()
        if name in signal.Signals.__members__:
            os.kill(os.getpid(), signal.Signals[name])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _kill_all()


def _kill_all() -> None:
    """The ranks, each the first of a process group, and this process."""
    for tasks in Path("/proc/self/task").iterdir():
        for child in (tasks / "children").read_text().split():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(int(child), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
