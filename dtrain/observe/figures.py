"""What a run reports as it goes: a record at each logging point, at each evaluation, at each choice of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainFigures:
    """Training between two logging points. Byte counts run from the start of the run; the rest covers the interval.

    `loss`, `accuracy` (a fraction) and `images_per_second` are over all ranks. `wire_bytes` is rank 0's, of gradients
    alone. Times are means per step: `step_seconds`, `exposed_comm_seconds` and `codec_seconds` of rank 0;
    `transfer_seconds` is what the collectives took on the rank that waited least, and `straggler_wait_seconds` what
    ranks waited beyond that, on average; both None where the backend does not time collectives.
    `wait_by_rank` says of each rank how much of that wait was for it, in seconds of the whole interval.
    """

    step: int
    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    images_per_second: float
    wire_bytes: float
    step_seconds: float
    exposed_comm_seconds: float
    codec_seconds: float
    transfer_seconds: float | None
    straggler_wait_seconds: float | None
    total_wire_bytes_all_ranks: float
    wait_by_rank: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class PlanFigures:
    """What compressor=auto chose, and how long it predicts a step to take: with that, with a dense exchange, with fp16.

    `step_seconds` has these by "chosen", "dense" and "fp16". It is empty where the choice came with a checkpoint, and
    where a single worker had none.
    """

    chosen: str
    step_seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EvalFigures:
    """One evaluation over the whole test set. `wire_bytes` as in TrainFigures, `accuracy` a fraction."""

    step: int
    epoch: int
    loss: float
    accuracy: float
    num_images: int
    wire_bytes: float
