"""The .dtz file: what a packed model is on disk.

    magic        4 bytes
    version      1 byte
    header size  4 bytes, unsigned, little-endian
    SHA-256      32 bytes, of all the rest of the file and of what stands before it
    header       JSON, compressed by bzip2
    sections     one for each array, without gaps, in the header's order

The header tells of each tensor how to make it again, as a tree: an array (a codec and its section's size), or a stage
with its parameters and the trees of its parts. Reading trusts nothing: the digest shows damage, and of a file that was
made to do harm every size is compared with the size of the file before anything is allocated for it.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dtrain.pack.entropy import CODECS
from dtrain.pack.presets import STAGES
from dtrain.pack.stage import Parameters
from dtrain.pack.tensor import num_bytes

MAGIC = b"\x93DTZ"
VERSION = 1
MAX_RATIO = 256
"""Bytes that a file may unpack to, over all stages, for each of its own. What would be more is padded when written."""

_PREFIX = struct.Struct("<4sBI32s")
_MAX_HEADER_BYTES, _FREE_HEADER_BYTES = 1 << 24, 1 << 18
_MAX_TENSORS = 1 << 16
_MAX_DEPTH = 8
_LEAST_CHARGE = 1024  # bytes that a tensor counts for at least, since each takes some time


@dataclass(frozen=True)
class Array:
    """A section."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    data: bytes


@dataclass(frozen=True)
class Staged:
    """A tensor that a stage took apart."""

    dtype: str
    shape: tuple[int, ...]
    stage: str
    parameters: Parameters
    parts: Mapping[str, Node]


Node = Array | Staged


@dataclass(frozen=True)
class Container:
    """A packed model: its tensors in order, and the metadata of the file that it was made from."""

    preset: str
    tensors: Mapping[str, Node]
    metadata: Mapping[str, str]


def arrays(node: Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Array]]:
    """The arrays of a tree, in the order of their sections, with the names of the parts that lead there."""
    if isinstance(node, Array):
        yield path, node
    else:
        for name, part in node.parts.items():
            yield from arrays(part, (*path, name))


# writing


def to_bytes(container: Container) -> bytes:
    """The file. Raises ValueError for what `from_bytes` would refuse."""
    _check_names(container.tensors, container.metadata)
    sections = b"".join(array.data for node in container.tensors.values() for _, array in arrays(node))
    unpacked = sum(_unpacked_bytes(node) for node in container.tensors.values())
    padding = max(0, -(-unpacked // MAX_RATIO) - len(sections))
    header = {
        "preset": container.preset,
        "metadata": dict(container.metadata),
        "padding": padding,
        "tensors": {name: _describe(node) for name, node in container.tensors.items()},
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    packed = bz2.compress(text)
    if len(container.tensors) > _MAX_TENSORS or len(text) > _header_limit(packed):
        raise ValueError(
            f"{len(container.tensors):,} tensors and {len(text):,} bytes of names and metadata: more than a packed "
            "model holds; leave out metadata, or pack parts of the model"
        )
    sections += bytes(padding)
    return _prefix(packed, sections) + packed + sections


def _check_names(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Those that a safetensors file can hold."""
    try:
        "".join((*tensors, *metadata, *metadata.values())).encode()
    except UnicodeEncodeError:
        raise ValueError("names or metadata that are no text in UTF-8") from None
    if "__metadata__" in tensors:
        raise ValueError("a tensor called __metadata__, a name that safetensors keeps for itself: call it otherwise")


def _prefix(header: bytes, sections: bytes) -> bytes:
    start = _PREFIX.pack(MAGIC, VERSION, len(header), b"")[:-32]
    return start + hashlib.sha256(start + header + sections).digest()


def _describe(node: Node) -> dict[str, Any]:
    common = {"dtype": node.dtype, "shape": list(node.shape)}
    if isinstance(node, Array):
        return {**common, "codec": node.codec, "bytes": len(node.data)}
    parts = {name: _describe(part) for name, part in node.parts.items()}
    return {**common, "stage": node.stage, "parameters": dict(node.parameters), "parts": parts}


# reading


def from_bytes(data: bytes) -> Container:
    """The container of a file's bytes. Raises ValueError, which says what is wrong, for bytes that are not one."""
    header_bytes = _check_prefix(data)
    header = _header(data[_PREFIX.size : _PREFIX.size + header_bytes])
    sections = _Sections(data, _PREFIX.size + header_bytes)
    preset, metadata, padding, tensors = (_get(header, key, kind) for key, kind in _HEADER.items())
    if len(tensors) > _MAX_TENSORS or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is not one of this version")
    _check_names(tensors, metadata)
    nodes = {name: _node(description, sections, 0) for name, description in tensors.items()}
    sections.take(padding)
    if sections.left:
        raise ValueError(f"{sections.left} bytes after its end")
    return Container(preset, nodes, metadata)


_HEADER = {"preset": str, "metadata": dict, "padding": int, "tensors": dict}


def _check_prefix(data: bytes) -> int:
    """The size of the header, in a file whose digest is right."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("not a packed model")
    if len(data) < _PREFIX.size:
        raise ValueError("truncated")
    _, version, header_bytes, digest = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"packed in version {version} of the format, and this dtrain reads version {VERSION}")
    rest = memoryview(data)[_PREFIX.size :]
    sha256 = hashlib.sha256(data[: _PREFIX.size - len(digest)])
    sha256.update(rest)
    if sha256.digest() != digest:
        raise ValueError("truncated or altered (its SHA-256 is another)")
    if header_bytes > len(rest):
        raise ValueError("its header is longer than the file")
    return int(header_bytes)


def _header_limit(packed: bytes) -> int:
    """Bytes that a header may have, of which a parsed one takes some twenty times as much memory."""
    return min(_MAX_HEADER_BYTES, _FREE_HEADER_BYTES + MAX_RATIO * len(packed))


def _header(packed: bytes) -> dict[str, Any]:
    decompressor = bz2.BZ2Decompressor()
    try:
        text = decompressor.decompress(packed, _header_limit(packed) + 1)
        if len(text) > _header_limit(packed) or not decompressor.eof or decompressor.unused_data:
            raise ValueError("its header is too long, or does not end where it should")
        header = json.loads(text)
    except (OSError, EOFError, RecursionError, ValueError) as error:
        raise ValueError(f"its header cannot be read ({error})") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not one of this version")
    return header


class _Sections:
    """The bytes after the header, handed out in order, and the allowance of what they may unpack to."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._next = data, start
        self._allowance = MAX_RATIO * len(data)

    @property
    def left(self) -> int:
        return len(self._data) - self._next

    def take(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError("a section is longer than the file")
        self._next += size
        return self._data[self._next - size : self._next]

    def allow(self, num_bytes: int) -> None:
        self._allowance -= num_bytes
        if self._allowance < 0:
            raise ValueError(f"claims to unpack to more than {MAX_RATIO} times its own size")


def _node(description: Any, sections: _Sections, depth: int) -> Node:
    if not isinstance(description, dict) or depth > _MAX_DEPTH:
        raise ValueError("its header is not one of this version")
    dtype, shape = _get(description, "dtype", str), _shape(_get(description, "shape", list))
    sections.allow(max(_LEAST_CHARGE, num_bytes(dtype, shape)))
    if "codec" in description:
        codec = _get(description, "codec", str)
        if codec not in CODECS:
            raise ValueError(f"unknown codec {codec!r:.40}")
        return Array(dtype, shape, codec, sections.take(_get(description, "bytes", int)))
    stage, parts = _get(description, "stage", str), _get(description, "parts", dict)
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r:.40}")
    if tuple(parts) != STAGES[stage].part_names:
        raise ValueError(f"stage {stage} without its parts")
    parameters = _get(description, "parameters", dict)
    if not all(isinstance(value, int | float | str) for value in parameters.values()):
        raise ValueError(f"stage {stage} with parameters of another kind")
    nodes = {name: _node(part, sections, depth + 1) for name, part in parts.items()}
    return Staged(dtype, shape, stage, parameters, nodes)


def _get(mapping: Mapping[str, Any], key: str, kind: type) -> Any:
    value = mapping.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"its header has no {key} of the right kind")
    return value


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a shape that no tensor has")
    return tuple(sizes)


def _unpacked_bytes(node: Node) -> int:
    own = max(_LEAST_CHARGE, num_bytes(node.dtype, node.shape))
    return own + (sum(_unpacked_bytes(part) for part in node.parts.values()) if isinstance(node, Staged) else 0)
