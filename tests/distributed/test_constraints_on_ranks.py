"""A pruned SqueezeNet, then with shared weights, trained by several processes: what they send, and what they learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from ranks import Here, on_ranks
from test_polled import communicator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dtrain.comm import Communicator, all_gather
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.compressors import NoCompression, build
from dtrain.exchange import Compressor
from dtrain.meter.c10d import installed
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.sync.every_step import EveryStep
from dtrain.train.config import Phase
from dtrain.train.constraints import compress, constraints_of, exchanged_as, num_values
from dtrain.vision import data, models

NUM_STEPS, BATCH_SIZE = 5, 8
NOTHING: Callable[[nn.Module], None] = lambda model: None  # noqa: E731


def compressed(*phases: Phase) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = models.build("squeezenet1_1", num_classes=10, dropout=0.0)
    for phase in phases:
        compress(model, phase)
    shared = any(phase.bits is not None for phase in phases)
    return model, constraints_of(model, pruned=True, shared=shared)


def train(
    model: nn.Module,
    compressor: Compressor,
    communicator: Communicator,
    ledger: Ledger,
    also: Callable[[nn.Module], None] = NOTHING,
) -> int:
    """With momentum and weight decay; `also` is done to the mean gradients. Returns the bytes handed over."""
    before = ledger.total(purpose=Purpose.GRADIENT).payload_bytes
    synchronizer = EveryStep(model, compressor, communicator, ledger)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    digits = data.open_dataset("digits", split="train", image_size=32)
    for step in range(NUM_STEPS):
        first = (step * communicator.world_size + communicator.rank) * BATCH_SIZE
        images, labels = digits.read(np.arange(first, first + BATCH_SIZE))
        optimizer.zero_grad()
        cross_entropy(model(torch.from_numpy(digits.normalize(images))), torch.from_numpy(labels)).backward()
        synchronizer.before_step()
        also(model)
        optimizer.step()
        synchronizer.after_step()
    synchronizer.close()
    return ledger.total(purpose=Purpose.GRADIENT).payload_bytes - before


def mask_gradients(masks: dict[str, Tensor]) -> Callable[[nn.Module], None]:
    def apply(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in masks:
                assert parameter.grad is not None
                parameter.grad.mul_(masks[name])

    return apply


def average_gradients(codes: dict[str, Tensor]) -> Callable[[nn.Module], None]:
    def apply(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in codes:
                assert parameter.grad is not None
                flat, places = parameter.grad.reshape(-1).double(), codes[name].reshape(-1).long() + 1
                sums = torch.zeros(int(places.max()) + 1, dtype=torch.float64).index_add(0, places, flat)
                means = sums / places.bincount(minlength=len(sums)).clamp(min=1)
                means[0] = 0
                parameter.grad.copy_(means[places].view_as(parameter))

    return apply


def check(communicator: Communicator, gradients: Communicator, ledger: Ledger) -> None:
    prune, share = Phase(1, density=0.33), Phase(1, bits=5)
    for phases, also in (((prune,), mask_gradients), ((prune, share), average_gradients)):
        model, what = compressed(*phases)
        dense, _ = compressed(*phases)
        payload = train(model, exchanged_as(NoCompression(), what), gradients, ledger)
        values = [p for p in model.parameters() if p.dim() > 1]
        left = [len(w[w != 0].unique()) if share in phases else int((w != 0).sum()) for w in values]
        biases = sum(p.numel() for p in model.parameters() if p.dim() == 1)
        assert payload == NUM_STEPS * 4 * (sum(left) + biases) == NUM_STEPS * 4 * num_values(model, what)
        train(dense, NoCompression(), gradients, ledger, also(what))
        for (name, one), two in zip(model.named_parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        everyone = all_gather(communicator, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        assert all(torch.equal(other, everyone[0]) for other in everyone)
        sparse = exchanged_as(build("top_k", density=0.05), what)
        assert 0 < train(model, sparse, gradients, ledger) < payload / 5


@on_ranks(2, 3)
def test_what_is_left_is_trained_as_if_everything_were_exchanged(here: Here) -> None:
    ledger = Ledger()
    with installed(ledger):
        assert dist.group.WORLD is not None
        communicator = TorchCommunicator(dist.group.WORLD)
        gradients = communicator.duplicate()
        check(communicator, gradients, ledger)


@on_ranks(2, launcher="mpiexec")
def test_over_mpi_too(here: Here) -> None:
    ledger = Ledger()
    mpi = communicator(here, ledger)
    gradients = mpi.duplicate()
    check(mpi, gradients, ledger)
    gradients.close()
    mpi.close()
