"""Packed models and differences that were made to do harm. Digests are repaired, so that it is not they that refuse."""

from __future__ import annotations

import bz2
import hashlib
import json
import random
import struct
from itertools import pairwise
from typing import Any

import numpy as np
from hostile import Format, any_shape, change_anywhere, hostile_bytes, places

from dtrain.pack import (
    PRESETS,
    Model,
    Tensor,
    apply_difference,
    from_bytes,
    make_difference,
    pack,
    to_bytes,
    unpack,
)
from dtrain.pack.tensor import BITS

CONTAINER_SHA256, CONTAINER_HEADER = slice(9, 41), 41
DIFFERENCE_BASE_SHA256, DIFFERENCE_PREFIX = slice(13, 45), 77


def formats() -> dict[str, Format]:
    """By name."""
    files = [to_bytes(pack(_model(1), preset, coder=coder)) for preset in PRESETS for coder in ("contexts", "huffman")]
    base, *others = (
        to_bytes(pack(_model(seed), preset)) for seed, preset in ((1, "smallest"), (2, "smallest"), (2, "lossless"))
    )
    ways = [make_difference(base, other) for other in others]
    return {
        "container": Format(
            lambda rng: hostile_container(rng, rng.choice(files)), lambda data: unpack(from_bytes(data))
        ),
        "difference": Format(
            lambda rng: hostile_difference(rng, rng.choice(ways)), lambda data: apply_difference(base, data)
        ),
    }


def sealed(header: bytes, sections: bytes, start: bytes) -> bytes:
    """A container, its digest right."""
    start += struct.pack("<I", len(header))
    return start + hashlib.sha256(start + header + sections).digest() + header + sections


def hostile_container(rng: random.Random, data: bytes) -> bytes:
    """Another header, other sections, or more padding, under a digest that is right."""
    (header_bytes,) = struct.unpack_from("<I", data, 5)
    header = json.loads(bz2.decompress(data[CONTAINER_HEADER:][:header_bytes]))
    arrays = [there for there, key in places(header) if key == "codec"]
    ends = np.cumsum([CONTAINER_HEADER + header_bytes] + [array["bytes"] for array in arrays]).tolist()
    sections = [data[start:end] for start, end in pairwise(ends)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        change = rng.choice((change_anywhere, _change_shapes, _change_types, None))
        if change is not None:
            change(rng, header)
            continue
        one = rng.randrange(len(sections))
        sections[one] = in_words(rng, hostile_bytes(rng, sections[one]))
        arrays[one]["bytes"] = len(sections[one])
    if rng.random() < 0.3:  # more may be claimed, and what was claimed before is again
        header["padding"] = rng.choice((1 << 10, 1 << 13, 1 << 14))
    padding = header.get("padding")
    sections.append(bytes(padding if type(padding) is int and 0 <= padding < 1 << 15 else 0))
    packed = bz2.compress(json.dumps(header).encode())
    return sealed(hostile_bytes(rng, packed) if rng.random() < 0.05 else packed, b"".join(sections), data[:5])


def in_words(rng: random.Random, section: bytes) -> bytes:
    """Mostly as many bytes as coded sections have, so that it is not this which is refused."""
    return section[: len(section) // 4 * 4] if rng.random() < 0.9 else section


def _change_shapes(rng: random.Random, header: Any) -> None:
    """One shape to another wherever it stands, so that parts fit their tensor."""
    _change_all(rng, header, "shape", any_shape(rng))


def _change_types(rng: random.Random, header: Any) -> None:
    _change_all(rng, header, "dtype", rng.choice(list(BITS)))


def _change_all(rng: random.Random, header: Any, key: str, new: Any) -> None:
    nodes = [there for there, at in places(header) if at == key]
    if nodes:
        old = rng.choice(nodes)[key]
        for node in nodes:
            if node[key] == old:
                node[key] = new


# differences


def hostile_difference(rng: random.Random, data: bytes) -> bytes:
    """Another container in it, other coefficients, or another count of zeros, from the same base."""
    _, _, fits_bytes, zeros = struct.unpack_from("<4sBII", data)
    fits, inner = data[DIFFERENCE_PREFIX:][:fits_bytes], data[DIFFERENCE_PREFIX + fits_bytes :] + bytes(zeros)
    match rng.randrange(10):
        case 0 | 1 | 2:
            fits = in_words(rng, hostile_bytes(rng, fits))
        case 3:
            inner = hostile_bytes(rng, inner)
        case _:
            inner = hostile_container(rng, inner)
    stripped = inner.rstrip(b"\0")
    counts = struct.pack("<II", len(fits), len(inner) - len(stripped))
    return data[:5] + counts + data[DIFFERENCE_BASE_SHA256.start : DIFFERENCE_PREFIX] + fits + stripped


def _model(seed: int) -> Model:
    """Small, and with every kind of tensor that some stage or codec is for."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(0, 0.1, (8, 8, 3, 3)).astype("<f4")
    low_rank = rng.normal(size=(24, 2)) @ rng.normal(size=(2, 40))
    return Model(
        {
            "conv.weight": Tensor.of(dense),
            "conv.bias": Tensor.of(dense[0, 0, 0]),
            "low_rank": Tensor.of(low_rank.astype("<f4")),
            "shared": Tensor.of(rng.choice(np.array([-0.5, 0, 0.25], "<f2"), (20, 30))),
            "sparse": Tensor.of((dense.reshape(8, 72) * (rng.uniform(size=(8, 72)) < 0.3)).astype("<f8")),
            "counts": Tensor.of(rng.integers(-9, 9, (6, 7)).astype("<i4")),
            "steps": Tensor.of(np.array(7, "<i8")),
            "ascending": Tensor.of(np.sort(rng.normal(size=20).astype("<f4"))),
            "nothing": Tensor.of(np.zeros((0, 3), "<f2")),
        },
        {"dtrain": "{}"},
    )
