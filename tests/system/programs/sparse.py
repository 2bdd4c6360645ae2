"""Sums of sparse tensors, of another number of elements on each rank; prints a digest of what came out."""

import hashlib
import sys

import torch
import torch.distributed as dist

num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4
dist.init_process_group("gloo")
rank = dist.get_rank()
digest = hashlib.sha256()
torch.manual_seed(rank)
for _ in range(num_steps):
    rows = torch.randperm(100_000)[: 5_000 * (rank + 1)].sort().values
    value = torch.sparse_coo_tensor(rows[None], torch.randn(len(rows), 16), (100_000, 16)).coalesce()
    dist.all_reduce(value)
    digest.update(value.to_dense().numpy().tobytes())
print(f"rank {rank} {digest.hexdigest()}\n", end="", flush=True)
dist.destroy_process_group()
