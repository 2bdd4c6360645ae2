"""The figures of all ranks in one: gathered through the job's store, as JSON data and as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Group as Renderables
from rich.table import Table
from torch._C._distributed_c10d import Store

from dtrain.exchange import Op
from dtrain.files import parse_json, short
from dtrain.meter.command_line import without_secrets
from dtrain.meter.ledger import Activity
from dtrain.meter.nic import Counters
from dtrain.meter.roll_call import await_keys
from dtrain.meter.tally import Kind, Sum, Tally, checked, from_json

TIMES_NOTE = (
    "Times run from a collective's start on a rank to its completion, waiting for slower ranks included, and so does "
    "busbw (as in nccl-tests), per rank. Point to point, and some operations of some backends, have no times."
)
SEEN_NOTE = (
    "Not seen: calls of a backend object itself (ProcessGroupGloo(...), group._get_backend(...)), MPI, Horovod, and "
    "replays of a CUDA graph, whose capture is."
)
STARTED_BY_ITSELF = (
    "Processes that the program starts by itself (mp.spawn, Ray, Lightning's launcher) are not metered. To meter all, "
    "start every rank under `python -m dtrain.meter`, as torchrun does, or call dtrain.meter.install() in each instead."
)
MAX_ROWS = 12
"""Of a table; JSON has the rest."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class RankFigures:
    """What one rank has to say. `seconds` is how long its program ran; `nic` what its host's interface carried.

    `uncounted` is how many calls of each operation are in no sum, since counting them failed. `steps` is how many it
    took until then, None where nobody followed them.
    """

    rank: int
    host: str
    seconds: float
    under_way_seconds: float
    sums: Mapping[Kind, Sum]
    nic: Counters | None
    uncounted: Mapping[Op, int]
    steps: int | None = None

    @property
    def total(self) -> Sum:
        """All its collectives."""
        return _added(self.sums.values())


def own_figures(
    rank: int, host: str, seconds: float, tally: Tally, nic: Counters | None, steps: int | None = None
) -> str:
    """What this rank has to say, as text for the store."""
    return json.dumps(
        {
            "rank": rank,
            "host": host,
            "seconds": seconds,
            "steps": steps,
            "under_way_seconds": tally.under_way_seconds,
            "sums": tally.as_json(),
            "nic": nic,
            "uncounted": tally.uncounted,
        }
    )


def read_figures(text: str | bytes) -> RankFigures:
    """What `own_figures` gave. Raises ValueError for anything else."""
    try:
        data = parse_json(text)
        nic = None if data["nic"] is None else Counters(*map(checked, data["nic"]))
        uncounted = {Op(op): checked(calls) for op, calls in data["uncounted"].items()}
        return RankFigures(
            rank=checked(data["rank"]),
            host=str(data["host"]),
            seconds=checked(data["seconds"]),
            under_way_seconds=checked(data["under_way_seconds"]),
            sums=from_json(data["sums"]),
            nic=nic,
            uncounted=uncounted,
            steps=None if data["steps"] is None else checked(data["steps"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"what a rank says of its traffic is damaged ({short(error)})") from None


def gather(store: Store, world_size: int, timeout_seconds: float) -> list[RankFigures]:
    """The figures of the ranks that have set theirs when all have or time is up. Raises ValueError for damaged ones."""
    keys = [f"figures/{rank}" for rank in range(world_size)]
    missing = await_keys(store, keys, timeout_seconds)
    return [read_figures(store.get(key)) for key in keys if key not in missing]


@dataclass(frozen=True)
class JobTraffic:
    """A program's communication, of the ranks that could say theirs."""

    command: Sequence[str]
    world_size: int
    ranks: Sequence[RankFigures]
    interface: str | None

    @property
    def missing_ranks(self) -> list[int]:
        """The ranks whose figures are not in here."""
        return sorted(set(range(self.world_size)) - {figures.rank for figures in self.ranks})

    @property
    def steps(self) -> int | None:
        """How many steps the first rank here took, None where nobody followed them."""
        return self.ranks[0].steps if self.ranks else None

    @property
    def num_unmetered_ranks(self) -> int:
        """How many ranks of the program's groups are beyond those of the job as it was started."""
        in_groups = {rank for figures in self.ranks for kind in figures.sums for rank in kind.group.ranks}
        return max(0, len(in_groups) - self.world_size)

    @property
    def uncounted(self) -> dict[Op, int]:
        """How many calls of each operation, on all ranks, are in no figure."""
        calls: dict[Op, int] = {}
        for figures in self.ranks:
            for op, count in figures.uncounted.items():
                calls[op] = calls.get(op, 0) + count
        return calls

    def by(self, key: Callable[[Kind], K]) -> dict[K, Sum]:
        """The sums of all ranks by something that their kinds have, most bytes first."""
        sums: dict[K, Sum] = {}
        for figures in self.ranks:
            for kind, total in figures.sums.items():
                sums.setdefault(key(kind), Sum()).add(total)
        return dict(sorted(sums.items(), key=lambda item: -item[1].wire_bytes))

    @property
    def hosts(self) -> dict[str, Counters]:
        """What each host's interface carried, as its first rank read it."""
        found: dict[str, Counters] = {}
        for figures in self.ranks:
            if figures.nic is not None:
                found.setdefault(figures.host, figures.nic)
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data; docs/metering.md says what each field means."""
        total = _added(figures.total for figures in self.ranks)
        return {
            "command": without_secrets(self.command),
            "world_size": self.world_size,
            "missing_ranks": self.missing_ranks,
            "unmetered_ranks": self.num_unmetered_ranks,
            "uncounted_calls_all_ranks": sum(self.uncounted.values()),
            "uncounted": [{"op": op, "calls": calls} for op, calls in self.uncounted.items()],
            "steps": self.steps,
            "total_wire_bytes_all_ranks": total.wire_bytes,
            "total_payload_bytes_all_ranks": total.payload_bytes,
            "total_collectives_all_ranks": total.collectives,
            "operations": [{"op": op, **_json(s)} for op, s in self.by(lambda kind: kind.op).items()],
            "sizes": [
                {"op": op, "from_bytes": size, "below_bytes": 2 * size or 1, **_json(s)}
                for (op, size), s in self.by(lambda kind: (kind.op, kind.size)).items()
            ],
            "groups": [
                {"group": group.name, "ranks": list(group.ranks), **_json(s)}
                for group, s in self.by(lambda kind: kind.group).items()
            ],
            "purposes": [{"purpose": p, **_json(s)} for p, s in self.by(lambda kind: kind.purpose).items()],
            "phases": [{"phase": p, **_json(s)} for p, s in self.by(lambda kind: kind.activity).items()],
            "ranks": [
                {
                    "rank": figures.rank,
                    "host": figures.host,
                    "program_seconds": figures.seconds,
                    "under_way_seconds": figures.under_way_seconds,
                    **_json(figures.total),
                }
                for figures in self.ranks
            ],
            "nic": [
                {"host": host, "interface": self.interface, **counters._asdict()}
                for host, counters in self.hosts.items()
            ],
        }

    def tables(self) -> Renderables:
        """What a person reads."""
        total = _added(figures.total for figures in self.ranks)
        during = "" if self.steps is None else f", in {count_of(self.steps, 'step')} and what came before"
        sent = f"{count_of(self.world_size, 'rank')} sent {with_unit(total.wire_bytes)}"
        parts: list[Table | str] = [f"{sent} in {total.collectives:,} collectives{during}"]
        if self.missing_ranks:
            parts.append(f"without rank {', '.join(map(str, self.missing_ranks))}: no figures came")
        if self.num_unmetered_ranks:
            parts.append(f"without {count_of(self.num_unmetered_ranks, 'rank')} of its groups. {STARTED_BY_ITSELF}")
        if self.uncounted:
            listed = ", ".join(f"{count_of(calls, 'call')} of {op}" for op, calls in self.uncounted.items())
            parts.append(f"INCOMPLETE: without {listed} that could not be counted; a warning above says why")
        if not total.collectives:
            return Renderables(*parts, f"{STARTED_BY_ITSELF} {SEEN_NOTE}")
        parts.append(self._table("operation", self.by(lambda kind: kind.op)))
        parts.append(self._table("payload", self.by(lambda kind: (kind.op, kind.size)), _size_class))
        parts.append(self._table("group", self.by(lambda kind: kind.group), lambda g: f"{g.name} {_ranks(g.ranks)}"))
        phases = self.by(lambda kind: kind.activity)
        if set(phases) != {Activity.INIT}:  # nobody stated one, and dtrain exchanges nothing
            parts.append(self._table("phase", phases))
        parts.append(self._table("purpose", self.by(lambda kind: kind.purpose)))
        parts.append(self._rank_table())
        if self.interface is not None:
            parts.append(self._nic_table())
        parts.append(f"{TIMES_NOTE} {SEEN_NOTE}")
        return Renderables(*parts)

    def _table(self, name: str, sums: Mapping[K, Sum], label: Callable[[K], str] = str) -> Table:
        table = _columns(name, "collectives", "payload", "sent", "share", "busbw")
        whole = sum(s.wire_bytes for s in sums.values())
        for key, s in list(sums.items())[:MAX_ROWS]:
            share = f"{s.wire_bytes / whole:.1%}" if whole else "-"
            table.add_row(
                label(key), f"{s.collectives:,}", with_unit(s.payload_bytes), with_unit(s.wire_bytes), share, _speed(s)
            )
        if len(sums) > MAX_ROWS:
            table.add_row(f"{len(sums) - MAX_ROWS} more: --json", *[""] * 5)
        return table

    def _rank_table(self) -> Table:
        table = _columns("rank", "host", "collectives", "payload", "sent", "time", "collective under way")
        talkers = sorted(self.ranks, key=lambda figures: -figures.total.wire_bytes)
        for figures in talkers[:MAX_ROWS]:
            total = figures.total
            share = f"{figures.under_way_seconds / figures.seconds:.1%}" if figures.seconds else "-"
            if total.timed < total.collectives:
                share = f"at least {share}" if total.timed else "-"
            row = [str(figures.rank), figures.host, f"{total.collectives:,}", with_unit(total.payload_bytes)]
            table.add_row(*row, with_unit(total.wire_bytes), f"{figures.seconds:.1f} s", share)
        if len(talkers) > MAX_ROWS:
            table.add_row(f"{len(talkers) - MAX_ROWS} more: --json", *[""] * 6)
        return table

    def _nic_table(self) -> Table:
        table = _columns("host", "interface", "transmitted", "received")
        for host, counters in self.hosts.items():
            table.add_row(
                host, self.interface, with_unit(counters.transmitted_bytes), with_unit(counters.received_bytes)
            )
        return table


def _added(sums: Iterable[Sum]) -> Sum:
    total = Sum()
    for s in sums:
        total.add(s)
    return total


def _json(s: Sum) -> dict[str, Any]:
    return {
        "collectives": s.collectives,
        "payload_bytes": s.payload_bytes,
        "wire_bytes": s.wire_bytes,
        "timed": s.timed,
        "seconds": s.seconds,
        "bus_bytes_per_second": s.bus_bytes_per_second,
    }


def count_of(number: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _columns(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def with_unit(num_bytes: float) -> str:
    """Bytes in decimal units: `4.94 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.2f} {unit}"
    return f"{num_bytes:,.0f} B"


def _size_class(key: tuple[Op, int]) -> str:
    op, size = key
    if size == 0:
        return f"{op} of nothing"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{op} of {size // factor} to {2 * size // factor} {unit}"
    return f"{op} of {size} to {2 * size} B"


def _speed(s: Sum) -> str:
    return "-" if s.bus_bytes_per_second is None else f"{with_unit(s.bus_bytes_per_second)}/s"


def _ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return ""
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"(ranks {ranks[0]} to {ranks[-1]})"
    listed = ", ".join(map(str, ranks[:8])) + (f", ... {len(ranks)} in all" if len(ranks) > 8 else "")
    return f"(rank{'s' * (len(ranks) > 1)} {listed})"
