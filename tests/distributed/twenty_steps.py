"""Twenty steps of SqueezeNet on digits with every compressor: what any backend must send exactly, and learn nearly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dtrain.comm import Communicator
from dtrain.compressors import COMPRESSORS, build
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.every_step import EveryStep
from dtrain.vision import data, models

NUM_STEPS, BATCH_SIZE = 20, 4
Outcome = tuple[list[float], int]
"""The losses of the steps, and the bytes that this rank handed over for its gradients."""


def train(name: str, communicator: Communicator, ledger: Ledger) -> Outcome:
    """Train with a compressor over a communicator whose collectives the ledger records."""
    before = ledger.total(purpose=Purpose.GRADIENT).payload_bytes
    torch.manual_seed(0)
    model = models.build("squeezenet1_1", num_classes=10)
    synchronizer = EveryStep(model, build(name), communicator.duplicate(), ledger)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    torch.manual_seed(communicator.rank)
    images, labels = _batches(communicator)
    losses = []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(model(images[step]), labels[step])
        loss.backward()
        synchronizer.before_step()
        optimizer.step()
        synchronizer.after_step()
        losses.append(loss.item())
    synchronizer.close()
    return losses, ledger.total(purpose=Purpose.GRADIENT).payload_bytes - before


def _batches(communicator: Communicator) -> tuple[Tensor, Tensor]:
    """A rank's own images (NUM_STEPS, BATCH_SIZE, 3, 32, 32), and their labels."""
    digits = data.open_dataset("digits", split="train", image_size=32)
    images, labels = digits.read(np.arange(NUM_STEPS * BATCH_SIZE) * communicator.world_size + communicator.rank)
    shape = (NUM_STEPS, BATCH_SIZE)
    return torch.from_numpy(digits.normalize(images)).unflatten(0, shape), torch.from_numpy(labels).unflatten(0, shape)


def assert_agree(here: Communicator, here_ledger: Ledger, gloo: Communicator, gloo_ledger: Ledger, *but: str) -> None:
    """Every compressor, except `but`, sends exactly gloo's bytes and reaches its losses."""
    for name in COMPRESSORS:
        if name not in but:
            losses, payload = train(name, here, here_ledger)
            gloo_losses, gloo_payload = train(name, gloo, gloo_ledger)
            assert payload == gloo_payload > 0, name
            furthest = max(abs(a - b) for a, b in zip(losses, gloo_losses, strict=True))
            assert furthest < 1e-2, f"{name}: losses differ by {furthest}"
