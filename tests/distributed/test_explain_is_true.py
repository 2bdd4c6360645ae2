"""What `dtrain explain` lists before anything runs is what a step then puts into the ledger, entry by entry."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ranks import Here, on_ranks

from dtrain import compressors
from dtrain.comm.torch_dist import TorchCommunicator
from dtrain.meter.c10d import installed
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.plan.explain import explain
from dtrain.sync.every_step import EveryStep
from dtrain.vision import models

MODEL, NUM_CLASSES = "squeezenet1_1", 1000
"""Two buckets at the usual sizes."""
COMPRESSORS: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {},
    "top_k": {"density": 0.001},
    "power_sgd": {"power_sgd_rank": 1},
    "one_bit": {},
    "rotated_signs": {},
    "chunked_top_k": {},
}
"""Messages of one and of two rounds, above and below what is fused, with and without parts that are left dense."""


@on_ranks(2)
def test_the_collectives_of_a_step_are_those_that_explain_lists(here: Here) -> None:
    assert dist.group.WORLD is not None
    communicator = TorchCommunicator(dist.group.WORLD)
    model = models.build(MODEL, num_classes=NUM_CLASSES)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(here.rank))
    fused = 0
    for name, options in COMPRESSORS.items():
        listed = explain(name, model=MODEL, num_classes=NUM_CLASSES, world_size=2, **options).rounds
        ledger = Ledger()
        synchronizer = EveryStep(model, compressors.build(name, **options), communicator, ledger)
        try:
            with installed(ledger):
                model(images).sum().backward()
                synchronizer.before_step()
        finally:
            synchronizer.close()
        sent = [e for e in ledger.close().entries if e.purpose is Purpose.GRADIENT]
        assert [(str(e.op), e.payload_bytes, e.wire_bytes) for e in sent] == [
            (r.op, r.payload_bytes, r.wire_bytes) for r in listed
        ], name
        fused += sum(len(r.buckets) > 1 for r in listed)
    assert fused, "nothing was fused: the test shows nothing of it"
