"""A cluster's links against their rate: fp32 all_reduce of squeezenet1_0's gradients over shaped links.

    python benchmarks/cluster_rate.py          # root

The ideal is the bytes that a rank must send (the ring's 2S(n-1)/n) at the link's rate, with no headers and no latency.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from harness import quartiles, write_result

from dtrain.exchange import Op
from dtrain.meter.nic import read_counters
from dtrain.meter.wire import wire_bytes
from dtrain.vision.models import build

NUM_NODES = 4
RATES = {"100mbit": 100e6, "300mbit": 300e6}
WARMUP, REPETITIONS = 2, 15


@dataclass(frozen=True)
class Cell:
    """One rate: the median time of an all_reduce, and bytes per all_reduce and node."""

    rate: str
    seconds: float
    quartiles: tuple[float, float]
    wire_bytes: float
    nic_bytes: tuple[float, ...]

    @property
    def time_over_ideal(self) -> float:
        """How much longer than the wire bytes at the link's rate."""
        return self.seconds / (self.wire_bytes * 8 / RATES[self.rate])

    @property
    def nic_over_wire(self) -> list[float]:
        """What each node's interface sent over what its rank had to."""
        return [nic / self.wire_bytes for nic in self.nic_bytes]


def worker(folder: Path) -> None:
    """One node's rank: time the all_reduces, read the interface around them, write both down."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    gradients = torch.randn(sum(p.numel() for p in build("squeezenet1_0", num_classes=1000).parameters()))
    seconds = []
    for repetition in range(WARMUP + REPETITIONS):
        dist.barrier()  # after it, nothing of the all_reduce before is still on its way out
        if repetition == WARMUP:
            before = read_counters()["eth0"]
        start = time.perf_counter()
        dist.all_reduce(gradients)
        seconds.append(time.perf_counter() - start)
        gradients /= dist.get_world_size()
    dist.barrier()
    sent = read_counters()["eth0"].transmitted_bytes - before.transmitted_bytes
    wire = wire_bytes("gloo", Op.ALL_REDUCE, gradients.numel() * gradients.element_size(), dist.get_world_size())
    content = {"seconds": seconds[WARMUP:], "nic_bytes": sent / REPETITIONS, "wire_bytes": wire}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(content))
    dist.destroy_process_group()


def measure(rate: str, num_nodes: int = NUM_NODES) -> Cell:
    """Run the all_reduces on a cluster of its own. A step takes as long as on the node that is last."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dtrain.cli", "cluster", "run", "--nodes", str(num_nodes), "--rate", rate]
        command += ["--", sys.executable, str(Path(__file__).resolve()), "--worker", folder]
        root = str(Path(__file__).resolve().parents[1])
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
        ranks = [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(num_nodes)]
    slowest = [max(times) for times in zip(*(rank["seconds"] for rank in ranks), strict=True)]
    low, middle, high = quartiles(slowest)
    return Cell(rate, middle, (low, high), ranks[0]["wire_bytes"], tuple(rank["nic_bytes"] for rank in ranks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        return worker(arguments.worker)
    rows = [
        "| link | ideal | median of the slowest rank | quartiles | time / ideal | nic / wire, node by node |",
        "|---|---|---|---|---|---|",
    ]
    for rate, bits_per_second in RATES.items():
        cell = measure(rate)
        ideal = cell.wire_bytes * 8 / bits_per_second
        low, high = cell.quartiles
        ratios = ", ".join(f"{ratio:.4f}" for ratio in cell.nic_over_wire)
        rows.append(
            f"| {rate} | {1000 * ideal:.1f} ms | {1000 * cell.seconds:.1f} ms | {1000 * low:.1f} to {1000 * high:.1f} "
            f"| {cell.time_over_ideal:.4f} | {ratios} |"
        )
        print(rows[-1], flush=True)
    body = "\n".join(
        [
            f"gloo all_reduce of 4,993,696 B (squeezenet1_0 in fp32), {NUM_NODES} nodes with one rank each, "
            f"{REPETITIONS} repetitions after {WARMUP}, a barrier before each. Ideal: 7,490,544 B, what the ring makes "
            "each rank send, at the link's rate. Ethernet frames carry 1448 of 1514 bytes (1.046); the rest of "
            "nic / wire is acknowledgements of what a node received, and the barrier.",
            "",
            *rows,
        ]
    )
    print(write_result("cluster_rate", arguments.hardware, "A cluster's links against their rate", body))
    return None


if __name__ == "__main__":
    main()
