"""What a check found, how bad it is, and how a list of them reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.table import Table
from rich.text import Text


class Severity(StrEnum):
    """From harmless on."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


_STYLES = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `cure` is empty where nothing is wrong; `host` where it is this one."""

    name: str
    severity: Severity
    finding: str
    cure: str = ""
    host: str = ""


def exit_code(checks: Sequence[Check]) -> int:
    """1 if there is an error, else 3 if there is a warning, else 0. (2 is a mistake in the request.)"""
    found = {check.severity for check in checks}
    return 1 if Severity.ERROR in found else 3 if Severity.WARNING in found else 0


def checks_table(checks: Sequence[Check]) -> Table:
    """One row for each check, cures below their findings."""
    table = Table(box=None)
    for column in ("check", "", "found"):
        table.add_column(column)
    for check in checks:
        where = f"{check.host}: " if check.host else ""
        cure = f"\n-> {check.cure}" if check.cure else ""
        table.add_row(
            check.name, Text(check.severity, style=_STYLES[check.severity]), Text(f"{where}{check.finding}{cure}")
        )
    return table
