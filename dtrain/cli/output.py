"""What all verbs share: where they are added, and how they print, for people or with --json for programs."""

from __future__ import annotations

import argparse
import json
from typing import Any, TypeAlias

from rich.console import Console

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a group of verbs adds its own."""


def add_verbs(parser: argparse.ArgumentParser) -> Verbs:
    """Where the verbs of a command, or of a group, are added; without one of them it prints its help."""

    def show_help(parsed: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=show_help)
    return parser.add_subparsers(metavar="VERB")


def json_option(parser: argparse._ActionsContainer) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_json(data: Any) -> None:
    """Print it as JSON."""
    print(json.dumps(data, indent=2))


def console() -> Console:
    """Where tables go."""
    return Console(highlight=False)
