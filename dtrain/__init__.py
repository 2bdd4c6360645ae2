"""Distributed training that measures, and then slashes, the bytes that workers exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import Optimizer

    from dtrain.sync.ddp import DdpSynchronizer
    from dtrain.sync.horovod import HorovodSynchronizer

__all__ = ["__version__", "compress", "compress_horovod"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Modules that programs know as `dtrain.<name>`, imported when first asked for."""
    found: ModuleType
    match name:
        case "data":
            from dtrain.vision import data as found
        case "models":
            from dtrain.vision import models as found
        case "sensitivity":
            from dtrain.slim import sensitivity as found
        case _:
            raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
    return found


def compress(model: DistributedDataParallel, compressor: str, *, seed: int = 0, **options: Any) -> DdpSynchronizer:
    """Exchange the gradients of a DDP model through a compressor from now on.

        dtrain.compress(ddp_model, "fp16")

    Args:
        model: stock DistributedDataParallel, before its first backward pass.
        compressor: a name in `dtrain.compressors.COMPRESSORS`.
        seed: the same on every rank; for compressors that draw random numbers.
        options: the compressor's own.

    Returns:
        What holds the compressor's state on this rank: `state_dict()` to save it, `load_state_dict(saved)` to go on
        with it, `discard()` after a backward pass whose step is left out, `close()` when done.

    Raises:
        ValueError: no such compressor or option, or parameters on several devices.
    """
    from dtrain import compressors
    from dtrain.meter import c10d
    from dtrain.meter.ledger import Ledger
    from dtrain.sync import ddp

    return ddp.attach(model, compressors.build(compressor, **options), c10d.installed_ledger() or Ledger(), seed=seed)


def compress_horovod(
    model: nn.Module, optimizer: Optimizer, compressor: str, *, seed: int = 0, **options: Any
) -> HorovodSynchronizer:
    """Exchange gradients over Horovod through a compressor from now on, in place of hvd.DistributedOptimizer.

        synchronizer = dtrain.compress_horovod(model, optimizer, "int4")

    The gradients that `optimizer.step()` then finds are the mean over ranks.

    Args:
        model: the same on every rank, after hvd.init() and before its first backward pass.
        optimizer: the plain one, of this model's parameters; its step takes no closure.
        compressor: a name in `dtrain.compressors.COMPRESSORS`.
        seed: the same on every rank; for compressors that draw random numbers.
        options: the compressor's own.

    Returns:
        What holds the compressor's state on this rank (`state_dict()` to save it, `load_state_dict(saved)` to go on
        with it) and counts what the exchange sends (`ledger`). Backward passes inside its `no_sync()` only accumulate.

    Raises:
        ValueError: no such compressor or option, an optimizer that exchanges gradients itself, or no Horovod.
    """
    from dtrain import compressors
    from dtrain.sync import horovod

    return horovod.attach(model, optimizer, compressors.build(compressor, **options), seed=seed)
