"""`dtrain <verb>`. Exit codes: 0 done, 1 something failed on the way, 2 a mistake in the request, 130 interrupted;
of `dtrain train` and `resume` also 75: saved for SIGTERM.

A file for each group of verbs has their options and, beside them, what they do. What a verb needs is imported when it
runs: a device that receives models has no torch, and --help should not wait for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dtrain import __version__
from dtrain.cli import (
    checkpoint,
    cluster,
    dashboard,
    doctor,
    elastic,
    explain,
    launch,
    pack,
    plan,
    runs,
    ship,
    top,
    trace,
)

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        from dtrain.train.entry import main as train  # Hydra reads the rest of the command line itself

        sys.argv = ["dtrain train", *arguments[1:]]
        return train()
    if arguments[:1] == ["resume"]:
        from dtrain.train.entry import resume

        return resume(arguments[1:])
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except (ValueError, OSError) as error:
        print(f"dtrain: error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except MemoryError:
        print("dtrain: error: memory is not enough for it: free some, or give a smaller file", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dtrain", description="Distributed training that counts its bytes.")
    parser.add_argument("--version", action="version", version=f"dtrain {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    train = verbs.add_parser("train", help="train a model (settings as KEY=VALUE; see `dtrain train --help`)")
    train.set_defaults(run=None)
    resume = verbs.add_parser("resume", help="go on with a run in its own directory (see `dtrain resume --help`)")
    resume.set_defaults(run=None)
    for group in (launch, runs, checkpoint, explain, plan, doctor, pack, ship, dashboard, top, trace, cluster, elastic):
        group.add_to(verbs)
    return parser
