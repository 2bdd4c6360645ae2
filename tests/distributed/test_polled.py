"""MPI and Horovod: the contract of every communicator (contracts.py), and every compressor's exchange."""

from __future__ import annotations

import os
import socket
import threading
import time
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contracts import COLLECTIVES, Collective, check_answer, check_payload_is_only_lent
from ranks import Here, on_ranks
from test_gloo_is_lockstep import LAYOUT, OPTIONS, in_lockstep, values
from twenty_steps import assert_agree

import dtrain
from dtrain.comm import CollectiveError, broadcast, perform
from dtrain.comm.polled import TITLES, PolledCommunicator
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.compressors import build
from dtrain.exchange import Bucket, Context, Op, Request
from dtrain.meter import c10d
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.meter.wire import wire_bytes
from dtrain.sync.drive import drive

BOTH = ("mpiexec", "horovodrun")
NUM_RANKS = (2, 3, 4) if os.environ.get("DTRAIN_FULL") == "1" else (2, 3)
"""Ranks of MPI compute while they wait: where there are fewer cores, four take minutes."""
NOT_SUMMED = (torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.bool, torch.float8_e4m3fn)


@cache
def initialised_horovod() -> Any:
    import horovod.torch as hvd

    os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"
    hvd.init()
    return hvd


def communicator(here: Here, ledger: Ledger | None = None, timeout_seconds: float = 40.0) -> PolledCommunicator:
    """A new one of the backend that belongs to this launcher."""
    if here.launcher == "mpiexec":
        from mpi4py import MPI

        from dtrain.comm.mpi import MpiCommunicator

        return MpiCommunicator(MPI.COMM_WORLD.Dup(), ledger, timeout_seconds=timeout_seconds)
    from dtrain.comm.horovod import HorovodCommunicator

    initialised_horovod()
    return HorovodCommunicator(ledger, timeout_seconds=timeout_seconds)


def is_summed(collective: Collective) -> bool:
    return collective.op is not Op.ALL_REDUCE or collective.payload(0, 2).dtype not in NOT_SUMMED


CONTRACT = {name: collective for name, collective in COLLECTIVES.items() if is_summed(collective)}


@on_ranks(*NUM_RANKS, launcher=BOTH)
def test_contract(here: Here) -> None:
    comm = communicator(here)
    assert len(CONTRACT) == len(COLLECTIVES) - 1  # bfloat16 is refused below
    for name, collective in CONTRACT.items():
        request = collective.request(here.rank, here.world_size)
        check_answer(name, perform(comm, request), here.rank, here.world_size)
        check_payload_is_only_lent(name, request, here.rank, here.world_size)


@on_ranks(2, 3, launcher=BOTH)
def test_several_collectives_may_be_under_way_and_waited_for_in_any_order(here: Here) -> None:
    comm = communicator(here)
    handles = {n: comm.start(c.request(here.rank, here.world_size)) for n, c in CONTRACT.items()}
    for name, handle in reversed(list(handles.items())):
        check_answer(name, handle.wait(), here.rank, here.world_size)


@on_ranks(2, launcher=BOTH)
def test_it_knows_its_place(here: Here) -> None:
    comm = communicator(here)
    assert (comm.rank, comm.world_size) == (here.rank, here.world_size)
    assert comm.backend == ("mpi" if here.launcher == "mpiexec" else "horovod")


@on_ranks(3, launcher=BOTH)
def test_a_duplicate_interleaves_in_another_order_on_each_rank(here: Here) -> None:
    """On one communicator this would pair the wrong collectives, or hang."""
    one = communicator(here)
    two, three = one.duplicate(), one.duplicate()
    assert (two.backend, two.rank, two.world_size) == (one.backend, one.rank, one.world_size)
    requests = [(c, torch.tensor([10.0**k])) for k, c in enumerate((one, two, three))]
    if here.rank == 1:
        requests.reverse()
    handles = {comm: comm.start(Request(Op.ALL_REDUCE, payload)) for comm, payload in requests}
    assert handles[three].wait().item() == 300.0
    assert handles[two].wait().item() == 30.0
    assert handles[one].wait().item() == 3.0
    two.close()
    assert perform(one, Request(Op.ALL_REDUCE, torch.ones(1))).item() == 3.0


@on_ranks(2, launcher=BOTH)
def test_a_sum_and_a_broadcast_are_written_into_the_payload_itself(here: Here) -> None:
    comm = communicator(here)
    payload = torch.ones(5)
    assert perform(comm, Request(Op.ALL_REDUCE, payload)).data_ptr() == payload.data_ptr()
    assert payload.tolist() == [2.0] * 5
    payload = torch.full((2, 3), float(here.rank), dtype=torch.bfloat16)
    broadcast(comm, payload)
    assert payload.eq(0).all()


@on_ranks(2, launcher=BOTH)
def test_nothing_at_all_can_be_exchanged(here: Here) -> None:
    comm = communicator(here)
    assert perform(comm, Request(Op.ALL_REDUCE, torch.empty(0))).shape == (0,)
    assert perform(comm, Request(Op.ALL_GATHER, torch.empty(0, dtype=torch.int16))).shape == (2, 0)
    assert perform(comm, Request(Op.ALL_TO_ALL, torch.empty(2, 0))).shape == (2, 0)
    assert broadcast(comm, torch.empty(0)).shape == (0,)


@on_ranks(2, launcher=BOTH)
def test_what_would_be_summed_wrongly_is_refused_and_what_is_summed_is_right(here: Here) -> None:
    comm = communicator(here)
    for dtype in NOT_SUMMED:
        with pytest.raises(ValueError, match=f"{TITLES[comm.backend]} does not sum {str(dtype)[6:]}: use float16"):
            comm.start(Request(Op.ALL_REDUCE, torch.ones(3, dtype=torch.float32).to(dtype)))
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64):
        payload = torch.tensor([1.0, -2.5, 300.0]).to(dtype) * (here.rank + 1)
        expected = torch.tensor([1.0, -2.5, 300.0]).to(dtype) * 3
        assert torch.equal(perform(comm, Request(Op.ALL_REDUCE, payload)), expected)


@on_ranks(2, launcher=BOTH)
def test_a_payload_that_cannot_be_taken_is_refused(here: Here) -> None:
    comm = communicator(here)
    with pytest.raises(ValueError, match="must be contiguous"):
        comm.start(Request(Op.ALL_REDUCE, torch.ones(4, 4).t()[1:]))
    with pytest.raises(ValueError, match="on meta: move it to the CPU"):
        comm.start(Request(Op.ALL_REDUCE, torch.ones(4, device="meta")))
    with pytest.raises(ValueError, match="use all_reduce, all_gather or all_to_all"):
        comm.start(Request(Op.REDUCE, torch.ones(1)))


@on_ranks(2, launcher=BOTH)
def test_a_missing_rank_is_an_error_in_time(here: Here) -> None:
    comm = communicator(here, timeout_seconds=1.0)
    who = (
        f"rank 1 on host {socket.gethostname()}" if here.launcher == "mpiexec" else "another rank"
    )  # Horovod cannot say
    payload = torch.ones(1)
    if here.rank == 0:
        handle = comm.start(Request(Op.ALL_REDUCE, payload))
        start = time.monotonic()
        message = f"waited 1 s for an all_reduce on {TITLES[comm.backend]}: {who} is missing or stuck"
        with pytest.raises(CollectiveError, match=message):
            handle.wait()
        assert 0.9 < time.monotonic() - start < 20
        comm.close()  # does not wait for it either
        with pytest.raises(RuntimeError, match="closed with a collective under way"):
            handle.wait()
        here.store.set("given up", "")
    else:
        here.store.wait(["given up"])
        assert perform(comm, Request(Op.ALL_REDUCE, payload)).item() == 2.0  # or MPI could not end


@on_ranks(2, launcher=BOTH)
def test_closing_ends_the_thread_and_can_be_repeated(here: Here) -> None:
    backend = "mpi" if here.launcher == "mpiexec" else "horovod"

    def num_threads() -> int:
        return [thread.name for thread in threading.enumerate()].count(f"dtrain-{backend}")

    before = num_threads()
    comm = communicator(here)
    perform(comm, Request(Op.ALL_REDUCE, torch.ones(1)))
    assert num_threads() == before + 1
    comm.close()
    assert num_threads() == before
    comm.close()
    with pytest.raises(RuntimeError, match="closed"):
        comm.start(Request(Op.ALL_REDUCE, torch.ones(1)))


@on_ranks(2, 3, launcher=BOTH)
def test_every_collective_is_recorded_once_with_what_it_is_for(here: Here) -> None:
    ledger = Ledger()
    comm = communicator(here, ledger)
    exchange = comm.duplicate()
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.GRADIENT):
        for collective in CONTRACT.values():
            perform(exchange, collective.request(here.rank, here.world_size))
    refused = Request(Op.ALL_REDUCE, torch.ones(1, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="bfloat16"):
        comm.start(refused)
    record = ledger.close()
    assert len(record.entries) == len(CONTRACT)
    for entry, collective in zip(record.entries, CONTRACT.values(), strict=True):
        is_root = collective.op is Op.BROADCAST and here.rank == 0
        hands_over = collective.op is not Op.BROADCAST or is_root
        payload = collective.request(here.rank, here.world_size).payload_bytes if hands_over else 0
        assert (entry.op, entry.activity, entry.purpose) == (collective.op, Activity.TRAIN, Purpose.GRADIENT)
        assert (entry.payload_bytes, entry.world_size) == (payload, here.world_size)
        assert entry.wire_bytes == wire_bytes(comm.backend, entry.op, payload, here.world_size, is_root=is_root)
        assert entry.seconds is not None
        assert entry.seconds > 0


@on_ranks(2, launcher=BOTH)
def test_a_collective_completes_beside_computing(here: Here) -> None:
    """Nobody waits for it, and still it is done: the communicator's own thread sees it through."""
    ledger = Ledger()
    comm = communicator(here, ledger)
    handle = comm.start(Request(Op.ALL_REDUCE, torch.ones(1_000_000)))
    time.sleep(1.0)
    (entry,) = ledger.close().entries
    assert entry.seconds is not None
    assert entry.seconds < 0.9
    handle.wait()


@on_ranks(2, 4, launcher=BOTH)
def test_a_single_exchange_is_that_of_lockstep(here: Here) -> None:
    """Bitwise on 2 ranks, where a sum has one order; fp16 on more, to its own rounding."""
    comm = communicator(here)
    for name, options in OPTIONS:
        compressor = build(name, **options)
        bucket = Bucket(values(here.world_size)[here.rank], LAYOUT)
        context = Context(here.rank, here.world_size, 0, seed=7)
        exchange = compressor.exchange(bucket, compressor.init(bucket), context)
        if name == "bf16":
            with pytest.raises(ValueError, match="does not sum bfloat16"):
                drive(exchange, comm)
            continue
        mean, expected = drive(exchange, comm).mean, in_lockstep(compressor, here.world_size)
        if here.world_size == 2:
            assert torch.equal(mean, expected), f"{name} {options}"
        error = float((mean - expected).norm() / expected.norm())
        assert error <= (2**-10 if name == "fp16" else 1e-6), f"{name} {options}: relative error {error}"


@on_ranks(2, 4, launcher=BOTH)
def test_twenty_steps_send_what_gloo_sends_and_learn_what_gloo_learns(here: Here) -> None:
    ledger = Ledger()
    comm = communicator(here, ledger)
    here.join()
    assert dist.group.WORLD is not None
    with c10d.installed(Ledger()) as gloo_ledger:
        gloo = TorchCommunicator(dist.group.WORLD)
        assert_agree(comm, ledger, gloo, gloo_ledger, "bf16")  # which neither of them sums
    comm.close()


@on_ranks(2, launcher="horovodrun")
def test_more_of_one_kind_than_horovod_has_names_for_may_be_under_way(here: Here) -> None:
    from dtrain.comm.horovod import NAMES_OF_A_KIND

    comm = communicator(here)
    handles = [comm.start(Request(Op.ALL_REDUCE, torch.full((1000,), float(i)))) for i in range(3 * NAMES_OF_A_KIND)]
    for i, handle in enumerate(handles):
        assert handle.wait().eq(2.0 * i).all()


@on_ranks(2, launcher="horovodrun")
def test_a_payload_that_horovod_cannot_count_is_refused(here: Here) -> None:
    with pytest.raises(ValueError, match=r"less than 2 GiB at a time, and this all_gather has 2,147,483,648 B"):
        communicator(here).start(Request(Op.ALL_GATHER, torch.empty(2**30, dtype=torch.uint8)))  # takes no memory


@on_ranks(2, launcher="horovodrun")
def test_what_compress_horovod_returns_is_resumed_bit_for_bit(here: Here) -> None:
    initialised_horovod()

    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> torch.Tensor:
        for step in numbers:
            generator = torch.Generator().manual_seed(10 * step + here.rank)
            optimizer.zero_grad()
            model(torch.randn(4, 30, generator=generator)).square().sum().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    for name in ("int8", "power_sgd", "dgc"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        through = dtrain.compress_horovod(model, optimizer, name, seed=1)
        steps(model, optimizer, range(3))
        saved, weights = through.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
        whole = steps(model, optimizer, range(3, 6))
        through.close()
        model.load_state_dict(weights)
        resumed = dtrain.compress_horovod(model, optimizer, name, seed=1)
        resumed.load_state_dict(saved)
        assert torch.equal(whole, steps(model, optimizer, range(3, 6))), name
        assert resumed.state_dict()["step"] == 6
        resumed.close()
