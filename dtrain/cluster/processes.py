"""The programs of the nodes: started, labelled, watched and ended.

Each node's programs run in a process namespace of their own, whose first process dies with this one: killing either is
enough to end everything that was started in the node, whatever it detached or ignores.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from dtrain.arguments import on_signals
from dtrain.cluster.agent_log import AgentLog
from dtrain.cluster.namespaces import INTERFACE, Node
from dtrain.meter.nic import CLUSTER_INTERFACE

INTERRUPTED = 130
MASTER_PORT = 29500
_TOOLS = ("setpriv", "nsenter", "unshare", "mount")
# The first process of a node. It gives the node a name, the names of all others and its own /sys, then waits for the
# command: signals of the process group do not end it, and it reaps orphans. Nothing here is seen outside the node.
_NODE = """
set -e
mount -t tmpfs tmpfs /sys
printf '127.0.0.1 localhost\\n::ffff:127.0.0.1 localhost\\n%s' "$2" >/sys/hosts
mount --bind /sys/hosts /etc/hosts
mount -t sysfs sysfs /sys
echo "$1" >/proc/sys/kernel/hostname
shift 2
set +e
"$@"
exit $?
"""
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0


def run_on_all(nodes: Sequence[Node], command: Sequence[str], output: TextIO, agent_log: AgentLog) -> int:
    """Run the command on every node to its end; its output goes to `output`, each line with its node, but for what
    `agent_log` holds back.

    Returns 0, or the exit code of the node that failed first, or 130 after SIGINT or SIGTERM; the other nodes are then
    sent SIGTERM (or the signal that came), and killed 10 s later or at the next signal.
    Raises ValueError if the command, or a tool that starts it, is not in PATH.
    """
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            raise ValueError(f"a cluster needs {tool}: install util-linux")
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not in PATH: give the program's full path")
    programs: list[_Program] = []
    whole_lines = threading.Lock()
    received: list[signal.Signals] = []
    with on_signals(received.append, signal.SIGINT, signal.SIGTERM):
        try:
            for node in nodes:
                programs.append(_Program(node, nodes, command, output, whole_lines, agent_log))
            return _watch(programs, received, output)
        finally:
            for program in programs:
                program.kill()


def _watch(programs: Sequence[_Program], received: list[signal.Signals], output: TextIO) -> int:
    """Wait for all to succeed, for one to fail, or for a signal."""
    while not received:
        codes = [program.exit_code() for program in programs]
        for index, code in enumerate(codes):
            if code:
                print(
                    f"[node{index}] ended with exit code {code}, so the other nodes are ended", file=output, flush=True
                )
                _end(programs, signal.SIGTERM, received)
                return code
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)
    _end(programs, received[0], received)
    return INTERRUPTED


def _end(programs: Sequence[_Program], number: signal.Signals, received: list[signal.Signals]) -> None:
    """Ask for an end, and wait for it until patience runs out: the clock's or the user's."""
    already, deadline = len(received), time.monotonic() + _GRACE_SECONDS
    for program in programs:
        program.signal(number)
    while time.monotonic() < deadline and len(received) == already:
        if all(program.exit_code() is not None for program in programs):
            return
        time.sleep(_POLL_SECONDS)


class _Program:
    """The command on one node."""

    def __init__(
        self,
        node: Node,
        nodes: Sequence[Node],
        command: Sequence[str],
        output: TextIO,
        whole_lines: threading.Lock,
        agent_log: AgentLog,
    ) -> None:
        self._whole_lines, self._agent_log = whole_lines, agent_log
        # mapped too: torch asks for the names of its peers as IPv6 has them, and warns of each that it does not get
        hosts = "".join(f"{other.address} {other.name}\n::ffff:{other.address} {other.name}\n" for other in nodes)
        self._process = subprocess.Popen(
            _in_namespaces(node, hosts, command),
            env={**os.environ, **_rendezvous(node, nodes)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._copying = threading.Thread(target=self._copy, args=(node.name, output), daemon=True)
        self._copying.start()

    def exit_code(self) -> int | None:
        """As a shell has it, 128 + the signal's number for a program that a signal ended; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End whatever still runs, and wait until its output has been copied."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._copying.join()

    def _copy(self, node: str, output: TextIO) -> None:
        assert self._process.stdout is not None
        with (
            suppress(BrokenPipeError),
            self._process.stdout as lines,
        ):  # nobody reads on: nor do we, and the node sees it
            for line in lines:
                if not self._agent_log.shows(node, line.rstrip()):
                    continue
                with self._whole_lines:  # nodes write into the same output, each from a thread of its own
                    output.write(f"[{node}] {line.rstrip()}\n")
                    output.flush()


def _in_namespaces(node: Node, hosts: str, command: Sequence[str]) -> list[str]:
    """The command in the node's network, and in namespaces of its own for processes, mounts and the host's name.

    If this process dies before setpriv ties the command's life to it, nsenter finds no namespace to enter.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("nsenter", f"--net=/proc/{os.getpid()}/fd/{node.namespace}"),
        *("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("sh", "-c", _NODE, "sh", node.name, hosts, *command),
    ]


def _rendezvous(node: Node, nodes: Sequence[Node]) -> dict[str, str]:
    """How the nodes find each other: torchrun's arguments (as PET_*), and one rank per node for programs without it."""
    num_nodes, index, port, master = str(len(nodes)), str(node.index), str(MASTER_PORT), nodes[0].address
    return {
        "PET_NNODES": num_nodes,
        "PET_NODE_RANK": index,
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": port,
        "PET_LOCAL_ADDR": node.address,
        "MASTER_ADDR": master,
        "MASTER_PORT": port,
        "RANK": index,
        "WORLD_SIZE": num_nodes,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        CLUSTER_INTERFACE: INTERFACE,
    }
