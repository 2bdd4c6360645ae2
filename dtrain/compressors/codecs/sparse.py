"""Sparse messages: the largest elements of a vector as one byte vector, whose size is known before it is read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.compressors.codecs import elias_fano, log_values
from dtrain.compressors.codecs.selection import largest


class SparseFormat(NamedTuple):
    """`k` elements of a vector of `numel`: indices in Elias-Fano, then values of `value_bits` (8, 16 or 32)."""

    k: int
    numel: int
    value_bits: int

    @property
    def num_bytes(self) -> int:
        """elias_fano.num_bytes(k, numel) + log_values.num_bytes(k, value_bits)."""
        return elias_fano.num_bytes(self.k, self.numel) + log_values.num_bytes(self.k, self.value_bits)

    def pack(self, indices: Tensor, values: Tensor) -> Tensor:
        """Ascending int64 indices and float32 values, each of shape (k,) -> uint8 of shape (num_bytes,)."""
        return torch.cat((elias_fano.encode(indices, self.numel), log_values.encode(values, self.value_bits)))

    def unpack(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 of shape (n, num_bytes) -> indices and values, each of shape (n, k).

        Raises ValueError for a message that does not hold k indices below numel. On other devices than a CPU the host
        would wait to know: there the values of such a message are NaN.
        """
        if messages.device.type != "cpu":
            return self._unpack_unseen(messages)
        packed_indices, packed_values = self._split(messages)
        indices = elias_fano.decode(packed_indices, self.k, self.numel)
        return indices, log_values.decode(packed_values, self.k, self.value_bits)

    def _unpack_unseen(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        packed_indices, packed_values = self._split(messages)
        indices, whole = elias_fano.decode_unseen(packed_indices, self.k, self.numel)
        values = log_values.decode(packed_values, self.k, self.value_bits)
        return indices, values.masked_fill(~whole[:, None], float("nan"))

    def _split(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and values as they are packed."""
        size = elias_fano.num_bytes(self.k, self.numel)
        assert messages.shape[1] == self.num_bytes, f"{messages.shape[1]} bytes and not {self.num_bytes}"
        return messages[:, :size], messages[:, size:]

    def pack_largest(self, vector: Tensor) -> Tensor:
        """Pack the k largest elements of a vector of at most `numel`, which counts as continued with zeros."""
        real = min(self.k, vector.numel())
        indices = torch.arange(vector.numel(), vector.numel() + self.k - real, device=vector.device)
        values = vector.new_zeros(self.k - real)
        if real:
            chosen = largest(vector, real)
            indices, values = torch.cat((chosen, indices)), torch.cat((vector[chosen], values))
        return self.pack(indices, values)
