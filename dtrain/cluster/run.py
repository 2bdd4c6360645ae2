"""One command on every node, and what the kernel counted on each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from dtrain.arguments import say_doing
from dtrain.cluster.agent_log import AgentLog
from dtrain.cluster.namespaces import network
from dtrain.cluster.processes import run_on_all


@dataclass(frozen=True)
class NodeBytes:
    """What a node's interface carried during the command, link-layer headers included."""

    node: int
    address: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True)
class Outcome:
    """How a command on all nodes ended. `rate_bits_per_second` is None for unshaped links.

    `explanation` is what a program of ours said of its failure, `torchrun_log` the file with what torchrun said then.
    """

    exit_code: int
    seconds: float
    rate_bits_per_second: int | None
    nodes: tuple[NodeBytes, ...]
    explanation: str | None = None
    torchrun_log: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        log = None if self.torchrun_log is None else str(self.torchrun_log)
        return {**asdict(self), "torchrun_log": log}


def run_cluster(command: Sequence[str], *, num_nodes: int, rate: int | None, output: TextIO) -> Outcome:
    """Run the command on every node of a new cluster, which is gone afterwards.

    Args:
        command: the program and its arguments; its environment says how the nodes find each other.
        num_nodes: how many nodes.
        rate: of each node's link, in bits per second and each way; None leaves it unshaped.
        output: where the nodes' output goes, line by line, labelled.

    Raises:
        ValueError: a cluster cannot be made here, or the command cannot be found.
    """
    if "--standalone" in command:
        raise ValueError("--standalone makes every node a job of its own: leave it out, the rendezvous is filled in")
    say_doing(f"making {num_nodes} nodes" if num_nodes != 1 else "making a node")
    agent_log = AgentLog()
    with network(num_nodes, rate) as nodes:
        start, before = time.monotonic(), [node.counters() for node in nodes]
        exit_code = run_on_all(nodes, command, output, agent_log)
        seconds, after = time.monotonic() - start, [node.counters() for node in nodes]
        carried = tuple(
            NodeBytes(
                node.index,
                node.address,
                last.transmitted_bytes - first.transmitted_bytes,
                last.received_bytes - first.received_bytes,
            )
            for node, first, last in zip(nodes, before, after, strict=True)
        )
    return Outcome(exit_code, seconds, rate, carried, agent_log.explanation, agent_log.write())


def outcome_table(outcome: Outcome) -> Table:
    """Bytes per node."""
    rate = outcome.rate_bits_per_second
    link = "unshaped" if rate is None else f"{rate / 1e6:,g} Mbit/s"
    table = Table(title=f"{len(outcome.nodes)} nodes, {link}, {outcome.seconds:.1f} s")
    table.add_column("node", justify="right")
    table.add_column("address")
    table.add_column("sent, B", justify="right")
    table.add_column("received, B", justify="right")
    for node in outcome.nodes:
        table.add_row(str(node.node), node.address, f"{node.sent_bytes:,}", f"{node.received_bytes:,}")
    return table
