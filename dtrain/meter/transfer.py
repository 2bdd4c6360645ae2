"""How much of the time in collectives was transfer, and how much was waiting for the rank that came last."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import NamedTuple


class TransferSplit(NamedTuple):
    """What a set of collectives cost, in seconds. `wait_by_rank` says of each rank how much of the wait was for it."""

    transfer: float
    straggler_wait: float
    wait_by_rank: tuple[float, ...]


def split_transfer(seconds_by_rank: Sequence[Sequence[float]]) -> TransferSplit | None:
    """Tell transfer from waiting, given how long each rank was in each of the same collectives.

    A collective ends everywhere at about the same time, so the rank that came last was in it for the shortest time and
    did not wait: its time is the transfer, and what others spent beyond it is their wait for it, here averaged over
    ranks.
    NaN stands for a time that is not known; None is the answer where nothing, or not everything, was timed.
    """
    transfer, wait_by_rank = 0.0, [0.0] * len(seconds_by_rank)
    for durations in zip(*seconds_by_rank, strict=True):
        shortest = min(durations)
        transfer += shortest
        wait_by_rank[durations.index(shortest)] += sum(durations) / len(durations) - shortest
    wait = sum(wait_by_rank)
    known = any(map(len, seconds_by_rank)) and not isnan(transfer + wait)
    return TransferSplit(transfer, wait, tuple(wait_by_rank)) if known else None
