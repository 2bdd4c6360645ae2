"""A small GPT-2 of random weights, trained with transformers' Trainer, its exchange compressed by a callback.

    torchrun --standalone --nproc-per-node=2 examples/transformers_gpt.py --compress int4
    torchrun --standalone --nproc-per-node=2 -- examples/transformers_gpt.py --local int4

At its end rank 0 prints one line of JSON: the validation loss, and the bytes it sent, of which to exchange gradients or
updates. --save FOLDER stores the run after each epoch, and --resume FOLDER/checkpoint-40 goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from chain import CONTEXT, VOCABULARY, sequences, validation_loss
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

import dtrain
import dtrain.meter


class Compress(TrainerCallback):
    """Gradients, or the optimizer's updates, go through a compressor; every rank's state beside each checkpoint."""

    def __init__(self, trainer: Trainer, compressor: str, *, local: bool = False) -> None:
        self.trainer, self.compressor, self.local = trainer, compressor, local

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **keywords: Any) -> None:
        ddp, optimizer = self.trainer.model_wrapped, self.trainer.optimizer  # keywords["model"] is what DDP wraps
        if self.local:
            self.synchronizer = dtrain.local(ddp, optimizer, compressor=self.compressor)
        else:
            self.synchronizer = dtrain.compress(ddp, self.compressor, optimizer=optimizer)
        if args.resume_from_checkpoint:
            saved = Path(args.resume_from_checkpoint) / f"compressor-{args.process_index}.pt"
            self.synchronizer.load_state_dict(torch.load(saved, weights_only=True))

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **keywords: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(self.synchronizer.state_dict(), folder / f"compressor-{args.process_index}.pt")

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **keywords: Any) -> None:
        self.synchronizer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    method = parser.add_mutually_exclusive_group()
    method.add_argument("--compress", metavar="NAME", help="exchange gradients through this compressor")
    method.add_argument("--local", metavar="NAME", help="exchange the optimizer's updates through this compressor")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--resume", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()

    ledger = dtrain.meter.install()  # before TrainingArguments, which make the process group
    set_seed(0)
    size = {"n_positions": CONTEXT, "n_embd": 128, "n_layer": 4, "n_head": 4}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **size, **dropout))
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(arguments.save or tempfile.gettempdir()),
            use_cpu=True,
            ddp_backend="gloo",
            per_device_train_batch_size=8,
            num_train_epochs=arguments.epochs,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            save_strategy="epoch" if arguments.save else "no",
            resume_from_checkpoint=str(arguments.resume) if arguments.resume else None,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": tokens, "labels": tokens} for tokens in sequences(640, seed=1)[:, :CONTEXT]],
    )
    if arguments.compress or arguments.local:
        trainer.add_callback(
            Compress(trainer, arguments.compress or arguments.local, local=arguments.local is not None)
        )
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        loss = validation_loss(lambda tokens: model(tokens).logits)
        exchanged = ledger.total(purpose="gradient").wire_bytes
        print(json.dumps({"loss": loss, "sent_bytes": ledger.total().wire_bytes, "exchanged_bytes": exchanged}))


if __name__ == "__main__":
    main()
