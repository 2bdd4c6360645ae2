"""The paper's claims, each with what these runs measured and a verdict.

A claim is data: what is said, where, and a pure function from runs to a `Finding`. The claims themselves are in
`paper.py` and those with a row for each figure in `tables.py`; adding one is adding a function and an entry to a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dtrain.report import units
from dtrain.report.runs import Run


class Verdict(Enum):
    """What the runs say about a claim. There is no "partly": a claim that needs it is two claims."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """A figure of the paper beside ours, never blended. The verdict is about what both have (None: nothing)."""

    what: str
    paper: str
    ours: str
    not_measured: str
    verdict: Verdict | None
    numbers: Mapping[str, float] = field(default_factory=dict)  # ours, for programs


@dataclass(frozen=True)
class Finding:
    """What was measured about one claim, or what is missing to measure it."""

    verdict: Verdict
    measured: str  # sentences, with numbers and units
    runs: tuple[Run, ...] = ()  # the runs it rests on
    numbers: Mapping[str, float] = field(default_factory=dict)  # the same numbers, for programs
    rows: tuple[Row, ...] = ()  # of a claim that is a table


@dataclass(frozen=True)
class Claim:
    """What is said, where it is said, and how runs bear on it."""

    key: str
    title: str
    says: str
    source: str
    judge: Callable[[Sequence[Run]], Finding]


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its finding."""

    claim: Claim
    finding: Finding

    @property
    def run_names(self) -> tuple[str, ...]:
        """The runs that the finding rests on; an interrupted one says so."""
        return tuple(run.name for run in self.finding.runs)


def judge(claims: Sequence[Claim], runs: Sequence[Run]) -> tuple[JudgedClaim, ...]:
    """Every claim against the same runs, in the order of the claims."""
    return tuple(JudgedClaim(claim, claim.judge(runs)) for claim in claims)


def claims_data(judged: Sequence[JudgedClaim]) -> dict[str, object]:
    """The claims for `--json`: `{"schema": 1, "claims": [...]}`; a number that is not finite is null."""
    return {"schema": 1, "claims": [_data(one) for one in judged]}


def _data(judged: JudgedClaim) -> dict[str, object]:
    claim, finding = judged.claim, judged.finding
    return {
        "claim": claim.key,
        "title": claim.title,
        "says": claim.says,
        "source": claim.source,
        "verdict": finding.verdict.value,
        "measured": finding.measured,
        "rows": [_row_data(row) for row in finding.rows],
        "numbers": {key: value if math.isfinite(value) else None for key, value in finding.numbers.items()},
        "runs": [run.label for run in finding.runs],
        "incomplete_runs": [run.label for run in finding.runs if not run.complete],
    }


def _row_data(row: Row) -> dict[str, object]:
    return {
        "what": row.what,
        "paper": row.paper,
        "ours": row.ours,
        "not_measured": row.not_measured,
        "verdict": row.verdict.value if row.verdict else None,
    }


_STYLES = {Verdict.HOLDS: "bold green", Verdict.DOES_NOT_HOLD: "bold red", Verdict.NOT_MEASURED: "yellow"}


@dataclass(frozen=True)
class ClaimsTable:
    """A rich renderable: verdict and claim on a line, then what the paper says and what was measured, wrapped."""

    judged: Sequence[JudgedClaim]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, one in enumerate(self.judged):
            if number:
                yield Text("")
            yield _block(one, wide=options.max_width >= _WIDE)


def claims_table(judged: Sequence[JudgedClaim]) -> ClaimsTable:
    """The claims as a rich renderable, for `Console.print`; one block per claim, readable at any width."""
    return ClaimsTable(tuple(judged))


_WIDE = 110  # columns that a table of rows takes to be readable


def _block(judged: JudgedClaim, *, wide: bool) -> RenderableType:
    verdict = judged.finding.verdict
    head = Text.assemble((verdict.value.upper(), _STYLES[verdict]), "  ", (judged.claim.title, "bold"))
    body = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    body.add_column(style="dim", no_wrap=True)
    body.add_column(overflow="fold")
    body.add_row("says", Text(judged.claim.says))
    body.add_row("source", Text(judged.claim.source, style="dim"))
    body.add_row("measured", Text(judged.finding.measured))
    if judged.run_names:
        body.add_row("runs", Text(", ".join(judged.run_names)))
    parts: list[RenderableType] = [head, Padding(body, (0, 0, 0, 2))]
    if judged.finding.rows:
        rows = _rows_table(judged.finding.rows) if wide else _rows_list(judged.finding.rows)
        parts.append(Padding(rows, (1, 0, 0, 2)))
    return Group(*parts)


def _rows_table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "the paper", "here", "not measured here", "verdict"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(Text(row.what), Text(row.paper), Text(row.ours), Text(row.not_measured), _verdict(row))
    return table


def _verdict(row: Row) -> Text:
    return Text(row.verdict.value, _STYLES[row.verdict]) if row.verdict else Text(units.MISSING)


def _rows_list(rows: Sequence[Row]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(Text("row"), Text.assemble((row.what, "bold"), ": ", _verdict(row)))
        table.add_row(Text("paper"), Text(row.paper))
        table.add_row(Text("here"), Text(row.ours))
        table.add_row(Text("missing"), Text(row.not_measured))
    return table
