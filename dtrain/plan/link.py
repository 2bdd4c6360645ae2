"""A link between hosts, and what a collective takes of it: by the algorithms that gloo runs, and the nominal ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, log2
from pathlib import Path
from types import MappingProxyType

from dtrain.exchange import Op
from dtrain.files import MAX_JSON_BYTES, parse_json, read_file, short
from dtrain.meter.wire import wire_bytes

_UNITS = MappingProxyType({"kbit": 1e3, "mbit": 1e6, "gbit": 1e9})
_TIMES = MappingProxyType({"us": 1e-6, "ms": 1e-3, "s": 1.0})

TCP_SHARE = 1448 / 1514 * (1 - 66 / (2 * 1514))
"""Of an Ethernet link's bits, those that are data: frames of 1,514 bytes hold 1,448, and every two are acknowledged."""


@dataclass(frozen=True)
class Link:
    """What each rank sends over, and receives over at the same time.

    Args:
        bits_per_second: of the wire, headers included.
        latency_seconds: from one rank's start of a message to the other's having it, beside the time of its bytes.
        busy_latency_seconds: the same where all cores are busy; None for no difference.
        share: of the bits that are data.
        core_seconds_per_byte: what a byte takes of a core on its way, at its sender and at its receiver together.
        concurrent: collectives under way at once; those that follow wait. NCCL runs one at a time.
        ranks: of a node, that share it; what they send each other does not pass it.
        gathered_share, exchanged_share: of the rate, what an all_gather and an all_to_all reach in the mean.
    """

    bits_per_second: float
    latency_seconds: float = 100e-6
    busy_latency_seconds: float | None = None
    share: float = TCP_SHARE
    core_seconds_per_byte: float = 0.0
    concurrent: int = 2
    ranks: int = 1
    gathered_share: float = 1.0
    exchanged_share: float = 1.0

    def __post_init__(self) -> None:
        if any(type(count) is not int or count < 1 for count in (self.concurrent, self.ranks)):
            raise ValueError("collectives under way on a link, and ranks of a node, must be 1 or more")
        shares = (self.share, self.gathered_share, self.exchanged_share)
        if not 0 < self.bits_per_second < inf or not all(0 < share <= 1 for share in shares):
            raise ValueError(f"a link of {self.bits_per_second:g} bits per second: give a rate such as 1gbit")
        times = (self.latency_seconds, self.busy_latency_seconds or 0.0, self.core_seconds_per_byte)
        if not all(0 <= seconds < inf for seconds in times):
            raise ValueError("times of a link must be 0 or more")

    @property
    def bytes_per_second(self) -> float:
        """Of data."""
        return self.bits_per_second * self.share / 8

    def reached(self, op: Op) -> float:
        """The share of it that a collective reaches."""
        return {Op.ALL_GATHER: self.gathered_share, Op.ALL_TO_ALL: self.exchanged_share}.get(op, 1.0)


@dataclass(frozen=True)
class Passage:
    """A collective on its way: messages that follow one another, bytes that each rank sends."""

    messages: int
    sent_bytes: float


def passage(backend: str, op: Op, payload_bytes: int, world_size: int, *, ranks: int = 1) -> Passage:
    """What a collective takes of the link of a node with so many ranks. Nothing for a single rank.

    Rings go through each node once, in and out, however many ranks it has. What is sent all to all is sent by each.
    """
    if world_size == 1:
        return Passage(0, 0.0)
    sent = wire_bytes(backend, op, payload_bytes, world_size)
    if op is Op.ALL_TO_ALL:
        sent *= ranks * max(0, world_size - ranks) / (world_size - 1)
    return Passage(_messages(backend, op, world_size), sent if world_size > ranks else 0.0)


def _messages(backend: str, op: Op, world_size: int) -> int:
    """One after another: around a ring once for each phase; by NCCL's trees where they are shorter."""
    around = world_size - 1
    if op is Op.ALL_REDUCE:
        return min(2 * around, 2 * ceil(log2(world_size))) if backend == "nccl" else 2 * around
    return around if op is Op.ALL_GATHER else 1


def read_link(text: str, latency: str | None) -> Link:
    """A link of a rate such as `100mbit`, or as the probe wrote it to a file. Raises ValueError for anything else."""
    link = _of_probe(Path(text)) if text.endswith(".json") else Link(parse_rate(text))
    return link if latency is None else replace(link, latency_seconds=parse_seconds(latency))


def _of_probe(path: Path) -> Link:
    content = read_file(path, MAX_JSON_BYTES)
    try:
        return Link(**parse_json(content)["link"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not from `python -m dtrain.plan.probe --write` ({short(error)}): measure again"
        ) from error


def parse_rate(text: str) -> float:
    """Bits per second of `100mbit` or `2.5gbit`. Raises ValueError for anything else."""
    return _parse(text, _UNITS, "a rate", "100mbit or 2.5gbit")


def parse_seconds(text: str) -> float:
    """Seconds of `0.3ms` or `20us`. Raises ValueError for anything else."""
    return _parse(text, _TIMES, "a time", "0.3ms or 1.5s")


def _parse(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(units)})", text.strip().lower())
    value = float(match[1]) * units[match[2]] if match else 0.0
    if not value:
        raise ValueError(f"{text!r} is not {what}: write a number and its unit, such as {example}")
    return value
