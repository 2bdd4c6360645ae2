"""A Horovod program as people have it; two lines of dtrain take the place of hvd.DistributedOptimizer.

horovodrun -np 2 python horovod_user.py RESULT.json COMPRESSOR [OPTION=VALUE ...]   # `stock` keeps DistributedOptimizer
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import horovod.torch as hvd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dtrain
from dtrain.vision import data

EPOCHS, BATCH_SIZE = 8, 16


def main(result: Path, compressor: str, options: dict[str, float]) -> None:
    hvd.init()
    torch.manual_seed(hvd.rank())
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    synchronizer = None
    if compressor == "stock":
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    else:
        synchronizer = dtrain.compress_horovod(model, optimizer, compressor, **options)
    train_set = data.open_dataset("digits", split="train", image_size=16)
    loader = data.train_loader(
        train_set, batch_size=BATCH_SIZE, rank=hvd.rank(), world_size=hvd.size(), seed=0, augment=False, num_workers=0
    )
    for epoch in range(EPOCHS):
        for batch in loader.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(model(batch.images), batch.labels).backward()
            optimizer.step()
    correct = count = 0
    with torch.inference_mode():
        for batch in data.eval_batches(data.open_dataset("digits", split="test", image_size=16), batch_size=400):
            correct += int((model(batch.images).argmax(1) == batch.labels).sum())
            count += len(batch.labels)
    weights = hvd.allgather(torch.cat([p.detach().flatten() for p in model.parameters()]).view(1, -1))
    if hvd.rank() == 0:
        wire_bytes = synchronizer.ledger.total().wire_bytes if synchronizer else None
        same = bool(weights.eq(weights[0]).all())
        result.write_text(json.dumps({"accuracy": 100 * correct / count, "bytes": wire_bytes, "same": same}))


if __name__ == "__main__":
    pairs = (part.partition("=") for part in sys.argv[3:])
    main(Path(sys.argv[1]), sys.argv[2], {key: float(value) for key, _, value in pairs})
