"""The GPT of gpt.py, trained with Lightning, its exchange compressed by a callback.

    torchrun --standalone --nproc-per-node=2 examples/lightning_gpt.py --compress int4
    torchrun --standalone --nproc-per-node=2 -- examples/lightning_gpt.py --local int4

At its end rank 0 prints one line of JSON: the validation loss, and the bytes it sent, of which to exchange gradients or
updates. --save FOLDER stores the run after each epoch, and --resume FOLDER/epoch0.ckpt goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import lightning.pytorch as pl
import torch
from chain import VOCABULARY, sequences, validation_loss
from gpt import Gpt
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import dtrain
import dtrain.meter


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.gpt = Gpt(VOCABULARY)

    def training_step(self, tokens: Tensor, index: int) -> Tensor:
        return cross_entropy(self.gpt(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Compress(pl.Callback):
    """Gradients, or the optimizer's updates, go through a compressor; each rank's state lies beside the checkpoints."""

    def __init__(self, compressor: str, folder: Path | None, resume: Path | None, *, local: bool) -> None:
        self.compressor, self.folder, self.resume, self.local = compressor, folder, resume, local

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        ddp, optimizer = trainer.strategy.model, trainer.optimizers[0]
        if self.local:
            self.synchronizer = dtrain.local(ddp, optimizer, compressor=self.compressor)
        else:
            self.synchronizer = dtrain.compress(ddp, self.compressor, optimizer=optimizer)
        if self.resume:
            own = torch.load(self._own(self.resume, trainer), weights_only=True)
            self.synchronizer.load_state_dict(own)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.folder:
            checkpoint = self.folder / f"epoch{trainer.current_epoch}.ckpt"
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(self.synchronizer.state_dict(), self._own(checkpoint, trainer))

    @staticmethod
    def _own(checkpoint: Path, trainer: pl.Trainer) -> Path:
        return checkpoint.with_suffix(f".rank{trainer.global_rank}.pt")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.synchronizer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    method = parser.add_mutually_exclusive_group()
    method.add_argument("--compress", metavar="NAME", help="exchange gradients through this compressor")
    method.add_argument("--local", metavar="NAME", help="exchange the optimizer's updates through this compressor")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    parser.add_argument("--resume", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    ledger = dtrain.meter.install()  # before fit, which makes the process group
    pl.seed_everything(0, verbose=False)
    module = Module()
    callbacks: list[pl.Callback] = []
    if arguments.compress or arguments.local:
        name, local = arguments.compress or arguments.local, bool(arguments.local)
        callbacks.append(Compress(name, arguments.save, arguments.resume, local=local))
    if arguments.save:
        callbacks.append(ModelCheckpoint(arguments.save, "epoch{epoch}", save_top_k=-1, auto_insert_metric_name=False))
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        max_epochs=arguments.epochs,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(arguments.save),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(sequences(640, seed=1), batch_size=8, shuffle=True), ckpt_path=arguments.resume)
    if trainer.is_global_zero:
        loss, exchanged = validation_loss(module.gpt), ledger.total(purpose="gradient").wire_bytes
        print(json.dumps({"loss": loss, "sent_bytes": ledger.total().wire_bytes, "exchanged_bytes": exchanged}))


if __name__ == "__main__":
    main()
