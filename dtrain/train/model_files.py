"""Tensors on disk: safetensors, a model with what is needed to build it again in the metadata.

No pickle: a file is a table of tensors and a JSON string.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from dtrain.files import parse_json, read_file, short, write_whole
from dtrain.vision import models

FORMAT = "dtrain-model-1"
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls them, in the library's order in a file: the widest first, so each lies where its kind may."""


def save_model(model: nn.Module, path: Path, description: Mapping[str, Any]) -> None:
    """Write the model's state dict, and `description` (JSON data) as metadata; `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, as_bytes(lay_out(model.state_dict(), metadata_of(description))))


def metadata_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's file says of it besides the tensors."""
    return {"format": FORMAT, **description}


def lay_out(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, buffer: Tensor | None = None
) -> Tensor:
    """The content of the safetensors file with these tensors and `metadata` (JSON data), as bytes (uint8) on the CPU.

    It is a copy: what becomes of the tensors does not reach it. `buffer`: what an earlier call gave, which is written
    over where it has the right size. Each tensor is copied once; the library's `save` does so more often, into new
    memory, with the interpreter's lock held (docs/adr/0022-checkpoints-are-written-beside-training.md).
    """
    order = list(_DTYPES)
    ordered = sorted(tensors.items(), key=lambda named: (order.index(named[1].dtype), named[0]))
    header: dict[str, Any] = (
        {} if metadata is None else {"__metadata__": {"dtrain": json.dumps(metadata, sort_keys=True)}}
    )
    end, places = 0, []
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        places.append((start, end))
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    head = struct.pack("<Q", len(text)) + text
    if buffer is None or len(buffer) != len(head) + end:
        buffer = torch.empty(len(head) + end, dtype=torch.uint8)
    buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    for (_, tensor), (start, end) in zip(ordered, places, strict=True):
        if tensor.numel():
            place = buffer[len(head) + start : len(head) + end]
            place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
    return buffer


def as_bytes(content: Tensor) -> memoryview:
    """What `lay_out` gave, to be written or hashed; not copied."""
    return content.numpy().data


def read_description(path: Path) -> dict[str, Any]:
    """The description that `save_model` stored.

    Raises ValueError for a file that is not a model saved by dtrain, FileNotFoundError for one that is not there.
    """
    return _description(_read(path), path)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a run's file, and its description.

    What the description asks for is compared with the tensors that are there before anything is allocated for it.
    Raises ValueError or FileNotFoundError, naming the cure.
    """
    content = _read(path)
    description = _description(content, path)
    built = description.get("model")
    try:
        with torch.device("meta"):
            model = models.rebuild(built if isinstance(built, Mapping) else {})
    except ValueError as error:
        raise ValueError(f"{path}: {short(error, 1000)}: give the model.safetensors of a run") from None
    fill_model(model, parse_tensors(content, path), path, assign=True)
    return model, description


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give the model.safetensors of a run") from None


def _description(content: bytes, path: Path) -> dict[str, Any]:
    description = metadata(content, path)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: was not saved by dtrain, so its model is unknown; give a run's model.safetensors")
    return description


def metadata(content: bytes, path: Path) -> Any:
    """The JSON data that were saved besides the tensors; None for none. Raises ValueError, naming the file."""
    length = int.from_bytes(content[:8], "little")  # the header of safetensors is JSON behind its length
    try:
        header = parse_json(content[8 : 8 + length])
        texts = header.get("__metadata__", {})
        return parse_json(texts.get("dtrain", "null"), not_finite=True)  # settings may be
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({short(error)})") from None


def load_model_state(model: nn.Module, path: Path) -> None:
    """Fill `model`, built by the file's description, with its tensors.

    Raises ValueError or FileNotFoundError, naming the cure, where they are not its own.
    """
    fill_model(model, parse_tensors(_read(path), path), path)


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, assign: bool = False) -> None:
    """Fill `model` with tensors that come from `path`: with `assign`, in place of its own, which may be on "meta".

    Raises ValueError where they are not its own.
    """
    own = model.state_dict()
    for name in sorted({*own, *tensors}):
        if name not in tensors:
            raise ValueError(f"{path}: lacks {name} of this model: give a file that was saved from it")
        if name not in own:
            raise ValueError(
                f"{path}: holds {short(name)}, which this model has not: give a file that was saved from it"
            )
        if own[name].shape != tensors[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, this model needs {tuple(own[name].shape)}: "
                "give a file that was saved from it"
            )
        if own[name].is_floating_point() != tensors[name].is_floating_point():
            raise ValueError(
                f"{path}: {name} is of type {tensors[name].dtype}: give a file that was saved from the model"
            )
    model.load_state_dict({name: tensors[name].to(own[name].dtype) for name in own}, assign=assign)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of them. Raises ValueError or FileNotFoundError, naming the cure."""
    return parse_tensors(read_file(path), path)


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a file's content. Raises ValueError, naming the file."""
    try:
        return load(content)
    except Exception as error:  # SafetensorError, or whatever torch says of a type or shape that it has not
        raise ValueError(f"{path}: not a readable safetensors file ({short(error)})") from None
