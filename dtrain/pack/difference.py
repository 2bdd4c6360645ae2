"""The difference between two packed models: what makes the next version of the file that somebody holds.

    magic            4 bytes
    version          1 byte
    size of fits     4 bytes, unsigned, little-endian, as the next
    zeros            4 bytes, how many end the container and were left off: its padding, mostly
    SHA-256          32 bytes, of the file that it starts from
    SHA-256          32 bytes, of the file that it leads to
    fits             the coefficients that the new file's levels are coded with, one stream
    container        as a .dtz file, of the new file's trees; an array of it holds differences

An array is paired with the one at the same place in the other file, if that has its type and shape; without such, it is
as in the new file. Integers (levels: codes of a codebook, multiples of a step) are subtracted, so weights that did not
move are zeros to the context coder. Of other types the places in the order of their values are subtracted, and the sign
goes last: a float that moved a little is a small number. Nothing is lost: what `apply_difference` returns is the new
file to the last bit, on every machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.pack import entropy
from dtrain.pack.coder import Coder, Decoder, Encoder
from dtrain.pack.container import Array, Container, Node, Staged, from_bytes, to_bytes
from dtrain.pack.levels import are_levels, code_fit, code_levels, read_fit
from dtrain.pack.tensor import Tensor, ascending_keys, words_of_keys

MAGIC = b"\x93DTD"
VERSION = 1

_PREFIX = struct.Struct("<4sBII32s32s")


def make_difference(base: bytes, new: bytes) -> bytes:
    """What `apply_difference` makes the .dtz file `new` of, given the .dtz file `base`.

    Raises ValueError where either is not a packed model, or `new` is not as this version of dtrain packs.
    """
    fits = Encoder()

    def subtract(array: Array, before: Array | None) -> Array:
        tensor = _tensor(array)
        if array.codec == "levels":
            code_fit(fits, array.shape, read_fit(array.shape, array.data))
        return _array(tensor if before is None else _subtract(tensor, _tensor(before)))

    inner = to_bytes(_paired(from_bytes(new), from_bytes(base), subtract))
    stream, stripped = fits.finish(), inner.rstrip(b"\0")
    prefix = _PREFIX.pack(MAGIC, VERSION, len(stream), len(inner) - len(stripped), _sha256(base), _sha256(new))
    result = prefix + stream + stripped
    apply_difference(base, result)
    return result


def apply_difference(base: bytes, difference: bytes) -> bytes:
    """The file that `difference` leads to from `base`; its SHA-256 was checked.

    Takes memory and time in proportion to the sizes of both. Raises ValueError for anything else than a difference, or
    for one from another file.
    """
    if len(difference) < _PREFIX.size or difference[: len(MAGIC)] != MAGIC:
        raise ValueError("not a difference between packed models")
    _, version, fits_bytes, zeros, before, after = _PREFIX.unpack_from(difference)
    if version != VERSION:
        raise ValueError(f"a difference in version {version} of the format, and this dtrain reads version {VERSION}")
    if before != _sha256(base):
        raise ValueError(f"a difference from {before.hex()[:12]}, and this file is {_sha256(base).hex()[:12]}")
    if fits_bytes > len(difference) - _PREFIX.size:
        raise ValueError("truncated")
    if zeros > len(difference) + len(base):
        raise ValueError("more zeros left off than both files have bytes")
    fits = Decoder(difference[_PREFIX.size : _PREFIX.size + fits_bytes])

    def add(array: Array, before: Array | None) -> Array:
        tensor = _tensor(array)
        return _array(tensor if before is None else _add(tensor, _tensor(before)), fits)

    inner = from_bytes(difference[_PREFIX.size + fits_bytes :] + bytes(zeros))
    result = to_bytes(_paired(inner, from_bytes(base), add))
    if _sha256(result) != after:
        raise ValueError("altered: it does not lead to the file that it names")
    return result


def _paired(container: Container, base: Container, change: Callable[[Array, Array | None], Array]) -> Container:
    """The container with every array changed, given the array at its place in `base`, or None."""

    def walk(node: Node, before: Node | None) -> Node:
        if isinstance(node, Array):
            alike = isinstance(before, Array) and (before.dtype, before.shape) == (node.dtype, node.shape)
            return change(node, before if alike and isinstance(before, Array) else None)
        others = before.parts if isinstance(before, Staged) else {}
        return replace(node, parts={name: walk(part, others.get(name)) for name, part in node.parts.items()})

    tensors = {name: walk(node, base.tensors.get(name)) for name, node in container.tensors.items()}
    return replace(container, tensors=tensors)


def _tensor(array: Array) -> Tensor:
    return entropy.decode(array.codec, array.dtype, array.shape, array.data)


def _array(tensor: Tensor, fits: Coder | None = None) -> Array:
    """Coded; levels with coefficients from `fits`, if given, and else with those that fit them best."""
    if fits is None or not are_levels(tensor):
        return Array(tensor.dtype, tensor.shape, *entropy.encode(tensor))
    encoder = Encoder()
    code_levels(encoder, tensor.shape, tensor.integers, code_fit(fits, tensor.shape, None))
    return Array(tensor.dtype, tensor.shape, "levels", encoder.finish())


def _subtract(tensor: Tensor, before: Tensor) -> Tensor:
    if tensor.dtype == "I32":
        return _of_words(tensor, tensor.words - before.words)
    moved = ascending_keys(tensor.dtype, tensor.words) - ascending_keys(tensor.dtype, before.words)
    bits = 8 * tensor.word_bytes
    signed = moved.astype(f"<u{tensor.word_bytes}").view(f"<i{tensor.word_bytes}")
    return _of_words(tensor, ((signed << 1) ^ (signed >> (bits - 1))).view(tensor.words.dtype))


def _add(moved: Tensor, before: Tensor) -> Tensor:
    if moved.dtype == "I32":
        return _of_words(moved, moved.words + before.words)
    words = moved.words
    signed = (words >> 1) ^ (-(words & 1).view(f"<i{moved.word_bytes}")).view(words.dtype)
    keys = ascending_keys(moved.dtype, before.words).astype(words.dtype) + signed
    return _of_words(moved, words_of_keys(moved.dtype, keys.astype(np.uint64), like=words))


def _of_words(like: Tensor, words: NDArray[Any]) -> Tensor:
    return Tensor(like.dtype, like.shape, np.ascontiguousarray(words).view(np.uint8))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
