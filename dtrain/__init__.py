"""Distributed training that measures, and then slashes, the bytes that workers exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from dtrain.sync.ddp import DdpSynchronizer

__all__ = ["__version__", "compress"]

__version__ = "0.1.0"


def compress(model: DistributedDataParallel, compressor: str, *, seed: int = 0, **options: Any) -> DdpSynchronizer:
    """Exchange the gradients of a DDP model through a compressor from now on.

        dtrain.compress(ddp_model, "fp16")

    Args:
        model: stock DistributedDataParallel, before its first backward pass.
        compressor: a name in `dtrain.compressors.COMPRESSORS`.
        seed: the same on every rank; for compressors that draw random numbers.
        options: the compressor's own.

    Returns:
        What holds the compressor's state: `state_dict()` to save it, `close()` when done.

    Raises:
        ValueError: no such compressor or option, or parameters on several devices.
    """
    from dtrain import compressors
    from dtrain.meter import c10d
    from dtrain.meter.ledger import Ledger
    from dtrain.sync import ddp

    return ddp.attach(model, compressors.build(compressor, **options), c10d.installed_ledger() or Ledger(), seed=seed)
