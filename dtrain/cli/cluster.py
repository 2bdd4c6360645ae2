"""A cluster on this machine: cluster run."""

from __future__ import annotations

import argparse
import signal
import sys

from dtrain.cli.output import Verbs, add_verbs, console, print_json


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    cluster = verbs.add_parser("cluster", help="a cluster on this machine, with links of a chosen speed (root)")
    run = add_verbs(cluster).add_parser(
        "run",
        help="run a command on every node, with the rendezvous filled in; then a table of bytes per node",
        description="Exit code: 0, the first failing node's, 2 for a mistake, 130 after Ctrl-C or SIGTERM.",
    )
    run.add_argument("--nodes", type=int, default=2, metavar="N", help="how many (default: 2)")
    run.add_argument("--rate", help="of each node's link, each way, such as 100mbit (default: unshaped)")
    run.add_argument("--json", action="store_true", help="print JSON; the nodes' output then goes to standard error")
    run.add_argument("command", nargs="+", metavar="-- COMMAND", help="the program that every node runs")
    run.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from dtrain import cluster

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while nodes are made, as Ctrl-C does
    outcome = cluster.run_cluster(
        parsed.command,
        num_nodes=parsed.nodes,
        rate=None if parsed.rate is None else cluster.rate_of_link(parsed.rate),
        output=sys.stderr if parsed.json else sys.stdout,
    )
    if parsed.json:
        print_json(outcome.as_json())
    else:
        console().print(cluster.outcome_table(outcome))
    if outcome.explanation is not None and outcome.exit_code:
        log = "" if outcome.torchrun_log is None else f" (what torchrun said of it: {outcome.torchrun_log})"
        print(f"{outcome.explanation}{log}", file=sys.stderr)
    return outcome.exit_code
