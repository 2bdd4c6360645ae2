"""Models on disk, before and after: tensors by name, as safetensors or numpy files have them. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from dtrain.files import whole_file
from dtrain.pack.tensor import Tensor, num_bytes


@dataclass(frozen=True)
class Model:
    """Tensors in the file's order, and what a safetensors file says beside them."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        return sum(len(tensor.data) for tensor in self.tensors.values())


def read_safetensors(path: Path) -> Model:
    """Raises ValueError for a file that is not one, or with tensors that cannot be packed."""
    data = path.read_bytes()
    try:
        entries = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_bytes])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        entry = entries[name]
        try:
            tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), np.frombuffer(entry["data"], np.uint8))
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name!r:.80} has {error}") from None
    return Model(tensors, metadata)


def read_npz(path: Path) -> Model:
    """Arrays by name. Raises ValueError for a file that is not one, or with arrays that safetensors cannot hold."""
    tensors = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
                    raise TypeError(f"{name} holds {array.dtype}")
                tensors[name] = Tensor.of(array)
    except Exception as error:  # a damaged file makes this parser raise some fifteen kinds of exception
        raise ValueError(f"{path}: not readable as numpy arrays by name ({type(error).__name__}: {error})") from None
    return Model(tensors, {})


def write_safetensors(model: Model, path: Path) -> None:
    """`path` appears whole or not at all; the same model gives the same bytes."""
    header: dict[str, object] = {"__metadata__": dict(model.metadata)} if model.metadata else {}
    end = 0
    for name, tensor in model.tensors.items():
        start, end = end, end + num_bytes(tensor.dtype, tensor.shape)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in model.tensors.values():
            file.write(tensor.data.tobytes())
