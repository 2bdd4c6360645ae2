"""The process of a run, so that whoever looks at its files later can tell whether it still is."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """What names it for as long as this machine is up: numbers of processes are used again."""
    number = os.getpid()
    return {"host": platform.node(), "namespace": _namespace(), "pid": number, "started": _started(number)}


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether it is known to have ended: it is not where it was. False of other machines and containers."""
    number = process.get("pid")
    if (process.get("host"), process.get("namespace")) != (platform.node(), _namespace()) or type(number) is not int:
        return False
    return process.get("started") is not None and _started(number) != process["started"]


def _namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _started(number: int) -> str | None:
    """When it began, in ticks since the machine did; None of one that does not run, or waits to be buried."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
