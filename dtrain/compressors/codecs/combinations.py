"""Which k of N elements, as one number: k log2(N / k) bits and little more, as few as any code of fixed size can have.

Cover, Enumerative Source Coding (IEEE Transactions on Information Theory 19, 1973), example 2: ascending indices c_1 <
... < c_k below N are combination number C(c_1, 1) + C(c_2, 2) + ... + C(c_k, k), one of C(N, k). For 64 of 4096 that is
472 bits, 7.4 an index, where Elias-Fano takes 8 and a plain index 12. Numbers are limbs of 30 bits, lowest first, in
int64, so that sums of many need no carry in between.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.compressors.codecs import compiled

LIMB_BITS = 30
_MASK = (1 << LIMB_BITS) - 1
_BELOW = 1 - 2**-40
"""Further below 1 than float64 numbers here can be wrong."""
MAX_BITS = 1000
"""Of a number: float64 holds numbers of up to 1023."""


def num_bytes(k: int, numel: int) -> int:
    """ceil(log2(C(numel, k)) / 8). Raises ValueError for numbers of more than MAX_BITS bits."""
    bits = (comb(numel, k) - 1).bit_length()
    if bits > MAX_BITS:
        raise ValueError(f"which {k} of {numel} takes {bits} bits, and {MAX_BITS} is the most: give smaller chunks")
    return -(-bits // 8)


def encode(indices: Tensor, numel: int) -> Tensor:
    """Ascending, distinct int64 indices below `numel`, (rows, k) -> uint8 of shape (rows, num_bytes(k, numel))."""
    k = indices.shape[1]
    if k == numel:
        return torch.empty(len(indices), 0, dtype=torch.uint8, device=indices.device)
    table = _table(k, numel, indices.device)
    loops = compiled.sparse_loops_for(indices, torch.int64)
    if loops is not None:
        data = torch.empty(len(indices), num_bytes(k, numel), dtype=torch.uint8)
        limbs = table.limbs.view(-1).numpy()
        loops.encode_combinations(
            indices.view(-1).numpy(), k, limbs, numel, table.limbs.shape[2], data.view(-1).numpy()
        )
        return data
    number = torch.zeros(len(indices), table.limbs.shape[2], dtype=torch.int64, device=indices.device)
    for i in range(k):
        number += table.limbs[i, indices[:, i]]
    _carry(number)
    bits = (number[:, :, None] >> torch.arange(LIMB_BITS, device=number.device)) & 1
    size = num_bytes(k, numel)
    bits = torch.nn.functional.pad(bits.flatten(1), (0, LIMB_BITS * 8))[:, : 8 * size]
    weights = 1 << torch.arange(8, device=number.device)
    return (bits.view(len(indices), size, 8) * weights).sum(2).to(torch.uint8)


def decode(data: Tensor, k: int, numel: int) -> Tensor:
    """uint8 of shape (rows, num_bytes(k, numel)) -> int64 indices of shape (rows, k), ascending in each row.

    Raises ValueError where a row is not the number of a combination.
    """
    if k == numel:
        return torch.arange(k, device=data.device).expand(len(data), k)
    table = _table(k, numel, data.device)
    num_limbs = table.limbs.shape[2]
    loops = compiled.sparse_loops_for(data, torch.uint8)
    if loops is not None:
        indices = torch.empty(len(data), k, dtype=torch.int64)
        arrays = table.limbs.view(-1).numpy(), table.values.view(-1).numpy()
        if loops.decode_combinations(data.view(-1).numpy(), k, *arrays, numel, num_limbs, indices.view(-1).numpy()):
            return indices  # else torch says what is wrong
    bits = (data[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=data.device)) & 1
    bits = torch.nn.functional.pad(bits.flatten(1).to(torch.int64), (0, LIMB_BITS * num_limbs))
    bits = bits[:, : LIMB_BITS * num_limbs].view(len(data), num_limbs, LIMB_BITS)
    number = (bits << torch.arange(LIMB_BITS, device=data.device)).sum(2)
    scale = (2.0**LIMB_BITS) ** torch.arange(num_limbs, dtype=torch.float64, device=data.device)
    indices = torch.empty(len(data), k, dtype=torch.int64, device=data.device)
    for i in reversed(range(k)):
        about = number.to(torch.float64) @ scale
        found = (torch.searchsorted(table.values[i], about, right=True) - 1).clamp_(0, numel - 1)
        above = (found + 1).clamp(max=numel - 1)
        doubtful = (about > table.values[i, above] * _BELOW) & (above > found)
        if doubtful.any():  # neighbours are further apart than a float64 is wrong, but it may be at the boundary
            found += doubtful & (_carry(number - table.limbs[i, above])[:, -1] >= 0)
        left = _carry(number - table.limbs[i, found])
        if (left[:, -1] < 0).any():
            found = (found - (left[:, -1] < 0).to(torch.int64)).clamp_(min=0)
            left = _carry(number - table.limbs[i, found])
        number, indices[:, i] = left, found
    ascends = bool((indices.diff(dim=1) > 0).all()) if k > 1 else True
    if not ascends or bool(number.any()):
        raise ValueError(f"a number received is not that of a combination of {k} out of {numel}")
    return indices


class _Table(NamedTuple):
    """C(c, i + 1) for i < k and c < numel: int64 of shape (k, numel, limbs), and rounded, float64 of (k, numel)."""

    limbs: Tensor
    values: Tensor


@lru_cache(maxsize=8)
def _table(k: int, numel: int, device: torch.device) -> _Table:
    num_limbs = -(-comb(numel, k).bit_length() // LIMB_BITS) + 1  # one for the sign
    row = torch.zeros(numel, num_limbs, dtype=torch.int64)
    row[:, 0] = 1  # C(c, 0)
    rows = []
    for _ in range(k):  # C(c, i) is the sum of C(b, i - 1) over b < c
        row = _carry(torch.cat((row.new_zeros(1, num_limbs), row[:-1])).cumsum(0))
        rows.append(row)
    limbs = torch.stack(rows)
    scale = (2.0**LIMB_BITS) ** torch.arange(num_limbs, dtype=torch.float64)
    return _Table(limbs.to(device), (limbs.to(torch.float64) @ scale).to(device))


def _carry(number: Tensor) -> Tensor:
    """Limbs of 30 bits again, in place: all but the last, which has the sign."""
    while True:
        over = number[..., :-1] >> LIMB_BITS
        if not over.any():
            return number
        number[..., :-1] &= _MASK
        number[..., 1:] += over
