"""Small integers by Huffman codes, as Deep Compression stores its weights; for comparison with `levels`.

Where many are zero only the others are stored, each after the number of zeros before it, up to 15: a gap of 15 with a
zero reaches over a longer one (the paper's relative index, with 4 bits as in the published SqueezeNet). Both are
Huffman coded, each with a table of its own.

    form      1 byte    0: all levels in turn; 1: gaps too
    lowest    2 bytes   of the levels, signed, little-endian
    symbols   2 bytes   levels from the lowest to the highest
    stored    4 bytes   levels that are stored
    lengths   1 byte for each of them: bits of its code, 0 if it is not there, 255 if it is the only one and takes none;
              then 16 for the gaps, if there are
    codes     whole 32-bit words: the levels, then the gaps
"""

from __future__ import annotations

import heapq
import math
import struct
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.coder import HuffmanDecoder, HuffmanEncoder, Ints

_PREFIX = struct.Struct("<BhHI")
_LARGEST_GAP = 15
_MAX_BITS = 48
_ALONE = 255


def encode_levels(levels: Ints) -> bytes:
    """Of integers from -4095 to 4095, any shape; one at least."""
    flat = levels.reshape(-1).astype(np.int64)
    lowest, symbols = int(flat.min()), int(flat.max() - flat.min()) + 1
    dense, sparse = [flat - lowest], [flat[:0]]
    if lowest <= 0 < lowest + symbols:
        places, gaps = _stored(flat)
        sparse = [flat[places] - lowest, gaps]
    bits = [sum(_num_bits(stream) for stream in streams) for streams in (dense, sparse)]
    form = int(len(sparse) == 2 and len(sparse[0]) > 0 and bits[1] < bits[0])
    tables, coder = b"", HuffmanEncoder()
    for stream, size in zip((dense, sparse)[form], (symbols, _LARGEST_GAP + 1), strict=False):
        lengths = _lengths(np.bincount(stream, minlength=size))
        tables += lengths.tobytes()
        _encode(coder, stream, lengths)
    stored = len((dense, sparse)[form][0])
    return _PREFIX.pack(form, lowest, symbols, stored) + tables + coder.finish()


def decode_levels(shape: tuple[int, ...], data: bytes) -> Ints:
    """The integers. Raises ValueError for bytes that no encoder writes."""
    numel = math.prod(shape)
    if len(data) < _PREFIX.size:
        raise ValueError("a section that is too short")
    form, lowest, symbols, stored = _PREFIX.unpack_from(data)
    tables_end = _PREFIX.size + symbols + (_LARGEST_GAP + 1) * form
    if form > 1 or not symbols or stored > numel or (form == 0 and stored != numel) or len(data) < tables_end:
        raise ValueError("a section that no encoder wrote")
    lengths = np.frombuffer(data, np.uint8, tables_end - _PREFIX.size, _PREFIX.size)
    coder, num_bits = HuffmanDecoder(data[tables_end:]), 0
    streams = []
    for table in np.split(lengths, [symbols])[: 1 + form]:
        streams.append(_decode(coder, stored, table, 8 * (len(data) - tables_end) - num_bits))
        num_bits += int(_bits(table)[streams[-1]].sum())
    if -(-num_bits // 32) * 4 != len(data) - tables_end:
        raise ValueError("codes that do not fill their section")
    values: Ints = (streams[0] + lowest).astype(np.int32)
    if form == 0:
        return values.reshape(shape)
    places = np.cumsum(streams[1] + 1) - 1
    if stored and places[-1] >= numel:
        raise ValueError("gaps that lead beyond the tensor")
    levels = np.zeros(numel, np.int32)
    levels[places] = values
    return levels.reshape(shape)


def _stored(flat: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the levels that are stored, and the zeros before each."""
    places = np.flatnonzero(flat)
    zeros = np.diff(places, prepend=-1) - 1
    fillers = zeros // (_LARGEST_GAP + 1)
    before = places - zeros  # of each run of zeros, the first
    steps = np.arange(int(fillers.sum())) - np.repeat(np.cumsum(fillers) - fillers, fillers)
    extra = np.repeat(before, fillers) + (_LARGEST_GAP + 1) * steps + _LARGEST_GAP
    places = np.sort(np.concatenate([places, extra]))
    return places, np.diff(places, prepend=-1) - 1


def _num_bits(stream: NDArray[np.int64]) -> int:
    """Of codes and table."""
    counts = np.bincount(stream, minlength=1)
    return int((counts * _bits(_lengths(counts))).sum()) + 8 * len(counts)


def _lengths(counts: NDArray[Any]) -> NDArray[np.uint8]:
    """Bits of each symbol's code: 0 for a symbol that does not occur, _ALONE for the only one that does."""
    order = count()
    heap = [(int(counts[symbol]), next(order), [symbol]) for symbol in np.flatnonzero(counts)]
    lengths = np.zeros(len(counts), np.uint8)
    if len(heap) == 1:
        lengths[heap[0][2]] = _ALONE
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, _, left), (other, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (one + other, next(order), left + right))
    return lengths


def _bits(lengths: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.where(lengths == _ALONE, 0, lengths).astype(np.int64)


def _probabilities(lengths: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Powers of two, of which the code that has these lengths is the Huffman code."""
    return np.ldexp(1.0, -lengths[lengths > 0].astype(np.int32))


def _encode(coder: HuffmanEncoder, stream: NDArray[np.int64], lengths: NDArray[np.uint8]) -> None:
    used = np.flatnonzero(lengths)
    if len(used) > 1:
        coder.symbols(_probabilities(lengths), np.searchsorted(used, stream).tolist())


def _decode(coder: HuffmanDecoder, size: int, lengths: NDArray[np.uint8], bits_left: int) -> NDArray[np.int64]:
    used = np.flatnonzero(lengths)
    if len(used) == 1 and lengths[used[0]] == _ALONE:
        return np.full(size, used[0], np.int64)
    if not len(used) or lengths.max() > _MAX_BITS:
        raise ValueError("lengths of codes that no Huffman code has")
    if sum(1 << (_MAX_BITS - int(length)) for length in lengths[used]) != 1 << _MAX_BITS:
        raise ValueError("lengths of codes that no Huffman code has")
    if size > bits_left:
        raise ValueError("fewer codes than levels")
    return used[coder.symbols(_probabilities(lengths), size)]
