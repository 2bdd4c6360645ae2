from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dtrain.exchange import Bucket, Layout, Replicated, State, put_together, share_out, take_apart

LAYOUT = Layout(("weight", "bias"), ((3, 2), (2,)))


@dataclass(frozen=True)
class Own(State):
    residual: Bucket


@dataclass(frozen=True)
class Both(State):
    """A residual of this rank's own, inside another state, and factors that are the same on all."""

    inner: Own
    q: Replicated


def both(residual: Tensor, q: Tensor) -> Both:
    return Both(Own(Bucket(residual, LAYOUT)), Replicated(q, Layout(("weight",), ((1, 3),))))


def fresh() -> Both:
    return both(torch.zeros(LAYOUT.numel, dtype=torch.float64), torch.zeros(3))


def state_of(rank: int) -> Both:
    generator = torch.Generator().manual_seed(rank)
    return both(torch.randn(LAYOUT.numel, generator=generator, dtype=torch.float64), torch.arange(3.0))


def resumed(old: int, new: int) -> list[Both]:
    saved = [take_apart(state_of(rank)) for rank in range(old)]
    return [put_together(fresh(), share_out(fresh(), saved, rank, new)) for rank in range(new)]


def residual(state: Both) -> Tensor:
    return state.inner.residual.value


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1), (4, 2), (2, 4), (3, 2), (4, 3), (1, 8), (8, 1)])
def test_the_sum_of_residuals_survives_another_number_of_ranks(old: int, new: int) -> None:
    before = sum(residual(state_of(rank)) for rank in range(old))
    after = sum(residual(state) for state in resumed(old, new))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_as_many_ranks_as_before_each_take_their_own_bitwise(world_size: int) -> None:
    for rank, state in enumerate(resumed(world_size, world_size)):
        assert torch.equal(residual(state), residual(state_of(rank)))


@pytest.mark.parametrize(("old", "new"), [(1, 3), (4, 2), (2, 2)])
def test_what_every_rank_shares_stays_as_it_was(old: int, new: int) -> None:
    for state in resumed(old, new):
        assert torch.equal(state.q.value, torch.arange(3.0))


@pytest.mark.parametrize(("old", "new"), [(2, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("change", ["missing", "too many"])
def test_parts_of_another_compressor_are_refused_by_another_number_of_ranks_too(
    old: int, new: int, change: str
) -> None:
    saved = [take_apart(state_of(rank)) for rank in range(old)]
    for parts in saved:
        if change == "missing":
            del parts["weight"]["inner.residual"]
        else:
            parts["weight"]["velocity"] = torch.zeros(3, 2)
    for rank in range(new):
        with pytest.raises(ValueError, match=r"of parameter 'weight'.*saved with another compressor or other options"):
            put_together(fresh(), share_out(fresh(), saved, rank, new))
