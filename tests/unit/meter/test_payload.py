"""What a tensor has to hand over, whatever kind it is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from dtrain.meter.payload import first_tensor, num_bytes

EYE = torch.eye(4)


def quietly(tensor: Tensor, how: str, *arguments: object) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Tensor = getattr(tensor, how)(*arguments)
        return result


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.ones(6), 24),
        (torch.tensor(1.0), 4),
        (torch.ones(0), 0),
        (torch.ones(6, dtype=torch.bool), 6),
        (torch.ones(6, dtype=torch.complex64), 48),
        (torch.ones(6, dtype=torch.complex64).conj(), 48),
        (torch.ones(6).to(torch.float8_e4m3fn), 6),
        (torch.ones(1).expand(6), 24),
        (EYE[:, ::2], 32),
        (EYE.to_sparse(), 2 * 4 * 8 + 4 * 4),
        (torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=False), 2 * 8 + 2 * 4),
        (quietly(EYE, "to_sparse_csr"), 5 * 8 + 4 * 8 + 4 * 4),
        (quietly(EYE, "to_sparse_csc"), 5 * 8 + 4 * 8 + 4 * 4),
        (quietly(EYE, "to_sparse_bsr", (2, 2)), 3 * 8 + 2 * 8 + 8 * 4),
        (quietly(EYE, "to_sparse_bsc", (2, 2)), 3 * 8 + 2 * 8 + 8 * 4),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), 20),
        (EYE.to_mkldnn(), 64),
    ],
    ids=lambda value: f"{value.layout}-{value.dtype}".replace("torch.", "") if isinstance(value, Tensor) else None,
)
def test_every_kind_of_tensor_has_its_bytes(tensor: Tensor, expected: int) -> None:
    assert num_bytes(tensor) == expected


def test_lists_of_lists_add_up_and_the_first_tensor_is_found_behind_empty_ones() -> None:
    one, two = torch.ones(2), torch.ones(3)
    assert num_bytes([[one, two], [], [None, EYE.to_sparse()]]) == 8 + 12 + 80
    assert first_tensor([[], [None], [one, two]]) is one
    assert first_tensor([[], []]) is None
    assert num_bytes([]) == 0
