"""Runs as they go: top."""

from __future__ import annotations

import argparse
from contextlib import closing

from dtrain.cli.output import Verbs, console, print_json


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    top = verbs.add_parser(
        "top",
        help="ranks, bytes, rates and stragglers of runs, live, until Ctrl-C",
        description="Exit code with --once or --json: 0, or 1 where something did not answer; 130 after Ctrl-C.",
    )
    top.add_argument(
        "sources",
        nargs="+",
        metavar="RUN|URL",
        help="a run directory, or a rank's metrics (http://HOST:9400, which names the others)",
    )
    top.add_argument("--once", action="store_true", help="print what there is now, and end")
    top.add_argument("--json", action="store_true", help="the same as JSON")
    top.set_defaults(run=_top)


def _top(parsed: argparse.Namespace) -> int:
    from dtrain.observe.top import Sources, drawing, show_live

    terminal = console()
    if not (parsed.once or parsed.json or terminal.is_terminal):
        raise ValueError("dtrain top fills a terminal, and there is none: add --once or --json")
    with closing(Sources(parsed.sources)) as sources:
        if not (parsed.once or parsed.json):
            show_live(sources, terminal)
        sources.await_answers()
        frame = sources.frame()
    if parsed.json:
        print_json(frame.as_json())
    else:
        terminal.print(drawing(frame))
    return 1 if frame.has_errors else 0
