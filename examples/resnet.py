"""ResNet-18 for images of 32 x 32 pixels, trained data-parallel with DDP, SGD and momentum; compressed by one line.

    torchrun --standalone --nproc-per-node=2 examples/resnet.py
    torchrun --standalone --nproc-per-node=2 examples/resnet.py --compress int4

The images are dtrain's digits, scaled up. At its end rank 0 prints one line of JSON: the accuracy on images that were
in no training, and the bytes that it sent to exchange gradients, beside fp32's.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.parallel import DistributedDataParallel

import dtrain
import dtrain.meter
from dtrain import data

BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = 32, 32, 10


class Block(nn.Module):
    """Two 3 x 3 convolutions, and what came in added to them: (batch, inputs, h, w) to (batch, outputs, h', w')."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second_norm(self.second(relu(self.first_norm(self.first(x)))))
        return relu(inner + self.shortcut(x))


class ResNet18(nn.Module):
    """He et al. 2015 (arXiv:1512.03385) with a first layer for small images: (batch, 3, 32, 32) to logits.

    `width` is of the first stage: 64 in the paper.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential()
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            self.stages.append(Block(inputs, outputs, stride=1 if stage == 0 else 2))
            self.stages.append(Block(outputs, outputs, stride=1))
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


def accuracy(model: nn.Module) -> float:
    """In percent, on the test images."""
    model.eval()
    correct = count = 0
    test_set = data.open_dataset("digits", split="test", image_size=IMAGE_SIZE)
    with torch.inference_mode():
        for batch in data.eval_batches(test_set, batch_size=120):
            correct += int((model(batch.images).argmax(1) == batch.labels).sum())
            count += len(batch.labels)
    return round(100 * correct / count, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compress", metavar="NAME", help="exchange gradients through this compressor")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=16, help="of the first stage; 64 is the paper's, 15 times slower")
    arguments = parser.parse_args()

    ledger = dtrain.meter.install()
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(ResNet18(NUM_CLASSES, arguments.width))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    synchronizer = None
    if arguments.compress:
        synchronizer = dtrain.compress(model, arguments.compress, optimizer=optimizer)

    train_set = data.open_dataset("digits", split="train", image_size=IMAGE_SIZE)
    loader = data.train_loader(
        train_set, batch_size=BATCH_SIZE, rank=rank, world_size=world_size, seed=0, augment=False, num_workers=1
    )
    steps = arguments.epochs * loader.steps_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    for epoch in range(arguments.epochs):
        for batch in loader.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(model(batch.images), batch.labels).backward()
            optimizer.step()
            schedule.step()

    if rank == 0:
        sent = ledger.total(purpose="gradient").wire_bytes
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        fp32 = 2 * (world_size - 1) / world_size * 4 * num_parameters * steps
        result = {"accuracy": accuracy(model.module), "exchanged_bytes": sent, "fp32_bytes": fp32}
        print(json.dumps(result), flush=True)
    if synchronizer is not None:
        synchronizer.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
