"""Accuracy of every compressor against fp32, same recipe and steps, several seeds; with the savings of the whole run.

    python benchmarks/accuracy.py digits
    python benchmarks/accuracy.py cifar10 --root CIFAR      # a tree of class folders; 4 ranks, 8 epochs

Runs stay in --runs, and those that are there already are not run again; the result says which commits they are of.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import commit, write_result

COMMIT = "commit.txt"
"""In a run's folder: what it was run with."""


@dataclass(frozen=True)
class Suite:
    """A recipe, and the compressors that it is run with: label -> overrides. The first one is the yardstick."""

    world_size: int
    settings: tuple[str, ...]
    cases: dict[str, tuple[str, ...]]


DIGITS = Suite(
    world_size=2,
    # no momentum: on top of the delays of error feedback it diverges (docs/compressors.md)
    settings=(
        "experiment=digits",
        "model.num_classes=10",
        "optimizer.momentum=0",
        "optimizer.learning_rate=0.015",
        "eval_every_epochs=0",
    ),
    cases={
        "none": ("compressor=none",),
        "fp16": ("compressor=fp16",),
        "bf16": ("compressor=bf16",),
        "int8": ("compressor=int8",),
        "int4": ("compressor=int4",),
        "ternary": ("compressor=ternary",),
        "one_bit": ("compressor=one_bit",),
        "top_k 0.01": ("compressor=top_k", "compressor.density=0.01"),
        "top_k 0.001": ("compressor=top_k", "compressor.density=0.001"),
        # with its momentum a gradient moves the weights twice as far, hence half the learning rate
        "dgc 0.001": (
            "compressor=dgc",
            "compressor.density=0.001",
            "compressor.momentum=0.5",
            "compressor.warmup_steps=180",
            "optimizer.learning_rate=0.0075",
            "optimizer.weight_decay=0.0004",
        ),
        "random_k 0.1": ("compressor=random_k", "compressor.density=0.1"),
        "power_sgd r=1": ("compressor=power_sgd", "compressor.power_sgd_rank=1"),
        "power_sgd r=4": ("compressor=power_sgd", "compressor.power_sgd_rank=4"),
        "none, momentum 0.9": ("compressor=none", "optimizer.momentum=0.9", "optimizer.learning_rate=0.003"),
    },
)

CIFAR10 = Suite(
    world_size=4,
    settings=(
        "experiment=cifar10",
        "data=image_folder",
        "data.image_size=32",
        "data.augment=false",
        "data.mean=[0.4914,0.4822,0.4465]",
        "data.std=[0.247,0.2435,0.2616]",
        "num_epochs=8",
        "batch_size=16",
        "eval_every_epochs=0",
    ),
    cases={
        "none": ("compressor=none",),
        "power_sgd r=4": ("compressor=power_sgd", "compressor.power_sgd_rank=4"),
        "int4": ("compressor=int4",),
        # these two without the optimizer's momentum (docs/compressors.md), and as fast: learning rate / (1 - momentum)
        "one_bit": ("compressor=one_bit", "optimizer.momentum=0", "optimizer.learning_rate=0.1"),
        "dgc 0.001": (
            "compressor=dgc",
            "compressor.density=0.001",
            "compressor.momentum=0.5",
            "compressor.warmup_steps=782",
            "optimizer.momentum=0",
            "optimizer.learning_rate=0.05",
            "optimizer.weight_decay=0.0004",
        ),
    },
)


def train(suite: Suite, overrides: Sequence[str], seed: int, run_dir: Path) -> dict[str, Any]:
    """The summary of a run, done now or before."""
    summary = run_dir / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["complete"]:
        return dict(json.loads(summary.read_text()))
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [str(torchrun), "--standalone", f"--nproc-per-node={suite.world_size}", "-m", "dtrain.train"]
    command += [*suite.settings, *overrides, f"seed={seed}", f"run_dir={run_dir}", "overwrite=true", "log_every=45"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    (run_dir / COMMIT).write_text(commit() + "\n")
    return dict(json.loads(summary.read_text()))


def commits(runs: Path) -> str:
    """Of all the runs in a folder."""
    return ", ".join(sorted({path.read_text().strip() for path in runs.glob(f"*/*/{COMMIT}")})) or "not recorded"


def rows(suite: Suite, seeds: Sequence[int], runs: Path) -> Iterator[str]:
    yield "| compressor | accuracy, %, mean | by seed | against fp32, points | saving, whole run | against fp16 |"
    yield "|---|---|---|---|---|---|"
    base: float | None = None
    for label, overrides in suite.cases.items():
        folder = label.translate(str.maketrans(" ", "-", "=,"))
        summaries = [train(suite, overrides, seed, runs / folder / f"seed{seed}") for seed in seeds]
        accuracies = [100 * s["accuracy"] for s in summaries]
        mean = statistics.mean(accuracies)
        base = mean if base is None else base
        first = summaries[0]
        row = (
            f"| {label} | {mean:.2f} | {', '.join(f'{a:.2f}' for a in accuracies)} | {mean - base:+.2f} "
            f"| {first['saving_vs_fp32']:.2f}x | {first['saving_vs_fp16']:.2f}x |"
        )
        print(row, flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("digits", "cifar10"))
    parser.add_argument("--root", type=Path, help="cifar10: a folder with train/<class>/ and test/<class>/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    suite = DIGITS if arguments.suite == "digits" else CIFAR10
    if arguments.suite == "cifar10":
        if arguments.root is None:
            parser.error("cifar10 needs --root")
        suite = Suite(suite.world_size, (*suite.settings, f"data.root={arguments.root}"), suite.cases)
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    runs = arguments.runs / arguments.suite
    table = "\n".join(rows(suite, arguments.seeds, runs))
    body = (
        f"squeezenet1_1, {suite.world_size} ranks over gloo on one host; settings: `{' '.join(suite.settings)}`. "
        "Savings are of wire bytes over the whole run, warm-up included. "
        f"Commits of the runs: {commits(runs)}.\n\n{table}"
    )
    print(body)
    print(write_result(f"accuracy_{arguments.suite}", arguments.hardware, "Accuracy under compression", body))


if __name__ == "__main__":
    main()
