"""Runs side by side: one list of rows that the terminal table, the HTML table and `--json` all come from.

Metrics are rows and runs are columns, because there are more metrics than runs and a terminal has 80 columns; what does
not fit beside is put below, never squeezed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dtrain.report import units
from dtrain.report.runs import Run


@dataclass(frozen=True)
class Row:
    """One metric: what it is called, and how a run's value reads."""

    label: str
    write: Callable[[Run], str]
    is_number: bool = True


@dataclass(frozen=True)
class Group:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


def _straggler(run: Run) -> str:
    """The rank that the others waited for most, where some rank was waited for noticeably."""
    if run.stragglers is None:
        return "-"
    return (
        f"rank {run.stragglers[0].rank}, {units.percent(run.stragglers[0].share_of_wait)}" if run.stragglers else "none"
    )


GROUPS: tuple[Group, ...] = (
    Group(
        "network",
        (
            Row("model", lambda run: run.model, is_number=False),
            Row("variant", lambda run: run.variant, is_number=False),
            Row("parameters", lambda run: units.count(run.num_parameters)),
            Row("classes", lambda run: units.count(run.num_classes)),
        ),
    ),
    Group(
        "bytes per step and rank",
        (
            Row("grad (B)", lambda run: units.count(run.grad_bytes)),
            Row("payload (B)", lambda run: units.count(run.payload_bytes_per_step)),
            Row("wire (B)", lambda run: units.count(run.wire_bytes_per_step)),
            Row("nic (B)", lambda run: units.count(run.nic_bytes_per_step)),
        ),
    ),
    Group(
        "saving and result",
        (
            Row("against fp32", lambda run: units.ratio(run.saving_vs_fp32)),
            Row("against fp16", lambda run: units.ratio(run.saving_vs_fp16)),
            Row("accuracy", lambda run: units.percent(run.accuracy)),
            Row("loss", lambda run: units.plain(run.loss, 4)),
            Row("steps", lambda run: units.count(run.num_steps)),
            Row("test set of", lambda run: run.data, is_number=False),
        ),
    ),
    Group(
        "step time, medians",
        (
            Row("step", lambda run: units.seconds(run.step_seconds_median)),
            Row("compute & other", lambda run: units.seconds(run.compute_and_other_seconds_median)),
            Row("exposed comm.", lambda run: units.seconds(run.exposed_comm_seconds_median)),
            Row("(codec)", lambda run: units.seconds(run.codec_seconds_median)),
            Row("(transfer)", lambda run: units.seconds(run.transfer_seconds_median)),
            Row("(straggler wait)", lambda run: units.seconds(run.straggler_wait_seconds_median)),
            Row("(most of it for)", _straggler, is_number=False),
            Row("images/s", lambda run: units.plain(run.images_per_second, 1)),
        ),
    ),
    Group(
        "setting",
        (
            Row("world size", lambda run: units.count(run.world_size)),
            Row("backend", lambda run: run.backend, is_number=False),
            Row("compressor", lambda run: run.compressor, is_number=False),
            Row("batch per rank", lambda run: units.count(run.batch_size_per_rank)),
            Row("rounds", lambda run: units.count(run.num_rounds)),
            Row("complete", lambda run: "yes" if run.complete else "NO", is_number=False),
        ),
    ),
)


@dataclass(frozen=True)
class CompareTable:
    """A rich renderable: as many runs beside each other as the console is wide, the rest in further tables below."""

    runs: Sequence[Run]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, runs in enumerate(_blocks(self.runs, options.max_width)):
            if number:
                yield Text("")
            yield _table(runs, options.max_width)


def compare_table(runs: Sequence[Run]) -> CompareTable:
    """The comparison as a rich renderable, for `Console.print`; it reads well from 40 columns up, or in a pipe."""
    return CompareTable(tuple(runs))


def compare_data(runs: Sequence[Run]) -> dict[str, object]:
    """The comparison for `--json`: `{"schema": 1, "runs": [...]}`, exact bytes and seconds, null for what is missing.

    Each run has the keys of `summary.json`, its `label` and `path`, and `compute_and_other_seconds_median`.
    """
    return {"schema": 1, "runs": [run_data(run) for run in runs]}


def run_data(run: Run) -> dict[str, object]:
    """One run, as plain data."""
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    del fields["training"], fields["evaluation"]
    fields["phases"] = [{key: _json_number(value) for key, value in asdict(phase).items()} for phase in run.phases]
    fields["stragglers"] = None if run.stragglers is None else [asdict(one) for one in run.stragglers]
    fields["packed"] = [{"path": str(one.path), "num_bytes": one.num_bytes} for one in run.packed]
    fields["path"] = str(run.path)
    fields["wire_bytes_by_phase_and_purpose"] = dict(run.wire_bytes_by_phase_and_purpose)
    fields["versions"] = dict(run.versions)
    fields["compute_and_other_seconds_median"] = run.compute_and_other_seconds_median
    return {key: _json_number(value) for key, value in fields.items()}


def _json_number(value: object) -> object:
    """JSON has no NaN (null instead), and a whole number of bytes reads better without `.0`."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


_LABEL_WIDTH = max(max(len(group.title), len(row.label) + 2) for group in GROUPS for row in group.rows)
_NARROWEST, _WIDEST, _GAP = 13, 24, 3  # the gap includes the one column that the table draws itself


def _width(run: Run) -> int:
    numbers = max(len(row.write(run)) for group in GROUPS for row in group.rows if row.is_number)
    words = max(len(run.name), len(run.variant))
    return max(_NARROWEST, numbers, min(words, _WIDEST))


def _blocks(runs: Sequence[Run], width: int) -> Iterator[Sequence[Run]]:
    block: list[Run] = []
    used = _LABEL_WIDTH
    for run in runs:
        needed = _width(run) + _GAP
        if block and used + needed > width:
            yield block
            block, used = [], _LABEL_WIDTH
        block.append(run)
        used += needed
    if block:
        yield block


def _table(runs: Sequence[Run], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, _GAP - 1), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True, min_width=_LABEL_WIDTH)
    for run in runs:
        fits = min(_width(run), max(_NARROWEST, width - _LABEL_WIDTH - _GAP))
        header = Text(run.name, style="bold" if run.complete else "bold red")
        table.add_column(header, justify="right", overflow="fold", min_width=fits, max_width=fits)
    for group in GROUPS:
        table.add_row(Text(group.title, style="bold"))
        for row in group.rows:
            values = [row.write(run) for run in runs]
            table.add_row(Text(f"  {row.label}"), *(Text(value, style=_style(value)) for value in values))
        table.add_section()
    return table


def _style(value: str) -> str:
    styles: Mapping[str, str] = {units.MISSING: "dim", "NO": "bold red", "not finite": "bold red"}
    return styles.get(value, "")
