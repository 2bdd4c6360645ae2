"""The exchange alone, with codecs so simple that what it does itself is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from workers import contributions

from dtrain.comm.lockstep import lockstep
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.integers import int8
from dtrain.compressors.two_phase import Codec, TwoPhase
from dtrain.exchange import Bucket, Compressor, Context, Exchanged, Layout, Op, Request, State
from dtrain.meter.ledger import Ledger
from dtrain.sync.drive import drive_lockstep

WORLD_SIZES = [1, 2, 3, 4, 8]


@dataclass(frozen=True)
class AsType:
    """Values in a floating type, after one byte that says nothing: sizes are no multiple of anything."""

    dtype: torch.dtype

    def num_bytes(self, numel: int) -> int:
        return 1 + self.dtype.itemsize * numel if numel else 0

    def encode(self, values: Tensor, message: Tensor, workspace: Workspace) -> None:
        if len(values):
            message[0] = 255
            message[1:].copy_(values.to(self.dtype).view(torch.uint8))

    def decode(self, message: Tensor, values: Tensor, workspace: Workspace, *, add: float | None = None) -> None:
        if len(values):
            decoded = message[1:].clone().view(self.dtype).float()
            values.copy_(decoded if add is None else values + add * decoded)


EXACT: Codec = AsType(torch.float32)


def exchange(
    compressor: Compressor,
    shares: Sequence[Tensor],
    *,
    ledgers: Sequence[Ledger] = (),
) -> list[Exchanged]:
    layout = Layout(("weight",), ((shares[0].numel(),),))
    contexts = [Context(rank, len(shares), 0, wants_contribution=True) for rank in range(len(shares))]
    exchanges = [
        compressor.exchange(Bucket(share, layout), compressor.init(Bucket(share, layout)), context)
        for share, context in zip(shares, contexts, strict=True)
    ]
    return drive_lockstep(exchanges, lockstep(len(shares), ledgers))


def draw(numel: int, world_size: int) -> list[Tensor]:
    torch.manual_seed(numel + world_size)
    return [torch.randn(numel) for _ in range(world_size)]


def exchange_adding_up(compressor: Compressor, values: Sequence[Tensor]) -> list[Exchanged]:
    """An exchange whose contributions add up to the mean, to 1e-6 of what is summed, in every element."""
    results = exchange(compressor, values)
    local = contributions(results, len(values[0])).double()
    error = (local.sum(0) - results[0].mean.double()).abs()
    assert (error <= 1e-6 * local.abs().sum(0)).all()
    return results


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("numel", [1, 7, 1000])
def test_with_a_codec_that_loses_nothing_it_is_the_sum_of_the_shares(numel: int, world_size: int) -> None:
    values = draw(numel, world_size)
    for result in exchange(TwoPhase(EXACT), values):
        torch.testing.assert_close(result.mean, torch.stack(values).sum(0))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("numel", [1, 7, 1000])
def test_there_are_two_rounds_of_one_message_of_the_size_of_a_shard(numel: int, world_size: int) -> None:
    ledgers = [Ledger() for _ in range(world_size)]
    exchange(TwoPhase(EXACT), draw(numel, world_size), ledgers=ledgers)
    size = EXACT.num_bytes(-(-numel // world_size))
    for ledger in ledgers:
        entries = ledger.close().entries
        assert [(e.op, e.payload_bytes) for e in entries] == [
            (Op.ALL_TO_ALL, world_size * size),
            (Op.ALL_GATHER, size),
        ]
        assert sum(e.wire_bytes for e in entries) == 2 * (world_size - 1) * size


def test_a_rank_sends_no_more_than_two_encoded_buckets_however_many_there_are() -> None:
    for world_size in (2, 3, 8, 64):
        ledgers = [Ledger() for _ in range(world_size)]
        exchange(TwoPhase(AsType(torch.float16)), draw(6400, world_size), ledgers=ledgers)
        sent = sum(entry.wire_bytes for entry in ledgers[0].close().entries)
        assert sent == pytest.approx(2 * 2 * 6400 * (world_size - 1) / world_size, rel=0.02)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("numel", [1, 7, 1000])
def test_what_ranks_contributed_adds_up_though_values_were_rounded_twice(numel: int, world_size: int) -> None:
    values = draw(numel, world_size)
    results = exchange_adding_up(TwoPhase(AsType(torch.bfloat16)), values)
    assert numel < 1000 or not torch.allclose(results[0].mean, torch.stack(values).sum(0), rtol=1e-6)


def test_it_adds_up_where_the_second_rounding_takes_all_that_one_rank_sent() -> None:
    """Rank 2 makes the scale so large that rank 0's ones become zeros in the mean; rank 1 sent far smaller values.

    With what I sent + mean - sum as its contribution, rank 0 would lose rank 1's values in the rounding of the sum.
    """
    values = [torch.ones(99), torch.randn(99) * 1e-4, torch.zeros(99)]
    values[2][:33:8] = 1e6
    results = exchange_adding_up(int8(), values)
    assert (results[0].mean == 0).any()


def test_short_shards_leave_zeros_in_their_messages_and_not_what_was_in_memory() -> None:
    context = Context(0, 4, 0)
    context.scratch.empty("outgoing", torch.empty(4, 9, dtype=torch.uint8)).fill_(77)
    bucket = Bucket(torch.ones(5), Layout(("bias",), ((5,),)))
    request = next(TwoPhase(EXACT).exchange(bucket, State(), context))
    assert isinstance(request, Request)
    assert request.payload.shape == (4, 9)
    assert request.payload[2, 5:].tolist() == [0] * 4
    assert request.payload[3].tolist() == [0] * 9


def test_the_value_itself_may_become_the_residual() -> None:
    values = draw(1000, 3)
    results = exchange(TwoPhase(AsType(torch.bfloat16)), values)
    apart = [value.clone() for value in values]
    for result, value, copy in zip(results, values, apart, strict=True):
        result.contribution.subtract_from(copy)
        result.contribution.subtract_from(value)
        assert torch.equal(value, copy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_values_come_back_in_their_own(dtype: torch.dtype) -> None:
    values = [value.to(dtype) for value in draw(1000, 3)]
    for result in exchange(TwoPhase(EXACT), values):
        assert result.mean.dtype == dtype
        torch.testing.assert_close(result.mean, torch.stack(values).sum(0), rtol=1e-2, atol=1e-2)
