"""The GPT of gpt.py, trained over Horovod, its exchange compressed by one line in place of hvd.DistributedOptimizer.

    horovodrun -np 2 python examples/horovod_gpt.py --compress int4

Without --compress it is Horovod's own DistributedOptimizer. At its end rank 0 prints one line of JSON: the validation
loss and, with --compress, the bytes that it sent to exchange gradients, beside fp32's.
"""

from __future__ import annotations

import argparse
import json

import horovod.torch as hvd
import torch
from chain import VOCABULARY, sequences, validation_loss
from gpt import Gpt
from torch.nn.functional import cross_entropy

import dtrain

BATCH_SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compress", metavar="NAME", help="exchange gradients through this compressor")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()

    hvd.init()
    torch.manual_seed(0)
    model = Gpt(VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    synchronizer = None
    if arguments.compress:
        synchronizer = dtrain.compress_horovod(model, optimizer, arguments.compress)
    else:
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    tokens = sequences(640, seed=1)
    steps = arguments.epochs * (len(tokens) // (BATCH_SIZE * hvd.size()))
    generator = torch.Generator().manual_seed(hvd.rank())
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens), (BATCH_SIZE,), generator=generator)]
        optimizer.zero_grad()
        cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()

    if hvd.rank() == 0:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        fp32 = 2 * (hvd.size() - 1) / hvd.size() * 4 * num_parameters * steps
        sent = synchronizer.ledger.total(purpose="gradient").wire_bytes if synchronizer else None
        print(json.dumps({"loss": validation_loss(model), "exchanged_bytes": sent, "fp32_bytes": fp32}), flush=True)


if __name__ == "__main__":
    main()
