"""What workers carry from one group into the next: survivors keep what they have, and who comes gets the rest."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from threads import ThreadCommunicator, run_ranks
from torch import Tensor, nn

from dtrain.comm import Launch
from dtrain.comm.membership import NOTHING, Group
from dtrain.compressors import build
from dtrain.meter.ledger import Ledger
from dtrain.sync.every_step import EveryStep
from dtrain.sync.local import Local, Method
from dtrain.sync.rounds import Rounds
from dtrain.sync.synchronizer import Reversible
from dtrain.train.carry import Carried, carry, share
from dtrain.train.checkpoint import Manifest
from dtrain.train.resume import resume

torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))
MANIFEST = Manifest(
    step=0, epoch=0, position=0, samples_seen=0, step_samples=12, world_size=1, settings={"seed": 0}, files={}
)
EVERY = {"every_step": 1, "local": 3}


@dataclass
class Left:
    """What a rank came out with."""

    carried: Carried
    weights: Tensor
    state: dict[str, Any]


def train(
    communicator: ThreadCommunicator,
    sync: str,
    name: str,
    carried: Carried | None,
    steps: tuple[int, ...],
    *,
    make: int,
    losing: bool = False,
) -> Left:
    """One rank's part of a group that makes so many steps; `losing`: the last ends without its exchange."""
    rank, world_size = communicator.rank, communicator.world_size
    launch = Launch("torchrun", rank, rank, world_size, world_size)
    model, ledger = copy.deepcopy(NETWORK), Ledger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    synchronizer: Reversible
    if sync == "local":
        method = Method(Rounds(EVERY[sync]))
        synchronizer = Local(model, optimizer, build(name), communicator.duplicate(), ledger, method=method)
    else:
        synchronizer = EveryStep(model, build(name), communicator.duplicate(), ledger, overlap=False)
    found = share(carried, Group(1, rank, steps, launch), communicator, ledger)
    if found is not None:
        resume(found, model, optimizer, synchronizer, communicator)
    step = 0 if found is None else found.manifest.step
    for number in range(step, step + make):
        drawn = torch.Generator().manual_seed(100 * number + rank)  # ranks are threads
        optimizer.zero_grad()
        (model(torch.randn(4, 6, generator=drawn)).square().mean() / 2).backward()
        if losing and number == step + make - 1 and sync == "every_step":
            break
        synchronizer.before_step()
        optimizer.step()
        synchronizer.after_step()
    made = step + make - (losing and sync == "every_step")
    made -= made % EVERY[sync]
    synchronizer.roll_back()
    state = synchronizer.state_dict()
    manifest = replace(MANIFEST, step=made)
    carried = carry(manifest, Path("run"), {"model": {}}, model, optimizer, state, {}, None)
    synchronizer.close()
    return Left(carried, torch.cat([p.detach().flatten() for p in model.parameters()]), state)


def go(sync: str, name: str, before: list[Left | None], *, make: int, losing: bool = False) -> list[Left]:
    steps = tuple(NOTHING if left is None else left.carried.manifest.step for left in before)

    def part(communicator: ThreadCommunicator) -> Left:
        left = before[communicator.rank]
        return train(communicator, sync, name, left and left.carried, steps, make=make, losing=losing)

    return run_ranks(len(before), part)


def held_back(group: list[Left]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for left in group:
        for parameter, parts in left.state["parameters"].items():
            for path, part in parts.items():
                if path.endswith("residual"):
                    sums[f"{parameter}/{path}"] = sums.get(f"{parameter}/{path}", torch.zeros(())) + part.double()
    return sums


@pytest.mark.parametrize("name", ["int4", "top_k", "power_sgd", "one_bit"])
@pytest.mark.parametrize("sync", EVERY)
def test_survivors_keep_what_they_held_back_and_who_comes_holds_nothing(sync: str, name: str) -> None:
    four = go(sync, name, [None] * 4, make=6)
    three = go(sync, name, [four[0], four[1], four[3]], make=0)
    again = go(sync, name, [three[0], three[1], three[2], None], make=0)
    kept = held_back([four[0], four[1], four[3]])
    assert kept
    for group in (three, again):
        found = held_back(group)
        assert found.keys() == kept.keys()
        for key, total in kept.items():
            assert float((total - found[key]).norm()) <= 1e-6 * float(total.norm()), key
        assert all(torch.equal(left.weights, four[0].weights) for left in group)
    more = go(sync, name, list(again), make=3)
    assert all(torch.equal(left.weights, more[0].weights) for left in more)
    assert not torch.equal(more[0].weights, four[0].weights)


@pytest.mark.parametrize("sync", EVERY)
def test_a_step_that_was_cut_off_is_made_again(sync: str) -> None:
    """Every step: bit for bit what it would have been; local: what was learned since the last exchange is lost."""
    whole = go(sync, "int4", [None] * 2, make=6)
    part = go(sync, "int4", [None] * 2, make=5, losing=True)
    made = {"every_step": 4, "local": 3}[sync]
    assert {left.carried.manifest.step for left in part} == {made}
    assert all(torch.equal(left.weights, part[0].weights) for left in part)
    rest = go(sync, "int4", list(part), make=6 - made)
    assert torch.equal(rest[0].weights, rest[1].weights)
    if sync == "every_step":
        assert torch.equal(rest[0].weights, whole[0].weights)


def test_who_was_cut_off_takes_the_step_that_others_made() -> None:
    ahead = go("every_step", "int4", [None] * 2, make=6)
    behind = go("every_step", "int4", [None] * 2, make=5)
    together = go("every_step", "int4", [ahead[0], behind[1]], make=0)
    assert all(torch.equal(left.weights, ahead[0].weights) for left in together)
    assert {left.carried.manifest.step for left in together} == {6}
    momentum = [left.carried.optimizer() for left in together]
    assert all(torch.equal(momentum[0][name][0], momentum[1][name][0]) for name in momentum[0])
