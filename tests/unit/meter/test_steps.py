"""Telling the steps of a program by those of its optimizers."""

from __future__ import annotations

import gc
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer

from dtrain.meter.steps import follow_steps


@pytest.fixture(autouse=True)
def no_hooks_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        monkeypatch.setattr(sys.modules["torch.optim.optimizer"], name, OrderedDict())


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2))]


def test_each_step_of_the_optimizer_is_one() -> None:
    told: list[Optimizer] = []
    follow_steps(told.append)
    optimizer = Adam(parameters())
    for _ in range(3):
        optimizer.step()
    assert told == [optimizer] * 3


def test_of_several_optimizers_the_first_that_steps_tells() -> None:
    told: list[Optimizer] = []
    follow_steps(told.append)
    first, second = SGD(parameters()), SGD(parameters())
    for _ in range(3):
        second.step()
        first.step()
    assert told == [second] * 3


def test_when_it_is_gone_another_tells() -> None:
    count = 0

    def on_step(optimizer: Optimizer) -> None:
        nonlocal count
        count += 1

    follow_steps(on_step)
    first, second = SGD(parameters()), SGD(parameters())
    first.step()
    del first
    gc.collect()
    second.step()
    second.step()
    assert count == 3


class Outer(SGD):
    """Steps by its parent's step, which has hooks of its own once an SGD was made."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        return super().step(closure)


class Refusing(SGD):
    refuses = False

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        if self.refuses:
            raise OverflowError
        return super().step(closure)


def test_a_step_within_a_step_is_one() -> None:
    SGD(parameters()).step()
    told: list[Optimizer] = []
    follow_steps(told.append)
    outer = Outer(parameters())
    outer.step()
    outer.step()
    assert told == [outer] * 2


def test_a_step_that_fails_is_none_and_those_after_it_count() -> None:
    told: list[Optimizer] = []
    follow_steps(told.append)
    optimizer = Refusing(parameters())
    optimizer.step()
    optimizer.refuses = True
    with pytest.raises(OverflowError):
        optimizer.step()
    optimizer.refuses = False
    optimizer.step()
    assert len(told) == 2


def test_a_fault_of_ours_fails_no_step_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def on_step(optimizer: Optimizer) -> None:
        nonlocal calls
        calls += 1
        raise KeyError("mine")

    follow_steps(on_step)
    optimizer = SGD(parameters())
    with caplog.at_level(logging.WARNING):
        optimizer.step()
        optimizer.step()
    assert calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "dtrain: steps are not followed any more: KeyError: 'mine'"
    ]
