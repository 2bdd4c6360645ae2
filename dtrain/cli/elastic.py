"""A job whose workers come and go: elastic."""

from __future__ import annotations

import argparse
import sys

from dtrain.cli.output import Verbs


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    elastic = verbs.add_parser(
        "elastic",
        help="train with workers that come and go: the others go on without starting again",
        description="Settings as for `dtrain train`. A worker that is lost is started again, and joins the others "
        "between two steps. Exit code: 0 done, 1 failed, 2 a mistake, 75 saved for SIGTERM, 130 interrupted.",
    )
    elastic.add_argument("-n", type=int, default=2, metavar="N", help="workers of this host (default: 2)")
    elastic.add_argument("--min", type=int, default=1, metavar="N", help="fewest that train together (default: 1)")
    elastic.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the training")
    elastic.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from dtrain.elastic import serve

    if not 1 <= parsed.min <= parsed.n:
        raise ValueError(f"--min {parsed.min} must be from 1 to -n {parsed.n}")
    command = [sys.executable, "-m", "dtrain.train", *parsed.settings]
    return serve(command, count=parsed.n, minimum=parsed.min, maximum=parsed.n)
