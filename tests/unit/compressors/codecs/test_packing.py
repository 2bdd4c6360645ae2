"""Small integers in bytes."""

import pytest
import torch

from dtrain.compressors.codecs.packing import ROUND, Digits, Signs

EVERY_BYTE = torch.arange(256).to(torch.uint8)


@pytest.mark.parametrize(("base", "per_byte", "largest"), [(3, 5, 1), (16, 2, 7), (256, 1, 127)])
def test_every_combination_of_digits_survives(base: int, per_byte: int, largest: int) -> None:
    digit = torch.arange(-largest, largest + 1.0)
    codes = torch.cartesian_prod(*[digit] * per_byte).view(-1, per_byte).T.contiguous()
    packed = torch.empty(codes.shape[1], dtype=torch.uint8)
    Digits(base, per_byte).pack(codes + ROUND, packed)
    assert packed.unique().numel() == codes.shape[1] == (2 * largest + 1) ** per_byte
    unpacked = torch.empty_like(codes)
    Digits(base, per_byte).unpack(packed, unpacked)
    assert torch.equal(unpacked, codes)


def test_digits_are_the_places_of_a_balanced_number() -> None:
    packed = torch.empty(1, dtype=torch.uint8)
    Digits(3, 5).pack(torch.tensor([[1.0], [0.0], [-1.0], [1.0], [0.0]]) + ROUND, packed)
    assert packed.view(torch.int8).item() == 1 - 9 + 27


@pytest.mark.parametrize(("base", "per_byte"), [(3, 5), (16, 2), (256, 1)])
def test_a_byte_that_no_encoder_writes_is_read_as_something_finite(base: int, per_byte: int) -> None:
    unpacked = torch.empty(per_byte, 256)
    Digits(base, per_byte).unpack(EVERY_BYTE, unpacked)
    assert unpacked.abs().max() <= base


def test_round_rounds_to_the_nearest_integer_and_ties_to_even() -> None:
    values = torch.tensor([-2.5, -1.51, -0.5, 0.49, 0.5, 1.5, 126.6])
    assert torch.equal((values + ROUND) - ROUND, values.round())
    assert torch.equal((values + ROUND).view(torch.int32).to(torch.int8), values.round().to(torch.int8))


def test_every_combination_of_signs_survives() -> None:
    signs = torch.empty(8, 256)
    Signs().unpack(EVERY_BYTE, signs)
    assert signs.unique().tolist() == [-1, 1]
    assert signs.T.unique(dim=0).shape == (256, 8)
    packed = torch.empty_like(EVERY_BYTE)
    Signs().pack((signs < 0).to(torch.int32).neg().view(torch.float32), packed)
    assert torch.equal(packed, EVERY_BYTE)


def test_bit_k_is_the_sign_of_row_k() -> None:
    signs = torch.empty(8, 1)
    Signs().unpack(torch.tensor([0b1000_0010], dtype=torch.uint8), signs)
    assert signs.flatten().tolist() == [1, -1, 1, 1, 1, 1, 1, -1]
