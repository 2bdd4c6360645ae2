"""Score a trained model on a data set, in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from dtrain.observe.figures import EvalFigures
from dtrain.train.model_files import load_model
from dtrain.vision import data

MAX_IMAGE_SIZE = 1024
"""Pixels a side that a model's file may ask for; whoever runs it may ask for more."""
_NOT_OF_A_MODEL = ("root", "split", "image_size", "download", "archive")
"""What no file may choose."""


def evaluate(
    path: Path, *, name: str | None, root: Path | None, image_size: int | None, split: data.Split, batch_size: int
) -> dict[str, Any]:
    """The loss and accuracy of the model in `path`; what is None is taken from the data set it was trained on.

    Raises ValueError or FileNotFoundError, naming the cure.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} must be at least 1")
    model, description = load_model(path)
    built, trained, step = description["model"], described(description.get("data"), path), description.get("step", 0)
    if image_size is None and trained.image_size > MAX_IMAGE_SIZE:
        raise ValueError(f"{path}: asks for images of {trained.image_size:,} pixels a side: give --image-size")
    options = trained.options if name in (None, trained.name) else {}
    try:
        dataset = data.open_dataset(
            name or trained.name, split=split, image_size=image_size or trained.image_size, root=root, **options
        )
    except (TypeError, OverflowError) as error:  # of an option
        raise ValueError(
            f"{path}: its options are not those of data set {trained.name} ({error}): give --data"
        ) from None
    dataset = replace(dataset, mean=trained.mean, std=trained.std)  # what the model was trained on
    if dataset.num_classes > built["num_classes"]:
        raise ValueError(
            f"{path}: tells {built['num_classes']} classes apart, data set {dataset.name} has {dataset.num_classes}: "
            "choose the data set it was trained for"
        )
    model.eval()
    loss = correct = 0.0
    with torch.inference_mode():
        for batch in data.eval_batches(dataset, batch_size=batch_size):
            logits = model(batch.images)
            loss += float(cross_entropy(logits, batch.labels, reduction="sum"))
            correct += int((logits.argmax(1) == batch.labels).sum())
    metrics = EvalFigures(
        step if type(step) is int else 0, 0, loss / len(dataset), correct / len(dataset), len(dataset), 0.0
    )
    result = {key: value for key, value in asdict(metrics).items() if key not in ("epoch", "wire_bytes")}
    return {"model": built["name"], "data": dataset.name, "split": split, **result}


@dataclass(frozen=True)
class TrainedOn:
    """The data set of a model, as its file describes it; mean and deviation of its images by colour."""

    name: str
    options: Mapping[str, Any]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def described(told: Any, path: Path) -> TrainedOn:
    """The data set of a description. Raises ValueError for what is none."""
    if not isinstance(told, dict):
        told = {}
    name, options, image_size = (told.get(key) for key in ("name", "options", "image_size"))
    mean, std = _three(told.get("mean")), _three(told.get("std"))
    if not (isinstance(name, str) and isinstance(options, dict) and type(image_size) is int and image_size > 0):
        raise ValueError(f"{path}: does not say what data it was trained on: give the model.safetensors of a run")
    if mean is None or std is None or min(std) <= 0:
        raise ValueError(f"{path}: has no mean and deviation of its images: give the model.safetensors of a run")
    if any(name in options for name in _NOT_OF_A_MODEL):
        raise ValueError(f"{path}: has options that no data set has: give the model.safetensors of a run")
    return TrainedOn(name, options, image_size, mean, std)


def _three(values: Any) -> tuple[float, float, float] | None:
    """Of colours."""
    if not isinstance(values, list) or len(values) != 3:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return float(values[0]), float(values[1]), float(values[2])
