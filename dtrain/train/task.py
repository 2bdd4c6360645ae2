"""What the training loop works with, and what it expects of loaders and observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dtrain.comm import Communicator
from dtrain.meter.ledger import Ledger
from dtrain.observe.figures import EvalFigures, TrainFigures
from dtrain.sync.every_step import EagerSynchronizer
from dtrain.train.loss import Loss, against_labels
from dtrain.train.schedule import Schedule


class Batch(Protocol):
    """What a loader yields; `global_size` counts the images of this step over all ranks."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def global_size(self) -> int: ...


class Loader(Protocol):
    """A rank's share of the training set; the same number of steps on every rank."""

    @property
    def steps_per_epoch(self) -> int: ...
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]: ...


class Observer(Protocol):
    """Reads what the trainer reports; nothing flows back."""

    def on_train(self, metrics: TrainFigures) -> None: ...
    def on_eval(self, metrics: EvalFigures) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How long to train and how often to look up, in steps; 0 means never. The run is evaluated at its end anyway.

    `micro_batches` is how many parts a batch goes through the model in, for less memory; `amp` computes in bfloat16
    where autocast does; `clip_norm` bounds the L2 norm of the mean gradient.
    """

    num_steps: int
    log_every: int
    eval_every: int
    save_every: int
    on_nonfinite: Literal["raise", "skip", "ignore"] = "raise"
    micro_batches: int = 1
    amp: bool = False
    clip_norm: float | None = None


@dataclass(frozen=True)
class Task:
    """What a run works with, on one rank. `communicator` is not used during backward; `save(step)` stores the model."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    base_learning_rate: float
    synchronizer: EagerSynchronizer
    communicator: Communicator
    ledger: Ledger
    loader: Loader
    eval_batches: Callable[[], Iterable[Batch]]
    save: Callable[[int], None]
    observers: tuple[Observer, ...]
    device: torch.device
    loss: Loss = against_labels
