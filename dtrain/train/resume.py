"""Save a run so that it can go on as if it had never stopped, and go on with one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain.comm import all_gather
from dtrain.meter.ledger import Activity, Purpose
from dtrain.sync.buckets import trainable
from dtrain.train import checkpoint
from dtrain.train.task import Task


def save(task: Task, description: Mapping[str, Any], folder: Path, step: int) -> None:
    """Write a checkpoint; every rank calls this after the same step. Ranks on hosts of their own write there."""
    communicator = task.communicator
    folder.mkdir(parents=True, exist_ok=True)
    if communicator.rank == 0:
        names: dict[Tensor, str] = {parameter: name for name, parameter in trainable(task.model)}
        checkpoint.save_model(task.model, folder / "model.safetensors", {**description, "step": step})
        checkpoint.save_optimizer(task.optimizer, names, folder / "optimizer.safetensors")
    checkpoint.save_rank(task.synchronizer.state_dict(), folder / f"rank{communicator.rank}.safetensors")
    with task.ledger.scope(activity=Activity.CHECKPOINT, purpose=Purpose.CONTROL):
        all_gather(communicator, torch.zeros(1, device=task.device))  # every rank has written
    if communicator.rank == 0:
        checkpoint.write_manifest(folder, step=step, world_size=communicator.world_size)


def resume(task: Task, folder: Path) -> int:
    """Take up a checkpoint and return its step. With as many workers as before, the run goes on bit for bit.

    With another number, the compressor's state is shared out by `exchange.share_out`, the batches follow the new world
    size, and the random generators (dropout) keep what this run's seed gave them.
    Raises ValueError or FileNotFoundError, naming the cure.
    """
    step, world_size = checkpoint.read_manifest(folder)
    communicator = task.communicator
    checkpoint.load_model_state(task.model, folder / "model.safetensors")
    checkpoint.load_optimizer(task.optimizer, dict(trainable(task.model)), folder / "optimizer.safetensors")
    ranks = [checkpoint.load_rank(folder / f"rank{rank}.safetensors") for rank in range(world_size)]
    task.synchronizer.load_state_dict(*(state for state, _ in ranks))
    if world_size == communicator.world_size:
        torch.set_rng_state(ranks[communicator.rank][1])
    return step
