from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import dtrain.meter
from dtrain.meter import c10d
from dtrain.meter.ledger import CLOSE_EVERY, StepRecord


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
