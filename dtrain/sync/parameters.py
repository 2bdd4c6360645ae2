"""Start every worker from the same model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.comm import Communicator, all_gather, broadcast
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.buckets import held

DIGEST_BYTES = 8


def digest(tensors: Iterable[Tensor]) -> bytes:
    """DIGEST_BYTES that are the same for tensors of the same bytes, one after the other."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for tensor in tensors:
        data: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(data)
    return found.digest()


def share_parameters(model: nn.Module, communicator: Communicator, ledger: Ledger) -> None:
    """Give every rank rank 0's parameters and buffers, each kind of tensor in one message, where they differ.

    Workers that built the same model from the same seed find out by 8 bytes for each kind, and send nothing more.
    """
    kinds = [
        (purpose, same)
        for purpose, tensors in (
            (Purpose.PARAMETERS, [held(p.detach()) for p in model.parameters()]),
            (Purpose.BUFFERS, list(model.buffers())),
        )
        for dtype in sorted({t.dtype for t in tensors}, key=str)
        if (same := [t for t in tensors if t.dtype == dtype])
    ]
    if not kinds or communicator.world_size == 1:
        return
    digests = torch.frombuffer(bytearray(b"".join(digest(same) for _, same in kinds)), dtype=torch.uint8)
    with ledger.scope(purpose=Purpose.CONTROL):
        everyone = all_gather(communicator, digests.to(kinds[0][1][0].device)).cpu()
    differs = (everyone != everyone[0]).view(communicator.world_size, len(kinds), DIGEST_BYTES).any(2).any(0)
    for (purpose, same), needed in zip(kinds, differs.tolist(), strict=True):
        if needed:
            with ledger.scope(purpose=purpose):
                flat = broadcast(communicator, torch.cat([t.reshape(-1) for t in same]))
            for tensor, part in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(part.view_as(tensor))
