"""The file of --trace: written, read back, and refused in one line where it is not one."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in import stand_in

from dtrain.exchange import Op
from dtrain.meter import trace as trace_module
from dtrain.meter import tracer as tracer_module
from dtrain.meter.ledger import Activity, Entry, Purpose, StepRecord
from dtrain.meter.trace import Trace, TracedCollective, TracedStep, read_trace
from dtrain.meter.tracer import Tracer

TRACE = Trace(
    world_size=4,
    backend="gloo",
    device="cpu",
    num_threads=1,
    cores=8,
    ranks_on_host=2,
    parameters=((1000, "float32"), (10, "bfloat16")),
    optimizer="AdamW",
    momentum=None,
    betas=(0.9, 0.999),
    steps=(
        TracedStep(
            0.5,
            (
                TracedCollective(Op.ALL_REDUCE, 4020, "float32", 4, 0.25, 0.5625, Purpose.GRADIENT),
                TracedCollective(Op.SEND, 8, None, 2, 0.375, None, Purpose.UNKNOWN),
            ),
        ),
        TracedStep(0.25, ()),
    ),
)
DATA = TRACE.as_json()


def written(folder: Path, data: Any) -> Path:
    path = folder / "run.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, DATA)) == TRACE
    assert (TRACE.num_parameters, TRACE.parameter_bytes) == (1010, 4020)
    assert json.loads(json.dumps(DATA))["steps"][0]["collectives"][1] == {
        "op": "send",
        "payload_bytes": 8,
        "dtype": None,
        "group_size": 2,
        "start": 0.375,
        "end": None,
        "purpose": "unknown",
    }


def test_a_program_without_groups_or_collectives_has_a_trace_too(tmp_path: Path) -> None:
    alone = Trace(1, None, "cpu", 1, 1, 1, ((1, "float64"),), "SGD", 0.9, None, (TracedStep(1.0, ()),))
    assert read_trace(written(tmp_path, alone.as_json())) == alone


def changed(*path: str | int, to: Any) -> Any:
    data = copy.deepcopy(DATA)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return data


FIRST = ("steps", 0, "collectives", 0)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("", "it is empty"),
        ("\n", "it is empty"),
        (json.dumps(DATA)[:-1], "it is not JSON, or cut off"),
        (json.dumps(DATA)[:100], "it is not JSON, or cut off"),
        ("\x00\xff", "it is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "the file is not an object"),
        (json.dumps(DATA).replace("0.5625", "NaN"), "NaN is no number"),
        (json.dumps(DATA).replace("0.5625", "1e999"), "1e999 is no number"),
        ({}, "version of the file is not a whole number"),
        (changed("version", to=2), "its version is 2, and this dtrain reads 1"),
        (changed("world_size", to=0), "world_size of the file is not a whole number from 1 on"),
        (changed("world_size", to=True), "world_size of the file"),
        (changed("world_size", to=10**400), "a number of 401 digits"),
        (changed("ranks_on_host", to=5), "ranks_on_host is more than world_size"),
        (changed("device", to="\x1b[2J"), "device of the file is not a short text"),
        (changed("backend", to="g" * 1000), "backend of the file is not a short text"),
        (changed("parameters", to={}), "parameters is not a list"),
        (changed("parameters", 0, to=[1000]), "one of parameters is not a pair"),
        (changed("parameters", 0, to=[-1, "float32"]), "one of parameters is not a pair"),
        (changed("parameters", 0, to=[1000, "load"]), "torch has no dtype 'load'"),
        (changed("parameters", 0, to=[1001, "float32"]), "num_parameters is not what its parameters add up to"),
        (changed("parameter_bytes", to=1), "parameter_bytes is not what its parameters add up to"),
        (changed("optimizer", to="SGD"), "optimizer is not an object"),
        (changed("optimizer", "betas", to=[0.9]), "betas of the optimizer are not two numbers"),
        (changed("steps", to=[]), "it holds no step"),
        (changed("steps", to=[{}] * 1001), "steps of the file is not a list of at most 1,000"),
        (changed("steps", 0, to=[]), "steps[0] is not an object"),
        (changed("steps", 0, "seconds", to=-1.0), "seconds of steps[0] is not a number of seconds"),
        (changed(*FIRST, "op", to="rm -rf"), "op of collectives[0] is not one that dtrain knows (Op)"),
        (changed(*FIRST, "op", to=[]), "op of collectives[0]"),
        (changed(*FIRST, "dtype", to="float32.real"), "torch has no dtype"),
        (changed(*FIRST, "payload_bytes", to=1.5), "payload_bytes of collectives[0] is not a whole number"),
        (changed(*FIRST, "end", to=0.125), "a collective ends before it starts"),
        (changed(*FIRST, "purpose", to="fun"), "purpose of collectives[0]"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, data: Any, part: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(ValueError) as raised:
        read_trace(path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{path} is no trace of python -m dtrain.meter --trace: ")
    assert part in line
    assert len(line) < 400


def places(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in it that holds something."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def test_whatever_stands_in_whichever_place_there_is_one_kind_of_error(tmp_path: Path) -> None:
    for place in places(DATA):
        for junk in (None, -1, 0, 1e308, 1 << 60, "", "x", "\n", [], {}, [[]], [None, None], True):
            path = written(tmp_path, changed(*place, to=junk))
            try:
                read_trace(path)
            except ValueError as error:
                assert len(str(error).splitlines()) == 1


def test_more_than_may_be_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="has more than 100 bytes"):
        read_trace(written(tmp_path, DATA))
    with pytest.raises(OSError, match="nowhere"):
        read_trace(tmp_path / "nowhere.json")


def entry(start: float, seconds: float | None = 0.5, payload: int = 8) -> Entry:
    fields = (Op.ALL_REDUCE, Activity.INIT, Purpose.GRADIENT, payload, 8.0, 2, "0")
    return Entry(*fields, start, seconds, "float32")


class Clock:
    """time.perf_counter, as the test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(tracer_module, "time", stand_in(time, perf_counter=lambda: self.now))


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], momentum=0.5)


def stepped(tracer: Tracer, clock: Clock, optimizer: torch.optim.Optimizer, *moments: float) -> None:
    for moment in moments:
        clock.now = moment
        tracer.on_begin(optimizer)
        tracer.on_step(optimizer)


def test_collectives_belong_to_the_step_that_they_start_in(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer, clock, optimizer = Tracer(2), Clock(monkeypatch), sgd()
    tracer(StepRecord(None, (entry(9.0),), None))  # before any step
    stepped(tracer, clock, optimizer, 10.0)
    tracer(StepRecord(None, (entry(12.5), entry(11.0, None)), None))  # closed in whatever order
    stepped(tracer, clock, optimizer, 13.0, 15.0, 17.0)  # the last is one more than asked for
    tracer(StepRecord(None, (entry(9.5), entry(14.0, 4.0), entry(15.0), entry(16.0)), None))
    trace = tracer.trace(2, 1)
    assert [step.seconds for step in trace.steps] == [3.0, 2.0]
    assert [[(one.start, one.end) for one in step.collectives] for step in trace.steps] == [
        [(1.0, None), (2.5, 3.0)],
        [(1.0, 5.0)],
    ]
    assert trace.parameters == ((3, "float32"),)
    assert (trace.optimizer, trace.momentum, trace.betas) == ("SGD", 0.5, None)


def test_steps_end_where_more_collectives_came_than_a_trace_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer_module, "MAX_COLLECTIVES", 5)
    tracer, clock, optimizer = Tracer(10), Clock(monkeypatch), sgd()
    for step in range(4):
        stepped(tracer, clock, optimizer, float(step))
        tracer(StepRecord(None, (entry(step + 0.25), entry(step + 0.5)), None))
    assert [len(step.collectives) for step in tracer.trace(2, 1).steps] == [2, 2]
