"""The contract of every communicator (contracts.py), on gloo."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from contracts import COLLECTIVES, check_answer, check_payload_is_only_lent
from ranks import Here, on_ranks

from dtrain.comm import all_gather, broadcast, perform
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.exchange import Op, Request


def communicator() -> TorchCommunicator:
    assert dist.group.WORLD is not None
    return TorchCommunicator(dist.group.WORLD)


@on_ranks(2, 3, 4)
def test_contract(here: Here) -> None:
    comm = communicator()
    for name, collective in COLLECTIVES.items():
        request = collective.request(here.rank, here.world_size)
        check_answer(name, perform(comm, request), here.rank, here.world_size)
        check_payload_is_only_lent(name, request, here.rank, here.world_size)


@on_ranks(2, 3)
def test_several_collectives_may_be_under_way_and_waited_for_in_any_order(here: Here) -> None:
    comm = communicator()
    handles = {n: comm.start(c.request(here.rank, here.world_size)) for n, c in COLLECTIVES.items()}
    for name, handle in reversed(list(handles.items())):
        check_answer(name, handle.wait(), here.rank, here.world_size)


@on_ranks(2)
def test_it_knows_its_place(here: Here) -> None:
    comm = communicator()
    assert (comm.backend, comm.rank, comm.world_size) == ("gloo", here.rank, here.world_size)


@on_ranks(3)
def test_a_duplicate_interleaves_in_another_order_on_each_rank(here: Here) -> None:
    """On one group this would pair the wrong collectives, or hang."""
    one = communicator()
    two = one.duplicate()
    assert (two.backend, two.rank, two.world_size) == (one.backend, one.rank, one.world_size)
    requests = [(one, torch.tensor([1.0])), (two, torch.tensor([10.0]))]
    if here.rank == 1:
        requests.reverse()
    handles = {comm: comm.start(Request(Op.ALL_REDUCE, payload)) for comm, payload in requests}
    assert handles[two].wait().item() == 30.0
    assert handles[one].wait().item() == 3.0
    two.close()
    assert perform(one, Request(Op.ALL_REDUCE, torch.ones(1))).item() == 3.0


@on_ranks(2, joined=False)
def test_a_duplicate_waits_for_a_missing_rank_as_long_as_the_original(here: Here) -> None:
    here.join(timedelta(seconds=3))
    comm = communicator().duplicate()
    if here.rank == 0:
        start = time.monotonic()
        with pytest.raises(RuntimeError):
            perform(comm, Request(Op.ALL_REDUCE, torch.ones(1)))
        assert time.monotonic() - start < 30
        here.store.set("given up", "")
    else:
        here.store.wait(["given up"])


@on_ranks(3)
def test_a_communicator_of_some_ranks_counts_only_those(here: Here) -> None:
    group = dist.new_group([0, 2])
    if here.rank == 1:
        return
    comm = TorchCommunicator(group)
    assert (comm.rank, comm.world_size) == (here.rank // 2, 2)
    assert broadcast(comm, torch.tensor([float(here.rank)])).item() == 0.0
    assert all_gather(comm, torch.tensor(here.rank)).tolist() == [0, 2]
    other = comm.duplicate()
    assert other.world_size == 2
    assert all_gather(other, torch.tensor(here.rank)).tolist() == [0, 2]


@on_ranks(2)
def test_an_operation_that_communicators_do_not_perform_is_refused(here: Here) -> None:
    try:
        communicator().start(Request(Op.REDUCE, torch.ones(1)))
    except ValueError as error:
        assert "use all_reduce, all_gather or all_to_all" in str(error)
    else:
        raise AssertionError("performed")


@on_ranks(2)
def test_close_leaves_the_group_and_can_be_called_again(here: Here) -> None:
    comm = communicator()
    perform(
        comm.duplicate(), Request(Op.ALL_REDUCE, torch.ones(1))
    )  # else a rank may leave while another still connects
    comm.close()
    assert not dist.is_initialized()
    comm.close()


@on_ranks(2)
def test_closing_ends_the_threads_of_the_group(here: Here) -> None:
    """A thread of gloo that is still there when the interpreter exits may abort the process."""

    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    one = communicator()
    perform(one, Request(Op.ALL_REDUCE, torch.ones(1)))
    before = num_threads()
    two = one.duplicate()
    assert perform(two, Request(Op.ALL_REDUCE, torch.ones(1))).item() == 2.0
    assert num_threads() > before
    two.close()
    deadline = time.monotonic() + 5.0
    while num_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_threads() <= before
    with pytest.raises(RuntimeError, match="closed"):
        two.start(Request(Op.ALL_REDUCE, torch.ones(1)))
