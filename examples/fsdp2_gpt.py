"""The GPT of gpt.py, sharded by FSDP2 and metered: what sharding parameters sends, by operation.

    torchrun --standalone --nproc-per-node=2 examples/fsdp2_gpt.py

At its end rank 0 prints one line of JSON: the validation loss, and the bytes that it sent by operation, beside what DDP
would have sent in as many steps.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

import torch
import torch.distributed as dist
from chain import VOCABULARY, sequences, validation_loss
from gpt import Gpt
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import dtrain.meter

BATCH_SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()

    ledger = dtrain.meter.install()
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = Gpt(VOCABULARY)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    mesh = init_device_mesh("cpu", (world_size,))  # "cuda" on GPUs
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)  # after fully_shard, which makes the parameters anew

    tokens = sequences(640, seed=1)
    steps = arguments.epochs * (len(tokens) // (BATCH_SIZE * world_size))
    generator = torch.Generator().manual_seed(rank)
    before = by_operation(ledger)
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens), (BATCH_SIZE,), generator=generator)]
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    after = by_operation(ledger)

    loss_at_end = validation_loss(model)  # on every rank: each gathers parameters
    if rank == 0:
        sent = {op: after[op] - before[op] for op in after if after[op] > before[op]}
        ddp = 2 * (world_size - 1) / world_size * 4 * num_parameters * steps
        print(json.dumps({"loss": loss_at_end, "sent_bytes": sent, "ddp_bytes": ddp}), flush=True)
    dist.destroy_process_group()


def by_operation(ledger: dtrain.meter.Ledger) -> defaultdict[str, float]:
    """Bytes that this rank has sent, by the name of the collective."""
    sent: defaultdict[str, float] = defaultdict(float)
    for key, total in ledger.totals.items():
        sent[key.op.value] += total.wire_bytes
    return sent


if __name__ == "__main__":
    main()
