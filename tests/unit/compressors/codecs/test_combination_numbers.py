"""Which k of N as one number: all of them, each once, in as few bytes as there can be."""

from __future__ import annotations

from itertools import combinations as choices
from math import comb, log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtrain.compressors.codecs import combinations


@pytest.mark.parametrize(("k", "numel"), [(1, 1), (1, 9), (4, 9), (8, 9), (9, 9), (3, 20)])
def test_every_choice_has_its_own_number_from_0_on_in_the_order_of_the_literature(k: int, numel: int) -> None:
    rows = torch.tensor(sorted(choices(range(numel), k), key=lambda chosen: chosen[::-1]))
    data = combinations.encode(rows, numel)
    assert data.shape == (comb(numel, k), combinations.num_bytes(k, numel))
    weights = 256 ** torch.arange(data.shape[1])
    assert torch.equal((data.to(torch.int64) * weights).sum(1), torch.arange(len(rows)))
    assert torch.equal(combinations.decode(data, k, numel), rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 5000), st.integers(0, 2**31))
def test_what_is_decoded_is_what_was_encoded(k: int, numel: int, seed: int) -> None:
    k = min(k, numel)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(numel, generator=generator)[:k].sort().values for _ in range(3)])
    rows = torch.cat((rows, torch.arange(k)[None], torch.arange(numel - k, numel)[None]))  # the first and the last
    assert torch.equal(combinations.decode(combinations.encode(rows, numel), k, numel), rows)


def test_64_of_4096_take_less_than_a_bit_more_than_their_entropy() -> None:
    size = combinations.num_bytes(64, 4096)
    assert size == 59
    assert 0 <= 8 * size - log2(comb(4096, 64)) < 8


@pytest.mark.parametrize(
    "data", [torch.full((1, 59), 255, dtype=torch.uint8), torch.tensor([[255, 255]]).to(torch.uint8)]
)
def test_a_number_that_is_of_no_combination_is_refused(data: Tensor) -> None:
    k, numel = (64, 4096) if data.shape[1] == 59 else (4, 16)
    with pytest.raises(ValueError, match=f"not that of a combination of {k} out of {numel}"):
        combinations.decode(data, k, numel)


def test_what_would_be_too_long_a_number_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"which 410 of 4096 takes \d+ bits, and 1000 is the most: give smaller chunks"
    ):
        combinations.num_bytes(410, 4096)
