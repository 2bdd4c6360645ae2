"""The two halves of an all_reduce, each alone, of dense codecs and of sparse messages."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor
from workers import Workers, contributions, flat

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import ErrorFeedback, build
from dtrain.compressors.codecs.selection import num_kept
from dtrain.compressors.codecs.sparse import SparseFormat
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.compressors.halves import Codec, ReduceScatter, encoded_all_gather, encoded_reduce_scatter, shards
from dtrain.compressors.sparse_routes import sparse_all_gather, sparse_reduce_scatter
from dtrain.compressors.two_phase import TwoPhase
from dtrain.exchange import Bucket, Context, Op
from dtrain.meter.ledger import Ledger
from dtrain.sync.drive import drive_lockstep

CODECS: dict[str, dict[str, str]] = {"int8": {}, "int4": {}, "ternary": {"rounding": "nearest"}, "one_bit": {}}
"""With rounding that is the same each time."""
DENSITY, VALUE_BITS = 0.1, 8
every_size = pytest.mark.parametrize("numel", [1, 5, 1000, 5003])
every_world_size = pytest.mark.parametrize("world_size", [1, 2, 3, 4])
every_codec = pytest.mark.parametrize("name", CODECS)


def codec(name: str) -> Codec:
    two_phase = build(name, **CODECS[name]).inner
    assert isinstance(two_phase, TwoPhase)
    return two_phase.codec


def workspace(context: Context, numel: int) -> Workspace:
    return Workspace(context, Bucket(torch.zeros(numel), flat(numel)), ceil(numel / context.world_size))


def run(
    half: Callable[[Tensor, Context], Generator[Any, Any, Any]], values: Sequence[Tensor]
) -> tuple[list[Any], list[tuple[Op, int, float]]]:
    """What each rank gets, and the traffic of one, which is that of all."""
    n = len(values)
    ledgers = [Ledger() for _ in range(n)]
    contexts = [Context(rank, n, 0, wants_contribution=True) for rank in range(n)]
    halves = [half(value, context) for value, context in zip(values, contexts, strict=True)]
    results = drive_lockstep(halves, lockstep(n, ledgers))
    traffic = [[(e.op, e.payload_bytes, e.wire_bytes) for e in ledger.close().entries] for ledger in ledgers]
    assert all(rank == traffic[0] for rank in traffic)
    return results, traffic[0]


def draw(numel: int, world_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(numel + world_size)
    return [torch.randn(numel, generator=generator) for _ in range(world_size)]


def draw_shards(numel: int, world_size: int) -> list[Tensor]:
    whole = draw(numel, world_size)[0]
    return [whole[shard].clone() for shard in shards(numel, world_size)]


def assert_adds_up(contributed: Tensor, arrived: Tensor) -> None:
    """Over ranks, but for the order of the sum."""
    error = (contributed.double().sum(0) - arrived.double()).abs()
    assert (error <= 1e-6 * contributed.double().abs().sum(0)).all()


def reduce_scatter(name: str, values: Sequence[Tensor]) -> tuple[list[Any], list[tuple[Op, int, float]]]:
    return run(lambda v, c: encoded_reduce_scatter(codec(name), v, c, workspace(c, v.numel())), values)


@every_codec
@every_size
@every_world_size
def test_an_encoded_reduce_scatter_gives_each_rank_its_shard_of_what_all_contributed(
    name: str, numel: int, world_size: int
) -> None:
    values = draw(numel, world_size)
    results, traffic = reduce_scatter(name, values)
    size = codec(name).num_bytes(ceil(numel / world_size))
    assert traffic == [(Op.ALL_TO_ALL, world_size * size, (world_size - 1) * size)]
    contributed = contributions(results, numel)
    for shard, result in zip(shards(numel, world_size), results, strict=True):
        assert result.total.shape == values[0][shard].shape
        assert_adds_up(contributed[:, shard], result.total)
    if name == "int8":  # each value is off by half of 1/127 of the largest of its block
        torch.testing.assert_close(contributed, torch.stack(values), rtol=0, atol=5 / 254)


@every_codec
@every_size
@every_world_size
def test_an_encoded_all_gather_gives_all_ranks_the_shards_as_they_were_encoded(
    name: str, numel: int, world_size: int
) -> None:
    values = draw_shards(numel, world_size)
    results, traffic = run(lambda v, c: encoded_all_gather(codec(name), v, numel, c, workspace(c, numel)), values)
    size = codec(name).num_bytes(ceil(numel / world_size))
    assert traffic == [(Op.ALL_GATHER, size, (world_size - 1) * size)]
    for result, value, shard in zip(results, values, shards(numel, world_size), strict=True):
        assert torch.equal(result.value, results[0].value)
        residual = value.clone()
        result.contribution.subtract_from(residual)
        assert torch.equal(residual, value - result.value[shard])
    if name == "int8":
        torch.testing.assert_close(results[0].value, torch.cat(values), rtol=0, atol=5 / 254)


@every_codec
@every_world_size
def test_one_half_after_the_other_is_the_exchange_in_two_phases(name: str, world_size: int) -> None:
    values = draw(1000, world_size)
    totals = [reduced.total for reduced in reduce_scatter(name, values)[0]]
    halves, _ = run(lambda v, c: encoded_all_gather(codec(name), v, 1000, c, workspace(c, 1000)), totals)
    workers = Workers(TwoPhase(codec(name)), flat(1000), world_size)
    for half, whole in zip(halves, workers.exchange([world_size * value for value in values]), strict=True):
        torch.testing.assert_close(half.value, whole.mean, rtol=1e-5, atol=1e-6)


@every_size
@every_world_size
def test_a_sparse_reduce_scatter_gives_each_rank_its_shard_of_what_all_contributed(numel: int, world_size: int) -> None:
    values = draw(numel, world_size)
    results, traffic = run(lambda v, c: sparse_reduce_scatter(v, DENSITY, VALUE_BITS, c), values)
    part = ceil(numel / world_size)
    size = SparseFormat(num_kept(DENSITY, part), part, VALUE_BITS).num_bytes
    assert traffic == [(Op.ALL_TO_ALL, world_size * size, (world_size - 1) * size)]
    contributed = contributions(results, numel)
    for shard, result in zip(shards(numel, world_size), results, strict=True):
        length = shard.stop - shard.start
        assert result.total.shape == (part,)
        assert not result.total[length:].any()
        assert_adds_up(contributed[:, shard], result.total[:length])
        assert set(result.total.nonzero().view(-1).tolist()) <= set(result.support.tolist())


@every_size
@every_world_size
def test_a_sparse_all_gather_gives_all_ranks_the_largest_of_each_shard(numel: int, world_size: int) -> None:
    values = draw_shards(numel, world_size)
    results, traffic = run(lambda v, c: sparse_all_gather(v, numel, DENSITY, 32, c), values)
    part = ceil(numel / world_size)
    k = num_kept(DENSITY, part)
    assert traffic[0][:2] == (Op.ALL_GATHER, SparseFormat(k, part, 32).num_bytes)
    for result, value, shard in zip(results, values, shards(numel, world_size), strict=True):
        assert torch.equal(result.value, results[0].value)
        kept = min(k, value.numel())
        assert int(result.value[shard].count_nonzero()) == kept
        left = value.clone()
        result.contribution.subtract_from(left)
        assert torch.equal(left, value - result.value[shard])
        assert int((left == 0).sum()) == kept


@every_world_size
def test_error_feedback_around_a_reduce_scatter_loses_nothing(world_size: int) -> None:
    """What FSDP2 needs: every rank gets its shard of the mean, and keeps what it did not send of all shards."""
    numel = 1001
    workers = Workers(ErrorFeedback(ReduceScatter(codec("one_bit"))), flat(numel), world_size)
    given = arrived = torch.zeros(numel, dtype=torch.float64)
    for _ in range(20):
        values = workers.random()
        given = given + torch.stack(values).double().sum(0)
        means = [result.mean for result in workers.exchange(values)]
        assert [mean.numel() for mean in means] == [s.stop - s.start for s in shards(numel, world_size)]
        arrived = arrived + world_size * torch.cat(means).double()
    left = world_size * sum(state.residual.value.double() for state in workers.states)
    torch.testing.assert_close(given - arrived, left, rtol=0, atol=1e-4)
    assert left.any()


@every_codec
def test_a_contribution_stays_as_it_is_until_the_next_exchange(name: str) -> None:
    """It is decoded when it is subtracted: twice, and it gives the same."""
    results, _ = reduce_scatter(name, draw(1000, 3))
    assert torch.equal(contributions(results, 1000), contributions(results, 1000))


def test_shards_cover_the_vector_and_the_last_may_be_short_or_empty() -> None:
    assert shards(5, 4) == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 5)]
    assert shards(4, 2) == [slice(0, 2), slice(2, 4)]
