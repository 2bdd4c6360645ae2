"""`python -m dtrain.launch.agent ARGUMENTS`: torchrun, with its arguments, that ends as the first rank to fail did.

torchrun itself ends with 1 whatever the ranks said, after a page about it. Here the exit code is that rank's own, so
that scripts and schedulers see it (2, a mistake; 75, saved for SIGTERM), and there is one line.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from dtrain.arguments import INTERRUPTED

FAILED, MISTAKE, BY_SIGNAL = 1, 2, 128
_SAID_HERE = ("failed (exitcode", "Sending process", "Received %s death signal")
"""How torch's log lines begin that say the same as ours."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun's agent to its end. Returns 0, the exit code of the rank that failed first, or 128 + a signal."""
    _heed_ctrl_c()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import parse_args, run

    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").addFilter(_is_news)
    try:
        run(parse_args(list(sys.argv[1:] if arguments is None else arguments)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = int(failure.exitcode)
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        return _say(f"rank {rank} on {socket.gethostname()} {how}, so the others were ended", _code(code))
    except SignalException as error:
        return _code(-int(error.sigval))
    except ValueError as error:
        return _say(str(error), MISTAKE)
    except (RendezvousError, RuntimeError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        cure = ": give --master HOST:PORT with another port" if "EADDRINUSE" in str(error) else ""
        return _say(f"the hosts cannot meet: {lines[0]}{cure}", FAILED)
    return 0


def _heed_ctrl_c() -> None:
    """Until torch's agent has a handler of its own there are no ranks to end: Ctrl-C then ends this process at once.

    By a thread, since where torch waits for other hosts no Python runs in the main one.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _no_ranks_yet)

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _no_ranks_yet:
                os.write(2, b"dtrain: interrupted\n")
                os._exit(INTERRUPTED)

    threading.Thread(target=watch, name="dtrain-ctrl-c", daemon=True).start()


def _no_ranks_yet(number: int, frame: FrameType | None) -> None:
    """Marks that torch's agent has not begun."""


def _code(code: int) -> int:
    """As a shell has it."""
    return BY_SIGNAL - code if code < 0 else code


def _say(message: str, code: int) -> int:
    print(f"dtrain launch: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_SAID_HERE)


if __name__ == "__main__":
    sys.exit(main())
