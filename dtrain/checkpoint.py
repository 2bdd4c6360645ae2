"""A trained model on disk: safetensors, with everything needed to build the same model again in its metadata.

No pickle: a file is a table of tensors and a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT = "dtrain-model-1"


def save_model(model: nn.Module, path: Path, description: Mapping[str, Any]) -> None:
    """Write the model's state dict, and `description` (JSON data) as metadata; `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": "pt", "dtrain": json.dumps({"format": FORMAT, **description}, sort_keys=True)}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)


def read_description(path: Path) -> dict[str, Any]:
    """The description that `save_model` stored.

    Raises ValueError for a file that is not a model saved by dtrain, FileNotFoundError for one that is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the model.safetensors of a run")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        description = json.loads(metadata.get("dtrain", "null"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: was not saved by dtrain, so its model is unknown; give a run's model.safetensors")
    return description


def load_model_state(model: nn.Module, path: Path) -> None:
    """Fill `model`, built by the file's description, with its tensors."""
    model.load_state_dict(load_file(path))
