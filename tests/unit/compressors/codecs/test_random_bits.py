"""Random bits are those of torch's generator, whoever draws them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dtrain.compressors.codecs import compiled
from dtrain.compressors.codecs.random_bits import RandomBits

CPU = torch.device("cpu")


def expected(seed: int, count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 1, 5489, 2**32 - 1, 2**32 + 7, 2**64 - 1])
def test_kernels_draw_what_torch_draws(seed: int) -> None:
    pytest.importorskip("numba", reason="numba is not installed (the extra fast)")
    kernels, bits, drawn = compiled._numba_kernels().at_random, RandomBits(seed, CPU), []
    for count in (1, 311, 312, 1, 5, 1000):  # 312 are made at once
        drawn.append(torch.empty(count, dtype=torch.int64))
        bits.fill(drawn[-1], kernels)
    assert torch.equal(torch.cat(drawn), expected(seed, bits.position))


def test_one_goes_on_where_the_other_was_and_from_where_the_position_is_set_back() -> None:
    pytest.importorskip("numba", reason="numba is not installed (the extra fast)")
    kernels, bits, whole = compiled._numba_kernels().at_random, RandomBits(3, CPU), expected(3, 200_000)
    for start, count, by in [
        (0, 100_000, kernels),
        (100_000, 50, None),
        (100_050, 10, kernels),
        (70, 100, None),
        (170, 3, kernels),
    ]:
        bits.position = start
        words = torch.empty(count, dtype=torch.int64)
        bits.fill(words, by)
        assert torch.equal(words, whole[start : start + count])
        assert bits.position == start + count
