"""States of compressors: kept by parameter name under any bucketing, committed with the step, refused where they do not
fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import build
from dtrain.exchange import Bucket, take_apart
from dtrain.sync.buckets import NamedParameter, layout_of, trainable
from dtrain.sync.drive import drive_lockstep
from dtrain.sync.states import States

PARAMETERS = trainable(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))


def states_of(world_size: int, name: str = "int8", **options: Any) -> list[States]:
    compressor = build(name, **options)
    return [States(compressor, PARAMETERS, rank=rank, world_size=world_size) for rank in range(world_size)]


def exchange(ranks: list[States], buckets: list[list[NamedParameter]], *, seed: int) -> list[Tensor]:
    """A step that is not ended; rank 0's means."""
    means = []
    for number, bucket in enumerate(buckets):
        layout = layout_of(bucket)
        communicators = lockstep(len(ranks))
        generators = [torch.Generator().manual_seed(100 * seed + 10 * number + rank) for rank in range(len(ranks))]
        values = [torch.randn(layout.numel, generator=generator) for generator in generators]
        exchanges = [states.exchange(Bucket(value, layout)) for states, value in zip(ranks, values, strict=True)]
        results = drive_lockstep(exchanges, communicators)
        for states, result in zip(ranks, results, strict=True):
            states.stage(layout, result)
        means.append(results[0].mean.clone())
    return means


def residuals(states: States) -> dict[str, Tensor]:
    return {name: parts["residual"] for name, parts in states.state_dict()["parameters"].items()}


def test_a_step_that_is_not_committed_leaves_no_state() -> None:
    (states,) = ranks = states_of(1)
    exchange(ranks, [PARAMETERS], seed=0)
    assert residuals(states) == {}
    states.commit()
    kept = residuals(states)
    assert any(residual.any() for residual in kept.values())
    exchange(ranks, [PARAMETERS], seed=1)
    states.discard()
    assert all(torch.equal(residual, kept[name]) for name, residual in residuals(states).items())
    assert states.step == 2


def test_other_buckets_find_the_state_of_their_parameters() -> None:
    (states,) = ranks = states_of(1)
    exchange(ranks, [PARAMETERS], seed=0)
    states.commit()
    kept = residuals(states)
    for part in (PARAMETERS[:1], PARAMETERS[1:]):
        layout = layout_of(part)
        found = take_apart(states._of(Bucket(torch.zeros(layout.numel), layout)))
        assert found.keys() == {name for name, _ in part}
        assert all(torch.equal(parts["residual"], kept[name]) for name, parts in found.items())
    assert any(residual.any() for residual in kept.values())
    exchange(ranks, [PARAMETERS[:1], PARAMETERS[1:]], seed=1)
    states.commit()
    assert residuals(states).keys() == kept.keys()


def test_part_of_the_buckets_may_be_exchanged_in_a_step() -> None:
    (states,) = ranks = states_of(1)
    exchange(ranks, [PARAMETERS[:2], PARAMETERS[2:]], seed=0)
    states.commit()
    kept = residuals(states)
    exchange(ranks, [PARAMETERS[:2]], seed=1)
    states.commit()
    now = residuals(states)
    assert now.keys() == kept.keys()
    changed = {name for name in kept if not torch.equal(kept[name], now[name])}
    assert changed == {name for name, _ in PARAMETERS[:2]}


def saved(world_size: int, name: str = "int8") -> list[dict[str, Any]]:
    ranks = states_of(world_size, name)
    exchange(ranks, [PARAMETERS], seed=0)
    for states in ranks:
        states.commit()
    return [states.state_dict() for states in ranks]


def test_each_rank_takes_up_its_own() -> None:
    before = saved(2)
    for rank, states in enumerate(states_of(2)):
        states.load_state_dict(before[rank])
        assert states.step == 1
        after = states.state_dict()
        assert (after["rank"], after["world_size"]) == (rank, 2)
        for name, parts in before[rank]["parameters"].items():
            assert torch.equal(after["parameters"][name]["residual"], parts["residual"])


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (3, 2), (2, 1)])
def test_another_number_of_ranks_takes_up_the_same_sum(before: int, after: int) -> None:
    states = saved(before)
    ranks = states_of(after)
    for one in ranks:
        one.load_state_dict(*states)
    for name, _ in PARAMETERS:
        was = sum(state["parameters"][name]["residual"].double() for state in states)
        now = sum(residuals(one)[name].double() for one in ranks)
        assert torch.allclose(torch.as_tensor(was), torch.as_tensor(now), rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    two = saved(2)
    (states, _) = states_of(2)
    refusals = {
        "saved state of rank 1, given to rank 0": [two[1]],
        "saved states of ranks 1, 0, but 2 ranks saved": [two[1], two[0]],
        "saved states of ranks 0, but 3 ranks saved": [saved(3)[0]],
        "saved states of several jobs": [two[0], saved(3)[1]],
        "with another compressor or other options": saved(2, "dgc"),
    }
    for words, given in refusals.items():
        with pytest.raises(ValueError, match=words):
            states.load_state_dict(*given)
    assert states.state_dict()["parameters"] == {}
    assert states.step == 0


def test_a_missing_part_of_a_state_is_refused() -> None:
    (state,) = saved(1, "dgc")
    del state["parameters"]["0.weight"]["velocity"]
    (states,) = states_of(1, "dgc")
    with pytest.raises(ValueError, match=r"0\.weight.*velocity|velocity.*0\.weight"):
        states.load_state_dict(state)


@pytest.mark.parametrize("name", ["int8", "top_k", "dgc", "power_sgd", "random_k"])
def test_a_mean_that_is_not_finite_leaves_every_state_as_it_was(name: str) -> None:
    ranks = states_of(2, name)
    exchange(ranks, [PARAMETERS], seed=0)
    for states in ranks:
        states.commit()
    before = [states.state_dict() for states in ranks]
    layout = layout_of(PARAMETERS)
    values = [torch.ones(layout.numel), torch.ones(layout.numel)]
    values[1][3] = float("inf")
    exchanges = [states.exchange(Bucket(value, layout)) for states, value in zip(ranks, values, strict=True)]
    for states, result in zip(ranks, drive_lockstep(exchanges, lockstep(2)), strict=True):
        states.stage(layout, result)
        assert states.not_finite() is not None
        states.commit()
    for states, was in zip(ranks, before, strict=True):
        now = states.state_dict()
        assert now["step"] == 2
        for parameter, parts in was["parameters"].items():
            assert all(torch.equal(now["parameters"][parameter][path], part) for path, part in parts.items())
    exchange(ranks, [PARAMETERS], seed=2)
    assert all(states.not_finite() is None for states in ranks)


def test_another_unit_of_what_is_exchanged_is_one_of_what_was_not_sent() -> None:
    (states,) = ranks = states_of(1)
    exchange(ranks, [PARAMETERS], seed=0)
    states.commit()
    before = {name: residual.clone() for name, residual in residuals(states).items()}
    states.rescale(0.5)
    assert all(torch.equal(residual, 0.5 * before[name]) for name, residual in residuals(states).items())
