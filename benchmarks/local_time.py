"""Time of local rounds over slow links: are they bound by compute? Against fp32 without a limit, and fp16 every step.

    python benchmarks/local_time.py [--rounds 3]         # root; makes clusters of 4 nodes

Variants run in turn, every second time backwards. A step's time is the mean over whole rounds: few steps exchange.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from harness import quartiles, write_result
from shaped_step_time import NUM_NODES, SETTINGS

WARMUP = 2


class Variant(NamedTuple):
    """How a run exchanges, over which links, and how many steps of it are timed."""

    name: str
    rate: str | None
    num_steps: int
    settings: tuple[str, ...]


LOCAL = ("sync=local", "sync.every=50", "compressor=int4")
STREAMING = ("sync=streaming", "sync.every=50", "sync.fragments=4", "sync.delay=8", "compressor=int4")
VARIANTS = (
    Variant("fp32 every step, no limit", None, 100, ()),
    Variant("local, int4, every 50 steps, 100 Mbit/s", "100mbit", 100, LOCAL),
    Variant("local, int4, every 50 steps, 10 Mbit/s", "10mbit", 100, LOCAL),
    Variant("streaming, int4, every 50 steps, 10 Mbit/s", "10mbit", 100, STREAMING),
    Variant("fp16 every step, 100 Mbit/s", "100mbit", 20, ("compressor=fp16",)),
    Variant("fp16 every step, 10 Mbit/s", "10mbit", 6, ("compressor=fp16",)),
)


class Timed(NamedTuple):
    """Means per step, in seconds: of the whole step, and of what it waited for its exchange."""

    step: float
    exposed: float


def measure(variant: Variant) -> Timed:
    """Train on a cluster of its own. Raises RuntimeError with the run's output if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        shaping = [] if variant.rate is None else ["--rate", variant.rate]
        command = [sys.executable, "-m", "dtrain.cli", "cluster", "run", "--nodes", str(NUM_NODES), *shaping, "--"]
        command += [sys.executable, "-m", "dtrain.train", "model=squeezenet1_1", "model.num_classes=1000", *SETTINGS]
        command += [*variant.settings, "batch_size=16", f"run_dir={folder}/run", "log_every=50"]
        command += [f"num_steps={WARMUP + variant.num_steps}"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
        lines = (Path(folder) / "run" / "ledger" / "rank0.jsonl").read_text().splitlines()
    times = [step["times"] for step in map(json.loads, lines) if step["step"] is not None][WARMUP:]
    assert len(times) == variant.num_steps
    return Timed(*(statistics.mean(time[key] for time in times) for key in ("step", "exposed_comm")))


def table(measured: dict[Variant, list[Timed]]) -> str:
    """A row for each variant; ratios are of pairs of the same round."""
    base = measured[VARIANTS[0]]
    lines = ["| exchange | ms a step, median | of them exposed | ratio to fp32 without a limit | quartiles |"]
    lines += ["|---|---|---|---|---|"]
    for variant, timed in measured.items():
        ratios = [mine.step / dense.step for mine, dense in zip(timed, base, strict=True)]
        step, exposed = (statistics.median(getattr(one, key) for one in timed) for key in ("step", "exposed"))
        low, middle, high = quartiles(ratios) if len(ratios) > 1 else (ratios[0],) * 3
        share = f"{1000 * exposed:.1f} ({exposed / step:.1%})"
        lines.append(f"| {variant.name} | {1000 * step:.0f} | {share} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    measured: dict[Variant, list[Timed]] = {variant: [] for variant in VARIANTS}
    for number in range(arguments.rounds):
        for variant in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
            measured[variant].append(measure(variant))
            print(number, variant.name, measured[variant][-1], flush=True)
    body = (
        f"squeezenet1_1 on images of 64 px, 16 a rank, {NUM_NODES} nodes of one rank on this machine's cores, links "
        f"shaped both ways; {arguments.rounds} rounds.\n\n{table(measured)}"
    )
    print(body)
    print(write_result("local_time", arguments.hardware, "Time of local rounds over slow links", body))


if __name__ == "__main__":
    main()
