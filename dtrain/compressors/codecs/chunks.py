"""Sparse messages of chunks: of each the same number of elements, two bits for the value of each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.compressors.codecs import combinations, compiled

_CODES = 4
"""Codes of two bits in a byte."""


class ChunkFormat(NamedTuple):
    """The `k` largest of each of `num_chunks` chunks of `chunk` elements.

    A message holds, chunk by chunk, which elements they are (`combinations`), then of all a sign and whether the
    magnitude is above the mean of its chunk's, that mean in bfloat16, and once what magnitudes below and above it come
    to on average, as fractions of it, in float32.
    """

    k: int
    chunk: int
    num_chunks: int

    @property
    def num_bytes(self) -> int:
        """num_chunks x (combinations.num_bytes(k, chunk) + 2) + ceil(num_chunks x k / 4) + 8."""
        per_chunk = combinations.num_bytes(self.k, self.chunk) + 2
        return self.num_chunks * per_chunk + -(-self.num_chunks * self.k // _CODES) + 8

    def pack(self, rows: Tensor) -> Tensor:
        """Float32 of shape (num_chunks, chunk) -> uint8 of shape (num_bytes,).

        An infinity or NaN is among the largest of its chunk, whose mean it makes one.
        """
        indices = self._choose(rows)
        values = rows.gather(1, indices)
        kept = values.abs()
        means = kept.mean(1).to(torch.bfloat16)
        relative = kept / means.to(torch.float32)[:, None]
        high = relative > 1
        levels = torch.stack([_mean_of(relative, ~high), _mean_of(relative, high)])
        codes = (values < 0).to(torch.uint8) | (high.to(torch.uint8) << 1)
        parts = (combinations.encode(indices, self.chunk), _packed(codes), means, levels)
        return torch.cat([part.contiguous().view(torch.uint8).view(-1) for part in parts])

    def _choose(self, rows: Tensor) -> Tensor:
        """Where the largest of each row are, ascending; of equal ones those that torch's topk takes."""
        loops = compiled.sparse_loops_for(rows)
        if loops is None:
            return _largest(rows, self.k)
        indices = torch.empty(self.num_chunks, self.k, dtype=torch.int64)
        spare = torch.empty(self.chunk, dtype=torch.int32)
        arrays = spare.numpy(), indices.view(-1).numpy()
        loops.choose_in_chunks(rows.view(-1).numpy(), self.chunk, self.k, *arrays)
        unclear = (indices[:, 0] < 0).nonzero().view(-1)
        if len(unclear):
            indices[unclear] = _largest(rows[unclear], self.k)
        return indices

    def unpack(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 of shape (n, num_bytes) -> indices in the whole vector and values, each (n, num_chunks x k).

        Raises ValueError for indices that are none.
        """
        assert messages.shape[1] == self.num_bytes, f"{messages.shape[1]} bytes and not {self.num_bytes}"
        n, kept = len(messages), self.num_chunks * self.k
        sizes = [
            self.num_chunks * combinations.num_bytes(self.k, self.chunk),
            -(-kept // _CODES),
            2 * self.num_chunks,
            8,
        ]
        numbers, codes, means, levels = (_apart(part) for part in messages.split(sizes, 1))
        rows = combinations.decode(numbers.view(n * self.num_chunks, -1), self.k, self.chunk)
        first = torch.arange(self.num_chunks, device=rows.device)[:, None] * self.chunk
        indices = rows.view(n, self.num_chunks, self.k) + first
        unpacked = ((codes[:, :, None] >> torch.arange(0, 8, 2, dtype=torch.uint8, device=rows.device)) & 3).flatten(1)
        signs, high = 1.0 - 2.0 * (unpacked[:, :kept] & 1), (unpacked[:, :kept] >> 1).to(torch.int64)
        values = levels.view(torch.float32).gather(1, high) * signs
        values = values.view(n, self.num_chunks, self.k) * means.view(torch.bfloat16).to(torch.float32)[:, :, None]
        return indices.view(n, kept), values.view(n, kept)


def _largest(rows: Tensor, k: int) -> Tensor:
    return rows.abs().topk(k, dim=1, sorted=False).indices.sort(1).values


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen, 1 where there are none; what is not finite is another's matter."""
    count = chosen.sum().clamp(min=1)
    return torch.where(chosen.any(), (values.nan_to_num(0.0, 0.0, 0.0) * chosen).sum() / count, 1.0)


def _packed(codes: Tensor) -> Tensor:
    """Codes of two bits, four to a byte, the lowest first."""
    flat = torch.nn.functional.pad(codes.view(-1), (0, -codes.numel() % _CODES)).view(-1, _CODES)
    return (flat << torch.arange(0, 8, 2, dtype=torch.uint8, device=codes.device)).sum(1, dtype=torch.uint8)


def _apart(part: Tensor) -> Tensor:
    """In memory of its own, so that it can be seen as wider numbers."""
    return part.clone(memory_format=torch.contiguous_format)
