"""Runs and metered programs, a row for each, in the order in which one would choose.

First those within a point of the best accuracy on their data, by what all ranks sent; then the others likewise. The
first of all is the best: the fewest bytes that cost no accuracy. Where no accuracy is known there is no best.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dtrain.report import units
from dtrain.report.compare import compare_table, run_data
from dtrain.report.metered import Metered, read_metered
from dtrain.report.runs import HOLDS_WITHIN, Run, load_runs


@dataclass(frozen=True)
class Ranked:
    """A run, or a metered program, in its place."""

    what: Run | Metered
    label: str
    is_best: bool = False

    @property
    def run(self) -> Run | None:
        """None of a metered program, of which only bytes and steps are known."""
        return self.what if isinstance(self.what, Run) else None


@dataclass(frozen=True)
class Column:
    """A figure as it reads."""

    label: str
    write: Callable[[Ranked], str]


def _of_run(write: Callable[[Run], str]) -> Callable[[Ranked], str]:
    return lambda one: units.MISSING if one.run is None else write(one.run)


COLUMNS = (
    Column("sent a step", lambda one: units.short_bytes(one.what.wire_bytes_per_step)),
    Column("in all", lambda one: units.short_bytes(one.what.total_wire_bytes_all_ranks)),
    Column("vs fp32", _of_run(lambda run: units.ratio(run.saving_vs_fp32))),
    Column("vs fp16", _of_run(lambda run: units.ratio(run.saving_vs_fp16))),
    Column("accuracy", _of_run(lambda run: units.percent(run.accuracy))),
    Column("steps", lambda one: units.count(one.what.num_steps)),
    Column("a step", _of_run(lambda run: units.seconds(run.step_seconds_median))),
)
"""Beside the label. `sent a step` is rank 0's of gradients, `in all` of all ranks and everything."""

_FIELDS = (
    "label", "best", "path", "run", "model", "variant", "num_parameters", "num_classes", "image_size", "data",
    "world_size", "backend", "compressor", "batch_size_per_rank", "seed", "num_steps", "num_rounds", "complete",
    "accuracy", "loss", "saving_vs_fp32", "saving_vs_fp16", "grad_bytes", "payload_bytes_per_step",
    "wire_bytes_per_step", "nic_bytes_per_step", "init_wire_bytes", "total_wire_bytes_all_ranks", "packed_bytes",
    "step_seconds_median", "compute_and_other_seconds_median", "exposed_comm_seconds_median", "codec_seconds_median",
    "transfer_seconds_median", "straggler_wait_seconds_median", "images_per_second",
)  # fmt: skip
"""The columns of CSV: what of `--json` is one value."""


def load_ranked(paths: Iterable[str | Path]) -> tuple[Ranked, ...]:
    """Read run directories, and files of the meter's JSON, and rank them.

    Raises ValueError, naming the file and the cure, for anything else.
    """
    given = [Path(path) for path in paths]
    files = [path for path in given if path.is_file()]
    folders = [path for path in given if path not in files]
    for path in files:
        if files.count(path) > 1:
            raise ValueError(f"{path} is given more than once: name each file once")
    return rank([*(load_runs(folders) if folders or not files else ()), *map(read_metered, files)])


def rank(compared: Sequence[Run | Metered]) -> tuple[Ranked, ...]:
    """In order, with the best of each data set marked where there is something to choose from."""
    runs = [one for one in compared if isinstance(one, Run)]
    highest: dict[str, float] = {}
    for run in runs:
        highest[run.data] = max(highest.get(run.data, 0.0), run.accuracy or 0.0)

    def holds(run: Run) -> bool:
        return run.accuracy is not None and run.accuracy >= highest[run.data] - HOLDS_WITHIN

    ordered = sorted(runs, key=lambda run: (run.data, not holds(run), _sent(run), run.name))
    chosen: set[str] = set()
    ranked = []
    for run in ordered:
        is_first = run.data not in chosen and [other.data for other in runs].count(run.data) > 1
        chosen.add(run.data)
        ranked.append(Ranked(run, run.name, is_first and holds(run)))
    metered = sorted((one for one in compared if isinstance(one, Metered)), key=lambda one: (_sent(one), str(one.path)))
    return (*ranked, *(Ranked(one, f"{one.path.name}: {one.command}") for one in metered))


def _sent(one: Run | Metered) -> float:
    sent = one.total_wire_bytes_all_ranks
    return math.inf if sent is None else sent


@dataclass(frozen=True)
class RankedTable:
    """A rich renderable: a row each, as wide as the console; where that is too narrow, runs as columns, in blocks."""

    ranked: Sequence[Ranked]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [[column.write(one) for column in COLUMNS] for one in self.ranked]
        heads = ["\n".join(column.label.rsplit(" ", 1)) for column in COLUMNS]
        widths = [
            max(len(part) for text in column for part in text.split("\n")) for column in zip(heads, *rows, strict=True)
        ]
        left = options.max_width - sum(widths) - _GAP * len(widths)
        runs = [one.run for one in self.ranked if one.run is not None]
        if left < _NARROWEST and len(runs) == len(self.ranked):
            yield compare_table(runs)
            return
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, _GAP - 1), pad_edge=False, show_edge=False)
        table.add_column("", overflow="fold", min_width=_NARROWEST)
        for head, width in zip(heads, widths, strict=True):
            table.add_column(head, justify="right", no_wrap=True, min_width=width)
        for one, row in zip(self.ranked, rows, strict=True):
            label = Text.assemble(("* " if one.is_best else "  ", "bold green"), one.label)
            table.add_row(label, *map(Text, row), style="bold" if one.is_best else "")
        yield table
        yield Text(f"\n{_note(self.ranked, '*')}", style="dim")


_NARROWEST, _GAP = 16, 2


def ranked_table(ranked: Sequence[Ranked]) -> RankedTable:
    """The ranking as a rich renderable, for `Console.print`."""
    return RankedTable(tuple(ranked))


def ranked_data(ranked: Sequence[Ranked]) -> dict[str, object]:
    """The ranking for `--json`: `{"schema": 1, "runs": [...], "metered": [...]}`, in order.

    Runs as `compare_data` has them, with `best`; metered programs with their fields.
    """
    runs = [{**run_data(one.run), "best": one.is_best} for one in ranked if one.run is not None]
    metered = [
        {**vars(one.what), "path": str(one.what.path), "wire_bytes_per_step": one.what.wire_bytes_per_step}
        for one in ranked
        if one.run is None
    ]
    return {"schema": 1, "runs": runs, "metered": metered}


def as_csv(ranked: Sequence[Ranked]) -> str:
    """A line each, exact figures as `--json` has them, nothing where there is none."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in ranked:
        data = {**vars(one.what), "wire_bytes_per_step": one.what.wire_bytes_per_step}
        writer.writerow({**(data if one.run is None else run_data(one.run)), "label": one.label, "best": one.is_best})
    return file.getvalue()


def as_markdown(ranked: Sequence[Ranked]) -> str:
    """A table of GitHub's Markdown, the best in bold, and a line that says what is marked."""
    lines = [["", *(column.label for column in COLUMNS)], ["---", *("---:" for _ in COLUMNS)]]
    for one in ranked:
        cells = [_escaped(text, _MARKDOWN) for text in (one.label, *(column.write(one) for column in COLUMNS))]
        lines.append([f"**{cell}**" for cell in cells] if one.is_best else cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{_note(ranked, 'In bold')}\n"


def as_latex(ranked: Sequence[Ranked]) -> str:
    """A tabular in booktabs' style, the best in bold, and what is marked as a comment."""
    lines = [f"% {_note(ranked, 'In bold')}", rf"\begin{{tabular}}{{l{'r' * len(COLUMNS)}}}", r"\toprule"]
    lines += [" & ".join(["", *(column.label for column in COLUMNS)]) + r" \\", r"\midrule"]
    for one in ranked:
        cells = [_escaped(text, _LATEX) for text in (one.label, *(column.write(one) for column in COLUMNS))]
        lines.append(" & ".join(rf"\textbf{{{cell}}}" if one.is_best else cell for cell in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


_MARKDOWN = {character: f"\\{character}" for character in "\\`*_[]<>|#~"}
_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "µ": r"\textmu{}",
}


def _escaped(text: str, special: dict[str, str]) -> str:
    return "".join(special.get(character, character) for character in text)


def _note(ranked: Sequence[Ranked], mark: str) -> str:
    sent = "Sent a step: by rank 0, gradients; in all: by all ranks, everything."
    best = [one for one in ranked if one.is_best and one.run is not None]
    if not best:
        return f"{sent} None is marked as the best: that takes two runs or more on the same data, with an accuracy."
    of = "on its data set " if len(best) > 1 else ""
    points = f"{100 * HOLDS_WITHIN:g}"
    return f"{sent} {mark}: the best {of}of them, with the fewest bytes within {points} point of the highest accuracy."
