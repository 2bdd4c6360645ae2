from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dtrain.comm.lockstep import lockstep
from dtrain.exchange import NOT_KEPT, Exchange, Exchanged, Op, Request, State
from dtrain.sync.drive import MAX_MARKS, Pipeline, drive, drive_lockstep


def numbered(name: int, num_rounds: int, log: list[str] | None = None) -> Exchange:
    """`num_rounds` all_reduces of the number `name`; the mean is the sum of the answers."""
    total = torch.zeros(1)
    for i in range(num_rounds):
        if log is not None:
            log.append(f"{name} encodes round {i}")
        total = total + (yield Request(Op.ALL_REDUCE, torch.tensor([float(name)])))
    return Exchanged(total, NOT_KEPT, State())


class Wire:
    """A communicator of one that notes what is started and what is waited for."""

    backend, rank, world_size = "wire", 0, 1

    def __init__(self) -> None:
        self.log: list[str] = []

    def start(self, request: Request) -> Wire.Handle:
        self.log.append(f"start {int(request.payload)}")
        return Wire.Handle(self.log, request.payload)

    def duplicate(self) -> Wire:
        return self

    def close(self) -> None: ...

    class Handle:
        def __init__(self, log: list[str], payload: Tensor) -> None:
            self.log, self.payload = log, payload

        def wait(self) -> Tensor:
            self.log.append(f"wait {int(self.payload)}")
            return self.payload


def test_drive_runs_an_exchange_to_its_end() -> None:
    wire = Wire()
    assert drive(numbered(3, 2), wire).mean.item() == 6.0
    assert wire.log == ["start 3", "wait 3", "start 3", "wait 3"]


def test_drive_of_an_exchange_without_rounds() -> None:
    wire = Wire()
    assert drive(numbered(3, 0), wire).mean.item() == 0.0
    assert wire.log == []


def test_requests_of_a_tuple_are_all_started_before_any_is_waited_for() -> None:
    def pair() -> Exchange:
        a, b = yield (Request(Op.ALL_REDUCE, torch.tensor([1.0])), Request(Op.ALL_REDUCE, torch.tensor([2.0])))
        return Exchanged(a + b, NOT_KEPT, State())

    wire = Wire()
    assert drive(pair(), wire).mean.item() == 3.0
    assert wire.log == ["start 1", "start 2", "wait 1", "wait 2"]


def test_a_tuple_of_one_is_answered_with_a_tuple_of_one() -> None:
    def single() -> Exchange:
        answers = yield (Request(Op.ALL_REDUCE, torch.tensor([1.0])),)
        assert isinstance(answers, tuple)
        return Exchanged(answers[0], NOT_KEPT, State())

    assert drive(single(), Wire()).mean.item() == 1.0


def test_the_next_exchange_encodes_and_starts_while_the_last_is_on_the_network() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, small_bytes=0)
    results: list[float] = []
    for name in (1, 2, 3):
        pipeline.submit(numbered(name, 1), lambda out: results.append(out.mean.item()))
    assert wire.log == ["start 1", "start 2", "wait 1", "start 3", "wait 2"]
    assert results == [1.0, 2.0]
    pipeline.finish()
    assert results == [1.0, 2.0, 3.0]


def test_the_order_of_collectives_depends_only_on_submissions_and_rounds() -> None:
    """Older exchanges advance by one round for each submission, in order, and to the end when finished."""
    wire = Wire()
    pipeline = Pipeline(wire, small_bytes=0)
    done: list[int] = []
    for name, num_rounds in ((1, 3), (2, 1), (3, 2)):
        pipeline.submit(numbered(name, num_rounds), lambda out, name=name: done.append(name))  # type: ignore[misc]
    pipeline.finish()
    assert [entry for entry in wire.log if entry.startswith("start")] == [
        "start 1",  # submit 1
        "start 2",  # submit 2
        "start 1",  # 1 advances
        "start 3",  # submit 3
        "start 1",  # 1 advances, 2 is done
        "start 3",  # finish: 1 is done, 3 advances
    ]
    assert done == [2, 1, 3]


def test_a_pipeline_can_be_used_again_after_finish_and_after_abandon() -> None:
    wire = Wire()
    pipeline = Pipeline(wire, small_bytes=0)
    results: list[float] = []
    pipeline.submit(numbered(7, 2), lambda out: results.append(-1.0))
    pipeline.abandon()
    pipeline.finish()
    assert results == []
    for name in (1, 2):
        pipeline.submit(numbered(name, 2), lambda out: results.append(out.mean.item()))
        pipeline.finish()
    assert results == [2.0, 4.0]


class Ticks:
    """Each mark is a second after the one before."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def seconds(self, start: int, end: int) -> float:
        return float(end - start)


def test_codec_time_is_the_time_inside_the_generator_and_is_taken_once() -> None:
    pipeline = Pipeline(Wire(), Ticks())
    pipeline.submit(numbered(1, 2), lambda out: None)
    pipeline.finish()
    assert pipeline.take_codec_seconds() == 3.0  # up to round 1, up to round 2, to the end
    assert pipeline.take_codec_seconds() == 0.0


def test_codec_time_that_nobody_asks_for_takes_no_more_room_than_that_of_a_few_steps() -> None:
    pipeline = Pipeline(Wire(), Ticks())
    for _ in range(MAX_MARKS):
        pipeline.submit(numbered(1, 2), lambda out: None)
        pipeline.finish()
    assert len(pipeline._codec_marks) < MAX_MARKS
    assert pipeline.take_codec_seconds() == 3.0 * MAX_MARKS


def test_an_error_inside_an_exchange_comes_out_as_it_was() -> None:
    def broken() -> Exchange:
        yield Request(Op.ALL_REDUCE, torch.ones(1))
        raise ArithmeticError("codec")

    with pytest.raises(ArithmeticError, match="codec"):
        drive(broken(), Wire())


def test_lockstep_answers_every_rank_with_the_sum() -> None:
    results = drive_lockstep([numbered(rank + 1, 2) for rank in range(3)], lockstep(3))
    assert [result.mean.item() for result in results] == [12.0, 12.0, 12.0]


def test_lockstep_of_exchanges_without_rounds() -> None:
    results = drive_lockstep([numbered(rank, 0) for rank in range(2)], lockstep(2))
    assert [result.mean.item() for result in results] == [0.0, 0.0]


def test_ranks_that_disagree_on_the_number_of_rounds_are_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"only ranks \[1\] finished"):
        drive_lockstep([numbered(1, 3), numbered(1, 2), numbered(1, 3)], lockstep(3))
