"""`dtrain.local` between groups of workers who keep a model together otherwise: DDP within a node, FSDP2 by shard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dtrain
from dtrain.meter.c10d import installed
from dtrain.meter.ledger import Ledger, Purpose


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 4))


def mesh_of(here: Here) -> DeviceMesh:
    assert here.world_size == 4
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def sharded(mesh: DeviceMesh) -> nn.Sequential:
    model = network()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh["shard"])
    return model


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, key: int) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 * step + key)
        optimizer.zero_grad()
        model(torch.randn(8, 16, generator=generator)).square().mean().backward()
        optimizer.step()


def own_weights(model: nn.Module) -> Tensor:
    shards: list[Any] = list(model.parameters())
    return torch.cat([(p.to_local() if hasattr(p, "to_local") else p).detach().reshape(-1) for p in shards])


def of_everybody(own: Tensor) -> list[Tensor]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


@on_ranks(4)
def test_equal_shards_exchange_what_they_changed_and_go_on_bit_for_bit(here: Here) -> None:
    mesh = mesh_of(here)

    def begin(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = adamw(model)
        group = mesh.get_group("replicate")
        return optimizer, dtrain.local(model, optimizer, every=2, compressor="int4", group=group)

    model = sharded(mesh)
    optimizer, synchronizer = begin(model)
    train(model, optimizer, range(3), here.rank)
    saved, weights = synchronizer.state_dict(), own_weights(model)
    assert (saved["steps"], saved["position"]) == (3, 1)
    assert not torch.equal(of_everybody(weights)[here.rank], of_everybody(weights)[(here.rank + 2) % 4])
    train(model, optimizer, range(3, 6), here.rank)
    everybody = of_everybody(own_weights(model))
    assert torch.equal(everybody[0], everybody[2]) and torch.equal(everybody[1], everybody[3])
    assert not torch.equal(everybody[0], weights)

    again = sharded(mesh)
    second_optimizer, second = begin(again)
    second.load_state_dict(saved)
    assert torch.equal(own_weights(again), weights)
    train(again, second_optimizer, range(3, 6), here.rank)
    assert torch.equal(own_weights(again), own_weights(model))
    for one in (synchronizer, second):
        one.close()


@on_ranks(4)
def test_one_worker_to_a_node_of_ddp_exchanges_among_nodes(here: Here) -> None:
    """Gradients are averaged within each node by DDP, updates between the nodes through the compressor."""
    mesh = mesh_of(here)
    ddp = DistributedDataParallel(network(), process_group=mesh.get_group("shard"))
    optimizer = adamw(ddp)
    with installed(Ledger()) as ledger:
        synchronizer = dtrain.local(ddp, optimizer, compressor="int4", group=mesh.get_group("replicate"))
        for step in range(4):
            train(ddp, optimizer, range(step, step + 1), here.rank)
            first, *others = of_everybody(own_weights(ddp))
            assert all(torch.equal(first, other) for other in others)
        synchronizer.close()
    dense = 4 * sum(p.numel() for p in ddp.parameters())
    exchanged = ledger.total(purpose=Purpose.GRADIENT).payload_bytes
    assert 4 * dense < exchanged < 4 * dense * 1.5  # DDP's own, dense; int4 beside it


@on_ranks(4)
def test_a_group_whose_workers_keep_the_model_together_already_is_refused(here: Here) -> None:
    mesh = mesh_of(here)
    ddp = DistributedDataParallel(network())
    with pytest.raises(ValueError, match=r"ranks 0, 2 are in group and in this DDP model's|ranks 1, 3 are in group"):
        dtrain.local(ddp, adamw(ddp), group=mesh.get_group("replicate"))
    hybrid = network()
    fully_shard(hybrid, mesh=mesh)
    with pytest.raises(ValueError, match=r'0\.weight is replicated over a dimension of its mesh.*mesh\["shard"\]'):
        dtrain.local(hybrid, adamw(hybrid), group=mesh.get_group("replicate"))
    whole = sharded(mesh)
    with pytest.raises(ValueError, match=r"ranks (0, 1|2, 3) are in group and hold shards of the same 0\.weight"):
        dtrain.local(whole, adamw(whole), group=mesh.get_group("shard"))
    alone = sharded(mesh)
    with pytest.raises(ValueError, match=r"sharded.*group=\.\.\."):
        dtrain.local(alone, adamw(alone))


@on_ranks(2, 4)
def test_fragments_travel_beside_steps_and_all_end_equal(here: Here) -> None:
    model = network()
    optimizer = adamw(model)
    how: dict[str, Any] = {"every": 6, "fragments": 3, "delay": 1, "kept": 0.5, "guard": "off"}
    synchronizer = dtrain.local(model, optimizer, compressor="ternary", **how)
    train(model, optimizer, range(15), here.rank)
    first, *others = of_everybody(own_weights(model))
    assert not any(torch.equal(first, other) for other in others)
    synchronizer.align()
    first, *others = of_everybody(own_weights(model))
    assert all(torch.equal(first, other) for other in others)
    synchronizer.close()
