"""What N real workers get from an exchange over gloo is what N virtual ones get from lockstep, for every compressor."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from torch import Tensor

from dtrain.comm.lockstep import lockstep
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.compressors import COMPRESSORS, build
from dtrain.exchange import Bucket, Compressor, Context, Layout
from dtrain.sync.drive import drive, drive_lockstep

LAYOUT = Layout(("weight", "bias"), ((100, 70), (71,)))
OPTIONS = [
    *((name, {}) for name in COMPRESSORS),
    *((name, {"rounding": "stochastic"}) for name in ("int8", "int4", "ternary")),
    *((name, {"exchange": "split"}) for name in ("top_k", "dgc")),
    ("int4", {"exempt_below": 100}),
    ("one_bit", {"start_after": 1}),
]

HALF = {"fp16": 2**-10, "bf16": 2**-7}
"""Two units of rounding: gloo adds up in these types, each part of a vector in an order of its own."""


def values(world_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(LAYOUT.numel, generator=generator) for _ in range(world_size)]


def in_lockstep(compressor: Compressor, world_size: int) -> Tensor:
    exchanges = []
    for rank, value in enumerate(values(world_size)):
        bucket = Bucket(value, LAYOUT)
        exchanges.append(compressor.exchange(bucket, compressor.init(bucket), Context(rank, world_size, 0, seed=7)))
    return drive_lockstep(exchanges, lockstep(world_size))[0].mean


@on_ranks(2, 4)
def test_a_single_exchange_on_gloo_is_that_of_lockstep(here: Here) -> None:
    assert dist.group.WORLD is not None
    communicator = TorchCommunicator(dist.group.WORLD)
    for name, options in OPTIONS:
        compressor = build(name, **options)
        expected = in_lockstep(compressor, here.world_size)
        bucket = Bucket(values(here.world_size)[here.rank], LAYOUT)
        context = Context(here.rank, here.world_size, 0, seed=7)
        mean = drive(compressor.exchange(bucket, compressor.init(bucket), context), communicator).mean
        error = float((mean - expected).norm() / expected.norm())
        assert error <= HALF.get(name, 1e-6), f"{name} {options}: relative error {error}"
