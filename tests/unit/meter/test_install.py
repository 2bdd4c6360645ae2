from __future__ import annotations

import gc
import logging
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensorMode

import dtrain.meter
from dtrain.exchange import Op
from dtrain.meter import c10d, clock
from dtrain.meter.ledger import CLOSE_EVERY, Ledger, StepRecord


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """This process is a group of its own; what a test installs is removed."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    for library in list(c10d._installed):
        c10d._installed.pop(library)
        library._destroy()


def all_reduces(count: int) -> None:
    value = torch.zeros(1)
    for _ in range(count):
        dist.all_reduce(value)


def test_the_ledger_of_a_program_that_never_closes_keeps_no_more_than_a_few_hundred_entries() -> None:
    ledger = dtrain.meter.install()
    all_reduces(3 * CLOSE_EVERY)
    assert len(ledger._pending) < CLOSE_EVERY
    assert ledger.total().count == 3 * CLOSE_EVERY
    assert ledger.total().payload_bytes == 4 * 3 * CLOSE_EVERY


def test_sinks_see_every_collective_once_and_the_rest_when_it_is_closed() -> None:
    records: list[StepRecord] = []
    ledger = dtrain.meter.install(records.append)
    all_reduces(2 * CLOSE_EVERY + 7)
    assert sum(len(record.entries) for record in records) + len(ledger._pending) == 2 * CLOSE_EVERY + 7
    ledger.close()
    assert sum(len(record.entries) for record in records) == 2 * CLOSE_EVERY + 7


def test_entries_are_kept_until_closing_for_those_who_ask() -> None:
    ledger = dtrain.meter.install(close_every=None)
    all_reduces(2 * CLOSE_EVERY)
    assert len(ledger.close().entries) == 2 * CLOSE_EVERY


def test_memory_is_flat_over_collectives() -> None:
    dtrain.meter.install()
    all_reduces(2 * CLOSE_EVERY)
    tracemalloc.start()
    try:
        all_reduces(CLOSE_EVERY)
        before = tracemalloc.get_traced_memory()[0]
        all_reduces(8 * CLOSE_EVERY)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000, grown  # 4,096 entries that are kept take 2 MB


# Whatever is counted, and however that fails, the program gets what it would get without


def outcome(call: Callable[[], object]) -> str:
    """What comes of a call: its error, or nothing."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(4)


CALLS: dict[str, tuple[Callable[[], object], int]] = {
    "a sparse tensor": (lambda: dist.all_reduce(torch.eye(3).to_sparse()), 1),
    "a sparse tensor that is refused": (lambda: dist.broadcast(torch.eye(3).to_sparse(), 0), 0),
    "a sparse tensor of a refused layout": (lambda: dist.all_reduce(torch.eye(3).to_mkldnn()), 0),
    "a meta tensor": (lambda: dist.all_reduce(torch.ones(3, device="meta")), 0),
    "a fake tensor": (lambda: dist.all_reduce(fake()), 0),
    "no tensors": (lambda: dist.group.WORLD.allreduce([]), 0),
    "no tensors to gather into": (lambda: dist.all_gather([], torch.ones(3)), 0),
    "no tensors to exchange": (lambda: dist.all_to_all([], []), 0),
    "an empty tensor": (lambda: dist.all_reduce(torch.ones(0)), 1),
    "booleans": (lambda: dist.all_reduce(torch.ones(3, dtype=torch.bool), op=dist.ReduceOp.BOR), 1),
    "complex numbers": (lambda: dist.all_reduce(torch.ones(3, dtype=torch.complex64)), 1),
    "shapes that do not fit": (lambda: dist.all_gather([torch.ones(2)], torch.ones(3)), 0),
}


@pytest.mark.parametrize("kind", CALLS)
def test_metered_a_call_gives_what_it_gives_without_and_a_refused_one_is_not_counted(kind: str) -> None:
    call, count = CALLS[kind]
    plain = outcome(call)
    ledger = dtrain.meter.install()
    assert outcome(call) == plain
    assert ledger.total().count == count
    assert ledger.uncounted == {}


def test_calls_of_a_backend_object_itself_are_not_seen() -> None:
    """As docs/metering.md and the report say: they pass no dispatcher."""
    ledger = dtrain.meter.install()
    value = torch.ones(3)
    assert dist.group.WORLD is not None
    dist.group.WORLD._get_backend(torch.device("cpu")).allreduce([value]).wait()
    dist.ProcessGroupGloo(dist.HashStore(), 0, 1).allreduce([value]).wait()
    assert ledger.total().count == 0
    dist.group.WORLD.allreduce([value]).wait()
    assert ledger.total().count == 1


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the meter said; torch logs, too."""
    return [record for record in caplog.records if record.name.startswith("dtrain")]


def broken(*arguments: object) -> int:
    raise LookupError("no such size")


def test_an_error_of_counting_is_logged_once_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ledger = dtrain.meter.install()
    values = torch.ones(3), torch.ones(2)
    with mock.patch.object(c10d, "num_bytes", broken):
        for value in values:
            dist.all_reduce(value)
        assert "invalid output tensor" in outcome(lambda: dist.all_gather([], torch.ones(3)))
    assert values[0].tolist() == [1, 1, 1]
    assert ledger.uncounted == {Op.ALL_REDUCE: 2}
    assert ledger.total().count == 0
    (record,) = logged(caplog)
    assert "a call of all_reduce was not counted" in record.message
    assert "LookupError: no such size" in record.message
    dist.all_reduce(values[0])
    assert ledger.total().count == 1


def test_an_error_of_counting_keeps_no_tensor_alive() -> None:
    dtrain.meter.install()
    value = torch.ones(3)
    seen = weakref.ref(value)
    gc.disable()
    try:
        with mock.patch.object(c10d, "num_bytes", broken):
            dist.all_reduce(value)
        del value
        assert seen() is None
    finally:
        gc.enable()


def test_a_sink_that_fails_is_logged_once_and_fails_no_collective(caplog: pytest.LogCaptureFixture) -> None:
    def full(record: StepRecord) -> None:
        raise OSError("disk full")

    ledger = dtrain.meter.install(full)
    all_reduces(3 * CLOSE_EVERY)
    assert ledger.total().count == 3 * CLOSE_EVERY
    assert [record.message for record in logged(caplog)] == ["dtrain: a sink of the ledger failed: OSError: disk full"]


@pytest.mark.timeout(20)
def test_a_signal_whose_handler_communicates_does_not_lock_the_ledger_up() -> None:
    """As when it comes while a collective is being recorded."""

    class Interrupted(dict[object, object]):
        def get(self, key: object, default: object = None) -> object:
            ledger.totals = dict(self)  # type: ignore[arg-type]
            dist.barrier()
            return super().get(key, default)

    ledger: Ledger = dtrain.meter.install()
    ledger.totals = Interrupted()  # type: ignore[assignment]
    all_reduces(1)
    assert ledger.total().count == 2


def test_while_a_cuda_graph_is_captured_nothing_is_timed_or_waited_for() -> None:
    ledger = dtrain.meter.install()
    with (
        mock.patch.object(c10d, "clock_for", lambda device: clock.clock_for(torch.device("cuda"))),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: True),
    ):
        all_reduces(2 * CLOSE_EVERY)
    assert len(ledger._pending) == 2 * CLOSE_EVERY
    assert {entry.seconds for entry in ledger.close().entries} == {None}


def test_metering_does_not_import_dynamo() -> None:
    """Which takes a second."""
    program = """
import sys, torch, torch.distributed as dist, dtrain.meter
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
before = "torch._dynamo" in sys.modules
dtrain.meter.install()
dist.all_reduce(torch.ones(1))
print(before, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
