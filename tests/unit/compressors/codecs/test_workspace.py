"""Buffers and random bits of a codec."""

import pytest
import torch
from torch import Tensor

from dtrain.compressors.codecs.workspace import Workspace
from dtrain.exchange import Bucket, Context, Layout

CONTEXT = Context(rank=1, world_size=4, step=7, seed=3)


def workspace(context: Context = CONTEXT, name: str = "weight", largest: int = 100_000) -> Workspace:
    return Workspace(context, Bucket(torch.zeros(2), Layout((name,), ((2,),))), largest)


def noise(source: Workspace, numel: int = 100_000) -> Tensor:
    return source.dither_(torch.zeros(numel))


def test_noise_is_uniform_between_minus_and_plus_one_half() -> None:
    values = noise(workspace()).double()
    assert values.abs().max() < 0.5
    assert values.mean().abs() < 4 * (1 / 12 / len(values)) ** 0.5
    assert values.var().item() == pytest.approx(1 / 12, rel=0.01)
    counts = torch.histc(values, bins=50, min=-0.5, max=0.5)
    assert (counts - 2000).abs().max() < 5 * 2000**0.5
    assert torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1].abs() < 0.02


def test_noise_leaves_integers_as_they_are() -> None:
    codes = torch.arange(-127.0, 128.0)
    assert torch.equal(workspace().dither_(codes.clone()).round(), codes)


@pytest.mark.parametrize("numel", [1, 2, 3, 4, 5, 7])
def test_noise_comes_in_any_number(numel: int) -> None:
    assert noise(workspace(largest=numel), numel).unique().numel() == numel


def test_noise_is_the_same_in_every_run() -> None:
    assert torch.equal(noise(workspace()), noise(workspace()))


@pytest.mark.parametrize(
    "other",
    [
        workspace(Context(0, 4, 7, seed=3)),
        workspace(Context(1, 4, 8, seed=3)),
        workspace(Context(1, 4, 7, seed=4)),
        workspace(name="bias"),
    ],
    ids=["rank", "step", "seed", "bucket"],
)
def test_noise_differs_with_each_of(other: Workspace) -> None:
    assert (noise(workspace()) == noise(other)).float().mean() < 0.01


def test_noise_goes_on_and_does_not_repeat() -> None:
    source = workspace()
    assert (noise(source) == noise(source)).float().mean() < 0.01


def test_drawing_noise_leaves_torch_s_own_generator_alone() -> None:
    before = torch.get_rng_state()
    noise(workspace())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_buffer_outlives_the_exchange() -> None:
    first = workspace(largest=50).buffer("codes", 50)
    assert workspace(largest=50).buffer("codes", 20).data_ptr() == first.data_ptr()
