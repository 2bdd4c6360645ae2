"""DistributedDataParallel with BatchNorm, whose buffers are broadcast; prints a digest of what was trained."""

import hashlib
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)  # rank 0's weights are broadcast
    layers = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(8), nn.Flatten()]
    model = DistributedDataParallel(nn.Sequential(*layers, nn.Linear(4096, 100)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    trained = torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])
    print(f"rank {rank} {hashlib.sha256(trained.numpy().tobytes()).hexdigest()}\n", end="", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
