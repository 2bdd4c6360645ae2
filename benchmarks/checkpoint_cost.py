"""What a checkpoint every 50 steps costs training: blocks of 50 steps with one and without, in turn within one run.

    python benchmarks/checkpoint_cost.py [--quick] [--folder DIR]        # DIR: on the disk to be measured

A run saves every 100 steps, so of its blocks of 50 steps every second one bears a checkpoint: the copy at its
beginning, and whatever the thread that hashes and writes takes from training. Each such block is held against the mean
of those before and after it, so that a drift of the machine meets both alike. Targets: 1.02 for SqueezeNet 1.1, 1.05
for AlexNet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from harness import quartiles, write_result

BLOCK = 50
SETTINGS = (
    "model.num_classes=1000",
    "data=synthetic",
    "data.image_size=64",
    "batch_size=16",
    "eval_every_epochs=0",
    f"save_every={2 * BLOCK}",
    "keep_checkpoints=2",
    "observe.progress=false",
)
PAIRS = {"squeezenet1_1": 15, "alexnet": 4}
"""Of blocks, by model: AlexNet's steps are long."""


class Measured(NamedTuple):
    """Of one model. `ratios`: of blocks with a checkpoint to those without. `step`: seconds, without.

    `num_bytes`: of a checkpoint.
    """

    ratios: Sequence[float]
    step: float
    num_bytes: int


def measure(model: str, pairs: int, folder: Path) -> Measured:
    """Train. Raises RuntimeError with the run's output if that fails."""
    run_dir = folder / model
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "dtrain.train", f"model={model}", *SETTINGS, f"num_steps={2 * BLOCK * (pairs + 1)}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, f"run_dir={run_dir}"], env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    records = map(json.loads, (run_dir / "ledger" / "rank0.jsonl").read_text().splitlines())
    at = [record["entries"][0]["start"] for record in records if record["times"] is not None]  # by step
    # a checkpoint after step n, counted from 1, lies between those of step n - 1 and n, counted from 0
    blocks = [at[start + BLOCK] - at[start] for start in range(BLOCK - 1, len(at) - BLOCK, BLOCK)]
    without, bearing = blocks[::2], blocks[1::2]
    ratios = [b / ((before + after) / 2) for b, (before, after) in zip(bearing, pairwise(without), strict=False)]
    (*_, newest) = sorted((run_dir / "checkpoints").iterdir())
    return Measured(
        ratios,
        statistics.median(without) / BLOCK,
        sum(path.stat().st_size for path in newest.iterdir()),
    )


def row(model: str, measured: Measured) -> str:
    low, middle, high = quartiles(measured.ratios)
    return (
        f"| {model} | {measured.num_bytes / 1e6:,.1f} | {1000 * measured.step:.1f} "
        f"| {middle:.4f} | {low:.4f} to {high:.4f} "
        f"| {len(measured.ratios)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: the system's for such)")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--quick", action="store_true", help="two blocks of SqueezeNet, and no result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    rows = [
        "| model | MB a checkpoint | ms a step | ratio, median | quartiles | blocks |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for model, pairs in ({"squeezenet1_1": 2} if arguments.quick else PAIRS).items():
            rows.append(row(model, measure(model, pairs, Path(folder))))
            print(rows[-1], flush=True)
    table = "\n".join(rows)
    body = (
        f"2 ranks over gloo on one host, seed 0; settings `{' '.join(SETTINGS)}`. A block is {BLOCK} steps; "
        "one with a checkpoint is held against the mean of those before and after it, which have none.\n\n"
        f"{table}"
    )
    print(body)
    if not arguments.quick:
        print(write_result("checkpoint_cost", arguments.hardware, "What a checkpoint every 50 steps costs", body))


if __name__ == "__main__":
    main()
