"""What each compressor puts on the network per step: by the ledger, and by the kernel in a fresh network namespace.

    python benchmarks/compressed_bytes.py            # root; starts torchrun in namespaces with 2, 4 and 8 ranks

Gradients of squeezenet1_0 (random: no compressor's sizes depend on values) go through the trainer's synchroniser. The
kernel's figure is the difference between 45 and 15 steps of /proc/net/dev's count for lo, where nothing else lives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import write_result

from dtrain.comm import all_gather, detect_launch
from dtrain.comm.torch_dist import TorchCommunicator, open_default
from dtrain.compressors import build
from dtrain.meter import c10d
from dtrain.meter.ledger import Ledger, Purpose
from dtrain.meter.nic import LOOPBACK, read_counters
from dtrain.sync.every_step import EveryStep
from dtrain.vision import models

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("fp16", {}),
    ("int8", {}),
    ("int4", {}),
    ("ternary", {}),
    ("rotated_signs", {}),
    ("one_bit", {}),
    ("power_sgd", {"power_sgd_rank": 1}),
    ("power_sgd", {"power_sgd_rank": 4}),
    ("random_k", {"density": 0.001}),
    ("top_k", {"density": 0.001, "value_bits": 8}),
    ("top_k", {"density": 0.001, "value_bits": 8, "exchange": "split"}),
    ("chunked_top_k", {}),
    ("dgc", {"density": 0.001, "value_bits": 8}),
    ("dgc", {"density": 0.001, "value_bits": 8, "exchange": "split"}),
)
FIRST_STEPS, LAST_STEPS = 15, 45


@dataclass(frozen=True)
class Cell:
    """One compressor at one world size: bytes per step, summed over ranks."""

    label: str
    world_size: int
    payload_bytes: float
    wire_bytes: float
    kernel_bytes: float


def label(name: str, options: dict[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def measure(communicator: TorchCommunicator, ledger: Ledger, name: str, options: dict[str, Any]) -> Cell:
    torch.manual_seed(0)
    model = models.build("squeezenet1_0", num_classes=1000)
    synchronizer = EveryStep(model, build(name, **options), communicator.duplicate(), ledger)
    generator = torch.Generator().manual_seed(communicator.rank)

    def run(steps: int) -> None:
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            synchronizer.before_step()
            synchronizer.after_step()

    def look() -> tuple[float, float, int]:
        all_gather(communicator, torch.zeros(1))  # everybody is here
        total = ledger.total(purpose=Purpose.GRADIENT)
        kernel = read_counters()[LOOPBACK].transmitted_bytes
        all_gather(communicator, torch.zeros(1))  # nobody has gone on
        return total.payload_bytes, total.wire_bytes, kernel

    run(FIRST_STEPS)
    before = look()
    run(LAST_STEPS - FIRST_STEPS)
    after = look()
    synchronizer.close()
    payload, wire, kernel = ((b - a) / (LAST_STEPS - FIRST_STEPS) for a, b in zip(before, after, strict=True))
    n = communicator.world_size
    return Cell(label(name, options), n, payload * n, wire * n, kernel)


def ranks() -> None:
    """What torchrun starts: measure all cases, and print them as JSON on rank 0."""
    ledger = Ledger()
    with c10d.installed(ledger):
        communicator = open_default("gloo", detect_launch(os.environ))
        cells = [measure(communicator, ledger, name, options) for name, options in CASES]
        if communicator.rank == 0:
            print("CELLS " + json.dumps([asdict(cell) for cell in cells]))
        communicator.close()


def in_namespace(world_size: int) -> list[Cell]:
    """Run this file under torchrun in a network namespace of its own."""
    torchrun = Path(sys.executable).with_name("torchrun")
    command = f"ip link set lo up && exec {torchrun} --standalone --nproc-per-node={world_size} {__file__} --ranks"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("CELLS ")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{world_size} ranks failed:\n{done.stdout}\n{done.stderr}")
    return [Cell(**cell) for cell in json.loads(lines[0].removeprefix("CELLS "))]


def table(cells: list[Cell]) -> str:
    rows = [
        "| compressor | ranks | payload, B per rank | wire, B per rank | kernel / wire | saving by wire | by kernel |",
        "|---|---|---|---|---|---|---|",
    ]
    dense = {cell.world_size: cell for cell in cells if cell.label == "none"}
    for cell in cells:
        base, n = dense[cell.world_size], cell.world_size
        rows.append(
            f"| {cell.label} | {n} | {cell.payload_bytes / n:,.0f} | {cell.wire_bytes / n:,.0f} "
            f"| {cell.kernel_bytes / cell.wire_bytes:.3f} | {base.wire_bytes / cell.wire_bytes:.2f}x "
            f"| {base.kernel_bytes / cell.kernel_bytes:.2f}x |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    if arguments.ranks:
        ranks()
        return
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    cells = [cell for world_size in arguments.world_sizes for cell in in_namespace(world_size)]
    body = "\n\n".join(
        [
            "squeezenet1_0, 1000 classes, 1,248,424 parameters, two buckets; nothing exempt, no warm-up; seed 0; gloo. "
            "Savings are against `none` (fp32) at the same number of ranks, per step.",
            table(cells),
        ]
    )
    print(body)
    print(write_result("compressed_bytes", arguments.hardware, "Bytes per step of every compressor", body))


if __name__ == "__main__":
    main()
