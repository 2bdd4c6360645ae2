"""Score a trained model on a data set, in one process."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from dtrain.observe.figures import EvalFigures
from dtrain.train.model_files import load_model_state, read_description
from dtrain.vision import data, models


def evaluate(
    path: Path, *, name: str | None, root: Path | None, image_size: int | None, split: data.Split, batch_size: int
) -> dict[str, Any]:
    """The loss and accuracy of the model in `path`; what is None is taken from the data set it was trained on.

    Raises ValueError or FileNotFoundError, naming the cure.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} must be at least 1")
    description = read_description(path)
    trained, built = description["data"], description["model"]
    model = models.rebuild(built)
    load_model_state(model, path)
    options = trained["options"] if name in (None, trained["name"]) else {}
    dataset = data.open_dataset(
        name or trained["name"], split=split, image_size=image_size or trained["image_size"], root=root, **options
    )
    dataset = replace(dataset, mean=tuple(trained["mean"]), std=tuple(trained["std"]))  # what the model was trained on
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
    metrics = EvalFigures(description["step"], 0, loss / len(dataset), correct / len(dataset), len(dataset), 0.0)
    result = {key: value for key, value in asdict(metrics).items() if key not in ("epoch", "wire_bytes")}
    return {"model": built["name"], "data": dataset.name, "split": split, **result}
