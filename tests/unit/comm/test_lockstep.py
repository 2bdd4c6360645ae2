import weakref

import pytest
import torch
from contracts import COLLECTIVES, check_answer, check_payload_is_only_lent
from torch import Tensor

from dtrain.comm import all_gather, broadcast, perform
from dtrain.comm.lockstep import lockstep
from dtrain.exchange import Op, Request
from dtrain.meter.ledger import Ledger

WORLD_SIZES = (1, 2, 3, 4, 8)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", COLLECTIVES)
def test_contract(name: str, world_size: int) -> None:
    communicators = lockstep(world_size)
    requests = [COLLECTIVES[name].request(rank, world_size) for rank in range(world_size)]
    handles = [c.start(request) for c, request in zip(communicators, requests, strict=True)]
    for rank, handle in enumerate(handles):
        check_answer(name, handle.wait(), rank, world_size)
    for rank, request in enumerate(requests):
        check_payload_is_only_lent(name, request, rank, world_size)


def test_several_collectives_may_be_under_way_and_waited_for_in_any_order() -> None:
    names = list(COLLECTIVES)
    communicators = lockstep(3)
    handles = {(n, c.rank): c.start(COLLECTIVES[n].request(c.rank, 3)) for c in communicators for n in names}
    for name, rank in reversed(list(handles)):
        check_answer(name, handles[name, rank].wait(), rank, 3)


def test_the_answers_of_two_ranks_share_no_memory() -> None:
    for name, collective in COLLECTIVES.items():
        handles = [c.start(collective.request(c.rank, 2)) for c in lockstep(2)]
        first, second = (handle.wait() for handle in handles)
        first.zero_()
        check_answer(name, second, 1, 2)


def test_nothing_is_kept_of_a_thousand_steps() -> None:
    communicators, payloads = lockstep(4), weakref.WeakSet[Tensor]()
    for _ in range(1000):
        handles = []
        for communicator in communicators:
            payload = torch.zeros(4, 1)
            payloads.add(payload)
            handles.append(communicator.start(Request(Op.ALL_TO_ALL, payload)))
            del payload
        assert len(payloads) == 4
        for handle in handles:
            handle.wait()
        assert len(payloads) == 0
    assert not communicators[0]._rounds


def test_what_nobody_waits_for_goes_with_its_handles() -> None:
    communicators, payloads = lockstep(2), weakref.WeakSet[Tensor]()
    for _ in range(10):
        for communicator in communicators:
            payload = torch.zeros(1)
            payloads.add(payload)
            communicator.start(Request(Op.ALL_REDUCE, payload))
            del payload
    assert len(payloads) == 0


def test_an_answer_is_given_once() -> None:
    (alone,) = lockstep(1)
    handle = alone.start(Request(Op.ALL_REDUCE, torch.ones(1)))
    handle.wait()
    with pytest.raises(RuntimeError, match="rank 0 has had the answer"):
        handle.wait()


def test_waiting_for_a_rank_that_has_not_started_is_an_error_that_names_it() -> None:
    communicators = lockstep(3)
    handle = communicators[0].start(Request(Op.ALL_REDUCE, torch.ones(1)))
    communicators[1].start(Request(Op.ALL_REDUCE, torch.ones(1)))
    with pytest.raises(RuntimeError, match=r"rank 0 waits .* ranks \[2\]"):
        handle.wait()


@pytest.mark.parametrize(
    "other",
    [
        Request(Op.ALL_GATHER, torch.ones(2)),
        Request(Op.ALL_REDUCE, torch.ones(3)),
        Request(Op.ALL_REDUCE, torch.ones(2, dtype=torch.float64)),
    ],
    ids=["op", "shape", "dtype"],
)
def test_ranks_that_disagree_are_an_error(other: Request) -> None:
    one, two = lockstep(2)
    handle = one.start(Request(Op.ALL_REDUCE, torch.ones(2)))
    two.start(other)
    with pytest.raises(RuntimeError, match="disagree"):
        handle.wait()


def test_an_operation_that_communicators_do_not_perform_is_refused() -> None:
    (alone,) = lockstep(1)
    with pytest.raises(ValueError, match="use all_reduce, all_gather or all_to_all"):
        alone.start(Request(Op.SEND, torch.ones(1))).wait()


def test_each_rank_records_what_it_hands_over_in_its_own_ledger() -> None:
    ledgers = [Ledger(), Ledger(), Ledger()]
    communicators = lockstep(3, ledgers)
    for op in (Op.ALL_REDUCE, Op.ALL_GATHER, Op.BROADCAST):
        for communicator in communicators:
            communicator.start(Request(op, torch.zeros(6)))
    seen = [[(e.op, e.payload_bytes, e.wire_bytes, e.world_size) for e in ledger.close().entries] for ledger in ledgers]
    shared = [(Op.ALL_REDUCE, 24, 32.0, 3), (Op.ALL_GATHER, 24, 48.0, 3)]
    assert seen[0] == [*shared, (Op.BROADCAST, 24, 48.0, 3)]
    assert seen[1] == seen[2] == [*shared, (Op.BROADCAST, 0, 0.0, 3)]


def test_shorthands_perform_on_one_worker() -> None:
    (alone,) = lockstep(1)
    value = torch.arange(3.0)
    assert torch.equal(perform(alone, Request(Op.ALL_REDUCE, value.clone())), value)
    assert torch.equal(broadcast(alone, value.clone()), value)
    assert torch.equal(all_gather(alone, value), value[None])
    assert alone.duplicate().world_size == 1
    alone.close()


def test_nothing_is_kept_of_a_collective_that_all_workers_have_started() -> None:
    workers = lockstep(2)
    for _ in range(100):
        handles = [worker.start(Request(Op.ALL_REDUCE, torch.ones(3))) for worker in workers]
        assert all(torch.equal(handle.wait(), torch.full((3,), 2.0)) for handle in handles)
    assert not workers[0]._rounds
    assert workers[0]._rounds is workers[1]._rounds
