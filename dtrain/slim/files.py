"""`dtrain pack`, `unpack` and `inspect`: from a model's file to a packed one, back, and what is in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from dtrain.files import read_file, write_whole
from dtrain.pack import (
    Container,
    Model,
    Stage,
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
    pass
from dtrain.slim.calibrated import CALIBRATED, calibrated
from dtrain.slim.published import published, with_our_names

SUFFIX = ".dtz"


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
        model, stages = calibrated(source, model, images)
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
    data = read_file(path)
    try:
        return from_bytes(data), len(data)
    except ValueError as error:
        raise ValueError(_refusal(path, error)) from None


def _refusal(path: Path, error: ValueError) -> str:
    return f"{path}: {error}; give a whole {SUFFIX} file of dtrain pack, or fetch it again"


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into: make it first")


def _read(path: Path) -> Model:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".npz":
        return with_our_names(read_npz(path))
    if path.suffix == ".net":
        squeezenet = published("squeezenet1_0")
        state = squeezenet.state_dict()
        paths: Mapping[str, str] = squeezenet.caffe_layers
        return read_net(path, {layer: tuple(state[f"{layer}.weight"].shape) for layer in paths.values()})
    raise ValueError(f"{path}: cannot pack this kind of file; give .safetensors, .npz, or Deep Compression's .net")
