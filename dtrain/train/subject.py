"""A training of ours as something to plan for: its model, optimizer and one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dtrain.comm import Launch
from dtrain.plan.subject import Subject
from dtrain.train.compose import plain, read_request
from dtrain.train.config import from_data
from dtrain.train.loss import against_labels
from dtrain.train.prepare import prepare

_DEFAULTS = ("data=synthetic", "data.num_workers=0", "data.num_train_images=256", "data.num_test_images=8")


def subject_of(settings: Sequence[str], threads: int | None) -> Subject:
    """What `dtrain train` with these settings would train, on images made up unless `data=` is among them.

    Raises ValueError, FileNotFoundError or ConnectionError, naming the cure.
    """
    has_data = any(setting.startswith(("data=", "experiment=")) for setting in settings)
    given = [*(() if has_data else _DEFAULTS), *settings, *([f"threads={threads}"] if threads else [])]
    composed = read_request(given).composed
    if composed is None:
        raise ValueError("a plan takes settings alone: see `dtrain train --help` for them")
    config = from_data(plain(composed))
    prepared = prepare(config, Launch("none", 0, 0, 1, 1))
    batch = next(iter(prepared.loader.epoch(0)))
    optimizer = prepared.optimizer.build(prepared.model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-6  # weights stay what they are

    def loss() -> Tensor:
        total = torch.zeros(())
        micro = zip(batch.images.chunk(config.micro_batches), batch.labels.chunk(config.micro_batches), strict=True)
        for images, labels in micro:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.amp):
                logits = prepared.model(images)
            total = total + against_labels(images, logits.float(), labels)
        return total / batch.global_size

    name = f"{config.model.name}, {config.batch_size} a rank"
    return Subject(name, prepared.model, optimizer, config.optimizer.tried_as, loss)
