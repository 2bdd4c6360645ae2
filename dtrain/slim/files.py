"""`dtrain pack`, `unpack` and `inspect`: from a model's file to a packed one, back, and what is in it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from dtrain.files import write_whole
from dtrain.pack import (
    PRESETS,
    Container,
    Model,
    OnGrid,
    Stage,
    Tensor,
    arrays,
    from_bytes,
    pack,
    read_net,
    read_npz,
    read_safetensors,
    to_bytes,
    unpack,
    write_safetensors,
)
from dtrain.pack.tensor import FLOATS, finite

if TYPE_CHECKING:
    import torch

    from dtrain.vision.models import AlexNet, SqueezeNet

SUFFIX = ".dtz"
CALIBRATED = "smallest"
"""The preset that images may calibrate."""
STAND_IN = "dead-leaves"
"""In place of a folder of images: made ones, which need no data."""


def pack_file(
    source: Path, target: Path, *, preset: str, coder: str = "contexts", images: Path | None = None
) -> dict[str, Any]:
    """Pack the model in `source` into `target`, which appears whole or not at all; the sizes of both.

    Args:
        source: .safetensors; .npz, whose arrays take the names of the network that has them if they are Caffe's; or
            .net, Deep Compression's SqueezeNet 1.0.
        target: its name ends in .dtz.
        preset: of `dtrain.pack.PRESETS`.
        coder: of small integers, of `dtrain.pack.CODERS`.
        images: a folder with images such as the network is for, or STAND_IN, to calibrate the preset smallest with.

    Raises ValueError or FileNotFoundError, naming the cure.
    """
    if target.suffix != SUFFIX:
        raise ValueError(f"{target}: a packed model's name ends in {SUFFIX}")
    _check_folder(target)
    if images is not None and preset != CALIBRATED:
        raise ValueError(f"images calibrate the preset {CALIBRATED}, not {preset}: choose it, or leave the images out")
    model = _read(source)
    stages: str | Sequence[Stage] = preset
    if images is not None:
        model, stages = _calibrated(source, model, images)
    packed = to_bytes(replace(pack(model, stages, coder=coder), preset=preset))
    write_whole(target, packed)
    return {
        "preset": preset,
        "num_tensors": len(model.tensors),
        "tensor_bytes": model.num_bytes,
        "source_bytes": source.stat().st_size,
        "packed_bytes": len(packed),
        "compression_ratio": model.num_bytes / len(packed),
    }


def unpack_file(source: Path, target: Path) -> dict[str, Any]:
    """Unpack `source` into the safetensors file `target`. Raises ValueError or FileNotFoundError, naming the cure."""
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: models are unpacked to safetensors, so its name must end in .safetensors")
    _check_folder(target)
    container, packed_bytes = _open(source)
    try:
        model = unpack(container)
    except ValueError as error:
        raise ValueError(_refusal(source, error)) from None
    write_safetensors(model, target)
    return {"num_tensors": len(model.tensors), "tensor_bytes": model.num_bytes, "packed_bytes": packed_bytes}


def inspect_file(source: Path) -> dict[str, Any]:
    """Where the bytes of a packed model are. Raises ValueError or FileNotFoundError, naming the cure."""
    container, packed_bytes = _open(source)
    tensors: list[dict[str, Any]] = []
    for name, node in container.tensors.items():
        sections = [
            {"part": "/".join(path), "codec": array.codec, "bytes": len(array.data)} for path, array in arrays(node)
        ]
        num_bytes = sum(len(array.data) for _, array in arrays(node))
        tensors.append(
            {"name": name, "dtype": node.dtype, "shape": list(node.shape), "bytes": num_bytes, "sections": sections}
        )
    rest = packed_bytes - sum(tensor["bytes"] for tensor in tensors)
    return {"preset": container.preset, "packed_bytes": packed_bytes, "header_bytes": rest, "tensors": tensors}


def inspect_table(inspected: Mapping[str, Any]) -> Table:
    """For people."""
    table = Table(title=f"preset {inspected['preset']}, {inspected['packed_bytes']:,} bytes")
    for column in ("tensor", "shape"):
        table.add_column(column, overflow="fold")
    for column in ("bytes", "bits each"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("parts")
    for tensor in inspected["tensors"]:
        numel = math.prod(tensor["shape"])
        table.add_row(
            escape(tensor["name"]),
            f"{tensor['dtype']} {'x'.join(str(size) for size in tensor['shape'])}",
            f"{tensor['bytes']:,}",
            f"{8 * tensor['bytes'] / numel:.2f}" if numel else "",
            ", ".join(f"{section['part']} {section['bytes']:,}" for section in tensor["sections"] if section["part"]),
        )
    table.add_row("header", "", f"{inspected['header_bytes']:,}", "", "")
    return table


def _open(path: Path) -> tuple[Container, int]:
    _check_there(path)
    data = path.read_bytes()
    try:
        return from_bytes(data), len(data)
    except ValueError as error:
        raise ValueError(_refusal(path, error)) from None


def _refusal(path: Path, error: ValueError) -> str:
    return f"{path}: {error}; give a whole {SUFFIX} file of dtrain pack, or fetch it again"


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into: make it first")


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: check the path")


def _read(path: Path) -> Model:
    _check_there(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".npz":
        return _with_our_names(read_npz(path))
    if path.suffix == ".net":
        squeezenet = _published("squeezenet1_0")
        state = squeezenet.state_dict()
        paths: Mapping[str, str] = squeezenet.caffe_layers
        return read_net(path, {layer: tuple(state[f"{layer}.weight"].shape) for layer in paths.values()})
    raise ValueError(f"{path}: cannot pack this kind of file; give .safetensors, .npz, or Deep Compression's .net")


def _published(name: str) -> SqueezeNet | AlexNet:
    """A network with Caffe's names, without memory for its weights."""
    import torch  # here, since what has our names already needs no torch

    from dtrain.vision import models

    with torch.device("meta"):
        network = models.build(name, num_classes=1000, **models.PUBLISHED["caffe"][name])
    assert isinstance(network, models.SqueezeNet | models.AlexNet)
    return network


_CAFFE = ("squeezenet1_0", "squeezenet1_1", "alexnet")


def _with_our_names(model: Model) -> Model:
    """Tensors with Caffe's names and shapes of a network that we have, by the names that they have here."""
    if not any(name.endswith("|w") for name in model.tensors):
        return model
    for candidate in _CAFFE:
        network = _published(candidate)
        state = network.state_dict()
        names = {
            f"{caffe}|{kind}": f"{ours}.{parameter}"
            for caffe, ours in network.caffe_layers.items()
            for kind, parameter in (("w", "weight"), ("b", "bias"))
        }
        wanted = {caffe: tuple(state[ours].shape) for caffe, ours in names.items()}
        if {name: tensor.shape for name, tensor in model.tensors.items()} == wanted:
            return Model({ours: model.tensors[caffe] for caffe, ours in names.items()}, model.metadata)
    return model


# calibration

_STEP = 0.222
_NUM_IMAGES = 128
_CAFFE_MEAN = (104 / 255, 117 / 255, 123 / 255)  # blue, green, red


@dataclass(frozen=True)
class _Inputs:
    """What a network takes: square images, their channels less `mean` over `std`, of pixels from 0 to 1."""

    image_size: int
    shorter_side: int
    mean: Sequence[float]
    std: Sequence[float]
    blue_first: bool = False


def _calibrated(source: Path, model: Model, folder: Path) -> tuple[Model, Sequence[Stage]]:
    """The model with values on grids, calibrated with the folder's images, and the stages that keep them there."""
    from dtrain.slim.calibrate import calibrate, dead_leaves

    network, inputs = _network(source, model)
    if str(folder) == STAND_IN:
        images = _as_taken(dead_leaves(_NUM_IMAGES, inputs.image_size), inputs)
    else:
        images = _as_taken(_images(folder, inputs), inputs)
    found = calibrate(network, images, _STEP, stand_in=str(folder) == STAND_IN)
    changed = {name: Tensor.of_floats(model.tensors[name].dtype, values) for name, values in found.values.items()}
    return Model({**model.tensors, **changed}, model.metadata), (OnGrid(found.steps), *PRESETS[CALIBRATED])


def _network(source: Path, model: Model) -> tuple[torch.nn.Module, _Inputs]:
    """The network whose weights these are, with them, and what it takes."""
    import torch

    from dtrain.vision import models

    description = json.loads(model.metadata.get("dtrain", "{}"))
    if source.suffix == ".safetensors":
        if "model" not in description or "data" not in description:
            raise ValueError(f"{source}: was not saved by dtrain, so its network is unknown and cannot be calibrated")
        built, data = description["model"], description["data"]
        network = models.build(built["name"], num_classes=built["num_classes"], **built["options"])
        inputs = _Inputs(data["image_size"], data["image_size"], data["mean"], data["std"])
    else:
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
        fitting = [name for name in _CAFFE if _shapes(_published(name)) == shapes]
        if not fitting:
            raise ValueError(f"{source}: these are no published network's weights, so they cannot be calibrated")
        network = models.build(fitting[0], num_classes=1000, **models.PUBLISHED["caffe"][fitting[0]])
        inputs = _Inputs(227, 256, _CAFFE_MEAN, (1 / 255,) * 3, blue_first=True)
    state = network.state_dict()
    if not all(name in model.tensors and model.tensors[name].dtype in FLOATS for name in state):
        raise ValueError(f"{source}: lacks weights of its network, or has them in a type that cannot be calibrated")
    weights = {name: finite(name, model.tensors[name]).astype(np.float32) for name in state}
    network.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    return network.eval(), inputs


def _shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _images(folder: Path, inputs: _Inputs) -> NDArray[np.uint8]:
    """Up to _NUM_IMAGES of the images below `folder`, evenly from their sorted paths."""
    from dtrain.vision.data import IMAGE_SUFFIXES, read_image

    paths = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    )
    if not paths:
        raise FileNotFoundError(
            f"no images below {folder}: give a folder of images such as the network is for, or {STAND_IN} for none"
        )
    chosen = sorted({paths[index * len(paths) // _NUM_IMAGES] for index in range(_NUM_IMAGES)})
    return np.stack([read_image(path, inputs.image_size, inputs.shorter_side) for path in chosen])


def _as_taken(images: NDArray[np.uint8], inputs: _Inputs) -> torch.Tensor:
    """By the network."""
    import torch

    pixels = torch.from_numpy(images).float() / 255
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (inputs.mean, inputs.std))
    return ((pixels.flip(1) if inputs.blue_first else pixels) - mean) / std
