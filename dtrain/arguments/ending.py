"""How a command ends: what went wrong in one line on standard error, and exit codes that say which kind it was."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from dtrain.arguments.doing import is_first_of_host, is_first_rank
from dtrain.arguments.extras import missing_extra

FAILED, MISTAKE = 1, 2
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE
"""Nobody reads on, as behind `| head`: what a shell sees of any program that ends so, and passes over."""


def say_error(error: BaseException | str) -> None:
    """One line on standard error."""
    with suppress(OSError):
        print(f"dtrain: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


@contextmanager
def ending(command: str) -> Iterator[None]:
    """Around the whole of a command, imports included: Ctrl-C is one line, a package of an extra that is not installed
    is one on each host, and a reader that has gone is none. `command` is what the user knows it by.

    After KeyboardInterrupt the process ends, with INTERRUPTED; SystemExit takes the place of BrokenPipeError, with
    UNREAD, and of ModuleNotFoundError, with MISTAKE, where an extra has the module.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to do is short
        with suppress(OSError):
            if is_first_rank():
                print("dtrain: interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # threads in the middle of something would keep an orderly end waiting
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # what rich makes of it
            _leave_unread()
        raise
    except ModuleNotFoundError as error:
        message = missing_extra(command, error)
        if message is None:
            raise
        if is_first_of_host():
            say_error(message)
        sys.exit(MISTAKE)
    except BrokenPipeError as error:
        if not _is_unread():
            say_error(error)
            sys.exit(FAILED)
        _leave_unread()


@contextmanager
def on_signals(handle: Callable[[signal.Signals], None], *numbers: signal.Signals) -> Iterator[None]:
    """These signals call `handle` meanwhile, in the main thread, and do nothing else."""
    before = {number: signal.signal(number, lambda n, _: handle(signal.Signals(n))) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_unread() -> bool:
    """Whether nobody reads standard output on; other pipes and sockets break, too."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _leave_unread() -> NoReturn:
    """End quietly: what is still to be written, also by the interpreter as it ends, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(UNREAD)
