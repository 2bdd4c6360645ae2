"""One all_reduce of 1 MB; prints what came out, and who is where. `--fail RANK`: it ends with 7, others sleep."""

import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
ones = torch.ones(250_000)
dist.all_reduce(ones)
namespace = Path("/proc/self/ns/net").readlink()
line = f"rank {rank} sum {ones[0].item():g} on {socket.gethostname()} {namespace}\n"
sys.stdout.write(
    line
)  # at once, newline and all: ranks of a node share one pipe, and torchrun's Python buffers nothing
sys.stdout.flush()
if sys.argv[1:2] == ["--fail"]:
    if str(rank) == sys.argv[2]:
        sys.exit(7)
    time.sleep(600)
dist.destroy_process_group()
