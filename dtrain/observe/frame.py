"""What `dtrain top` shows of runs at one moment, wherever it was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

STRAGGLER = 1.5
"""A rank that computes so many times as long as the quickest quarter, as the alert DtrainStraggler has it."""
STALLED_SECONDS, STALLED_STEPS = 30.0, 10
"""No step for so long, and for so many mean steps: as the alert DtrainStalled."""


@dataclass(frozen=True)
class RankNow:
    """One rank. What is not known is None.

    `doing` is what it says that it does (train, eval, ...), or gone, where its process ended before the run was
    complete. `steps` it has taken; the figures below are means of its
    latest steps, in seconds and wire bytes a step; `exposed_seconds` is what a step waited for its exchange.
    `idle_seconds`: since its last step ended. `error` says why nothing newer is known.
    """

    rank: int | None
    source: str
    host: str | None = None
    doing: str | None = None
    steps: int | None = None
    step_seconds: float | None = None
    exposed_seconds: float | None = None
    wire_bytes_per_step: float | None = None
    wire_bytes: float | None = None
    idle_seconds: float | None = None
    error: str | None = None

    @property
    def wire_bytes_per_second(self) -> float | None:
        """What it sends while it trains."""
        if self.wire_bytes_per_step is None or not self.step_seconds:
            return None
        return self.wire_bytes_per_step / self.step_seconds

    @property
    def exposed_share(self) -> float | None:
        """The fraction of a step that waits for the exchange."""
        return (
            None if self.exposed_seconds is None or not self.step_seconds else self.exposed_seconds / self.step_seconds
        )

    @property
    def busy_seconds(self) -> float | None:
        """The rest of a step: what the rank computes in it."""
        if self.step_seconds is None or self.exposed_seconds is None:
            return None
        return self.step_seconds - self.exposed_seconds

    @property
    def is_stalled(self) -> bool:
        """Whether it should have ended a step by now."""
        if self.doing != "train" or self.idle_seconds is None or self.error is not None:
            return False
        return self.idle_seconds > max(STALLED_SECONDS, STALLED_STEPS * (self.step_seconds or 0.0))


@dataclass(frozen=True)
class RunNow:
    """One run. `wire_bytes` is what the ranks that are known sent, of `world_size`; times are means of a step."""

    name: str
    ranks: Sequence[RankNow]
    complete: bool = False
    model: str | None = None
    data: str | None = None
    backend: str | None = None
    compressor: str | None = None
    world_size: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    images_per_second: float | None = None
    wire_bytes: float | None = None
    saving_vs_fp32: float | None = None
    transfer_seconds: float | None = None
    straggler_wait_seconds: float | None = None

    @property
    def stragglers(self) -> list[int]:
        """Ranks that the others wait for."""
        busy = sorted(rank.busy_seconds for rank in self.ranks if rank.busy_seconds is not None)
        if len(busy) < 2:
            return []
        place = (len(busy) - 1) / 4
        low = int(place)
        quarter = busy[low] + (place - low) * (busy[low + 1] - busy[low])
        return [
            rank.rank
            for rank in self.ranks
            if rank.rank is not None and rank.busy_seconds is not None and rank.busy_seconds > STRAGGLER * quarter
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        ranks = [
            {
                **asdict(rank),
                "wire_bytes_per_second": rank.wire_bytes_per_second,
                "exposed_share": rank.exposed_share,
                "is_stalled": rank.is_stalled,
                "is_straggler": rank.rank in self.stragglers,
            }
            for rank in self.ranks
        ]
        return {**asdict(self), "ranks": ranks}


@dataclass(frozen=True)
class Frame:
    """All that is looked at, at one moment. `silent` are the sources of which no run is known."""

    runs: Sequence[RunNow]
    silent: Sequence[RankNow] = field(default_factory=tuple)

    @property
    def has_errors(self) -> bool:
        """Whether something that was asked for did not answer."""
        return bool(self.silent) or any(rank.error is not None for run in self.runs for rank in run.ranks)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "runs": [run.as_json() for run in self.runs],
            "silent": [{"source": rank.source, "error": rank.error} for rank in self.silent],
        }
