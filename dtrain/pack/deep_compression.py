"""The file that Deep Compression published for SqueezeNet 1.0 (songhan/SqueezeNet-Deep-Compression, 675,763 bytes).

Little-endian and without a magic number: for each layer the number of stored codes; then for each layer, in the
network's order, a codebook of 256 float32, the biases in float32, the codes (a byte each), and the gaps to the weight
before (4 bits each, the low half of a byte first). A gap of 15 with code 0 stores no weight: it reaches over a longer
gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dtrain.files import read_file
from dtrain.pack.model_file import Model
from dtrain.pack.tensor import Tensor

_CODEBOOK_BYTES = 4 * 256


def read_net(path: Path, layers: Mapping[str, tuple[int, ...]]) -> Model:
    """The weights and biases of `layers` (name -> shape of its weight), as `<layer>.weight` and `<layer>.bias`.

    Raises ValueError for a file that is not of these layers.
    """
    data = read_file(path)
    header_bytes = 4 * len(layers)
    if len(data) < header_bytes:
        raise ValueError(f"{path}: too short for a Deep Compression file of {len(layers)} layers")
    stored = np.frombuffer(data, "<u4", len(layers)).tolist()
    sizes = [_CODEBOOK_BYTES + 4 * shape[0] + n + -(-n // 2) for n, shape in zip(stored, layers.values(), strict=True)]
    if header_bytes + sum(sizes) != len(data):
        raise ValueError(
            f"{path}: {len(data)} bytes, and a Deep Compression file of these layers with these counts has "
            f"{header_bytes + sum(sizes)}: it is another network's, or damaged"
        )
    tensors = {}
    start = header_bytes
    for (name, shape), count, size in zip(layers.items(), stored, sizes, strict=True):
        layer, start = data[start : start + size], start + size
        codebook = np.frombuffer(layer, "<f4", 256)
        bias = np.frombuffer(layer, "<f4", shape[0], _CODEBOOK_BYTES)
        codes = np.frombuffer(layer, np.uint8, count, _CODEBOOK_BYTES + 4 * shape[0])
        halves = np.frombuffer(layer, np.uint8, -(-count // 2), len(layer) - -(-count // 2))
        gaps = np.stack([halves & 15, halves >> 4], axis=1).reshape(-1)[:count]
        places = np.cumsum(gaps.astype(np.int64) + 1) - 1
        if count and places[-1] >= math.prod(shape):
            raise ValueError(f"{path}: weights beyond the end of layer {name}: it is another network's, or damaged")
        weights = np.zeros(math.prod(shape), np.float32)
        weights[places] = codebook[codes]
        tensors[f"{name}.weight"] = Tensor.of(weights.reshape(shape))
        tensors[f"{name}.bias"] = Tensor.of(bias)
    return Model(tensors, {})
