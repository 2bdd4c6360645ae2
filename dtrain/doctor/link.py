"""What the ranks' own collectives come to: latency, bandwidth, and how far their clocks are apart."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from dtrain.comm import Communicator, all_gather, all_gather_bytes, perform
from dtrain.doctor.check import Check, Severity
from dtrain.exchange import Op, Request
from dtrain.files import parse_json, short

_SMALL_BYTES, _MIDDLE_BYTES, _LARGE_BYTES = 4, 10**6, 25 * 10**6
_FAST_SECONDS = 0.1
_MAX_SKEW_SECONDS = 0.1


def latency(communicator: Communicator) -> Check:
    """The median time of an all_reduce of one number."""
    seconds = _median_seconds(communicator, _SMALL_BYTES, repetitions=50)
    return Check("latency", Severity.OK, f"{seconds * 1e6:,.0f} us for an all_reduce of {_SMALL_BYTES} B")


def bandwidth(communicator: Communicator) -> Check:
    """busbw of an all_reduce as nccl-tests define it: bytes / seconds x 2(n-1)/n. Large only where links are fast."""
    n = communicator.world_size
    size, seconds = _MIDDLE_BYTES, _median_seconds(communicator, _MIDDLE_BYTES, repetitions=3)
    if float(all_gather(communicator, torch.tensor([seconds])).max()) < _FAST_SECONDS:
        size, seconds = _LARGE_BYTES, _median_seconds(communicator, _LARGE_BYTES, repetitions=5)
    algbw = size / seconds
    busbw = algbw * 2 * (n - 1) / n
    finding = f"busbw {busbw / 1e9:.3f} GB/s, algbw {algbw / 1e9:.3f} GB/s: all_reduce of {size / 1e6:g} MB"
    return Check("bandwidth", Severity.OK, f"{finding} on {communicator.backend}, {n} ranks")


def clock_skew(communicator: Communicator, repetitions: int = 20) -> Check:
    """The largest difference between rank 0's clock and another's.

    Rank k stamps its time between two all_gathers. Rank 0 enters the first before and leaves the second after, so the
    stamp lies between its own two, whose middle is off by at most half their distance; the closest pair counts.
    """
    best = torch.full((communicator.world_size,), float("inf"), dtype=torch.float64)
    skew = torch.zeros_like(best)
    for _ in range(repetitions):
        before = time.time()
        all_gather(communicator, torch.zeros(1, dtype=torch.float64))
        stamps = all_gather(communicator, torch.tensor([time.time()], dtype=torch.float64)).view(-1)
        after = time.time()
        if (after - before) < float(best[0]):
            best.fill_(after - before)
            skew = stamps - (before + after) / 2
    largest, error = float(skew.abs().max()), float(best[0]) / 2
    finding = f"clocks are within {largest * 1e3:.1f} ms of rank 0's, give or take {error * 1e3:.1f} ms"
    if largest - error > _MAX_SKEW_SECONDS:
        cure = "run an NTP client on every host (chrony, systemd-timesyncd)"
        return Check("clock skew", Severity.WARNING, finding, cure)
    return Check("clock skew", Severity.OK, finding)


def gather_objections(communicator: Communicator, host: str, own: Sequence[Check]) -> list[tuple[str, list[Check]]]:
    """Every rank's host, and what it found there. Raises ValueError that names the rank whose words came damaged."""
    told = {"host": host, "objections": [asdict(check) for check in own]}
    return [
        _read_told(text, rank) for rank, text in enumerate(all_gather_bytes(communicator, json.dumps(told).encode()))
    ]


def _read_told(text: bytes, rank: int) -> tuple[str, list[Check]]:
    try:
        told = parse_json(text)
        host = short(told["host"])
        return host, [
            Check(
                short(one["name"]),
                Severity(one["severity"]),
                short(one["finding"], 1000),
                short(one["cure"], 1000),
                host,
            )
            for one in told["objections"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"what rank {rank} found on its host came damaged ({short(error)})") from None


def hosts(names: list[str]) -> Check:
    """Which ranks are where."""
    found: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        found.setdefault(name, []).append(rank)
    finding = "; ".join(f"{name}: {', '.join(map(str, ranks))}" for name, ranks in found.items())
    return Check("ranks", Severity.OK, f"{len(names)} on {len(found)} host(s): {finding}")


def _median_seconds(communicator: Communicator, size_bytes: int, *, repetitions: int) -> float:
    def timed(function: Callable[[], object]) -> float:
        begun = time.perf_counter()
        function()
        return time.perf_counter() - begun

    payload = torch.zeros(size_bytes // 4)
    perform(communicator, Request(Op.ALL_REDUCE, payload))
    return statistics.median(
        timed(lambda: perform(communicator, Request(Op.ALL_REDUCE, payload))) for _ in range(repetitions)
    )
