from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dtrain.exchange import Bucket, Layout, Replicated, State, put_together, share_out, take_apart

LAYOUT = Layout(("weight", "bias"), ((3, 2), (2,)))


def state_of(rank: int) -> State:
    """A residual of this rank's own, inside another state, and factors that are the same on all."""
    generator = torch.Generator().manual_seed(rank)
    own = torch.randn(LAYOUT.numel, generator=generator, dtype=torch.float64)
    return {
        "inner": {"residual": Bucket(own, LAYOUT)},
        "q": Replicated(torch.arange(3.0), Layout(("weight",), ((1, 3),))),
    }


def resumed(old: int, new: int) -> list[State]:
    saved = [take_apart(state_of(rank)) for rank in range(old)]
    fresh: State = {
        "inner": {"residual": Bucket(torch.zeros(LAYOUT.numel, dtype=torch.float64), LAYOUT)},
        "q": Replicated(torch.zeros(3), Layout(("weight",), ((1, 3),))),
    }
    states = []
    for rank in range(new):
        template = {
            "inner": {"residual": Bucket(torch.zeros(LAYOUT.numel, dtype=torch.float64), LAYOUT)},
            "q": Replicated(torch.zeros(3), Layout(("weight",), ((1, 3),))),
        }
        states.append(put_together(template, share_out(fresh, saved, rank, new)))
    return states


def residual(state: State) -> Tensor:
    inner = state["inner"]
    assert not isinstance(inner, Bucket)
    bucket = inner["residual"]
    assert isinstance(bucket, Bucket)
    return bucket.value


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
        q = state["q"]
        assert isinstance(q, Bucket)
        assert torch.equal(q.value, torch.arange(3.0))
