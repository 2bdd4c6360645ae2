"""torchrun, but when a worker fails, the end is one line that says why, and the exit code is its own.

torchrun ends the other workers in that case, and then itself, with some forty lines of its own. They go into a file.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TextIO

INTERRUPTED = 130


def main() -> int:
    screen = sys.stderr
    if screen.isatty():
        _say(screen, "starting torchrun ...")  # which takes seconds to import torch, before ranks do
    with tempfile.NamedTemporaryFile("w", prefix="dtrain-torchrun-", suffix=".log", delete=False, buffering=1) as log:
        sys.stderr = log  # before torch is there, which keeps it for its log; workers have the descriptor, as ever
        try:
            code = _run(screen, log)
        except KeyboardInterrupt:
            code = INTERRUPTED
        finally:
            sys.stderr = screen
    if code == INTERRUPTED:
        _say(screen, "interrupted")
    if code in (0, INTERRUPTED):
        Path(log.name).unlink()
    return code


def _run(screen: TextIO, log: TextIO) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main()
    except ChildFailedError as error:
        print(error, file=log)
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = _said(failure.error_file)
        why = f": {said}" if said else ", so the others were ended"
        _say(screen, f"rank {rank} on {os.uname().nodename} {how} (torchrun's log: {log.name}){why}")
        return 128 - code if code < 0 else code
    except SignalException as error:
        return 128 + int(error.sigval)
    except SystemExit as end:  # of argparse, which has said why
        screen.write(Path(log.name).read_text())
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:
        import traceback

        traceback.print_exc(file=log)
        _say(screen, f"torchrun failed (its log: {log.name}): {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    return 0


def _said(error_file: str) -> str:
    """What the worker left word of."""
    try:
        return str(json.loads(Path(error_file).read_text())["message"]["message"]).removeprefix("dtrain: error: ")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _say(screen: TextIO, text: str) -> None:
    print(f"launch/torchrun.sh: {text}", file=screen, flush=True)


if __name__ == "__main__":
    sys.exit(main())
