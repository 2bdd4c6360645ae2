import pytest
import torch
from torch import Tensor

from dtrain.compressors.codecs import selection
from dtrain.compressors.codecs.selection import largest, num_kept


def by_sorting(value: Tensor, k: int) -> Tensor:
    key = value.abs().nan_to_num(nan=torch.inf, posinf=3.4e38).double()
    key[value.isnan()] = torch.inf
    key[value.isinf()] = 1e300
    return key.sort(descending=True, stable=True).indices[:k].sort().values


VALUES = {
    "normal": torch.randn,
    "zeros": torch.zeros,
    "all equal": torch.ones,
    "few different magnitudes": lambda n: torch.randint(-3, 4, (n,)).float(),
    "denormals": lambda n: torch.randn(n) * 1e-41,
    "mostly zeros": lambda n: torch.randn(n) * (torch.rand(n) < 0.01),
    "one huge": lambda n: torch.cat((torch.full((1,), -3e38), torch.randn(n - 1))),
    "sorted": lambda n: torch.linspace(-1, 1, n),
    "infinities and NaNs": lambda n: torch.randn(n).masked_fill(torch.rand(n) < 0.001, torch.inf).index_fill(
        0, torch.tensor([n // 3, n - 1]), -torch.nan
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("numel", [1, 2, 7, 1000, 65_536, 300_003])
def test_the_largest_are_those_of_a_stable_sort(make, numel: int) -> None:
    torch.manual_seed(numel)
    value = make(numel)
    for k in {1, 2, numel // 1000, numel // 100, numel // 4, numel // 2, numel}:
        if 0 < k <= numel:
            assert torch.equal(largest(value, k), by_sorting(value, k)), k


@pytest.mark.parametrize("block", [5, 6])
def test_blocks_that_divide_nothing_lose_no_element(block: int) -> None:
    for numel in range(640 << block, (640 << block) + (1 << block), 7):
        value = torch.randn(numel)
        value[-1] = 100.0
        assert torch.equal(largest(value, 9), by_sorting(value, 9))


def test_bounds_from_a_misleading_sample_change_nothing() -> None:
    value = torch.randn(selection.SAMPLED_FROM + 5)
    value[:: selection.SAMPLE_STRIDE] *= 1000  # all that is sampled
    k = value.numel() // 3
    assert torch.equal(largest(value, k), by_sorting(value, k))


def test_the_value_is_not_changed() -> None:
    value = torch.randn(10_000)
    before = value.clone()
    largest(value, 10)
    assert torch.equal(value, before)


@pytest.mark.parametrize(
    ("density", "numel", "kept"),
    [(0.001, 513_000, 513), (0.001, 735_424, 735), (0.001, 7, 1), (0.5, 1, 1), (1.0, 7, 7), (0.3, 7, 2)],
)
def test_what_is_kept_is_at_least_one_and_never_more_than_there_is(density: float, numel: int, kept: int) -> None:
    assert num_kept(density, numel) == kept
