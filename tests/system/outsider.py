"""A program as people have it: stock DDP, BatchNorm, a parameter that most steps do not use; compressed by one line.

torchrun --nproc-per-node=2 outsider.py COMPRESSOR [OPTION=VALUE ...]   # prints JSON on rank 0; `stock` adds no line
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import dtrain
import dtrain.meter
from dtrain.vision import data

EPOCHS, BATCH_SIZE = 12, 16


class Network(nn.Module):
    """Ten thousand parameters; `extra` is used in every third step only, and `never` in none."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(32 * 16, 10)
        self.extra = nn.Linear(32 * 16, 10)
        self.never = nn.Linear(5, 5)

    def forward(self, images: Tensor, step: int) -> Tensor:
        features = self.features(images).flatten(1)
        logits: Tensor = self.classifier(features)
        return logits + self.extra(features) if step % 3 == 0 else logits


def number(text: str) -> float:
    """An int where it is one."""
    return int(text) if text.isdigit() else float(text)


def main(compressor: str, options: dict[str, float]) -> None:
    ledger = dtrain.meter.install()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(Network(), find_unused_parameters=True)
    if compressor != "stock":
        dtrain.compress(model, compressor, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train_set = data.open_dataset("digits", split="train", image_size=16)
    loader = data.train_loader(
        train_set, batch_size=BATCH_SIZE, rank=rank, world_size=world_size, seed=0, augment=False, num_workers=0
    )
    step = 0
    for epoch in range(EPOCHS):
        for batch in loader.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(model(batch.images, step), batch.labels).backward()
            optimizer.step()
            step += 1
    model.eval()
    correct = count = 0
    with torch.inference_mode():
        for batch in data.eval_batches(data.open_dataset("digits", split="test", image_size=16), batch_size=400):
            correct += int((model.module(batch.images, 0).argmax(1) == batch.labels).sum())
            count += len(batch.labels)
    if rank == 0:
        print(json.dumps({"accuracy": 100 * correct / count, "steps": step, "bytes": ledger.total().wire_bytes}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], {key: number(value) for key, _, value in (part.partition("=") for part in sys.argv[2:])})
