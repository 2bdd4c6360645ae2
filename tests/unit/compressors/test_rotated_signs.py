"""Signs of rotated values: right on average for any values, with the error that theory gives, decoded exactly."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, pi

import pytest
import torch
from torch import Tensor

from dtrain.compressors.codecs.rotation import BLOCK, GAIN, Rotation
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.rotated_signs import RotatedSigns
from dtrain.exchange import Bucket, Context, Layout, Scratch

CODEC = RotatedSigns()


def workspace(values: Tensor, step: int, rank: int = 0) -> Workspace:
    bucket = Bucket(values, Layout(("weight",), ((values.numel(),),)))
    return Workspace(Context(rank, 2, step, seed=3, scratch=Scratch()), bucket, values.numel())


def message_of(values: Tensor, step: int = 0, rank: int = 0) -> Tensor:
    message = torch.full((CODEC.num_bytes(values.numel()),), 255, dtype=torch.uint8)
    CODEC.encode(values, message, workspace(values, step, rank))
    return message


def decoded(message: Tensor, numel: int) -> Tensor:
    values = torch.full((numel,), 7.0)
    CODEC.decode(message, values, workspace(values, 0))
    return values


def sparse(numel: int) -> Tensor:
    return torch.randn(numel) * (torch.rand(numel) < 0.01)


def two_in_a_block(numel: int) -> Tensor:
    values = torch.zeros(numel // BLOCK, BLOCK)
    places = torch.rand_like(values).topk(2, dim=1).indices
    return values.scatter_(1, places, torch.tensor([1.0, 0.5]).expand(len(values), 2)).view(-1)


def heavy_tailed(numel: int) -> Tensor:
    return torch.distributions.StudentT(2.0).sample((numel,))


@pytest.mark.parametrize("make", [torch.randn, sparse, two_in_a_block, heavy_tailed])
def test_it_is_right_on_average_with_the_error_of_theory(make: Callable[[int], Tensor]) -> None:
    torch.manual_seed(0)
    values = make(20 * BLOCK)
    energy, steps = values.square().sum(), 200
    total, error = torch.zeros_like(values), 0.0
    for step in range(steps):
        result = decoded(message_of(values, step), values.numel())
        total += result
        error += float((result - values).square().sum() / energy) / steps
    assert error == pytest.approx(pi / 2 - 1, abs=0.02)
    bias = float((total / steps - values).square().sum() / energy)
    assert bias == pytest.approx(error / steps, rel=0.2)  # no more than so many errors of mean zero leave


@pytest.mark.parametrize("numel", [1, 10, 1023, 1024, 1025, 5000, 800_000])
def test_a_message_has_the_size_it_says_and_holds_every_length(numel: int) -> None:
    torch.manual_seed(numel)
    values = torch.randn(numel)
    assert CODEC.num_bytes(numel) == 8 + 132 * ceil(numel / BLOCK)
    result = decoded(message_of(values), numel)
    assert float((result - values).square().sum() / values.square().sum()) < 0.9
    assert torch.dot(result, values) > 0


def test_no_values_are_no_bytes() -> None:
    assert CODEC.num_bytes(0) == 0
    assert decoded(message_of(torch.empty(0)), 0).numel() == 0


def test_adding_adds_so_many_times_what_decoding_gives() -> None:
    values = torch.randn(3000)
    message, sum_of_two = message_of(values), torch.ones(3000)
    CODEC.decode(message, sum_of_two, workspace(values, 0), add=-2.0)
    torch.testing.assert_close(sum_of_two, 1.0 - 2.0 * decoded(message, 3000))


def test_a_rotation_is_other_for_every_message_and_the_same_for_its_number() -> None:
    values = torch.randn(BLOCK)
    seeds = {bytes(message_of(values, step, rank)[:8].tolist()) for step in range(3) for rank in range(3)}
    assert len(seeds) == 9
    first, again = workspace(values, 0), workspace(values, 0)
    assert [first.new_seed() for _ in range(2)] == [again.new_seed() for _ in range(2)]
    assert workspace(values, 0).new_seed() != first.new_seed()


def test_unrotating_undoes_rotating_and_is_exact_on_signs() -> None:
    torch.manual_seed(0)
    rotation, values = Rotation(11, torch.device("cpu")), torch.randn(4, BLOCK)
    rotated = rotation.rotate(values.clone(), torch.empty_like(values))
    torch.testing.assert_close(rotated.square().sum(1), values.square().sum(1))
    back = rotation.unrotate(rotated.clone(), torch.empty_like(values))
    torch.testing.assert_close(back / GAIN, values)
    signs = rotated.sign()
    exact = rotation.unrotate(signs.clone(), torch.empty_like(values))
    assert torch.equal(exact, exact.round())
    assert exact.abs().max() < 2**24


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_makes_its_block_so_and_no_other(bad: float) -> None:
    values = torch.randn(3 * BLOCK)
    values[BLOCK + 3] = bad
    result = decoded(message_of(values), values.numel()).view(3, BLOCK)
    assert not torch.isfinite(result[1]).any()
    assert torch.isfinite(result[::2]).all()
