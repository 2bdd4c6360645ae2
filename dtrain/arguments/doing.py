"""What a command that has nothing to show yet is doing: a line on a terminal, nothing in a log."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK")
_LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "HOROVOD_LOCAL_RANK")


def is_first_rank() -> bool:
    """Whether this process speaks for all that a launcher started, by its variables."""
    return all(os.environ.get(name, "0") == "0" for name in _RANK_VARIABLES)


def is_first_of_host() -> bool:
    """Whether it speaks for those of them that are on this host."""
    return all(os.environ.get(name, "0") == "0" for name in _LOCAL_RANK_VARIABLES)


def say_doing(what: str) -> None:
    """Say it on standard error, where that is a terminal and this the first rank."""
    with suppress(OSError):
        if is_first_rank() and sys.stderr.isatty():
            print(f"dtrain: {what} ...", file=sys.stderr, flush=True)
