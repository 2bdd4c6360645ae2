"""A run as its directory shows it: the ends of its files, however long they are."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dtrain.files import MAX_JSON_BYTES, open_file, parse_json, read_file
from dtrain.observe.frame import RankNow, RunNow
from dtrain.observe.process import has_ended

STEPS = 20
"""Latest ones that means are of."""
_TAIL_BYTES, _MAX_TAIL_BYTES = 1 << 17, 1 << 24


def check_run(path: Path) -> None:
    """Raises ValueError for what is no run directory."""
    if not (path / "summary.json").is_file():
        raise ValueError(
            f"{path} is no run: give a run directory, or the address of a rank's metrics (http://HOST:9400)"
        )


def run_now(path: Path) -> RunNow:
    """What the files there say at present; what cannot be read is said in the place of its rank."""
    try:
        summary = _object(path / "summary.json")
        train, test = _scores(path / "metrics.jsonl")
        complete = summary.get("complete") is True
        environment = _object(path / "environment.json") if (path / "environment.json").exists() else {}
        host, end = _host(environment), "ended" if complete else "gone" if _is_gone(environment) else None
        files = sorted((path / "ledger").glob("rank*.jsonl"), key=lambda file: (len(file.name), file.name))
        return RunNow(
            name=str(summary.get("run", path.name)),
            ranks=[_rank_now(file, host, end) for file in files],
            complete=complete,
            model=_text(summary, "model"),
            data=_text(summary, "data"),
            backend=_text(summary, "backend"),
            compressor=_text(summary, "compressor"),
            world_size=_whole(summary, "world_size"),
            loss=_number(train, "loss"),
            accuracy=_number(test, "accuracy"),
            images_per_second=_number(train, "images_per_second"),
            wire_bytes=_number(summary if complete else train, "total_wire_bytes_all_ranks"),
            saving_vs_fp32=_number(summary, "saving_vs_fp32"),
            transfer_seconds=_number(train, "transfer_seconds"),
            straggler_wait_seconds=_number(train, "straggler_wait_seconds"),
        )
    except (OSError, ValueError) as error:  # it is being replaced by another, or is damaged
        reason = getattr(error, "strerror", None) or str(error)
        return RunNow(path.name, [RankNow(None, str(path), error=f"cannot be read: {reason}")])


def _rank_now(path: Path, host: str | None, end: str | None) -> RankNow:
    """`end` is how its run ended, if it has."""
    number = path.stem.removeprefix("rank")
    rank = int(number) if number.isdecimal() and len(number) < 10 else None
    try:
        records = _records(path)
        idle = max(0.0, time.time() - path.stat().st_mtime)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return RankNow(rank, str(path), host, error=f"cannot be read: {reason}")
    steps = [record for record in records if record.get("step") is not None and isinstance(record.get("times"), dict)]
    figures = [figure for record in steps[-STEPS:] if (figure := _step(record)) is not None]
    if not figures:
        return RankNow(rank, str(path), host, end or "init")
    took, exposed, wire = (
        sum(column) / len(figures) for column in zip(*(figure[1:] for figure in figures), strict=True)
    )
    return RankNow(
        rank=rank,
        source=str(path),
        host=host,
        doing=end or _doing(records),
        steps=figures[-1].number + 1,
        step_seconds=took,
        exposed_seconds=exposed,
        wire_bytes_per_step=wire,
        idle_seconds=idle,
    )


class _Step(NamedTuple):
    """`took` and `exposed` are seconds."""

    number: int
    took: float
    exposed: float
    wire_bytes: float


def _step(record: Mapping[str, Any]) -> _Step | None:
    """None of a record that is damaged."""
    entries = record.get("entries")
    number, took, exposed = (
        record.get("step"),
        _number(record["times"], "step"),
        _number(record["times"], "exposed_comm"),
    )
    if type(number) is not int or took is None or exposed is None or not isinstance(entries, list):
        return None
    sent = [_number(entry, "wire_bytes") or 0.0 for entry in entries if isinstance(entry, dict)]
    return _Step(number, took, exposed, sum(sent))


def _doing(records: list[dict[str, Any]]) -> str:
    """By the last collective: those of metrics at logging points are of training, too."""
    for record in reversed(records):
        entries = record.get("entries")
        if isinstance(entries, list) and entries and isinstance(entries[-1], dict):
            return _text(entries[-1], "phase") or "train"
    return "train"


def _records(path: Path) -> list[dict[str, Any]]:
    """The last objects of a file of JSON lines: some steps' worth, even where lines are long."""
    size = path.stat().st_size
    length = _TAIL_BYTES
    while True:
        found = _lines(path, length)
        if len(found) >= STEPS + 1 or length >= min(size, _MAX_TAIL_BYTES):
            return found
        length *= 8


def _lines(path: Path, length: int) -> list[dict[str, Any]]:
    with open_file(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - length))
        lines = file.read(length).split(b"\n")  # part of a line, at either end, is no JSON
    return [data for line in lines if isinstance(data := _parsed(line), dict)]


def _parsed(text: bytes) -> Any:
    try:
        return parse_json(text, not_finite=True)
    except ValueError:
        return None


def _object(path: Path) -> dict[str, Any]:
    data = _parsed(read_file(path, MAX_JSON_BYTES))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not the JSON of a run")
    return data


def _scores(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last figures of training and of testing."""
    train: dict[str, Any] = {}
    test: dict[str, Any] = {}
    if path.exists():
        for line in _lines(path, _TAIL_BYTES):
            if line.get("kind") == "train":
                train = line
            elif line.get("kind") == "eval":
                test = line
    return train, test or train


def _is_gone(environment: Mapping[str, Any]) -> bool:
    """Whether rank 0 has ended, and with it the run; not known of other machines."""
    process = environment.get("process")
    return isinstance(process, dict) and has_ended(process)


def _host(environment: Mapping[str, Any]) -> str | None:
    """Of all ranks, where they are on one."""
    launch = environment.get("launch")
    if isinstance(launch, dict) and launch.get("local_world_size") == launch.get("world_size"):
        return _text(environment, "host")
    return None


def _number(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    return float(value) if isinstance(value, float | int) and abs(value) < 1e300 else None


def _whole(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    return value if type(value) is int else None


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    return value if isinstance(value, str) else None
