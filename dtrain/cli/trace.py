"""What the last collectives of a run that failed tell: trace."""

from __future__ import annotations

import argparse
from pathlib import Path

from dtrain.cli.output import Verbs, json_option, print_json


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    trace = verbs.add_parser("trace", help="name the rank that kept the others waiting when a collective failed")
    trace.add_argument(
        "dumps",
        nargs="+",
        type=Path,
        metavar="DUMP",
        help="a run directory, collectives-rank<N>.json, or the JSON of torch's flight recorder in <name><N>.json",
    )
    json_option(trace)
    trace.set_defaults(run=_trace)


def _trace(parsed: argparse.Namespace) -> int:
    from dtrain.meter.culprit import find_culprit, read_dumps

    finding = find_culprit(read_dumps(parsed.dumps))
    if parsed.json:
        print_json(finding.as_json())
    else:
        print(finding.sentence)
    return 0
