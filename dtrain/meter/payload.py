"""How many bytes a tensor has to hand over, whatever kind of tensor it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_PARTS = {
    torch.sparse_coo: (Tensor._indices, Tensor._values),
    torch.sparse_csr: (Tensor.crow_indices, Tensor.col_indices, Tensor.values),
    torch.sparse_bsr: (Tensor.crow_indices, Tensor.col_indices, Tensor.values),
    torch.sparse_csc: (Tensor.ccol_indices, Tensor.row_indices, Tensor.values),
    torch.sparse_bsc: (Tensor.ccol_indices, Tensor.row_indices, Tensor.values),
}


def num_bytes(tensors: Tensor | Iterable[Any] | None) -> int:
    """Bytes of a tensor, or of all in a list or a list of lists. A sparse one has its indices and its values.

    Of a sparse tensor that is not coalesced, what occurs twice counts twice.
    """
    if tensors is None:
        return 0
    if not isinstance(tensors, Tensor):
        return sum(map(num_bytes, tensors))
    if tensors.layout is torch.strided and not tensors.is_nested:
        return tensors.nbytes
    if tensors.layout in _PARTS:
        return sum(part(tensors).nbytes for part in _PARTS[tensors.layout])
    return tensors.numel() * tensors.element_size()


def first_tensor(tensors: Tensor | Iterable[Any] | None) -> Tensor | None:
    """The first tensor in a list, or a list of lists; None if they hold none."""
    if tensors is None or isinstance(tensors, Tensor):
        return tensors
    return next((found for found in map(first_tensor, tensors) if found is not None), None)
