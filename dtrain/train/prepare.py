"""What can be built, and can fail, before other workers are met."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtrain import __version__, compressors
from dtrain.arguments import converted, say_doing
from dtrain.arguments.extras import require
from dtrain.comm import Launch, threads_per_rank
from dtrain.comm.polled import check_summed
from dtrain.compressors.codecs import compiled
from dtrain.compressors.none import NoCompression
from dtrain.compressors.trials import IMAGES, check
from dtrain.exchange import Compressor
from dtrain.files import open_file
from dtrain.sync.ahead import compile_ahead
from dtrain.train.carry import Carried
from dtrain.train.checkpoint import Checkpoint, open_checkpoint
from dtrain.train.config import BEFORE, LATEST, Span, TrainConfig
from dtrain.train.optimizers import Optimizer
from dtrain.train.progress import Course, Place
from dtrain.train.settings import Settings, check_resumable, kept_in_checkpoints
from dtrain.train.synchronizers import AUTO
from dtrain.vision import data, models


@dataclass(frozen=True)
class Prepared:
    """What one rank will train with. `description` is what building the model again takes, as JSON data.

    `facts` are what no setting says of data and model. `checkpoint` is the one to go on from.
    """

    model: nn.Module
    optimizer: Optimizer
    description: dict[str, Any]
    compressor: Compressor
    loader: data.TrainLoader
    test_set: data.Dataset
    num_workers: int
    facts: Settings
    checkpoint: Checkpoint | Carried | None
    course: Course
    spans: tuple[Span, ...]

    @property
    def end(self) -> Place:
        """Of the run."""
        return self.course.place(self.spans[-1].end)


def prepare(config: TrainConfig, launch: Launch) -> Prepared:
    """Build it. Raises ValueError, FileNotFoundError or ConnectionError, naming the cure."""
    torch.set_num_threads(config.threads or threads_per_rank(launch, os.environ))
    compiled.choose(config.codec, config.backend.device_type)
    if config.phases:
        require("constriction")  # to pack the model, at the end
    say_doing(f"reading {config.data.name}, building {config.model.name}")
    checkpoint = open_checkpoint(Path(config.resume)) if config.resume not in (None, LATEST) else None
    options = dict(config.data.options)
    augment = converted(bool, options.pop("augment", False), "data.augment")
    num_workers = converted(int, options.pop("num_workers", 1), "data.num_workers")
    options.setdefault("image_size", None)  # which is refused by its name
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
    compressor, optimizer = _momentum_in_one_place(config, launch.world_size)
    compile_ahead(compressor, torch.device(config.backend.device_type))
    if config.compressor.name == "bf16" and config.backend.name in ("mpi", "horovod"):
        check_summed(config.backend.name, torch.bfloat16)
    facts = _facts(model, train_set, test_set) | {"teacher": _teacher(config.teacher)}
    if config.resume is None and config.resume_changes:
        raise ValueError("resume_changes is for resume=FOLDER: add that, or leave it out")
    course = Course(loader.num_samples, loader.global_batch_size)
    spans = config.spans(course.steps_per_epoch)
    prepared = Prepared(
        model, optimizer, description, compressor, loader, test_set, num_workers, facts, None, course, spans
    )
    return prepared if checkpoint is None else from_checkpoint(prepared, config, checkpoint)


def from_checkpoint(prepared: Prepared, config: TrainConfig, checkpoint: Checkpoint | Carried) -> Prepared:
    """The same, to go on from a checkpoint. Raises ValueError, naming the cure, for one of another run."""
    now = kept_in_checkpoints(config, prepared.facts)
    check_resumable(checkpoint.manifest.settings, now, config.resume_changes, checkpoint.folder)
    course = Course(prepared.loader.num_samples, checkpoint.manifest.step_samples)
    return replace(prepared, checkpoint=checkpoint, course=course, spans=config.spans(course.steps_per_epoch))


def keep_steps(prepared: Prepared) -> Prepared:
    """A run that goes on by itself, with more or fewer workers: a step's samples stay as many, each takes its share."""
    return replace(prepared, loader=replace(prepared.loader, global_batch_size=prepared.course.step_samples))


def _facts(model: nn.Module, train_set: data.Dataset, test_set: data.Dataset) -> dict[str, Any]:
    shapes = repr([(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()])
    classes = repr(list(train_set.classes))
    return {
        "dtrain": __version__,
        "parameters": hashlib.sha256(shapes.encode()).hexdigest()[:16],
        "num_train_images": len(train_set),
        "num_test_images": len(test_set),
        "classes": hashlib.sha256(classes.encode()).hexdigest()[:16],
    }


def _teacher(teacher: str | None) -> str | None:
    """What a file of weights holds; anything else as it is."""
    if teacher in (None, BEFORE):
        return teacher
    try:
        with open_file(Path(str(teacher))) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise FileNotFoundError(f"no weight file at {teacher}: check the path of teacher") from None


def _model(config: TrainConfig, dataset: data.Dataset) -> tuple[nn.Module, dict[str, Any]]:
    chosen = dict(config.model.options)
    num_classes = converted(int | None, chosen.pop("num_classes", None), "model.num_classes") or dataset.num_classes
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


def _momentum_in_one_place(config: TrainConfig, world_size: int) -> tuple[Compressor, Optimizer]:
    """A compressor with a momentum of its own takes the optimizer's over, or replaces it."""
    name, options, optimizer = config.compressor.name, dict(config.compressor.options), config.optimizer
    if name == AUTO:
        return NoCompression(), optimizer  # until it is chosen
    if config.sync.exchanged == "update":
        compressors.check_for_updates(name, options)
    if "momentum" in options and options["momentum"] is None:
        options["momentum"], optimizer = optimizer.hand_over_momentum()
    elif options.get("momentum") and optimizer.has_momentum:
        raise ValueError(
            f"compressor={name} carries the momentum: add compressor.momentum=null, to take the optimizer's over, "
            f"or {optimizer.without_momentum}"
        )
    compressor = compressors.build(name, **options)
    check(
        name,
        config.compressor.options,
        optimizer=config.optimizer.tried_as,
        exchanged=config.sync.exchanged,
        world_size=world_size,
        every=config.sync.steps_per_exchange,
        outer=config.sync.tried_outer,
        guard=config.guard,
        tasks=IMAGES,
    )
    return compressor, optimizer


def _check_image_size(model: nn.Module, image_size: int) -> None:
    """A pass over no images: raises the model's own ValueError where they would be too small."""
    model.eval()
    with torch.inference_mode():
        model(torch.empty(0, 3, image_size, image_size))
    model.train()
