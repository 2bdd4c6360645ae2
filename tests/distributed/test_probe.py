"""The link between real ranks, as a plan takes it, and what `auto` makes of it."""

from __future__ import annotations

import torch
from ranks import Here, on_ranks
from torch import nn

from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.meter.ledger import Ledger
from dtrain.plan.choose import Chooser
from dtrain.plan.probe import probe
from dtrain.plan.subject import of_job


def communicator() -> TorchCommunicator:
    group = torch.distributed.group.WORLD
    assert group is not None
    return TorchCommunicator(group)


@on_ranks(2, 3)
def test_every_rank_finds_the_same_link(here: Here) -> None:
    link = probe(communicator())
    assert link.bits_per_second > 1e7
    assert 0 < link.latency_seconds < 0.1
    assert link.core_seconds_per_byte > 0
    found: list[object] = [None] * here.world_size
    torch.distributed.all_gather_object(found, link)
    assert found == [link] * here.world_size


@on_ranks(2)
def test_ranks_agree_on_what_is_fastest(here: Here) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 400), nn.Linear(400, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(8, 100)
    chooser = Chooser(
        lambda: of_job(model, optimizer, "sgd", lambda measured: measured(images).square().mean()),
        "sgd",
        communicator(),
        Ledger(),
        here.world_size,
        less_often=True,
    )
    found: list[object] = [None] * here.world_size
    torch.distributed.all_gather_object(found, chooser.choose().label)
    assert len(set(found)) == 1
