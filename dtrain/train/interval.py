"""What happens between two logging points, on a rank and on all."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import nan

import torch
from torch import Tensor

from dtrain.meter.ledger import Purpose, StepRecord, Times
from dtrain.meter.transfer import split_transfer
from dtrain.observe.figures import TrainFigures

ASKED, _SECONDS = 0, 5
"""Where in a rank's vector it says what it was asked for (`boundary.py`), and from where the seconds of its collectives
follow."""


class Interval:
    """What happened on this rank since the last logging point. Every step's record goes into `records`.

    `times_collectives`: where all ranks have the same ones in it, so that their times can be compared.
    """

    def __init__(self, *, times_collectives: bool = True) -> None:
        self._times_collectives = times_collectives
        self.loss_sum: Tensor | float = 0.0
        self.correct: Tensor | int = 0
        self.images = 0
        self.records: list[StepRecord] = []
        self.start = time.perf_counter()
        self.elapsed = 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss_sum = self.loss_sum + loss.detach().double()
        self.correct = self.correct + (logits.detach().argmax(1) == labels).sum()
        self.images += len(labels)

    def gradient_seconds(self) -> list[float]:
        """How long this rank was in each gradient collective, in order; NaN where not known, none if not compared."""
        if not self._times_collectives:
            return []
        entries = [e for r in self.records for e in r.entries if e.purpose is Purpose.GRADIENT]
        return [nan if e.seconds is None else e.seconds for e in entries]

    def mean(self, of: Callable[[Times], float]) -> float:
        times = [r.times for r in self.records if r.times is not None]
        return sum(map(of, times)) / len(times)

    def as_tensor(self, asked: float, wire_bytes: float) -> Tensor:
        """What this rank tells the others: float64, of the same length on every rank. `wire_bytes`: it sent so far."""
        self.elapsed = time.perf_counter() - self.start
        sums = [asked, self.loss_sum, self.correct, self.images, wire_bytes]
        return torch.tensor([float(x) for x in sums] + self.gradient_seconds(), dtype=torch.float64)

    def figures(self, everyone: Tensor, step: int, epoch: int, learning_rate: float, wire_bytes: float) -> TrainFigures:
        """What all ranks told, a row from each, comes to. `wire_bytes`: of this rank's gradients so far."""
        _, loss, correct, images, total_sent = everyone[:, :_SECONDS].sum(0).tolist()
        split = split_transfer(everyone[:, _SECONDS:].tolist())
        num_steps = len(self.records)
        return TrainFigures(
            step=step,
            epoch=epoch,
            loss=loss / images,
            accuracy=correct / images,
            learning_rate=learning_rate,
            images_per_second=images / self.elapsed,
            wire_bytes=wire_bytes,
            step_seconds=self.mean(lambda t: t.step),
            exposed_comm_seconds=self.mean(lambda t: t.exposed_comm),
            codec_seconds=self.mean(lambda t: t.codec),
            transfer_seconds=split.transfer / num_steps if split else None,
            straggler_wait_seconds=split.straggler_wait / num_steps if split else None,
            total_wire_bytes_all_ranks=total_sent,
            wait_by_rank=split.wait_by_rank if split else None,
        )
