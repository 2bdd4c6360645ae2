import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dtrain.compressors.codecs.log_values import decode, encode, num_bytes

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def there_and_back(values: Tensor, value_bits: int) -> Tensor:
    data = encode(values, value_bits)
    assert data.dtype == torch.uint8
    assert data.shape == (num_bytes(values.numel(), value_bits),)
    return decode(data[None], values.numel(), value_bits)[0]


def pattern(values: Tensor) -> Tensor:
    return values.abs().view(torch.int32).long()


@settings(deadline=None)  # the first may compile
@given(st.lists(finite, min_size=1, max_size=40), st.sampled_from([8, 16]))
def test_a_value_moves_by_half_a_step_of_its_bit_pattern_and_keeps_its_sign(numbers: list[float], bits: int) -> None:
    values = torch.tensor(numbers)
    decoded = there_and_back(values, bits)
    nonzero = pattern(values)[values != 0]
    spread = int(nonzero.max() - nonzero.min()) if nonzero.numel() else 0
    step = 1
    while spread // step + 2 > 2 ** (bits - 1) - 1:
        step *= 2
    assert (pattern(decoded) - pattern(values)).abs().max() <= step / 2
    assert ((decoded.sign() == values.sign()) | (decoded == 0)).all()


@settings(deadline=None)  # the first may compile
@given(st.lists(finite, min_size=1, max_size=40), st.sampled_from([8, 16, 32]))
def test_the_largest_and_zeros_are_exact_and_nothing_grows_beyond_the_largest(numbers: list[float], bits: int) -> None:
    values = torch.tensor(numbers)
    decoded = there_and_back(values, bits)
    top = values.abs().argmax()
    assert decoded[top] == values[top]
    assert (decoded[values == 0] == 0).all()
    assert decoded.abs().max() == values.abs().max()


@pytest.mark.parametrize(("bits", "error"), [(8, 0.004), (16, 2e-5), (32, 0.0)])
def test_the_relative_error_of_a_gaussian_s_tail(bits: int, error: float) -> None:
    value = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    kept = value[value.abs() > 3.29]
    assert ((there_and_back(kept, bits) - kept) / kept).abs().max() <= error


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(bad: float, bits: int) -> None:
    decoded = there_and_back(torch.tensor([1.0, bad, -2.0]), bits)
    assert not decoded[1].isfinite()
    assert decoded[[0, 2]].isfinite().all()


def test_sizes() -> None:
    assert [num_bytes(100, bits) for bits in (8, 16, 32)] == [105, 205, 400]


def test_32_bits_are_bitwise_the_values() -> None:
    values = torch.tensor([0.1, -0.0, 1e-45, -3e38])
    assert torch.equal(there_and_back(values, 32).view(torch.int32), values.view(torch.int32))


def test_the_messages_of_several_ranks_are_decoded_at_once_each_by_its_own_scale() -> None:
    rows = torch.randn(3, 50) * torch.tensor([[1e-20], [1.0], [1e20]])
    decoded = decode(torch.stack([encode(row, 8) for row in rows]), 50, 8)
    assert torch.equal(decoded, torch.stack([there_and_back(row, 8) for row in rows]))
