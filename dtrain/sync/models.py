"""What a program's model and optimizer are: plain, wrapped or sharded; and whether parameters can be exchanged."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

ProcessGroup: TypeAlias = dist.ProcessGroup


class Kind(NamedTuple):
    """Of model: its name, and what to do with it where a DDP model is wanted."""

    name: str
    instead: str


PLAIN = Kind(
    "a plain module",
    "wrap it in DistributedDataParallel, or give what your trainer wrapped it in (docs/library.md), or exchange its "
    "optimizer's updates with dtrain.local(model, optimizer, ...)",
)
_DDP = Kind("a DistributedDataParallel model", "give that")
_SHARDED = (
    "its gradients are reduced by shard, which is not compressed; dtrain.meter.install() counts them. Where several "
    "such models train, dtrain.local(..., group=...) exchanges what their equal shards changed (docs/library.md)"
)


def num_workers(group: dist.ProcessGroup | None = None) -> int:
    """Of the group, or of the job; 1 before torch.distributed is initialised."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def kind_of(model: nn.Module) -> Kind:
    """What this model is; where it is nothing of its own, what the first of its parts is that something else runs."""
    for name, module in model.named_modules():
        kind = _own_kind(module)
        if kind is not None:
            return Kind(f"a module whose {name} is {kind.name}", kind.instead) if name else kind
    if any("DTensor" in {cls.__name__ for cls in type(p).__mro__} for p in model.parameters()):
        return Kind("sharded (its parameters are DTensors)", _SHARDED)
    return PLAIN


def _own_kind(model: nn.Module) -> Kind | None:
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__}
    if any(name.endswith(".ReplicateModule") for name in names) or _is_replicated(model):
        return Kind(
            "replicated by replicate()", "use DistributedDataParallel in place of replicate(), which has no hooks"
        )
    if any(name.endswith((".FSDPModule", ".FullyShardedDataParallel")) for name in names):
        return Kind("sharded (FSDP)", _SHARDED)
    if any(name.startswith("deepspeed.") for name in names):
        return Kind("a DeepSpeed engine", "it exchanges gradients itself; dtrain.meter.install() counts them")
    return _DDP if isinstance(model, DistributedDataParallel) else None


def check_apart(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Raise ValueError, naming the cure, for a model that is kept together already by workers of this group.

    That is DDP among several of them, FSDP whose gradients are reduced over the same ranks, or anything unknown.
    """
    ranks = set(dist.get_process_group_ranks(group))
    ddp = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if ddp:
        shared = ranks.intersection(dist.get_process_group_ranks(ddp[0].process_group))
        if len(shared) > 1:
            raise ValueError(
                f"ranks {', '.join(map(str, sorted(shared)))} are in group and in this DDP model's process_group: give "
                "DDP a group that has one of them"
            )
        return
    sharded: list[tuple[str, Any]] = [(name, p) for name, p in model.named_parameters() if hasattr(p, "to_local")]
    for name, parameter in sharded:
        if any(placement.is_replicate() for placement in parameter.placements):
            raise ValueError(
                f"{name} is replicated over a dimension of its mesh, whose gradients are averaged every step: give "
                'fully_shard the dimension of shards alone, mesh["shard"]'
            )
        shared = ranks.intersection(parameter.device_mesh.mesh.flatten().tolist())
        if len(shared) > 1:
            raise ValueError(
                f"ranks {', '.join(map(str, sorted(shared)))} are in group and hold shards of the same {name}: give "
                'the group of those who hold equal shards, mesh.get_group("replicate")'
            )
    kind = kind_of(model)
    if not sharded and kind is not PLAIN:
        raise ValueError(f"dtrain.local takes a plain module, a DDP model or FSDP2's, and this is {kind.name}")


def check_parameters(model: nn.Module, *, sparse: bool = False) -> None:
    """Raise ValueError, naming the parameter and the cure, for several devices, or sparse gradients not allowed."""
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1:
        raise ValueError(f"parameters on several devices ({', '.join(map(str, devices))}): use one device per process")
    for name, module in model.named_modules():
        if not sparse and getattr(module, "sparse", False) and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise ValueError(
                f"{name}.weight gets sparse gradients, which are not compressed: build the embedding with sparse=False"
            )


def check_hook(ddp: DistributedDataParallel) -> None:
    """Raise ValueError, naming the cure, for a model that has a communication hook."""
    hooks = [hook.__qualname__ for hook, _ in ddp._comm_hooks]
    if hooks:
        raise ValueError(
            f"this model has the communication hook {hooks[0]} already, and torch takes one: use dtrain.compress or "
            "dtrain.local, once"
        )


def check_all_ranks(ddp: DistributedDataParallel) -> None:
    """Raise ValueError, naming the cure, for a model that only some ranks keep together."""
    ranks, world_size = dist.get_process_group_ranks(ddp.process_group), dist.get_world_size()
    if len(ranks) < world_size:
        raise ValueError(
            f"this model is kept together by ranks {', '.join(map(str, ranks))} of {world_size}, and dtrain "
            "exchanges updates among all: exchange its gradients, with dtrain.compress"
        )


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, inside what accelerate and Lightning put around it: those have no hooks and no kind."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _is_replicated(model: nn.Module) -> bool:
    """By torch.distributed._composable.replicate, which keeps the module's own class."""
    from torch.distributed._composable.contract import _get_registry

    registry = _get_registry(model)
    return registry is not None and "replicate" in registry


def check_trained(model: nn.Module, optimizer: Optimizer) -> None:
    """Raises ValueError for a parameter to be trained that this optimizer does not have."""
    has = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in has:
            raise ValueError(f"{name} is not among the optimizer's parameters: give the optimizer that trains it")
