"""Train with every combination of settings, and compare: sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dtrain.arguments import FAILED
from dtrain.cli.launch import DEFAULT_RANKS, positive
from dtrain.cli.output import Verbs, console, json_option, print_json

_DESCRIPTION = """\
Trains with each combination of the values that settings name, one after the other, and compares:
  dtrain sweep -n 4 model=squeezenet1_0,alexnet compressor=none,int4,top_k num_epochs=5
  dtrain sweep compressor=top_k compressor.density=0.001,0.01 'seed=range(0,3)'
The same command goes on with what is not done: a complete run is not trained again, one that was interrupted goes on
from its checkpoint (save_every=1min keep_checkpoints=1, unless settings say otherwise)."""
_EPILOG = """\
Exit code: 0 when all are complete, 1 where some failed (the others went on), 130 after Ctrl-C, 143 after SIGTERM and 75
when a run was told to save and end: the same command goes on."""
_OUTPUT = Path("runs/sweep")


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    sweep = verbs.add_parser(
        "sweep",
        help="train with every combination of settings, one after the other, and compare",
        usage="dtrain sweep [OPTION...] KEY=VALUE,VALUE...",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument("-n", dest="ranks", type=positive, default=DEFAULT_RANKS, metavar="RANKS", help="of each run")
    sweep.add_argument(
        "-o", "--output", type=Path, default=_OUTPUT, metavar="DIR", help=f"a folder for the runs (default: {_OUTPUT})"
    )
    sweep.add_argument("--dry-run", action="store_true", help="print what would be run, a command a line")
    json_option(sweep)
    sweep.add_argument("settings", nargs="+", metavar="KEY=VALUE,...", help="settings, with one value or several")
    sweep.set_defaults(run=_sweep)


def _sweep(parsed: argparse.Namespace) -> int:
    from dtrain import report
    from dtrain.launch import sweep

    planned = sweep.plan(parsed.settings, parsed.ranks, parsed.output)
    if parsed.dry_run:
        for one in planned:
            print(one.line())
        return 0
    outcome = sweep.run(planned, sys.stderr if parsed.json else sys.stdout)
    if outcome.stopped is not None:
        print("dtrain sweep: stopped; the same command goes on", file=sys.stderr)
        return outcome.stopped
    ranked = report.load_ranked(one.folder for one in outcome.complete) if outcome.complete else ()
    if parsed.json:
        print_json({**report.ranked_data(ranked), "failed": dict(outcome.failed)})
    elif ranked:
        print()
        console().print(report.ranked_table(ranked))
    for name, code in outcome.failed.items():
        print(f"dtrain sweep: {name} failed with exit code {code}", file=sys.stderr)
    return FAILED if outcome.failed else 0
