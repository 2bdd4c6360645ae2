"""A synchroniser run for its program: what the program says is what the ledger of a real exchange says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dtrain import compressors
from dtrain.comm.lockstep import lockstep
from dtrain.compressors.none import NoCompression
from dtrain.meter.ledger import Ledger
from dtrain.plan.explain import explain
from dtrain.plan.measure import measure_step, record_gradients, record_updates
from dtrain.plan.program import Await, Program, Signal, Start, Work, as_json, combined, from_json, with_steps
from dtrain.plan.recording import Recorder
from dtrain.sync.every_step import EveryStep
from dtrain.sync.fragments import Fragments
from dtrain.sync.local import Local, Method
from dtrain.sync.rounds import Rounds
from dtrain.vision import models


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 1000), nn.ReLU(), nn.Linear(1000, 300))


@pytest.mark.parametrize("name", ["none", "fp16", "int4", "one_bit", "top_k", "power_sgd", "chunked_top_k"])
def test_a_program_has_the_collectives_that_explain_rehearses(name: str) -> None:
    lanes = record_gradients(models.build("squeezenet1_1", num_classes=1000), compressors.build(name), world_size=3)
    started = [(one.op, one.payload_bytes) for one in lanes[0] if isinstance(one, Start)]
    rounds = explain(name, model="squeezenet1_1", world_size=3).rounds
    assert started == [(each.op, each.payload_bytes) for each in rounds]


def test_recordings_of_the_same_work_are_in_the_same_order_and_leave_the_model_as_it_was() -> None:
    model = small()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    programs = record_updates(model, optimizer, compressors.build("int4"), Method(Rounds(3)), world_size=2)
    exchange = combined([program.exchange for program in programs], max)
    assert all(map(torch.equal, before, model.parameters()))
    assert len([one for one in exchange if isinstance(one, Start)]) >= 2
    compute = combined([program.compute for program in programs], max)
    assert [one.whole_step for one in compute if isinstance(one, Work)].count(True) == 3
    assert Program(with_steps(compute, 5.0), exchange, 3).compute_seconds >= 15


def test_every_wait_is_for_what_happened_before_in_either_lane() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    streaming = Method(Rounds(4), fragments=Fragments(2, 1))
    for program in record_updates(model, optimizer, compressors.build("int4"), streaming, world_size=2):
        happened = {one.event for lane in (program.compute, program.exchange) for one in lane if not_waits(one)}
        awaited = {one.event for lane in (program.compute, program.exchange) for one in lane if isinstance(one, Await)}
        assert awaited <= happened


def not_waits(one: object) -> bool:
    return isinstance(one, (Signal, Start))


def test_a_step_says_when_its_buckets_are_ready() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(4, 300)
    lanes = measure_step(model, lambda: model(images).square().mean(), optimizer)
    for lane in lanes:
        assert [one.event for one in lane if isinstance(one, Signal)] == [("ready", 0), ("ready", 1)]
        assert Program(lane, ()).compute_seconds > 0


def test_what_is_recorded_trains_as_what_is_not() -> None:
    """The recorder changes nothing but where the answers come from: with one worker nothing at all."""
    recorded, plain = small(), small()
    recorder = Recorder(1)
    (alone,) = lockstep(1)
    for model, synchronizer in (
        (recorded, EveryStep(recorded, NoCompression(), recorder, Ledger(), lane=recorder)),
        (plain, EveryStep(plain, NoCompression(), alone, Ledger(), overlap=False)),
    ):
        model(torch.ones(2, 300)).sum().backward()
        synchronizer.before_step()
        synchronizer.after_step()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(recorded.parameters(), plain.parameters(), strict=True))  # type: ignore[arg-type]


def test_a_clock_that_stands_still_in_answers_counts_only_work() -> None:
    ticks = iter(range(10**6))
    model = small()
    recorder = Recorder(2, clock=lambda: float(next(ticks)))
    local = Local(
        model, torch.optim.SGD(model.parameters(), lr=0.1), NoCompression(), recorder, Ledger(), lane=recorder
    )
    recorder.leave_out()
    recorder.add_step()
    local.before_step()
    local.after_step()
    program = recorder.take()
    assert all(one.seconds == 1.0 for one in program.compute if isinstance(one, Work) and not one.whole_step)


def test_lanes_go_to_json_and_back() -> None:
    (lane, *_) = record_gradients(small(), compressors.build("int4"), world_size=2)
    assert from_json(json.loads(json.dumps(as_json(lane)))) == lane
    with pytest.raises(ValueError, match="no instruction"):
        from_json([["leap", 3]])


def test_other_work_is_not_combined() -> None:
    with pytest.raises(ValueError, match="not of the same work"):
        combined([(Work(1.0),), (Work(1.0), Signal(("ready", 0)))], max)
    with pytest.raises(ValueError, match="another order"):
        combined([(Work(1.0),), (Signal(("ready", 0)),)], max)
