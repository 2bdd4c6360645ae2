"""The GPT of gpt.py, trained with Hugging Face's accelerate, its exchange compressed by one line.

    torchrun --standalone --nproc-per-node=2 examples/accelerate_gpt.py --compress int4
    torchrun --standalone --nproc-per-node=2 -- examples/accelerate_gpt.py --local int4

At its end rank 0 prints one line of JSON: the validation loss, and the bytes it sent, of which to exchange gradients or
updates. --save FOLDER stores the run after each epoch, and --resume FOLDER/epoch1 goes on from there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from chain import VOCABULARY, sequences, validation_loss
from gpt import Gpt
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import dtrain
import dtrain.meter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    method = parser.add_mutually_exclusive_group()
    method.add_argument("--compress", metavar="NAME", help="exchange gradients through this compressor")
    method.add_argument("--local", metavar="NAME", help="exchange the optimizer's updates through this compressor")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--resume", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()

    ledger = dtrain.meter.install()  # before Accelerator, which makes the process group
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    rank = accelerator.process_index
    set_seed(0)
    model = Gpt(VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = DataLoader(sequences(640, seed=1), batch_size=8, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    synchronizer = None
    if arguments.compress:
        synchronizer = dtrain.compress(model, arguments.compress, optimizer=optimizer)
    elif arguments.local:
        synchronizer = dtrain.local(model, optimizer, compressor=arguments.local)

    first_epoch = 0
    if arguments.resume:
        accelerator.load_state(str(arguments.resume))
        own = torch.load(arguments.resume / f"rank{rank}.pt", weights_only=True)
        first_epoch = own["epoch"]
        if synchronizer is not None:
            synchronizer.load_state_dict(own["synchronizer"])

    for epoch in range(first_epoch, arguments.epochs):
        loader.set_epoch(epoch)
        for tokens in loader:
            loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if arguments.save:
            folder = arguments.save / f"epoch{epoch + 1}"
            accelerator.save_state(str(folder))
            state = synchronizer.state_dict() if synchronizer is not None else None
            torch.save({"epoch": epoch + 1, "synchronizer": state}, folder / f"rank{rank}.pt")

    if accelerator.is_main_process:
        loss = validation_loss(accelerator.unwrap_model(model))
        exchanged = ledger.total(purpose="gradient").wire_bytes
        print(json.dumps({"loss": loss, "sent_bytes": ledger.total().wire_bytes, "exchanged_bytes": exchanged}))
    if synchronizer is not None:
        synchronizer.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
