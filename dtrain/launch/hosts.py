"""Which hosts ranks are started on, and how many on each: `-H a:2,b` and host files as Open MPI and MPICH have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.files import read_file

_MOST_BYTES = 1 << 20
"""Of a host file."""
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.@%-]*[A-Za-z0-9_])?"
"""Also user@host; never what ssh would take for an option."""


@dataclass(frozen=True)
class Host:
    """A host and how many ranks it has."""

    name: str
    ranks: int


def parse_hosts(text: str, default_ranks: int | None) -> tuple[Host, ...]:
    """`a:2,b:2`. Hosts without a number have `default_ranks`, or 1. Raises ValueError, with the cure."""
    hosts = []
    for part in text.split(","):
        match = re.fullmatch(rf"\s*({_NAME})(?::([1-9]\d*))?\s*", part)
        if match is None:
            raise ValueError(f"-H {text} is not of the form node0:2,node1:2 (hosts and their numbers of ranks)")
        hosts.append((match[1], match[2]))
    return _hosts(hosts, default_ranks, "-H")


def read_hostfile(path: Path, default_ranks: int | None) -> tuple[Host, ...]:
    """A host a line: `a slots=2` (Open MPI), `a:2` (MPICH) or `a`; # begins a comment.

    Raises ValueError, with the cure, for a line of another form, and where none names a host.
    """
    try:
        lines = read_file(path, _MOST_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"--hostfile {path} cannot be read ({error}): correct its path") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(
            rf"({_NAME})(?::([1-9]\d*)|\s+slots\s*=\s*([1-9]\d*)(?:\s+max[-_]slots\s*=\s*\d+)?)?", text
        )
        if match is None:
            raise ValueError(f"--hostfile {path}, line {number}: `{text}` is not `node0 slots=2`, `node0:2` or `node0`")
        hosts.append((match[1], match[2] or match[3]))
    if not hosts:
        raise ValueError(f"--hostfile {path} names no host: write one a line, such as `node0 slots=2`")
    return _hosts(hosts, default_ranks, "--hostfile")


def _hosts(found: Sequence[tuple[str, str | None]], default_ranks: int | None, option: str) -> tuple[Host, ...]:
    if default_ranks is not None and all(number for _, number in found):
        raise ValueError(f"-n is for hosts without a number of their own, and {option} gives each one: leave it out")
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{option} names {name} more than once: give its ranks in one number")
    return tuple(Host(name, int(number or default_ranks or 1)) for name, number in found)
