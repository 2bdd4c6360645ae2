"""From a configuration to the parts of a run: what can be built, and can fail, before other workers are met."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtrain import compressors
from dtrain.comm import Launch
from dtrain.comm.polled import check_summed
from dtrain.exchange import Compressor
from dtrain.train.config import Span, TrainConfig
from dtrain.train.task import Plan
from dtrain.vision import data, models


@dataclass(frozen=True)
class Parts:
    """What one rank trains with. `description` is what building the model again takes, as JSON data."""

    model: nn.Module
    description: dict[str, Any]
    compressor: Compressor
    loader: data.TrainLoader
    test_set: data.Dataset
    num_workers: int
    spans: tuple[Span, ...]
    plan: Plan


def build(config: TrainConfig, launch: Launch) -> Parts:
    """Build the parts. Raises ValueError, FileNotFoundError or ConnectionError, naming the cure."""
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // launch.local_world_size))
    options = dict(config.data.options)
    augment, num_workers = options.pop("augment"), options.pop("num_workers")
    train_set = data.open_dataset(config.data.name, split="train", **options)
    test_set = data.open_dataset(config.data.name, split="test", **options)
    loader = data.train_loader(
        train_set,
        batch_size=config.batch_size,
        rank=launch.rank,
        world_size=launch.world_size,
        seed=config.seed,
        augment=augment,
        num_workers=num_workers,
    )
    torch.manual_seed(config.seed)  # the same weights on every rank
    model, description = _model(config, train_set)
    compressor = compressors.build(config.compressor.name, **config.compressor.options)
    _check_momentum(config)
    if config.compressor.name == "bf16" and config.backend.name in ("mpi", "horovod"):
        check_summed(config.backend.name, torch.bfloat16)
    spans = config.spans(loader.steps_per_epoch)
    plan = _plan(config, spans[-1].end, loader.steps_per_epoch)
    return Parts(model, description, compressor, loader, test_set, num_workers, spans, plan)


def optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `model`'s parameters; the trainer sets its learning rate step by step."""
    chosen = config.optimizer
    return torch.optim.SGD(
        model.parameters(),
        lr=chosen.learning_rate,
        momentum=chosen.momentum,
        weight_decay=chosen.weight_decay,
        nesterov=chosen.nesterov,
    )


def _model(config: TrainConfig, dataset: data.Dataset) -> tuple[nn.Module, dict[str, Any]]:
    chosen = dict(config.model.options)
    num_classes = chosen.pop("num_classes", None) or dataset.num_classes
    if num_classes < dataset.num_classes:
        raise ValueError(
            f"model.num_classes={num_classes} is fewer than the {dataset.num_classes} of data={config.data.name}: "
            "leave it null or give more"
        )
    options = models.complete_options(config.model.name, **chosen)
    model = models.build(config.model.name, num_classes=num_classes, **options)
    if config.init_weights is not None:
        models.load_weights(model, Path(config.init_weights))
    _check_image_size(model, dataset.image_size)
    data_options = {k: v for k, v in config.data.options.items() if k not in _NOT_ABOUT_THE_IMAGES}
    return model, {
        "model": {"name": config.model.name, "num_classes": num_classes, "options": options},
        "data": {
            "name": config.data.name,
            "options": data_options,
            "image_size": dataset.image_size,
            "classes": list(dataset.classes),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
        },
    }


_NOT_ABOUT_THE_IMAGES = ("root", "image_size", "augment", "num_workers", "download")


def _check_momentum(config: TrainConfig) -> None:
    """A compressor with a momentum of its own replaces the optimizer's."""
    if config.compressor.options.get("momentum") and config.optimizer.momentum:
        raise ValueError(
            f"compressor={config.compressor.name} carries the momentum: add optimizer.momentum=0 (and multiply "
            "optimizer.weight_decay by 10, which momentum 0.9 would have done)"
        )


def _check_image_size(model: nn.Module, image_size: int) -> None:
    """A pass over no images: raises the model's own ValueError where they would be too small."""
    model.eval()
    with torch.inference_mode():
        model(torch.empty(0, 3, image_size, image_size))
    model.train()


def _plan(config: TrainConfig, num_steps: int, steps_per_epoch: int) -> Plan:
    return Plan(
        num_steps=num_steps,
        log_every=config.log_every,
        eval_every=config.eval_every_epochs * steps_per_epoch,
        save_every=config.save_every,
        on_nonfinite=config.on_nonfinite,
        micro_batches=config.micro_batches,
        amp=config.amp,
        clip_norm=config.optimizer.clip_norm,
    )
