"""What keeps ranks one job: they start with the same settings, and their replicas stay the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.comm import Communicator, all_gather, all_gather_bytes
from dtrain.files import parse_json
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.parameters import DIGEST_BYTES, digest
from dtrain.train.settings import Settings, difference_of, name_ranks


class DivergedError(RuntimeError):
    """Ranks that must have the same parameters do not."""


def check_settings(settings: Settings, communicator: Communicator, ledger: Ledger, device: torch.device) -> None:
    """Raise ValueError, on every rank alike, that names the settings in which ranks differ, the values and the ranks.

    Every rank calls this before anything else is exchanged. Where all is well, 8 bytes are.
    """
    text = json.dumps(settings, sort_keys=True).encode()
    own = hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()
    with ledger.scope(purpose=Purpose.CONTROL):
        if len(all_gather(communicator, _bytes(own, device)).unique(dim=0)) == 1:
            return
        texts = all_gather_bytes(communicator, text, device)
    ranks = [_read(said, rank) for rank, said in enumerate(texts)]
    raise ValueError(
        f"ranks were started with different settings: {difference_of(ranks)}: give every rank the same command"
    )


def check_replicas(
    model: nn.Module, step: int, communicator: Communicator, ledger: Ledger, device: torch.device
) -> None:
    """Raise DivergedError, on every rank alike, that names the ranks whose parameters are not those of the others.

    A rank hands over 8 bytes for each parameter.
    """
    parameters = dict(model.named_parameters())
    digests = b"".join(digest([parameter]) for parameter in parameters.values())
    with ledger.scope(purpose=Purpose.CONTROL):
        ranks = all_gather(communicator, _bytes(digests, device)).cpu()
    rows = [bytes(row.tolist()) for row in ranks]
    usual, _ = Counter(rows).most_common(1)[0]  # of equally many the first: rank 0's
    differing = [rank for rank, row in enumerate(rows) if row != usual]
    if differing:
        one = rows[differing[0]]
        first = next(i for i in range(len(parameters)) if _at(one, i) != _at(usual, i))
        raise DivergedError(
            f"replicas have diverged by step {step}: {name_ranks(differing)} {'have' if differing[1:] else 'has'} "
            f"parameters that rank {rows.index(usual)} has not, {list(parameters)[first]} first"
        )


def _read(text: bytes, rank: int) -> Settings:
    try:
        settings = parse_json(text, not_finite=True)
    except ValueError as error:
        raise ValueError(f"the settings of rank {rank} came damaged: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"the settings of rank {rank} came damaged")
    return settings


def _at(digests: bytes, index: int) -> bytes:
    return digests[DIGEST_BYTES * index : DIGEST_BYTES * (index + 1)]


def _bytes(data: bytes, device: Any) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
