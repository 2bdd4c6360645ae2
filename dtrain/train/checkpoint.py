"""Models and checkpoints on disk: safetensors, with what is needed to build the same model again in the metadata.

No pickle: a file is a table of tensors and a JSON string. A checkpoint is a folder that is whole once it has its
manifest:

    model.safetensors      the model, as at the end of a run
    optimizer.safetensors  the optimizer's tensors by parameter name
    fixed.safetensors      what pruning and weight sharing fixed in the model (`fixed.py`)
    teacher.safetensors    the model as it was before, where it is the teacher
    rank<k>.safetensors    what rank k alone has: its compressor's state and its random generator's; written by rank k
    manifest.json          step, world size, format; written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT = "dtrain-model-1"


def save_model(model: nn.Module, path: Path, description: Mapping[str, Any]) -> None:
    """Write the model's state dict, and `description` (JSON data) as metadata; `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # one key, since safetensors writes several in a random order: the same model must be the same bytes
    metadata = {"dtrain": json.dumps({"format": FORMAT, **description}, sort_keys=True)}
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
    model.load_state_dict(_load(path))


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote. Raises ValueError or FileNotFoundError, naming the cure."""
    return _load(path)


MANIFEST = "manifest.json"
CHECKPOINT_FORMAT = "dtrain-checkpoint-1"
_RANDOM = "random/cpu"


def save_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], path: Path) -> None:
    """Write the optimizer's state tensors by parameter name. What is not a tensor follows from the step."""
    tensors = {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    save_file(tensors, path)


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], path: Path) -> None:
    """Take up what `save_optimizer` wrote."""
    for name, tensor in _load(path).items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def save_rank(state: Mapping[str, Any], path: Path) -> None:
    """Write a synchroniser's `state_dict()` and this process's random generator."""
    tensors = {
        f"state/{name}/{key}": part.cpu().contiguous()
        for name, parts in state["parameters"].items()
        for key, part in parts.items()
    }
    save_file({**tensors, _RANDOM: torch.get_rng_state()}, path, {"step": str(state["step"])})


def load_rank(path: Path) -> tuple[dict[str, Any], Tensor]:
    """The state dict and the random generator's state that `save_rank` wrote."""
    parameters: dict[str, dict[str, Tensor]] = {}
    tensors = _load(path)
    random = tensors.pop(_RANDOM)
    for name, tensor in tensors.items():
        _, parameter, key = name.split("/")
        parameters.setdefault(parameter, {})[key] = tensor
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
    return {"step": step, "parameters": parameters}, random


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give a whole checkpoint") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def write_manifest(folder: Path, *, step: int, world_size: int) -> None:
    """Declare the checkpoint whole."""
    content = {"format": CHECKPOINT_FORMAT, "step": step, "world_size": world_size}
    (folder / MANIFEST).write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> tuple[int, int]:
    """(step, world_size) of a whole checkpoint. Raises ValueError or FileNotFoundError, naming the cure."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no whole checkpoint ({MANIFEST} is missing): give another")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"format {content['format']}")
        return int(content["step"]), int(content["world_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this version ({error}): give another") from None
