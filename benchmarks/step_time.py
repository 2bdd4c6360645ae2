"""What metering costs, and how our synchroniser compares with stock DDP, in seconds per training step.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2 benchmarks/step_time.py [--quick]

Every variant trains its own copy of the model on the same synthetic images; blocks of steps alternate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from harness import HEADER, Paired, paired, write_result
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from dtrain.comm import detect_launch
from dtrain.comm.torch_dist import TorchCommunicator, open_default
from dtrain.compressors import build
from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger, Times
from dtrain.observe.jsonl import LedgerFile
from dtrain.sync.every_step import EveryStep
from dtrain.vision import models

SEED = 0
Step = Callable[[], None]


class Bench:
    """One rank's images, and training steps of each kind on models of its own."""

    def __init__(self, communicator: TorchCommunicator, image_size: int, batch_size: int) -> None:
        self.communicator = communicator
        generator = torch.Generator().manual_seed(SEED + communicator.rank)
        self.images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
        self.labels = torch.randint(1000, (batch_size,), generator=generator)

    def model(self, name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(SEED)
        model = models.build(name, num_classes=1000)
        return model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def ddp(self, name: str) -> Step:
        """Stock DDP with its defaults."""
        model, optimizer = self.model(name)
        wrapped = DistributedDataParallel(model)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(wrapped(self.images), self.labels).backward()
            optimizer.step()

        return step

    def ours(self, name: str, *, overlap: bool = True, check_finite: bool = False) -> Step:
        """The trainer's synchroniser with compressor `none`; like DDP, it looks for NaN only if told to."""
        model, optimizer = self.model(name)
        synchronizer = EveryStep(
            model, build("none"), self.communicator.duplicate(), Ledger(), overlap=overlap, check_finite=check_finite
        )

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(self.images), self.labels).backward()
            synchronizer.before_step()
            optimizer.step()
            synchronizer.after_step()
            synchronizer.take_codec_seconds()

        return step


def repeat(step: Step) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def metered(step: Step, folder: Path, rank: int) -> Callable[[int], None]:
    """The same step with everything on that the trainer's meter does: recording, closing, a line of JSON."""
    ledger = Ledger(LedgerFile(folder / f"rank{rank}.jsonl"))

    def run(steps: int) -> None:
        with c10d.installed(ledger):
            for i in range(steps):
                step()
                ledger.close(i, Times(0.0, 0.0, 0.0))

    return run


@contextmanager
def together() -> Iterator[TorchCommunicator]:
    communicator = open_default("gloo", detect_launch(os.environ))
    try:
        yield communicator
    finally:
        communicator.close()


def measure(communicator: TorchCommunicator, quick: bool) -> dict[str, Paired]:
    repetitions = 5 if quick else 11

    def meet() -> None:
        dist.all_reduce(torch.zeros(1))

    results: dict[str, Paired] = {}
    bench = Bench(communicator, image_size=64, batch_size=32)
    with tempfile.TemporaryDirectory() as folder:
        for label, make in (("our synchroniser", bench.ours), ("stock DDP", bench.ddp)):
            step = make("squeezenet1_1")
            results[f"Metering, squeezenet1_1 at 64x64, batch 32 per rank, {label}"] = paired(
                {"meter off": repeat(step), "meter on": metered(step, Path(folder), communicator.rank)},
                repetitions=repetitions,
                steps=8,
                warmup=5,
                meet=meet,
            )
    for name, batch_size, steps in (("squeezenet1_1", 32, 8), ("squeezenet1_0", 16, 5), ("alexnet", 8, 3)):
        bench = Bench(communicator, image_size=64, batch_size=batch_size)
        results[f"Synchroniser, {name} at 64x64, batch {batch_size} per rank, 1000 classes"] = paired(
            {
                "stock DDP": repeat(bench.ddp(name)),
                "ours, overlapped": repeat(bench.ours(name)),
                "ours, overlapped, looking for NaN": repeat(bench.ours(name, check_finite=True)),
                "ours, blocking": repeat(bench.ours(name, overlap=False)),
            },
            repetitions=repetitions if name != "alexnet" else max(5, repetitions // 2),
            steps=steps,
            warmup=3,
            meet=meet,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five repetitions, and write no result file")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    with together() as communicator:
        results = measure(communicator, arguments.quick)
        if communicator.rank != 0:
            return
        sections = []
        for title, result in results.items():
            num = len(next(iter(result.seconds.values())))
            sections.append("\n".join([f"## {title}", "", f"{num} pairs.", "", HEADER, *result.rows()]))
        body = "\n\n".join([f"seed {SEED}; {communicator.world_size} ranks on one host, gloo over loopback", *sections])
        print(body)
        if not arguments.quick:
            print(write_result("step_time", arguments.hardware, "Step time: metering, and our synchroniser", body))


if __name__ == "__main__":
    main()
