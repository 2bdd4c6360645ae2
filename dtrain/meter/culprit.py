"""Which rank kept the others waiting, from what each wrote down of its last collectives (`recent.py`, `flight.py`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtrain.exchange import Op
from dtrain.files import parse_json, read_file, short
from dtrain.meter import flight
from dtrain.meter.recent import SCHEMA, name_collective

MAX_BYTES = 16 * 1024 * 1024
"""Of a dump; ours have 60 KB."""
_MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class Collective:
    """One, as one rank saw it. `number` counts those of its group; `started` is in seconds since 1970."""

    group: str
    number: int
    op: str
    purpose: str
    payload_bytes: int
    started: float
    ended: bool

    def __str__(self) -> str:
        return name_collective(self.op, self.number, self.payload_bytes, self.purpose)


@dataclass(frozen=True)
class Dump:
    """What one rank wrote. `error` is how a collective failed there, None where none did, or where that is not known.

    `world_size` is None and `host` empty where the dump does not say.
    """

    rank: int
    world_size: int | None
    host: str
    error: str | None
    groups: Mapping[str, tuple[int, ...]]
    collectives: Mapping[tuple[str, int], Collective]

    def last_of(self, group: str) -> int:
        """The number of the last that it started of a group; 0 for none."""
        return max((number for name, number in self.collectives if name == group), default=0)


@dataclass(frozen=True)
class Finding:
    """`ranks` are those at fault, none where that is not to be told. `sentence` says it to people."""

    sentence: str
    ranks: tuple[int, ...]
    group: str | None = None
    last_finished: Collective | None = None
    first_missed: Collective | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def read_dumps(paths: Iterable[Path]) -> list[Dump]:
    """Of files, and of folders all that are in them, in order of ranks. Raises ValueError for what is none."""
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("collectives-rank*.json")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} holds no collectives-rank<N>.json: they are written when a collective fails")
        files += found
    dumps = sorted((_read(path) for path in files), key=lambda dump: dump.rank)
    ranks = [dump.rank for dump in dumps]
    if len({dump.world_size for dump in dumps}) > 1 or len(set(ranks)) < len(ranks):
        raise ValueError(
            f"these dumps, of ranks {', '.join(map(str, ranks))}, are of different runs: give those of one"
        )
    return dumps


def _read(path: Path) -> Dump:
    content = read_file(path, MAX_BYTES)
    if content.startswith(b"\x80"):
        raise ValueError(
            f"{path} is a pickle, which dtrain does not open: have torch write JSON, in the program that ran "
            "(torch._C._distributed_c10d._dump_fr_trace_json)"
        )
    try:
        data = parse_json(content)
        if flight.is_of_torch(data):
            return _of_torch(data, flight.rank_by_name(path))
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r:.40}")
        groups, collectives, of_torch = data["groups"], data["collectives"], data.get("flight_recorder")
        rank, world_size = _count(data["rank"]), _count(data["world_size"])
        if not rank < world_size <= _MOST_RANKS:
            raise ValueError(f"it is of rank {rank} of {world_size}")
        error = None if data["error"] is None else _text(data["error"])
        if not collectives and of_torch is not None:
            groups = flight.members(of_torch, rank)
            collectives = flight.collectives(of_torch, has_failed=error is not None)
        return Dump(rank, world_size, _text(data["host"]), error, _groups(groups), _numbered(collectives))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is no dump of a rank's last collectives ({short(error)})") from None


def _of_torch(data: Mapping[str, Any], rank: int) -> Dump:
    """A dump that torch's recorder wrote, which says neither host nor number of ranks."""
    collectives = flight.collectives(data, has_failed=False)
    return Dump(rank, None, "", None, _groups(flight.members(data, rank)), _numbered(collectives))


def _groups(data: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {_text(name): tuple(map(_count, ranks)) for name, ranks in data.items()}


def _numbered(collectives: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], Collective]:
    return {(one.group, one.number): one for one in map(_collective, collectives)}


def _collective(one: Mapping[str, Any]) -> Collective:
    op, purpose, group = _text(one["op"]), _text(one["purpose"]), _text(one["group"])
    number, payload_bytes, started = _count(one["number"]), _count(one["payload_bytes"]), one["started"]
    if not isinstance(started, int | float) or not math.isfinite(started):
        raise ValueError(f"a collective started at {started!r:.40}")
    return Collective(group, number, op, purpose, payload_bytes, float(started), bool(one["ended"]))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _text(value: Any) -> str:
    """Without what would change a terminal."""
    return "".join(character for character in str(value)[:1000] if character.isprintable())


def find_culprit(dumps: Sequence[Dump]) -> Finding:
    """Who is behind, in the group in which that was first to be noticed; else who left no dump, or what differs."""
    groups = {group for dump in dumps for group, _ in dump.collectives}
    behind = [finding for group in sorted(groups) if (finding := _behind(group, dumps)) is not None]
    if behind:
        return min(behind, key=lambda finding: finding.first_missed.started if finding.first_missed else 0.0)
    differing = [finding for group in sorted(groups) if (finding := _differing(group, dumps)) is not None]
    if differing:
        return differing[0]
    return _last_resort(dumps)


def _behind(group: str, dumps: Sequence[Dump]) -> Finding | None:
    members = _members(group, dumps)
    last = {dump.rank: dump.last_of(group) for dump in members}
    if len(set(last.values())) < 2:
        return None
    furthest_back = min(last.values())
    late = [dump for dump in members if last[dump.rank] == furthest_back]
    waiting = [dump for dump in members if dump not in late]
    found = [d.collectives[group, furthest_back + 1] for d in waiting if (group, furthest_back + 1) in d.collectives]
    missed = min(found, key=lambda one: one.started, default=None)  # None: all others have forgotten it since
    finished = _last_finished(group, furthest_back, members)
    is_late = f"{_name(late)} {'is' if len(late) == 1 else 'are'} behind"
    if missed is None:
        what = f"started {furthest_back:,} collectives where {_name(waiting)} started up to {max(last.values()):,}"
    else:
        what = f"never started {missed}, in which {_name(waiting)} waited"
    sentence = f"{is_late}: {what}; {_say_finished(finished)}"
    return Finding(sentence, tuple(dump.rank for dump in late), group, finished, missed)


def _differing(group: str, dumps: Sequence[Dump]) -> Finding | None:
    """The first collective of one number that is not the same on two ranks, of those that must hand over as much."""
    members = _members(group, dumps)
    for number in sorted({n for dump in members for name, n in dump.collectives if name == group}):
        seen = [(dump, dump.collectives[group, number]) for dump in members if (group, number) in dump.collectives]
        (first, usual), *others = seen
        for dump, one in others:
            same_size = one.op != Op.ALL_REDUCE or one.payload_bytes == usual.payload_bytes
            if one.op != usual.op or not same_size:
                finished = _last_finished(group, number - 1, members)
                sentence = f"ranks do different things: {_name([first])} started {usual}, {_name([dump])} {one}; "
                return Finding(sentence + _say_finished(finished), (first.rank, dump.rank), group, finished, usual)
    return None


def _last_resort(dumps: Sequence[Dump]) -> Finding:
    world_size = dumps[0].world_size or 1 + dumps[-1].rank
    silent = tuple(sorted(set(range(world_size)) - {dump.rank for dump in dumps}))
    latest = max(
        (one for dump in dumps for one in dump.collectives.values()), key=lambda one: one.started, default=None
    )
    group = latest.group if latest else None
    finished = _last_finished(group, latest.number, _members(group, dumps)) if latest and group is not None else None
    where = f"the last that others started is {latest}" if latest else "nobody started a collective"
    if silent:
        who = f"rank{'s' if silent[1:] else ''} {', '.join(map(str, silent))}"
        sentence = f"{who} left no dump, and so died or was cut off; {where}; {_say_finished(finished)}"
    else:
        sentence = f"no rank is behind: {where}; {_say_finished(finished)}; look at the network between them"
    return Finding(sentence, silent, group, finished, latest)


def _members(group: str | None, dumps: Sequence[Dump]) -> list[Dump]:
    """The dumps of ranks in a group; of all where nobody says who is in it."""
    ranks = {rank for dump in dumps for rank in dump.groups.get(group or "", ())}
    return [dump for dump in dumps if not ranks or dump.rank in ranks]


def _last_finished(group: str, number: int, members: Sequence[Dump]) -> Collective | None:
    """The last up to `number` that all have finished, as far as they remember."""
    for candidate in range(number, 0, -1):
        seen = [dump.collectives.get((group, candidate)) for dump in members]
        known = [one for one in seen if one is not None]
        if not known:
            return None
        if len(known) == len(members) and all(one.ended for one in known):
            return known[0]
    return None


def _say_finished(finished: Collective | None) -> str:
    return f"the last that all had finished is {finished}" if finished else "none that all had finished is known"


def _name(dumps: Sequence[Dump]) -> str:
    if len(dumps) == 1:
        return f"rank {dumps[0].rank}" + (f" on host {dumps[0].host}" if dumps[0].host else "")
    ranks = [str(dump.rank) for dump in dumps]
    listed = ", ".join(ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"ranks {listed}"
