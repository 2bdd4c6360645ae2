"""Two subgroups beside the default group: asynchronous, coalesced and functional collectives, all_to_all, barriers."""

import hashlib
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

warnings.simplefilter("ignore")  # torch 2.13 deprecates the coalesced ones and some names
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
halves = [list(range(world_size // 2)), list(range(world_size // 2, world_size))]
groups = [dist.new_group(half, group_desc=f"half{index}") for index, half in enumerate(halves)]
mine = 2 * rank // world_size
torch.manual_seed(rank)
digest = hashlib.sha256()

for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
    values = [torch.randn(100_000) for _ in range(3)]
    works = [dist.all_reduce(value, group=groups[mine], async_op=True) for value in values]
    for work in works:
        work.wait()
    pair = [torch.randn(50_000), torch.randn(30_000)]
    dist.all_reduce_coalesced(pair, group=groups[mine])
    received = torch.empty(world_size * 20_000)
    dist.all_to_all_single(received, torch.randn(world_size * 20_000))
    parts = [torch.empty(40_000) for _ in halves[mine]]
    dist.all_gather(parts, torch.randn(40_000), group=groups[mine])
    dist.broadcast(values[0], src=world_size - 1)
    gathered = functional.all_gather_tensor(torch.randn(60_000), 0, groups[mine])
    for tensor in (*values, *pair, received, *parts, gathered + 0):
        digest.update(tensor.numpy().tobytes())
dist.barrier(group=groups[mine])
dist.barrier()

print(f"rank {rank} {digest.hexdigest()}\n", end="", flush=True)
dist.destroy_process_group()
