from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dtrain.comm.lockstep import lockstep
from dtrain.exchange import NOT_KEPT, Exchange, Exchanged, Op, Request, State
from dtrain.meter.ledger import Ledger
from dtrain.sync.drive import Pipeline
from dtrain.sync.fuse import start_together

WORLD_SIZE = 3


def requests_of(rank: int) -> list[Request]:
    """Two of each operation, of different dtypes and shapes, told apart by rank."""
    return [
        Request(Op.ALL_REDUCE, torch.full((2, 3), 1.0 + rank)),
        Request(Op.ALL_GATHER, torch.full((5,), rank, dtype=torch.uint8)),
        Request(Op.ALL_TO_ALL, torch.arange(3 * 4, dtype=torch.float32).view(3, 4) + 100 * rank),
        Request(Op.ALL_REDUCE, torch.full((4,), 10.0 + rank)),
        Request(Op.ALL_GATHER, torch.full((2, 2), 0.5 + rank)),
        Request(Op.ALL_TO_ALL, torch.full((3, 1), rank, dtype=torch.int64)),
        Request(Op.ALL_REDUCE, torch.full((2,), rank, dtype=torch.float16)),
    ]


def answers(small_bytes: int) -> tuple[list[list[Tensor]], list[Ledger]]:
    ledgers = [Ledger() for _ in range(WORLD_SIZE)]
    workers = lockstep(WORLD_SIZE, ledgers)
    handles = [start_together(requests_of(r), worker, small_bytes=small_bytes) for r, worker in enumerate(workers)]
    return [[handle.wait() for handle in mine] for mine in handles], ledgers


def test_joined_requests_have_the_answers_of_separate_ones() -> None:
    joined, separate = answers(1 << 20)[0], answers(0)[0]
    for mine, theirs in zip(joined, separate, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_joining_sends_the_same_bytes_in_fewer_collectives() -> None:
    joined, separate = answers(1 << 20)[1][0].total(), answers(0)[1][0].total()
    assert joined.payload_bytes == separate.payload_bytes
    assert joined.wire_bytes == pytest.approx(separate.wire_bytes, rel=1e-12)
    assert separate.count == 7
    assert joined.count == 4  # all_reduce of float32, of float16, all_gather, all_to_all


def test_large_requests_are_not_joined() -> None:
    _, ledgers = answers(20)  # the two gathers are smaller; of the sums in float32 one is, and so travels alone
    assert ledgers[0].total().count == 6


def sum_of(value: float, results: list[float]) -> Exchange:
    total = yield Request(Op.ALL_REDUCE, torch.tensor([value]))
    again = yield Request(Op.ALL_REDUCE, total)
    return Exchanged(again, NOT_KEPT, State())


def test_small_rounds_of_several_exchanges_travel_together() -> None:
    (worker,) = lockstep(1, ledgers := [Ledger()])
    means: list[float] = []
    pipeline = Pipeline(worker)
    for value in (1.0, 2.0, 3.0):
        pipeline.submit(sum_of(value, means), lambda out: means.append(out.mean.item()))
    assert ledgers[0].total().count == 0
    pipeline.finish()
    assert means == [1.0, 2.0, 3.0]
    assert ledgers[0].total().count == 2  # one for each round
