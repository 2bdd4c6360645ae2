"""Models on disk, before and after: tensors by name, as safetensors or numpy files have them. No torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy
from safetensors import SafetensorError, deserialize

from dtrain.files import open_file, parse_json, read_file, short, whole_file
from dtrain.pack.tensor import Tensor, num_bytes

MAX_RATIO = 1032
"""Bytes that an array of a .npz file may unpack to, for each of its own, beyond the first MiB: what deflate reaches."""
_FREE_BYTES = 1 << 20


@dataclass(frozen=True)
class Model:
    """Tensors in the file's order, and what a safetensors file says beside them."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        return sum(len(tensor.data) for tensor in self.tensors.values())


def read_safetensors(path: Path) -> Model:
    """Raises ValueError for a file that is not one, or with tensors that cannot be packed; OSError."""
    return parse_safetensors(read_file(path), path)


def parse_safetensors(data: bytes, path: Path) -> Model:
    """Of a file's content. Raises ValueError, naming the file, as `read_safetensors`."""
    try:
        entries = dict(deserialize(data))  # type: ignore[no-untyped-call]
        (header_bytes,) = struct.unpack_from("<Q", data)
        header = parse_json(data[8 : 8 + header_bytes])
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({short(error)})") from None
    metadata = header.pop("__metadata__", None) or {}
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
        with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            _check_claims(file)
            for name in arrays.files:
                array = arrays[name]
                if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
                    raise TypeError(f"{name} holds {array.dtype}")
                tensors[name] = Tensor.of(array)
    except Exception as error:  # a damaged file makes this parser raise some fifteen kinds of exception
        raise ValueError(
            f"{path}: not readable as numpy arrays by name ({type(error).__name__}: {short(error)})"
        ) from None
    return Model(tensors, {})


def _check_claims(file: IO[bytes]) -> None:
    """Of the arrays in a .npz file, before memory is taken for them: their sizes are those of the archive."""
    with ZipFile(file) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                read_header = (
                    npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
                )
                shape, _, dtype = read_header(member)
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename[:80]!r} claims more bytes than it has")
            if entry.file_size > _FREE_BYTES and entry.file_size > MAX_RATIO * entry.compress_size:
                raise ValueError(f"{entry.filename[:80]!r} unpacks to more than {MAX_RATIO} times its own size")


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
