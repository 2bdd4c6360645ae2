"""`dtrain.compress(model, "auto", optimizer=...)` in somebody's program."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from test_synchronizers import assert_bitwise, batch, chain, flat_weights, sgd
from torch.nn.parallel import DistributedDataParallel

import dtrain
from dtrain.meter.c10d import installed
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.plan.auto_ddp import NUM_FIRST, NUM_MEASURED, AutoDdp
from dtrain.plan.candidates import NONE, Candidate
from dtrain.plan.choose import LOOK

BEFORE = NUM_FIRST + NUM_MEASURED
INT4, ONE_BIT, TOP_K = Candidate("int4"), Candidate("one_bit"), Candidate("top_k", {"density": 0.1})


def made() -> tuple[DistributedDataParallel, torch.optim.Optimizer, AutoDdp]:
    ddp = DistributedDataParallel(chain())
    optimizer = sgd(ddp)
    return ddp, optimizer, dtrain.compress(ddp, "auto", optimizer=optimizer)  # type: ignore[return-value]


def train(ddp: Any, optimizer: torch.optim.Optimizer, here: Here, num_steps: int, first: int = 0) -> None:
    for step in range(first, first + num_steps):
        optimizer.zero_grad()
        ddp(batch(ddp.module, here.rank, step)).square().mean().backward()
        optimizer.step()


def choosing(*candidates: Candidate) -> Callable[[], Candidate]:
    left = iter(candidates)
    return lambda: next(left)


def agreed(value: Any, world_size: int) -> bool:
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, value)
    return all(one == found[0] for one in found)


@on_ranks(2)
def test_it_measures_some_steps_and_says_what_it_chose(here: Here) -> None:
    ddp, optimizer, synchronizer = made()
    before = dict(optimizer.state)
    with redirect_stderr(io.StringIO()) as said:
        train(ddp, optimizer, here, BEFORE + 3)
    lines = said.getvalue().splitlines()
    assert len(lines) == (2 if here.rank == 0 else 0)
    if here.rank == 0:
        assert lines[1].startswith(f"dtrain: auto: {synchronizer.candidate.label}. ")
    assert synchronizer.candidate.exchanged == "gradient"
    assert agreed(synchronizer.candidate.label, here.world_size)
    assert agreed(flat_weights(ddp).tolist(), here.world_size)
    assert before == {}
    synchronizer.close()


@on_ranks(2)
def test_what_is_chosen_is_what_is_exchanged_from_then_on(here: Here) -> None:
    with installed(Ledger()) as ledger:
        ddp, optimizer, synchronizer = made()
        synchronizer._chooser.choose = choosing(INT4)  # type: ignore[method-assign]
        gradients = []
        for first in (0, BEFORE):
            train(ddp, optimizer, here, BEFORE, first)
            synchronizer.after_step()
            gradients.append(
                sum(total.payload_bytes for key, total in ledger.split().items() if key.purpose is Purpose.GRADIENT)
            )
    assert gradients[1] - gradients[0] < gradients[0] / 3
    assert agreed(flat_weights(ddp).tolist(), here.world_size)


@on_ranks(2)
def test_saved_it_goes_on_with_its_choice_bit_for_bit(here: Here) -> None:
    ddp, optimizer, synchronizer = made()
    synchronizer._chooser.choose = choosing(TOP_K)  # type: ignore[method-assign]
    train(ddp, optimizer, here, BEFORE + 2)
    saved = synchronizer.state_dict()
    assert saved["choice"] == "top_k density=0.1"
    again, second, resumed = made()
    again.load_state_dict(ddp.state_dict())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(saved)
    assert resumed.candidate == TOP_K
    for model, stepped in ((ddp, optimizer), (again, second)):
        train(model, stepped, here, 1, BEFORE + 2)
    assert_bitwise([flat_weights(again)], [flat_weights(ddp)])


@on_ranks(2)
def test_when_steps_wait_longer_it_chooses_again(here: Here) -> None:
    ddp, optimizer, synchronizer = made()
    synchronizer._chooser.choose = choosing(NONE, ONE_BIT)  # type: ignore[method-assign]
    changed = iter([False] * LOOK + [True] + [False] * LOOK)
    synchronizer._watch.has_changed = lambda **spent: next(changed)  # type: ignore[method-assign]
    train(ddp, optimizer, here, BEFORE + LOOK)
    assert synchronizer.candidate == NONE
    train(ddp, optimizer, here, 2)
    assert synchronizer.candidate == ONE_BIT
    assert agreed(flat_weights(ddp).tolist(), here.world_size)


@on_ranks(2)
def test_until_it_has_chosen_training_is_stock(here: Here) -> None:
    ddp, optimizer, synchronizer = made()
    stock = DistributedDataParallel(chain())
    for model, one in ((ddp, optimizer), (stock, sgd(stock))):
        train(model, one, here, BEFORE - 1)
    assert_bitwise([flat_weights(ddp)], [flat_weights(stock)])
    synchronizer.close()


@on_ranks(1)
def test_without_an_optimizer_or_with_options_it_is_one_line(here: Here) -> None:
    ddp = DistributedDataParallel(chain())
    for keywords in ({}, {"optimizer": sgd(ddp), "density": 0.1}):
        with pytest.raises(ValueError, match='"auto" takes optimizer='):
            dtrain.compress(ddp, "auto", **keywords)
    with pytest.raises(ValueError, match="is not among the optimizer's parameters"):
        dtrain.compress(ddp, "auto", optimizer=sgd(chain()))
