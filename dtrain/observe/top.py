"""`dtrain top`: runs as they go, a row for each rank, in a terminal of 80 columns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dtrain.meter.job_traffic import count_of, with_unit
from dtrain.observe.follow import check_run, run_now
from dtrain.observe.frame import Frame, RankNow, RunNow
from dtrain.observe.scrape import TIMEOUT_SECONDS, Endpoint, runs_now

EVERY_SECONDS = 2.0
WIDTH = 80
_UNKNOWN = "-"


class Sources:
    """Run directories and addresses of metrics, asked until it is closed. Raises ValueError for what is neither."""

    def __init__(self, names: Sequence[str]) -> None:
        self._folders = [Path(name) for name in names if "://" not in name]
        for folder in self._folders:
            check_run(folder)
        self._given = [Endpoint(name, EVERY_SECONDS) for name in dict.fromkeys(names) if "://" in name]
        self._named: dict[str, Endpoint] = {}

    def await_answers(self) -> None:
        """Until each address, and then each that one names, has answered or failed to; not much longer than it may."""
        _await(self._given)
        _await(self._endpoints())

    def close(self) -> None:
        """Ask no address any more."""
        for endpoint in [*self._given, *self._named.values()]:
            endpoint.close()

    def _endpoints(self) -> list[Endpoint]:
        """The addresses that were given, and those that these name now."""
        named = {url for endpoint in self._given for url in endpoint.others}
        for url in named - self._named.keys():
            self._named[url] = Endpoint(url, EVERY_SECONDS)
        for url in self._named.keys() - named:
            self._named.pop(url).close()
        return [*self._given, *self._named.values()]

    def frame(self) -> Frame:
        """What is known at present."""
        endpoints = self._endpoints()
        runs = [run_now(folder) for folder in self._folders] + runs_now(endpoints)
        return Frame(runs, [silence for endpoint in endpoints if (silence := endpoint.silence) is not None])


def _await(endpoints: Sequence[Endpoint]) -> None:
    deadline = time.monotonic() + 1.5 * TIMEOUT_SECONDS
    for endpoint in endpoints:
        endpoint.asked.wait(max(0.0, deadline - time.monotonic()))


def show_live(sources: Sources, console: Console) -> NoReturn:
    """Fill the terminal with what is known, anew every EVERY_SECONDS, until Ctrl-C. The terminal is then as it was."""
    sources.await_answers()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(drawing(sources.frame(), console.height), refresh=True)
            time.sleep(EVERY_SECONDS)


def drawing(frame: Frame, height: int | None = None) -> RenderableType:
    """A frame for people, in at most so many lines; None for as many as it takes."""
    parts: list[RenderableType] = []
    room = None
    if height is not None:
        num_runs = max(1, len(frame.runs))
        room = max(1, (height - len(frame.silent)) // num_runs - 6)
    for run in frame.runs:
        parts += [*_heading(run), _table(run, room), Text()]
    for rank in frame.silent:
        parts.append(_line(f"{rank.source}: {rank.error}", style="red"))
    return Group(*parts)


def _heading(run: RunNow) -> list[Text]:
    what = " ".join(part for part in (run.model, run.data and f"on {run.data}") if part)
    how = ", ".join(part for part in (run.backend, run.compressor and f"compressor {run.compressor}") if part)
    ranks = count_of(run.world_size, "rank") if run.world_size is not None else None
    learnt = [
        f"loss {run.loss:.4f}" if run.loss is not None else None,
        f"accuracy {run.accuracy:.1%}" if run.accuracy is not None else None,
        f"{run.images_per_second:,.0f} images/s" if run.images_per_second is not None else None,
    ]
    known = sum(rank.wire_bytes is not None for rank in run.ranks)
    of = f" by {known} of {run.world_size} ranks" if known and run.world_size not in (None, known) else ""
    spent = [
        f"{with_unit(run.wire_bytes)} sent{of}" if run.wire_bytes is not None else None,
        f"saving {run.saving_vs_fp32:,.1f}x" if run.saving_vs_fp32 is not None else None,
        f"transfer {_milliseconds(run.transfer_seconds)}" if run.transfer_seconds is not None else None,
        f"stragglers {_milliseconds(run.straggler_wait_seconds)}" if run.straggler_wait_seconds is not None else None,
    ]
    lines = [_line(" - ".join(part for part in (run.name, what, ranks, how) if part), style="bold")]
    return lines + [_line("  ".join(filter(None, parts))) for parts in (learnt, spent) if any(parts)]


def _table(run: RunNow, room: int | None) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=WIDTH)
    table.add_column("rank", justify="right", width=4)
    table.add_column("host", width=12, no_wrap=True)
    table.add_column("state", width=12, no_wrap=True)
    for name, width in (("step", 7), ("a step", 8), ("waits", 5), ("sent/step", 9), ("sent/s", 9)):
        table.add_column(name, justify="right", width=width, no_wrap=True)
    stragglers = run.stragglers
    shown = run.ranks if room is None or len(run.ranks) <= room else _worst(run, room)
    for rank in shown:
        if rank.error is not None and rank.steps is None:
            table.add_row(_number(rank), _plain(rank.host or _UNKNOWN), Text("no answer", style="red"))
        else:
            table.add_row(*_row(rank, stragglers), style="dim" if rank.error is not None else "")
    if len(shown) < len(run.ranks):
        table.add_row("", _plain(f"{len(run.ranks) - len(shown)} more"), "")
    return table


def _worst(run: RunNow, room: int) -> list[RankNow]:
    """Those with something to look at first, and as many others as there is room for, by rank."""
    stragglers = run.stragglers
    first = sorted(run.ranks, key=lambda rank: (rank.error is None, not rank.is_stalled, rank.rank not in stragglers))
    return sorted(first[:room], key=lambda rank: -1 if rank.rank is None else rank.rank)


def _row(rank: RankNow, stragglers: Sequence[int]) -> list[RenderableType]:
    state = Text(_printable(rank.doing or _UNKNOWN))
    if rank.error is not None:
        state = Text("no answer", style="red")
    elif rank.doing == "gone":
        state.stylize("red")
    elif rank.is_stalled:
        state = Text(f"stalled {rank.idle_seconds:.0f} s", style="red")
    elif rank.rank in stragglers and rank.doing not in ("ended", "gone"):
        state = Text("straggler", style="yellow")
    return [
        _number(rank),
        _plain(rank.host or _UNKNOWN),
        state,
        _UNKNOWN if rank.steps is None else f"{rank.steps:,}",
        _milliseconds(rank.step_seconds),
        _UNKNOWN if rank.exposed_share is None else f"{rank.exposed_share:.0%}",
        _UNKNOWN if rank.wire_bytes_per_step is None else with_unit(rank.wire_bytes_per_step),
        _UNKNOWN if rank.wire_bytes_per_second is None else with_unit(rank.wire_bytes_per_second),
    ]


def _number(rank: RankNow) -> str:
    return "?" if rank.rank is None else str(rank.rank)


def _milliseconds(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else f"{seconds:,.1f} s" if seconds >= 10 else f"{1000 * seconds:,.0f} ms"


def _line(text: str, style: str = "") -> Text:
    return Text(_printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _plain(text: str) -> Text:
    return Text(_printable(text), no_wrap=True, overflow="ellipsis")


def _printable(text: str) -> str:
    """Names come from files and from the network: none of them may steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
