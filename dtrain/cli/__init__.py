"""`dtrain <verb>`. Exit codes: 0 done, 1 something failed on the way, 2 a mistake in the request, 130 interrupted;
of `dtrain train` and `resume` also 75: saved for SIGTERM.

A file for each group of verbs has their options and, beside them, what they do. What a verb needs is imported when it
runs: a device that receives models has no torch, and --help should not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dtrain import __version__
from dtrain.arguments import FAILED, INTERRUPTED, MISTAKE, Parser, ending, say_doing, say_error
from dtrain.cli import (
    checkpoint,
    cluster,
    completion,
    dashboard,
    doctor,
    elastic,
    explain,
    launch,
    pack,
    plan,
    runs,
    ship,
    sweep,
    top,
    trace,
)
from dtrain.cli.output import add_verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb: of this process's own arguments, after which Ctrl-C ends it, or of these."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with ending(f"dtrain {arguments[0]}" if arguments else "dtrain"):
        if arguments[:1] == ["train"]:
            say_doing("starting")
            from dtrain.train.entry import main as train  # Hydra reads the rest of the command line itself

            return train(arguments[1:])
        if arguments[:1] == ["resume"]:
            say_doing("starting")
            from dtrain.train.entry import resume

            return resume(arguments[1:])
        try:
            parsed = command_line().parse_args(arguments)
            code: int = parsed.run(parsed)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            if argv is None:  # then it is all that this process does
                raise
            return INTERRUPTED
        except (ValueError, OSError) as error:
            say_error(error)
            return MISTAKE
        except MemoryError:
            say_error("memory is not enough for it: free some, or give a smaller file")
            return FAILED
    return code


def command_line() -> Parser:
    """All verbs and their options."""
    parser = Parser(prog="dtrain", description="Distributed training that counts its bytes.")
    parser.add_argument("--version", action="version", version=f"dtrain {__version__}")
    verbs = add_verbs(parser)
    verbs.add_parser("train", help="train a model (settings as KEY=VALUE; see `dtrain train --help`)")
    verbs.add_parser("resume", help="go on with a run in its own directory (see `dtrain resume --help`)")
    groups = (
        launch,
        sweep,
        runs,
        checkpoint,
        explain,
        plan,
        doctor,
        pack,
        ship,
        dashboard,
        top,
        trace,
        cluster,
        elastic,
    )
    for group in (*groups, completion):
        group.add_to(verbs)
    return parser
