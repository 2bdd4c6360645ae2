"""The GPT of gpt.py, trained with Ray Train, its exchange compressed by one line.

    python examples/ray_gpt.py --workers 2 --compress int4
    python examples/ray_gpt.py --workers 2 --local int4

At its end it prints one line of JSON: the validation loss, and the bytes that rank 0 sent, of which to exchange
gradients or updates. --save FOLDER stores the run after each epoch, and --resume FOLDER/run/epoch1 goes on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from chain import VOCABULARY, sequences, validation_loss
from gpt import Gpt
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import dtrain
import dtrain.meter


def train(arguments: dict[str, Any]) -> None:
    """What each worker does."""
    ledger = dtrain.meter.install()
    rank = ray.train.get_context().get_world_rank()
    torch.manual_seed(0)
    model = ray.train.torch.prepare_model(Gpt(VOCABULARY))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = ray.train.torch.prepare_data_loader(DataLoader(sequences(640, seed=1), batch_size=8, shuffle=True))

    synchronizer = None
    if arguments["compress"]:
        synchronizer = dtrain.compress(model, arguments["compress"], optimizer=optimizer)
    elif arguments["local"]:
        synchronizer = dtrain.local(model, optimizer, compressor=arguments["local"])

    first_epoch, checkpoint = 0, ray.train.get_checkpoint()  # of this run, where Ray has started it anew
    if checkpoint is None and arguments["resume"]:
        checkpoint = ray.train.Checkpoint(arguments["resume"])
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True)
        first_epoch = saved["epoch"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if synchronizer is not None:
            synchronizer.load_state_dict(saved["synchronizer"])

    for epoch in range(first_epoch, arguments["epochs"]):
        loader.sampler.set_epoch(epoch)
        for tokens in loader:
            loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        metrics: dict[str, float] = {"sent_bytes": ledger.total().wire_bytes}
        metrics["exchanged_bytes"] = ledger.total(purpose="gradient").wire_bytes
        with tempfile.TemporaryDirectory() as folder:
            saved = {"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            saved["synchronizer"] = synchronizer.state_dict() if synchronizer is not None else None
            torch.save(saved, Path(folder) / f"rank{rank}.pt")  # Ray puts the files of all ranks into one folder
            ray.train.report(
                {"loss": validation_loss(model.module), **metrics}, ray.train.Checkpoint(folder), f"epoch{epoch + 1}"
            )
    if synchronizer is not None:
        synchronizer.close()


def absolute(folder: str) -> str:
    """As Ray wants it, whose workers run elsewhere."""
    return str(Path(folder).resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    method = parser.add_mutually_exclusive_group()
    method.add_argument("--compress", metavar="NAME", help="exchange gradients through this compressor")
    method.add_argument("--local", metavar="NAME", help="exchange the optimizer's updates through this compressor")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save", type=absolute, metavar="FOLDER")
    parser.add_argument("--resume", type=absolute, metavar="FOLDER")
    arguments = parser.parse_args()

    ray.init(num_cpus=arguments.workers, include_dashboard=False, log_to_driver=False)
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config=vars(arguments),
        scaling_config=ray.train.ScalingConfig(num_workers=arguments.workers),
        run_config=ray.train.RunConfig(storage_path=arguments.save or tempfile.mkdtemp(), name="run"),
    )
    result = trainer.fit()
    print(json.dumps(result.metrics))


if __name__ == "__main__":
    main()
