"""`dtrain pack`, `unpack` and `inspect`: from a model's file to a packed one, back, and what is in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from dtrain.pack import (
    Container,
    Model,
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

if TYPE_CHECKING:
    from dtrain.models import AlexNet, SqueezeNet

SUFFIX = ".dtz"


def pack_file(source: Path, target: Path, *, preset: str, coder: str) -> dict[str, Any]:
    """Pack the model in `source` into `target`, which appears whole or not at all; the sizes of both.

    `source`: .safetensors; .npz, whose arrays take the names of the network that has them if they are Caffe's; or .net,
    Deep Compression's SqueezeNet 1.0. Raises ValueError or FileNotFoundError, naming the cure.
    """
    if target.suffix != SUFFIX:
        raise ValueError(f"{target}: a packed model's name ends in {SUFFIX}")
    _check_folder(target)
    model = _read(source)
    packed = to_bytes(pack(model, preset, coder=coder))
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(packed)
    partial.replace(target)
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

    from dtrain import models

    with torch.device("meta"):
        network = models.build(name, num_classes=1000, **models.PUBLISHED["caffe"][name])
    assert isinstance(network, models.SqueezeNet | models.AlexNet)
    return network


def _with_our_names(model: Model) -> Model:
    """Tensors with Caffe's names and shapes of a network that we have, by the names that they have here."""
    if not any(name.endswith("|w") for name in model.tensors):
        return model
    for candidate in ("squeezenet1_0", "squeezenet1_1", "alexnet"):
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
