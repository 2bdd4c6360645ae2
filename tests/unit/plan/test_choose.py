"""What a running job is measured with, and what it chooses from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from stand_in import stand_in
from torch import nn

from dtrain.comm.lockstep import lockstep
from dtrain.comm.simulated import SimulatedCommunicator
from dtrain.exchange import Request
from dtrain.meter.ledger import Ledger
from dtrain.plan import choose
from dtrain.plan.candidates import NONE, Candidate
from dtrain.plan.choose import LOOK, Chooser, Watch
from dtrain.plan.subject import of_job

INT4 = Candidate("int4")


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 300), nn.Dropout(), nn.Linear(300, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def chooser(communicator: Any, tell: Callable[[str], None] = lambda reason: None) -> Chooser:
    model, optimizer = trained()
    images = torch.randn(8, 200)
    return Chooser(
        lambda: of_job(model, optimizer, "sgd", lambda measured: measured(images).square().mean()),
        "sgd",
        communicator,
        Ledger(),
        1,
        less_often=True,
        tell=tell,
    )


def test_measuring_leaves_random_numbers_as_they_were() -> None:
    told: list[str] = []
    one = chooser(SimulatedCommunicator(2, backend="gloo"), told.append)
    random = torch.get_rng_state()
    candidate = one.choose()
    assert candidate.known("sgd", 2) == "holds"
    assert told[-1].startswith(f"auto: {candidate.label}. ")
    assert torch.equal(random, torch.get_rng_state())


def test_a_job_is_measured_on_copies() -> None:
    model, optimizer = trained()
    before = [parameter.clone() for parameter in model.parameters()]
    subject = of_job(model, optimizer, "sgd", lambda measured: measured(torch.ones(2, 200)).square().mean())
    subject.measured_step()
    assert all(map(torch.equal, before, model.parameters()))
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_keeps_a_momentum_is_not_chosen_beside_the_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Candidate("dgc", {"density": 0.05})
    monkeypatch.setattr(choose, "candidates", lambda optimizer, world_size: [NONE, held, INT4])
    monkeypatch.setattr(Candidate, "known", lambda *arguments: "holds")
    one = chooser(SimulatedCommunicator(2))
    assert one._known() == [NONE, INT4]


def test_a_worker_alone_has_nothing_to_choose() -> None:
    (alone,) = lockstep(1)
    assert chooser(alone).choose() == NONE


class Slow(SimulatedCommunicator):
    """Every message takes as long as is said, by a clock that it moves."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__(2)
        self.clock, self.seconds = clock, 0.02

    def start(self, request: Request) -> Any:
        self.clock[0] += self.seconds
        return super().start(request)


@pytest.mark.parametrize("seconds", [0.2, 0.002])
def test_another_link_is_seen_though_steps_wait_for_nothing(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clock = [0.0]
    monkeypatch.setattr(choose, "time", stand_in(time, perf_counter=lambda: clock[0]))
    communicator = Slow(clock)
    watch = Watch(communicator, Ledger())
    assert not any(watch.has_changed(waited=0.0, took=1.0) for _ in range(3 * LOOK))
    communicator.seconds = seconds
    assert [watch.has_changed(waited=0.0, took=1.0) for _ in range(LOOK)] == [False] * (LOOK - 1) + [True]


def test_one_slow_message_is_no_other_link(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(choose, "time", stand_in(time, perf_counter=lambda: clock[0]))
    communicator = Slow(clock)
    watch = Watch(communicator, Ledger())
    seconds = iter([0.02, 2.0, *[0.02] * 20])  # of a look: its figures, then a ping
    assert not any(watch.has_changed(waited=0.0, took=1.0) for _ in range(LOOK))
    communicator.start = lambda request: late(communicator, request, seconds)  # type: ignore[method-assign]
    assert not any(watch.has_changed(waited=0.0, took=1.0) for _ in range(LOOK))


def late(communicator: Slow, request: Request, seconds: Iterator[float]) -> Any:
    communicator.seconds = next(seconds)
    return Slow.start(communicator, request)
