"""Every byte that leaves through torch.distributed is recorded exactly once, whoever sends it."""

from __future__ import annotations

import shutil
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from torch import Tensor, nn

import dtrain.meter
from dtrain.exchange import Op
from dtrain.meter import c10d
from dtrain.meter.c10d import _CALLS, install, installed
from dtrain.meter.ledger import Activity, Ledger, Pending, Purpose, StepRecord

Seen = list[tuple[str, int, float]]
"""(operation, payload bytes, wire bytes) of each entry."""


def seen(call: Callable[[], Any]) -> Seen:
    """What is recorded while `call` runs."""
    with installed(Ledger()) as ledger:
        call()
        return [(str(e.op), e.payload_bytes, e.wire_bytes) for e in ledger.close().entries]


def expect(call: Callable[[], Any], *entries: tuple[str, int, float]) -> None:
    got = seen(call)
    assert got == list(entries), f"recorded {got} and not {list(entries)}"


def floats(numel: int = 6, value: float = 1.0) -> Tensor:
    return torch.full((numel,), float(value))


# Every collective: 6 floats are 24 bytes; with 3 ranks an all_reduce sends 2 * 24 * 2/3 = 32 of them


@on_ranks(2, 3, 4)
def test_all_reduce(here: Here) -> None:
    n = here.world_size
    expect(lambda: dist.all_reduce(floats()), ("all_reduce", 24, 48 * (n - 1) / n))


@on_ranks(3)
def test_all_reduce_still_gives_the_sum_and_every_dtype_counts_its_own_bytes(here: Here) -> None:
    for dtype, size in ((torch.float16, 2), (torch.float64, 8), (torch.int32, 4), (torch.uint8, 1)):
        value = torch.ones(6, dtype=dtype)
        expect(lambda value=value: dist.all_reduce(value), ("all_reduce", 6 * size, 8.0 * size))
        assert value.tolist() == [3] * 6


@on_ranks(3)
def test_an_asynchronous_collective_is_recorded_once_and_timed_when_it_is_done(here: Here) -> None:
    with installed(Ledger()) as ledger:
        work = dist.all_reduce(floats(), async_op=True)
        assert work is not None
        work.wait()
        dist.all_reduce(floats())
        entries = ledger.close().entries
    assert [(str(e.op), e.payload_bytes, e.wire_bytes) for e in entries] == [("all_reduce", 24, 32.0)] * 2
    assert all(e.seconds is not None and e.seconds >= 0 for e in entries)


@on_ranks(3)
def test_collectives_are_seen_in_inference_mode_and_without_gradients(here: Here) -> None:
    value = floats()
    with torch.inference_mode():
        expect(lambda: dist.all_reduce(value), ("all_reduce", 24, 32.0))
        expect(lambda: dist.all_reduce(floats()), ("all_reduce", 24, 32.0))
    with torch.no_grad():
        expect(lambda: dist.all_reduce(value), ("all_reduce", 24, 32.0))


@on_ranks(3)
def test_all_gather(here: Here) -> None:
    parts = [torch.empty(6) for _ in range(3)]
    expect(lambda: dist.all_gather(parts, floats(value=here.rank)), ("all_gather", 24, 48.0))
    assert [part[0].item() for part in parts] == [0, 1, 2]


@on_ranks(3)
def test_all_gather_into_one_tensor(here: Here) -> None:
    whole = torch.empty(18)
    expect(lambda: all_gather_into_tensor(whole, floats(value=here.rank)), ("all_gather", 24, 48.0))
    assert whole.tolist() == [0.0] * 6 + [1.0] * 6 + [2.0] * 6


def all_gather_into_tensor(whole: Tensor, part: Tensor) -> None:
    """Under whichever name this torch has it: 2.13 deprecates the old one."""
    for name in ("all_gather_single", "all_gather_into_tensor"):
        if hasattr(dist, name):
            getattr(dist, name)(whole, part)
            return


@on_ranks(3)
def test_old_names_are_recorded_like_new_ones(here: Here) -> None:
    whole, part = torch.empty(18), torch.empty(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expect(lambda: dist.all_gather_into_tensor(whole, floats()), ("all_gather", 24, 48.0))
        expect(lambda: dist.reduce_scatter_tensor(part, floats()), ("reduce_scatter", 24, 32.0))


@on_ranks(3)
def test_all_gather_of_objects(here: Here) -> None:
    """Somebody else's program may: sizes first, then the pickles."""
    objects: list[Any] = [None] * 3
    got = seen(lambda: dist.all_gather_object(objects, {"rank": here.rank}))
    assert objects == [{"rank": k} for k in range(3)]
    assert [op for op, _, _ in got] == ["all_gather", "all_gather"]
    assert got[0][1:] == (8, 16.0)


@on_ranks(3)
def test_reduce_scatter(here: Here) -> None:
    part = torch.empty(2)
    inputs = [floats(2, value=k) for k in range(3)]
    expect(lambda: dist.reduce_scatter(part, inputs), ("reduce_scatter", 24, 32.0))
    assert part.tolist() == [3.0 * here.rank] * 2


@on_ranks(3)
def test_reduce_scatter_of_one_tensor(here: Here) -> None:
    part, whole = torch.empty(2), torch.arange(6.0)
    function = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    expect(lambda: function(part, whole), ("reduce_scatter", 24, 32.0))
    assert part.tolist() == [6.0 * here.rank, 6.0 * here.rank + 3]


@on_ranks(3)
def test_all_to_all_of_equal_parts(here: Here) -> None:
    received = torch.empty(6)
    expect(lambda: dist.all_to_all_single(received, floats(value=here.rank)), ("all_to_all", 24, 16.0))
    assert received.tolist() == [0, 0, 1, 1, 2, 2]


@on_ranks(3)
def test_all_to_all_of_uneven_parts_counts_exactly_what_is_meant_for_others(here: Here) -> None:
    """Rank r sends k + 1 rows of 2 floats to rank k, and gets r + 1 rows from everybody."""
    rank = here.rank
    sent, received = torch.ones(6, 2), torch.empty(3 * (rank + 1), 2)
    expect(
        lambda: dist.all_to_all_single(received, sent, [rank + 1] * 3, [1, 2, 3]),
        ("all_to_all", 48, 8.0 * (6 - (rank + 1))),
    )


@on_ranks(3)
def test_all_to_all_of_lists(here: Here) -> None:
    sent = [floats(2, value=10 * here.rank + k) for k in range(3)]
    received = [torch.empty(2) for _ in range(3)]
    expect(lambda: dist.all_to_all(received, sent), ("all_to_all", 24, 16.0))
    assert [part[0].item() for part in received] == [10 * k + here.rank for k in range(3)]


@on_ranks(3)
def test_a_broadcast_belongs_to_its_root(here: Here) -> None:
    for root in range(3):
        value = floats(value=here.rank)
        mine = ("broadcast", 24, 48.0) if here.rank == root else ("broadcast", 0, 0.0)
        expect(lambda value=value, root=root: dist.broadcast(value, root), mine)
        assert value[0].item() == root


@on_ranks(3)
def test_reduce_to_a_root_that_is_not_0(here: Here) -> None:
    expect(lambda: dist.reduce(floats(), 2), ("reduce", 24, 16.0 if here.rank == 2 else 24.0))


@on_ranks(3)
def test_gather_to_a_root_that_is_not_0(here: Here) -> None:
    parts = [torch.empty(6) for _ in range(3)] if here.rank == 1 else None
    expect(lambda: dist.gather(floats(), parts, dst=1), ("gather", 24, 0.0 if here.rank == 1 else 24.0))


@on_ranks(3)
def test_scatter_from_a_root_that_is_not_0(here: Here) -> None:
    part = torch.empty(2)
    parts = [floats(2, value=k) for k in range(3)] if here.rank == 2 else None
    mine = ("scatter", 24, 16.0) if here.rank == 2 else ("scatter", 0, 0.0)
    expect(lambda: dist.scatter(part, parts, src=2), mine)
    assert part[0].item() == here.rank


@on_ranks(3)
def test_send_and_receive(here: Here) -> None:
    value = floats(value=here.rank)
    if here.rank == 0:
        expect(lambda: dist.send(value, 2), ("send", 24, 24.0))
    elif here.rank == 2:
        expect(lambda: dist.recv(value, 0), ("recv", 0, 0.0))
        assert value[0].item() == 0
    else:
        expect(lambda: None)


@on_ranks(3)
def test_receive_from_anybody(here: Here) -> None:
    value = floats(value=here.rank)
    if here.rank == 1:
        expect(lambda: dist.send(value, 0), ("send", 24, 24.0))
    elif here.rank == 0:
        expect(lambda: dist.recv(value), ("recv", 0, 0.0))
        assert value[0].item() == 1


@on_ranks(3)
def test_batched_point_to_point(here: Here) -> None:
    sent, received = floats(value=here.rank), torch.empty(6)

    def ring() -> None:
        operations = [
            dist.P2POp(dist.isend, sent, (here.rank + 1) % 3),
            dist.P2POp(dist.irecv, received, (here.rank - 1) % 3),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    assert sorted(seen(ring)) == [("recv", 0, 0.0), ("send", 24, 24.0)]
    assert received[0].item() == (here.rank - 1) % 3


@on_ranks(3)
def test_barriers(here: Here) -> None:
    expect(dist.barrier, ("barrier", 0, 0.0))


@on_ranks(3)
def test_a_monitored_barrier_does_not_escape(here: Here) -> None:
    got = seen(dist.monitored_barrier)
    assert ("barrier", 0, 0.0) in got
    assert [entry for entry in got if entry[0] == "barrier"] == [("barrier", 0, 0.0)]


@on_ranks(3)
def test_several_tensors_in_one_all_reduce(here: Here) -> None:
    one, two = floats(4), floats(2)

    def both() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dist.all_reduce_coalesced([one, two])

    expect(both, ("all_reduce", 24, 32.0))
    assert one.tolist() + two.tolist() == [3.0] * 6


@on_ranks(3)
def test_several_tensors_in_one_all_gather(here: Here) -> None:
    parts = [[torch.empty(4), torch.empty(2)] for _ in range(3)]

    def both() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dist.all_gather_coalesced(parts, [floats(4), floats(2)])

    expect(both, ("all_gather", 24, 48.0))


@on_ranks(3)
def test_functional_collectives(here: Here) -> None:
    import torch.distributed._functional_collectives as functional

    everyone = list(range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expect(lambda: functional.all_reduce(floats(), "sum", everyone).tolist(), ("all_reduce", 24, 32.0))
        expect(lambda: functional.all_gather_tensor(floats(), 0, everyone).tolist(), ("all_gather", 24, 48.0))
        expect(
            lambda: functional.reduce_scatter_tensor(floats(), "sum", 0, everyone).tolist(),
            ("reduce_scatter", 24, 32.0),
        )
        expect(lambda: functional.all_to_all_single(floats(), None, None, everyone).tolist(), ("all_to_all", 24, 16.0))
        expect(
            lambda: functional.broadcast(floats(), 1, everyone).tolist(),
            ("broadcast", 24, 48.0) if here.rank == 1 else ("broadcast", 0, 0.0),
        )


@on_ranks(3)
def test_functional_collectives_of_several_tensors(here: Here) -> None:
    import torch.distributed._functional_collectives as functional

    everyone, tensors = list(range(3)), [floats(3), floats(9)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call, entry in (
            (lambda: functional.all_reduce_coalesced(tensors, "sum", everyone), ("all_reduce", 48, 64.0)),
            (lambda: functional.all_gather_into_tensor_coalesced(tensors, everyone), ("all_gather", 48, 96.0)),
            (
                lambda: functional.reduce_scatter_tensor_coalesced(tensors, "sum", [0, 0], everyone),
                ("reduce_scatter", 48, 64.0),
            ),
        ):
            expect(lambda call=call: [functional.wait_tensor(t) for t in call()], entry)


@on_ranks(3)
def test_collectives_that_autograd_runs_backwards(here: Here) -> None:
    import torch.distributed.nn.functional as differentiable

    value = floats().requires_grad_()

    def there_and_back() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            differentiable.all_reduce(value).sum().backward()

    expect(there_and_back, ("all_reduce", 24, 32.0), ("all_reduce", 24, 32.0))
    assert value.grad is not None
    assert value.grad.tolist() == [3.0] * 6


# Kinds of tensors


@on_ranks(2, 3)
def test_of_a_sparse_tensor_indices_and_values_are_counted_and_gloo_gathers_them(here: Here) -> None:
    n, rows = here.world_size, here.rank + 1
    value = torch.sparse_coo_tensor(torch.arange(rows)[None], torch.ones(rows, 2), (5, 2)).coalesce()
    payload = rows * (8 + 2 * 4)
    expect(lambda: dist.all_reduce(value), ("all_reduce", payload, (payload + 72.0) * (n - 1)))
    assert value.to_dense()[0].tolist() == [n, n]


@on_ranks(2)
def test_sparse_gradients_of_an_embedding_are_counted(here: Here) -> None:
    ddp = nn.parallel.DistributedDataParallel(nn.EmbeddingBag(100, 4, sparse=True, mode="sum"))
    with installed(Ledger()) as ledger:
        ddp(torch.tensor([[1, 2], [3, 1]])).sum().backward()
        entries = ledger.close().entries
    (gradient,) = [e for e in entries if e.purpose is Purpose.GRADIENT]
    assert (gradient.op, gradient.payload_bytes) == (Op.ALL_REDUCE, 4 * (8 + 4 * 4))  # row 1 comes twice


# Compiled programs


def three_steps(how: str, backend: str) -> tuple[list[list[float]], Seen]:
    """Outputs and gradients of DDP in a program that is compiled in this way, and what the ledger has of it."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    ddp = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))

    def function(value: Tensor) -> Tensor:
        dist.barrier()
        output: Tensor = ddp(value * 2)
        return output + 1

    step: Callable[[Tensor], Tensor] = {"ddp": ddp, "ddp.compile()": ddp, "function": function}[how]
    if how == "ddp.compile()":
        ddp.compile(backend=backend)
    elif backend:
        step = torch.compile(step, backend=backend)
    results = []
    with installed(Ledger()) as ledger:
        for _ in range(3):
            ddp.zero_grad()
            output = step(torch.ones(2, 8) + dist.get_rank())
            output.square().sum().backward()
            gradients = [parameter.grad for parameter in ddp.parameters() if parameter.grad is not None]
            results += [tensor.flatten().tolist() for tensor in (output, *gradients)]
        return results, [(str(e.op), e.payload_bytes, e.wire_bytes) for e in ledger.close().entries]


def expect_the_same_compiled(backend: str) -> None:
    for how, not_compiled in (("ddp", "ddp"), ("ddp.compile()", "ddp"), ("function", "function")):
        results, recorded = three_steps(how, backend)
        expected, expected_recorded = three_steps(not_compiled, "")
        assert recorded == expected_recorded, how
        assert len(recorded) >= 3
        for one, other in zip(results, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-5), how


@on_ranks(2)
def test_compiled_programs_run_as_without_the_meter_and_are_counted_like_others(here: Here) -> None:
    """Dynamo, Python's part of torch.compile, must not take the meter for a part of the program."""
    expect_the_same_compiled("aot_eager")


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: g++")
@on_ranks(2)
def test_programs_compiled_to_machine_code_are_counted_like_others(here: Here) -> None:
    expect_the_same_compiled("inductor")


# Groups


@on_ranks(3)
def test_a_subgroup_costs_what_its_own_size_costs(here: Here) -> None:
    group = dist.new_group([0, 2])
    with installed(Ledger()) as ledger:
        if here.rank != 1:
            dist.all_reduce(floats(), group=group)
            dist.broadcast(floats(), src=2, group=group)
        entries = ledger.close().entries
    if here.rank == 1:
        assert entries == ()
        return
    assert [(str(e.op), e.payload_bytes, e.wire_bytes, e.world_size) for e in entries] == [
        ("all_reduce", 24, 24.0, 2),
        ("broadcast", 24, 24.0, 2) if here.rank == 2 else ("broadcast", 0, 0.0, 2),
    ]


@on_ranks(2)
def test_groups_made_after_installing_or_with_a_backend_of_their_own_do_not_escape(here: Here) -> None:
    with installed(Ledger()) as ledger:
        groups = [dist.new_group(), dist.new_group(backend="gloo"), dist.new_group([0, 1], backend="cpu:gloo")]
        for group in groups:
            dist.all_reduce(floats(), group=group)
        dist.all_reduce(floats())
        entries = ledger.close().entries
    assert [e.wire_bytes for e in entries if e.op is Op.ALL_REDUCE] == [24.0] * 4
    assert len({e.group for e in entries if e.op is Op.ALL_REDUCE}) == 4


@on_ranks(2)
def test_a_group_of_one_sends_nothing(here: Here) -> None:
    groups = [dist.new_group([rank]) for rank in range(2)]
    expect(lambda: dist.all_reduce(floats(), group=groups[here.rank]), ("all_reduce", 24, 0.0))


@on_ranks(2, joined=False)
def test_installed_before_the_group_is_made_as_a_program_would(here: Here) -> None:
    ledger = Ledger()
    remove = install(ledger)
    here.join()
    dist.all_reduce(floats())
    assert dist.get_backend() == "gloo"
    assert ledger.total().payload_bytes == 24
    dist.destroy_process_group()
    assert not dist.is_initialized()
    remove()


@on_ranks(2)
def test_the_group_is_left_as_it_is(here: Here) -> None:
    world = dist.group.WORLD
    name = world.group_name
    with installed(Ledger()):
        assert dist.get_backend() == "gloo"
        assert dist.group.WORLD is world
        assert world.group_name == name
        assert type(world) is dist.ProcessGroup
        group = dist.new_group()
        dist.all_reduce(floats(), group=group)  # else a rank may leave while another still connects
        dist.destroy_process_group(group)
        dist.all_reduce(floats())
        dist.destroy_process_group()
    assert not dist.is_initialized()


# The ledger's place


@on_ranks(2)
def test_a_program_under_the_meter_command_shares_its_ledger(here: Here) -> None:
    records: list[StepRecord] = []
    remove = install(Ledger(), is_shared=True)
    with pytest.raises(RuntimeError, match="installed already"):
        dtrain.meter.install(close_every=None)  # it would keep entries until it is closed, and the shared one does not
    ledger = dtrain.meter.install(records.append)
    dist.all_reduce(floats())
    ledger.close()
    assert [entry.payload_bytes for record in records for entry in record.entries] == [24]
    remove()
    with installed(Ledger()), pytest.raises(RuntimeError, match="installed already"):
        dtrain.meter.install()


@on_ranks(2)
def test_installing_twice_is_refused_and_leaves_the_first_at_work(here: Here) -> None:
    with installed(Ledger()) as ledger:
        with pytest.raises(RuntimeError, match="installed already"):
            install(Ledger())
        dist.all_reduce(floats())
    assert ledger.total().count == 1


@on_ranks(2)
def test_after_removing_nothing_is_recorded_and_another_can_be_installed(here: Here) -> None:
    first, second = Ledger(), Ledger()
    remove = install(first)
    dist.all_reduce(floats())
    remove()
    value = floats()
    dist.all_reduce(value)
    assert value.tolist() == [2.0] * 6
    with installed(second):
        dist.all_reduce(floats())
        remove()  # of the first: changes nothing
        dist.all_reduce(floats())
    assert (first.total().count, second.total().count) == (1, 2)


@on_ranks(2)
def test_a_failing_program_leaves_no_ledger_installed(here: Here) -> None:
    with pytest.raises(KeyError), installed(Ledger()):
        raise KeyError
    expect(lambda: dist.all_reduce(floats()), ("all_reduce", 24, 24.0))


@on_ranks(2)
def test_an_error_of_a_collective_comes_out_as_without_the_meter(here: Here) -> None:
    messages = []
    for metered in (False, True):
        try:
            call = lambda: dist.all_gather([torch.empty(3), torch.empty(3)], floats(6))  # noqa: E731
            seen(call) if metered else call()
        except Exception as error:
            messages.append((type(error), str(error).splitlines()[0]))
    assert len(messages) == 2
    assert messages[0] == messages[1]


@on_ranks(2)
def test_two_threads_at_once_are_both_recorded_each_under_its_own_purpose(here: Here) -> None:
    groups = {Purpose.METRICS: dist.new_group(), Purpose.CONTROL: dist.new_group()}
    problems: list[BaseException] = []

    def work(ledger: Ledger, purpose: Purpose, group: dist.ProcessGroup) -> None:
        try:
            with ledger.scope(purpose=purpose):
                for _ in range(50):
                    dist.all_reduce(floats(6 if purpose is Purpose.METRICS else 600), group=group)
        except BaseException as error:
            problems.append(error)

    with installed(Ledger()) as ledger:
        threads = [threading.Thread(target=work, args=(ledger, *item)) for item in groups.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert ledger.total(purpose=Purpose.METRICS).payload_bytes == 50 * 24
    assert ledger.total(purpose=Purpose.CONTROL).payload_bytes == 50 * 2400
    assert ledger.total().count == 100


@on_ranks(2)
def test_scopes_say_what_the_traffic_is_for(here: Here) -> None:
    with installed(Ledger()) as ledger:
        with ledger.scope(activity=Activity.EVAL, purpose=Purpose.METRICS):
            dist.all_reduce(floats())
        dist.all_reduce(floats())
        entries = ledger.close().entries
    assert [(e.activity, e.purpose) for e in entries] == [
        (Activity.EVAL, Purpose.METRICS),
        (Activity.INIT, Purpose.UNKNOWN),
    ]


# Other people's parallelism


@on_ranks(2)
def test_fully_sharded_data_parallel_is_recorded(here: Here) -> None:
    """Each step gathers the parameters in forward and scatters the gradients in backward."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        def train() -> Tensor:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
            mesh = init_device_mesh("cpu", (2,))
            fully_shard(model, mesh=mesh)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(2):
                torch.manual_seed(10 * step + here.rank)
                model(torch.randn(4, 8)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            return torch.cat([p.to_local().flatten() for p in model.parameters()])  # type: ignore[attr-defined]

        unmetered = train()
        with installed(Ledger()) as ledger:
            metered = train()
            entries = ledger.close().entries
    assert torch.equal(unmetered, metered)
    gathered = [e for e in entries if e.op is Op.ALL_GATHER and e.payload_bytes == 2 * 8 * 8 * 4 // 2]
    scattered = [e for e in entries if e.op is Op.REDUCE_SCATTER]
    assert len(gathered) >= 2, entries
    assert [(e.payload_bytes, e.wire_bytes) for e in scattered] == [(512, 512.0)] * 2, entries


@on_ranks(2)
def test_parameters_that_are_gathered_again_in_backward_are_no_gradients(here: Here) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    def layers() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))

    sharded = layers()
    for module in (*sharded, sharded):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    first = FullyShardedDataParallel(layers(), device_id=torch.device("cpu"))
    for model, times_gathered in ((sharded, 6), (first, 1)):  # FSDP1 keeps what its root has gathered
        with installed(Ledger()) as ledger:
            model(torch.ones(4, 8)).sum().backward()
            purposes: dict[tuple[Op, Purpose], list[int]] = {}
            for entry in ledger.close().entries:
                purposes.setdefault((entry.op, entry.purpose), []).append(entry.payload_bytes)
        assert set(purposes) == {(Op.ALL_GATHER, Purpose.PARAMETERS), (Op.REDUCE_SCATTER, Purpose.GRADIENT)}
        assert len(purposes[Op.ALL_GATHER, Purpose.PARAMETERS]) == times_gathered, purposes
        assert sum(purposes[Op.REDUCE_SCATTER, Purpose.GRADIENT]) == 3 * 8 * 8 * 4


@on_ranks(2)
def test_whatever_a_communication_hook_of_ddp_sends_is_gradients(here: Here) -> None:
    """Codes are integers, and are gathered: it is who sends them that tells."""
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))

    def gather_codes(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are texts
        codes = bucket.buffer().to(torch.int8)
        dist.all_gather([torch.empty_like(codes) for _ in range(2)], codes)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp.register_comm_hook(None, gather_codes)
    with installed(Ledger()) as ledger:
        ddp(torch.ones(2, 4)).sum().backward()
        dist.all_gather([torch.empty(4) for _ in range(2)], torch.ones(4))
        entries = ledger.close().entries
    gathered = [(e.payload_bytes, e.purpose) for e in entries if e.op is Op.ALL_GATHER]
    assert gathered == [(20, Purpose.GRADIENT), (16, Purpose.UNKNOWN)]


@on_ranks(2)
def test_device_mesh_and_distributed_tensors_are_recorded(here: Here) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        with installed(Ledger()) as ledger:
            mesh = init_device_mesh("cpu", (2,))
            ledger.close()
            sharded = distribute_tensor(torch.arange(6.0), mesh, [Shard(0)])
            ledger.close()
            assert sharded.full_tensor().tolist() == [0, 1, 2, 3, 4, 5]
            entries = ledger.close().entries
    assert [(e.op, e.payload_bytes, e.wire_bytes) for e in entries] == [(Op.ALL_GATHER, 12, 12.0)]


def test_every_operator_of_torch_that_takes_a_process_group_is_metered() -> None:
    """A new one in another torch must not escape."""
    operators = {
        schema.name.removeprefix("c10d::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("c10d::") and any("c10d.ProcessGroup" in str(a.type) for a in schema.arguments)
    }
    assert len(operators) >= 20
    assert operators == set(_CALLS)


@on_ranks(2)
def test_the_interpreter_waits_for_a_backend_s_call_into_python_before_it_exits(here: Here) -> None:
    """Such a call, made by gloo's thread while the interpreter exits, aborts the process."""
    if here.rank == 1:
        time.sleep(0.3)  # so that the collective is not complete yet when rank 0 asks to be called
        dist.all_reduce(floats())
        return
    release = threading.Event()
    with installed(Ledger()), mock.patch.object(Pending, "complete", lambda pending: release.wait(5.0)):
        dist.all_reduce(floats(), async_op=True)
        threading.Timer(1.0, release.set).start()
        c10d.await_completions()
        assert release.is_set()
