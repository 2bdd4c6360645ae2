from __future__ import annotations

import pytest
import torch

from dtrain.comm import perform
from dtrain.comm.lockstep import lockstep
from dtrain.comm.simulated import SimulatedCommunicator
from dtrain.exchange import Op, Request
from dtrain.sync.fuse import start_together

WORLD_SIZE = 3


def payload(op: Op) -> torch.Tensor:
    return torch.arange(6.0).view(WORLD_SIZE, 2) if op is Op.ALL_TO_ALL else torch.arange(5.0)


@pytest.mark.parametrize("op", [Op.ALL_REDUCE, Op.ALL_GATHER, Op.ALL_TO_ALL, Op.BROADCAST])
def test_answers_are_those_of_workers_who_all_hand_over_the_same(op: Op) -> None:
    workers = lockstep(WORLD_SIZE)
    handles = [worker.start(Request(op, payload(op))) for worker in workers]
    answer = perform(SimulatedCommunicator(WORLD_SIZE), Request(op, payload(op)))
    assert torch.equal(answer, handles[0].wait())


def test_an_answer_belongs_to_whoever_asked() -> None:
    for op in (Op.ALL_REDUCE, Op.ALL_GATHER, Op.ALL_TO_ALL, Op.BROADCAST):
        given = payload(op)
        perform(SimulatedCommunicator(WORLD_SIZE), Request(op, given)).zero_()
        assert torch.equal(given, payload(op))


def test_what_no_communicator_performs_is_refused() -> None:
    with pytest.raises(ValueError, match="does not perform reduce"):
        SimulatedCommunicator(WORLD_SIZE).start(Request(Op.REDUCE, torch.zeros(1)))


def test_it_tells_of_each_collective_and_of_the_requests_that_a_fused_one_joins() -> None:
    started: list[Request] = []
    communicator = SimulatedCommunicator(WORLD_SIZE, on_start=started.append)
    asked = [
        Request(Op.ALL_GATHER, torch.zeros(5)),
        Request(Op.ALL_REDUCE, torch.zeros(2)),
        Request(Op.ALL_GATHER, torch.zeros(3, dtype=torch.uint8)),
        Request(Op.ALL_REDUCE, torch.zeros(100)),
    ]
    start_together(asked, communicator, small_bytes=100)
    assert [(r.op, r.payload_bytes) for r in started] == [("all_gather", 23), ("all_reduce", 8), ("all_reduce", 400)]
    assert [id(part) for part in started[0].parts] == [id(asked[0]), id(asked[2])]
    assert started[1].parts == started[2].parts == ()
