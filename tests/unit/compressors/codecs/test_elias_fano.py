from math import ceil, floor, log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.compressors.codecs import elias_fano
from dtrain.compressors.codecs.elias_fano import decode, encode, num_bytes


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[list[int], int]:
    numel = draw(st.integers(1, 5000) | st.integers(1, 10**9))
    largest = min(numel, 60)
    indices = draw(st.sets(st.integers(0, numel - 1), min_size=1, max_size=largest))
    return sorted(indices), numel


@settings(deadline=None)
@given(index_sets())
def test_what_is_decoded_is_what_was_encoded(case: tuple[list[int], int]) -> None:
    indices, numel = torch.tensor(case[0]), case[1]
    data = encode(indices, numel)
    assert data.dtype == torch.uint8
    assert data.shape == (num_bytes(len(indices), numel),)
    assert torch.equal(decode(data[None], len(indices), numel), indices[None])


@settings(deadline=None)
@given(st.integers(1, 10**6), st.data())
def test_the_size_is_the_formula_s(numel: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, numel))
    low = floor(log2(numel / k))
    assert num_bytes(k, numel) == ceil((k * low + k + ((numel - 1) >> low)) / 8)


def test_an_index_costs_12_bits_at_a_density_of_a_thousandth() -> None:
    assert 8 * num_bytes(6_250, 6_250_000) / 6_250 == pytest.approx(11.954, abs=0.001)


@pytest.mark.parametrize("numel", [1, 8, 1003])
def test_all_indices_and_the_last_ones_survive(numel: int) -> None:
    for k in {1, numel // 2 or 1, numel}:
        indices = torch.arange(numel - k, numel)
        assert torch.equal(decode(encode(indices, numel)[None], k, numel)[0], indices)


def test_the_messages_of_several_ranks_are_decoded_at_once() -> None:
    indices = torch.stack([torch.randperm(1000)[:37].sort().values for _ in range(5)])
    data = torch.stack([encode(row, 1000) for row in indices])
    assert torch.equal(decode(data, 37, 1000), indices)


def test_a_message_with_another_number_of_indices_is_refused() -> None:
    data = torch.stack([encode(torch.arange(3) * 30, 100), encode(torch.arange(3), 100)])
    data[0, -1] = 0
    with pytest.raises(ValueError, match=r"indices received, expected 3 from each of 2 ranks"):
        decode(data, 3, 100)


def test_indices_of_two_ranks_do_not_make_up_for_each_other() -> None:
    low_bits = 3 * elias_fano._low_bits(3, 100)
    data = torch.stack([encode(torch.arange(3), 100)] * 2)
    assert low_bits % 8 == 7
    data[0, low_bits // 8 + 1] = 0b0000_0001
    data[1, low_bits // 8 + 1] = 0b0000_1111
    with pytest.raises(ValueError, match="expected 3 from each"):
        decode(data, 3, 100)


def test_an_index_beyond_the_end_is_refused() -> None:
    data = encode(torch.tensor([3, 995]), 1000)
    with pytest.raises(ValueError, match="index 995 received, expected less than 990"):
        decode(data[None], 2, 990)
