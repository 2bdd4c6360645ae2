"""Fully sharded parameters (FSDP2) over a DeviceMesh; prints a digest of what was trained."""

import hashlib
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("shard",))
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
for layer in model:
    if isinstance(layer, nn.Linear):
        fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
torch.manual_seed(1 + rank)
for _ in range(num_steps):
    optimizer.zero_grad()
    model(torch.randn(4, 512)).square().mean().backward()
    optimizer.step()
whole = [parameter.full_tensor() for parameter in model.parameters() if isinstance(parameter, DTensor)]
trained = torch.cat([tensor.detach().flatten() for tensor in whole])
print(f"rank {rank} {hashlib.sha256(trained.numpy().tobytes()).hexdigest()}\n", end="", flush=True)
dist.destroy_process_group()
