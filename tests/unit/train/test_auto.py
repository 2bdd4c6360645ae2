"""What `compressor=auto` does when steps take another time than they did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from stand_in import stand_in
from torch import nn

from dtrain.comm.lockstep import lockstep
from dtrain.comm.simulated import SimulatedCommunicator
from dtrain.meter.ledger import Ledger
from dtrain.plan import choose
from dtrain.plan.candidates import NONE, Candidate
from dtrain.plan.choose import LOOK, Watch
from dtrain.sync.synchronizer import NOTHING_SPENT, Spent
from dtrain.train import auto
from dtrain.train.auto import Auto, build
from dtrain.train.config import from_data
from dtrain.train.synchronizers import Exchanging

INT4, LOCAL = Candidate("int4"), Candidate("int4", exchanged="update", every=50)


class Fake:
    """Remembers what it is asked for."""

    ends_with_step = True

    def __init__(self, candidate: Candidate) -> None:
        self.candidate, self.calls, self.exposed = candidate, list[str](), 0.0

    def no_sync(self) -> Any:
        return nullcontext()

    def before_step(self) -> Spent:
        return NOTHING_SPENT

    def after_step(self) -> Spent:
        self.calls.append("step")
        return Spent(self.exposed, 0.0)

    def align(self) -> Spent:
        self.calls.append("align")
        return NOTHING_SPENT

    def discard(self) -> None:
        self.calls.append("discard")

    def state_dict(self) -> dict[str, Any]:
        return {"step": len(self.calls)}

    def load_state_dict(self, *saved: Any) -> None:
        self.calls.append(f"load {saved}")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    for module in (auto, choose):
        monkeypatch.setattr(module, "time", stand_in(time, perf_counter=lambda: clock[0]))
    return clock


def made(choices: Iterator[Candidate]) -> tuple[Auto, list[Fake]]:
    fakes: list[Fake] = []

    def make(candidate: Candidate) -> Fake:
        fakes.append(Fake(candidate))
        return fakes[-1]

    return Auto(make, lambda: next(choices), Watch(SimulatedCommunicator(2), Ledger())), fakes


COMPUTE = 0.05


def steps(synchronizer: Auto, clock: list[float], count: int, seconds: float) -> None:
    """Steps that take so long, all but COMPUTE of it for their exchange."""
    for _ in range(count):
        synchronizer.before_step()
        synchronizer.inner.exposed = seconds - COMPUTE  # type: ignore[attr-defined]
        clock[0] += seconds
        synchronizer.after_step()


def test_it_chooses_before_the_first_step_and_stays_while_steps_take_what_they_took(now: list[float]) -> None:
    synchronizer, fakes = made(iter([INT4]))
    steps(synchronizer, now, 10 * LOOK, 0.1)
    steps(synchronizer, now, LOOK, 0.11)
    assert [fake.candidate for fake in fakes] == [INT4]


def test_evaluations_and_checkpoints_between_steps_are_no_change_of_the_link(now: list[float]) -> None:
    synchronizer, fakes = made(iter([INT4]))
    for _ in range(8):
        steps(synchronizer, now, LOOK // 2, 0.1)
        now[0] += 30.0
    assert len(fakes) == 1


@pytest.mark.parametrize("seconds", [0.2, 0.05])
def test_within_fifty_steps_of_a_change_it_looks_again_and_ends_what_is_under_way(
    now: list[float], seconds: float
) -> None:
    synchronizer, fakes = made(iter([INT4, NONE]))
    steps(synchronizer, now, LOOK, 0.1)
    steps(synchronizer, now, 50, seconds)
    assert [fake.candidate for fake in fakes] == [INT4, NONE]
    assert fakes[0].calls[-2:] == ["align", "close"]


def test_the_same_choice_again_keeps_what_the_compressor_has(now: list[float]) -> None:
    synchronizer, fakes = made(iter([INT4, INT4, INT4]))
    steps(synchronizer, now, LOOK, 0.1)
    steps(synchronizer, now, 3 * LOOK, 0.2)
    assert len(fakes) == 1


def test_rounds_are_looked_at_whole(now: list[float]) -> None:
    synchronizer, fakes = made(iter([LOCAL]))
    for _ in range(4):
        steps(synchronizer, now, 49, 0.1)
        steps(synchronizer, now, 1, 3.0)
    assert len(fakes) == 1


def test_a_resumed_run_goes_on_with_its_choice(now: list[float]) -> None:
    synchronizer, _ = made(iter([LOCAL]))
    steps(synchronizer, now, 3, 0.1)
    saved = synchronizer.state_dict()
    assert saved == {"step": 3, "choice": "local int4 every=50"}
    resumed, fakes = made(iter([]))
    resumed.load_state_dict(saved)
    assert fakes[0].candidate == LOCAL
    assert fakes[0].calls == ["load ({'step': 3},)"]


@pytest.mark.parametrize("candidate", [INT4, LOCAL, Candidate("top_k", {"density": 0.01}, "update", 4)])
def test_a_choice_is_built_as_settings_would_build_it(candidate: Candidate) -> None:
    (alone,) = lockstep(1)
    model = nn.Linear(20, 3)
    parts = Exchanging(
        compressor=None,  # type: ignore[arg-type]
        sends_few=False,
        communicator=alone,
        ledger=Ledger(),
        seed=0,
        first_bucket_bytes=1,
        bucket_bytes=10**6,
        overlap=False,
        check_finite=True,
    )
    synchronizer = build(candidate, model, torch.optim.SGD(model.parameters(), lr=0.1), parts)
    synchronizer.before_step()
    synchronizer.after_step()
    synchronizer.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sync": {"name": "auto"}}, "add compressor=auto"),
        ({"sync": {"name": "local"}, "compressor": {"name": "auto"}}, "write sync=auto in place of sync=local"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_cure(settings: dict[str, Any], says: str) -> None:
    data = {
        "model": {"name": "squeezenet1_1"},
        "data": {"name": "digits"},
        "compressor": {"name": "none"},
        "backend": {"name": "gloo"},
        "optimizer": {"name": "sgd"},
        "observe": {},
    }
    with pytest.raises(ValueError, match=says):
        from_data({**data, **settings})
