"""Tensors on disk: safetensors, a model with what is needed to build it again in the metadata.

No pickle: a file is a table of tensors and a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from dtrain.files import write_whole

FORMAT = "dtrain-model-1"


def save_model(model: nn.Module, path: Path, description: Mapping[str, Any]) -> bytes:
    """Write the model's state dict, and `description` (JSON data) as metadata; `path` appears whole or not at all.

    Returns what was written.
    """
    # one key, since safetensors writes several in a random order: the same model must be the same bytes
    metadata = {"dtrain": json.dumps({"format": FORMAT, **description}, sort_keys=True)}
    return save_tensors(model.state_dict(), path, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> bytes:
    """Write tensors by name; `path` appears whole or not at all. Returns what was written."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return content


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
    """Fill `model`, built by the file's description, with its tensors.

    Raises ValueError or FileNotFoundError, naming the cure, where they are not its own.
    """
    fill_model(model, load_tensors(path), path)


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill `model` with tensors that come from `path`. Raises ValueError where they are not its own."""
    own = model.state_dict()
    for name in sorted({*own, *tensors}):
        if name not in tensors:
            raise ValueError(f"{path}: lacks {name} of this model: give a file that was saved from it")
        if name not in own:
            raise ValueError(f"{path}: holds {name}, which this model has not: give a file that was saved from it")
        if own[name].shape != tensors[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, this model needs {tuple(own[name].shape)}: "
                "give a file that was saved from it"
            )
    model.load_state_dict(tensors)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote. Raises ValueError or FileNotFoundError, naming the cure."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give one that dtrain saved")
    return parse_tensors(path.read_bytes(), path)


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a file's content. Raises ValueError, naming the file."""
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
