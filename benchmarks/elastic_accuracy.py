"""Whether a training that loses a worker and gets it back is as accurate: 4, then 3, then 4 workers.

    python benchmarks/elastic_accuracy.py [--seeds 3] [--epochs 16]     # some 10 minutes a seed on two cores

SqueezeNet 1.1 on digits with int4, three times with each seed: undisturbed (`dtrain launch`); with a host of one worker
killed by SIGKILL after a quarter, and started again after a half, while the others live on (`dtrain elastic`); and with
all stopped by SIGTERM at the same places and started again, as three and then as four (`dtrain launch`, with
`resume=latest`). Each run must have been of 4, 3 and 4 workers, or it does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from harness import keep_cell, read_cells, write_result

WORKERS, STEPS_PER_EPOCH = 4, 45  # of 1,437 images, 32 a step
SETTINGS = ("model=squeezenet1_1", "data=digits", "compressor=int4", "batch_size=8", "eval_every_epochs=0")
SETTINGS += ("log_every=5", "save_every=15", "run_dir=run", "observe.progress=false", "optimizer.learning_rate=0.01")
WAIT_SECONDS = 900.0


class Cell(NamedTuple):
    """A way to train, and a seed."""

    way: str
    seed: int
    epochs: int


@contextmanager
def started(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `dtrain` with arguments, in the folder; whatever still runs at the end is killed."""
    running: list[subprocess.Popen[bytes]] = []
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dtrain.cli", *arguments]
        with (folder / "output").open("ab") as output:
            running.append(subprocess.Popen(command, cwd=folder, env=environ, stdout=output, stderr=output))
        return running[-1]

    try:
        yield start
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
            one.wait()


def sittings(run: Path) -> list[Path]:
    """What each group of workers, or each start of the ranks, left, in their order."""
    return [*sorted((run / "earlier").glob("*"), key=lambda path: int(path.name)), run]


def world_size(sitting: Path) -> int:
    """Of a sitting; 0 where it has not said so yet."""
    try:
        return int(json.loads((sitting / "environment.json").read_text())["launch"]["world_size"])
    except (OSError, ValueError):
        return 0


def steps_made(run: Path) -> int:
    """By the sitting that trains now."""
    try:
        return max((json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()), default=0)
    except (OSError, ValueError):
        return 0


def await_training(run: Path, workers: int, steps: int, alive: subprocess.Popen[bytes]) -> None:
    """Until so many workers have come so far. Raises RuntimeError where the job ends before, or time is up."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (world_size(run) == workers and steps_made(run) >= steps):
        if alive.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"no step {steps} with {workers} workers:\n{(run.parent / 'output').read_text()[-3000:]}"
            )
        time.sleep(0.05)


def free_port() -> int:
    """One that nobody has at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def undisturbed(folder: Path, settings: tuple[str, ...], steps: int) -> int:
    """Train in peace. Returns the exit code, as all of these."""
    with started(folder) as start:
        return start("launch", "-n", str(WORKERS), *settings).wait()


def living_on(folder: Path, settings: tuple[str, ...], steps: int) -> int:
    """Kill a host of one worker that has joined the others' (`dtrain elastic --join`), and start it again later."""
    port = free_port()
    first = ("-n", str(WORKERS - 1), "--min", str(WORKERS - 1), "--max", str(WORKERS), "--host", "127.0.0.1")
    with started(folder) as start:
        job = start("elastic", *first, "--port", str(port), *settings)
        joined = start("elastic", "-n", "1", "--join", f"127.0.0.1:{port}", *settings)
        await_training(folder / "run", WORKERS, steps // 4, job)
        joined.kill()
        await_training(folder / "run", WORKERS - 1, steps // 2, job)
        joined = start("elastic", "-n", "1", "--join", f"127.0.0.1:{port}", *settings)
        return max(job.wait(), joined.wait())


def starting_again(folder: Path, settings: tuple[str, ...], steps: int) -> int:
    """Stop all workers, start one fewer, stop those, and start as many as at first, each from the last checkpoint."""
    with started(folder) as start:
        for workers, until in ((WORKERS, steps // 4), (WORKERS - 1, steps // 2)):
            job = start("launch", "-n", str(workers), *settings, "resume=latest")
            await_training(folder / "run", workers, until, job)
            job.terminate()
            job.wait()
        return start("launch", "-n", str(WORKERS), *settings, "resume=latest").wait()


WAYS = {"undisturbed": undisturbed, "others live on": living_on, "all start again": starting_again}


def measure(cell: Cell) -> dict[str, object]:
    """Train so. Raises RuntimeError, with the output, where that fails or the workers were others than meant."""
    steps = STEPS_PER_EPOCH * cell.epochs
    settings = (*SETTINGS, f"num_epochs={cell.epochs}", f"seed={cell.seed}")
    with tempfile.TemporaryDirectory() as name:
        folder, begun = Path(name), time.monotonic()
        code = WAYS[cell.way](folder, settings, steps)
        sizes = [size for size, _ in groupby(map(world_size, sittings(folder / "run")))]  # a start may fail
        meant = [WORKERS] if cell.way == "undisturbed" else [WORKERS, WORKERS - 1, WORKERS]
        if code != 0 or sizes != meant:
            raise RuntimeError(f"exit code {code}, workers {sizes}:\n{(folder / 'output').read_text()[-5000:]}")
        summary = json.loads((folder / "run" / "summary.json").read_text())
        return {"accuracy": summary["accuracy"], "loss": summary["loss"], "seconds": time.monotonic() - begun}


def main() -> None:
    """Train what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--hardware", default="cpu2")
    parser.add_argument(
        "--cells", type=Path, default=Path("runs/elastic_accuracy.jsonl"), help="what is measured is kept"
    )
    parsed = parser.parse_args()
    cells = [Cell(way, seed, parsed.epochs) for seed in range(parsed.seeds) for way in WAYS]
    parsed.cells.parent.mkdir(exist_ok=True)
    found = read_cells(parsed.cells, Cell)
    for cell in cells:
        if cell not in found:
            found[cell] = measure(cell)
            keep_cell(parsed.cells, cell, found[cell])
    rows = []
    for way in WAYS:
        accuracies = [found[Cell(way, seed, parsed.epochs)]["accuracy"] for seed in range(parsed.seeds)]
        base = [found[Cell("undisturbed", seed, parsed.epochs)]["accuracy"] for seed in range(parsed.seeds)]
        off = [100 * (ours - theirs) for ours, theirs in zip(accuracies, base, strict=True)]
        each = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
        rows.append(f"| {way} | {each} | {statistics.mean(accuracies):.2%} | {min(off):+.2f} to {max(off):+.2f} |")
    torch.set_num_threads(1)  # as many as the ranks have, for the result file
    body = "\n".join(
        [
            f"SqueezeNet 1.1 on digits, `int4`, {parsed.epochs} epochs, 32 images a step whoever takes part; seeds 0 "
            f"to {parsed.seeds - 1}. Disturbed runs had 4, 3 and 4 workers; the batch was the same throughout.",
            "",
            "| | accuracy on the test set, by seed | mean | points from undisturbed, seed by seed |",
            "|---|---|---|---|",
            *rows,
        ]
    )
    print(write_result("elastic_accuracy", parsed.hardware, "Accuracy when a worker is lost and comes back", body))


if __name__ == "__main__":
    main()
