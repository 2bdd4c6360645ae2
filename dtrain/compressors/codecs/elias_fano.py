"""Elias-Fano: k ascending indices below N, in a number of bytes that k and N alone fix, so that no size is exchanged.

Elias, Efficient Storage and Retrieval by Content and Address of Static Files (J. ACM 1974); Fano (MIT 1971). Of each
index the low l = floor(log2(N / k)) bits are stored as they are. What is above them ascends: index i, with high part h,
is a one at bit h + i of a vector whose zeros count the steps of h. That is k l + k + ((N - 1) >> l) bits: at density
0.001, 11.95 an index, against 9.97 + log2(e) = 11.41 at best. Bits are packed into bytes, the lowest first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtrain.compressors.codecs import compiled


def num_bytes(k: int, numel: int) -> int:
    """ceil((k l + k + ((numel - 1) >> l)) / 8) with l = floor(log2(numel / k))."""
    return -(-(k * _low_bits(k, numel) + _high_bits(k, numel)) // 8)


def encode(indices: Tensor, numel: int) -> Tensor:
    """Ascending, distinct int64 indices below `numel`, of shape (k,) -> uint8 of shape (num_bytes(k, numel),)."""
    k = indices.numel()
    low = _low_bits(k, numel)
    loops = compiled.sparse_loops_for(indices, torch.int64)
    if loops is not None:
        data = torch.empty(num_bytes(k, numel), dtype=torch.uint8)
        loops.encode_elias_fano(indices.numpy(), low, data.numpy())
        return data
    bits = indices.new_zeros(8 * num_bytes(k, numel), dtype=torch.uint8)
    bits[: k * low] = ((indices[:, None] >> _range(low, indices)) & 1).view(-1)
    bits.index_fill_(0, (indices >> low) + torch.arange(k * low, k * low + k, device=indices.device), 1)
    return (bits.view(-1, 8) << _range(8, bits)).sum(1, dtype=torch.uint8)


def decode(data: Tensor, k: int, numel: int) -> Tensor:
    """uint8 of shape (n, num_bytes(k, numel)), a row from each rank -> int64 indices of shape (n, k).

    Raises ValueError where a row is not the encoding of `k` ascending indices below `numel`.
    """
    low = _low_bits(k, numel)
    loops = compiled.sparse_loops_for(data[0], torch.uint8)
    if loops is not None:
        indices = torch.empty(len(data), k, dtype=torch.int64)
        rows = zip(data, indices, strict=True)
        if all(loops.decode_elias_fano(a.numpy(), low, _high_bits(k, numel), numel, b.numpy()) for a, b in rows):
            return indices  # else torch says what is wrong
    bits = ((data[..., None] >> _range(8, data)) & 1).flatten(1)
    row, one = bits[:, k * low : k * low + _high_bits(k, numel)].nonzero().unbind(1)
    if not torch.equal(row, torch.arange(len(data), device=row.device).repeat_interleave(k)):
        raise ValueError(f"{row.bincount().tolist()} indices received, expected {k} from each of {len(data)} ranks")
    indices = (one.view(len(data), k) - torch.arange(k, device=row.device)) << low
    indices += (bits[:, : k * low].view(len(data), k, low) << _range(low, indices)).sum(2)
    if int(indices.max()) >= numel:
        raise ValueError(f"index {int(indices.max())} received, expected less than {numel}")
    if not bool((indices[:, 1:] > indices[:, :-1]).all()):
        raise ValueError("indices received that do not ascend")
    return indices


def decode_unseen(data: Tensor, k: int, numel: int) -> tuple[Tensor, Tensor]:
    """`decode` without a look at any value by the host: indices, and of each row whether it is such an encoding.

    Indices of a row that is none are below `numel`, and mean nothing.
    """
    low, n = _low_bits(k, numel), len(data)
    bits = ((data[..., None] >> _range(8, data)) & 1).flatten(1)
    high = bits[:, k * low : k * low + _high_bits(k, numel)]
    count = high.cumsum(1, dtype=torch.int64)
    slot = torch.where(high == 1, count - 1, k).clamp_(max=k)  # zeros, and ones too many, fall behind the k
    places = _range(high.shape[1], count).expand_as(count)
    one = count.new_zeros(n, k + 1).scatter_(1, slot, places)[:, :k]
    indices = (one - _range(k, count)) << low
    indices += (bits[:, : k * low].view(n, k, low) << _range(low, indices)).sum(2)
    whole = (count[:, -1] == k) & (indices < numel).all(1) & (indices.diff(dim=1) > 0).all(1)
    return indices.clamp_(0, numel - 1), whole


def _low_bits(k: int, numel: int) -> int:
    return (numel // k).bit_length() - 1


def _high_bits(k: int, numel: int) -> int:
    return k + (numel - 1 >> _low_bits(k, numel))


def _range(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)
