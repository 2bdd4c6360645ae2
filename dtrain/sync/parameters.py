"""Start every worker from the same model."""

from __future__ import annotations

import torch
from torch import nn

from dtrain.comm import Communicator, broadcast
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.buckets import held


def share_parameters(model: nn.Module, communicator: Communicator, ledger: Ledger) -> None:
    """Give every rank rank 0's parameters and buffers, each kind of tensor in one message."""
    for purpose, tensors in (
        (Purpose.PARAMETERS, [held(p.detach()) for p in model.parameters()]),
        (Purpose.BUFFERS, list(model.buffers())),
    ):
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            same = [t for t in tensors if t.dtype == dtype]
            with ledger.scope(purpose=purpose):
                flat = broadcast(communicator, torch.cat([t.reshape(-1) for t in same]))
            for tensor, part in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(part.view_as(tensor))
