"""Going on with a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dtrain.comm import Communicator
from dtrain.sync.buckets import trainable
from dtrain.sync.synchronizer import Synchronizer
from dtrain.train.carry import Carried
from dtrain.train.checkpoint import MODEL, Checkpoint
from dtrain.train.model_files import fill_model


def resume(
    checkpoint: Checkpoint | Carried,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    synchronizer: Synchronizer,
    communicator: Communicator,
) -> None:
    """Take up a checkpoint. With as many workers as before, the run goes on bit for bit.

    With another number, the compressor's state is shared out by `exchange.share_out`, and the random generators
    (dropout) keep what this run's seed gave them. Raises ValueError or FileNotFoundError, naming the cure.
    """
    rank, saved_by = communicator.rank, checkpoint.manifest.world_size
    fill_model(model, checkpoint.tensors(MODEL), checkpoint.folder / MODEL)
    _fill_optimizer(optimizer, dict(trainable(model)), checkpoint)
    whose = [rank] if saved_by == communicator.world_size else list(range(saved_by))
    ranks = [checkpoint.rank(one) for one in whose]
    synchronizer.load_state_dict(*(state for state, _ in ranks))
    if saved_by == communicator.world_size:
        torch.set_rng_state(ranks[0][1])


def _fill_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], checkpoint: Checkpoint | Carried
) -> None:
    for name, (tensor, path) in checkpoint.optimizer().items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None:
            raise ValueError(f"{path}: holds a state of {parameter_name!r}, which this model has not: give another")
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(f"{path}: {name} has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
        optimizer.state[parameter][key] = tensor.to(parameter.device)
