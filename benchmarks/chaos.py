"""How much of a training is left where its workers are lost again and again: throughput, loss and accuracy.

    python benchmarks/chaos.py [--steps 4000] [--every 30] [--seed 0]     # root; twice what the steps take

Eight workers on eight nodes of this machine train on digits under `dtrain elastic`, once in peace and once while, on
average every so many seconds, a worker is killed (SIGKILL) or stopped (SIGSTOP), or the link of its node is cut for a
few seconds. A step has as many samples however many workers are there, and all share this machine's cores: so nothing
is to be subtracted for those that are lost. All faults come of the seed. Replicas are compared at the end by the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from harness import keep_cell, read_cells, write_result
from pyroute2 import IPRoute

from dtrain.cluster.namespaces import INTERFACE, Node, _inside, network

NUM_NODES, PORT = 8, 29400
SETTINGS = ("model=squeezenet1_1", "data=digits", "compressor=int4", "batch_size=4", "eval_every_epochs=0")
SETTINGS += (
    "log_every=20",
    "optimizer.learning_rate=0.005",
    "backend.timeout_seconds=2",
    "run_dir=run",
    "save_every=1min",
)
CUT_SECONDS = (3.0, 8.0)
MARGIN = 5
"""Steps at a group's beginning and end that a fault may have made longer."""


class Outcome(NamedTuple):
    """Of one training. `faults` counts what was done to it; `groups` how many groups of workers there were.

    `step`: seconds from one step to the next where nothing happened to the group.
    """

    seconds: float
    step: float
    loss: float
    accuracy: float
    groups: int
    faults: dict[str, int]


class _Cell(NamedTuple):
    """A training, as it is kept: a later start of the same command takes it from there."""

    steps: int
    every: float | None
    seed: int


def set_link(node: Node, state: str) -> None:
    """Cut a node's link, or mend it."""

    def change() -> None:
        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname=node.name)[0], state=state)

    _inside(node.bridge, change)


def worker_of(supervisor: subprocess.Popen[bytes]) -> int | None:
    """The process of a node's worker, which one of the supervisor's forks, if there is one now."""
    forking = _output("pgrep", "-P", str(supervisor.pid), "-f", "multiprocessing.forkserver")
    found = _output("pgrep", "-P", forking.split()[0]) if forking else ""
    return int(found.split()[0]) if found else None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


@contextmanager
def supervisors(nodes: list[Node], steps: int, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`dtrain elastic` on every node, the first of which the others join."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "output").open("wb") as output:
        try:
            for node in nodes:
                place = ["--min", "2", "--max", str(NUM_NODES), "--host", nodes[0].address, "--port", str(PORT)]
                if node.index > 0:
                    place = ["--join", f"{nodes[0].address}:{PORT}"]
                command = ["nsenter", f"--net=/proc/self/fd/{node.namespace}", sys.executable, "-m", "dtrain.cli"]
                command += ["elastic", "-n", "1", *place, *SETTINGS, f"num_steps={steps}"]
                started.append(
                    subprocess.Popen(
                        command, cwd=folder, env=environ, stdout=output, stderr=output, pass_fds=(node.namespace,)
                    )
                )
            yield started
        finally:
            for one in started:
                one.terminate()
            for one in started:
                one.wait()


def train(steps: int, every: float | None, seed: int, output: Path | None) -> Outcome:
    """One training; `every`: mean seconds between faults. Raises RuntimeError, with the output, if it fails.

    A disturbed one's output is kept in `output`.
    """
    draw, faults = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name, network(NUM_NODES, None) as nodes:
        folder = Path(name)
        with supervisors(nodes, steps, folder) as started:
            while not (folder / "run" / "metrics.jsonl").exists():
                time.sleep(0.1)
            begun, cut = time.monotonic(), dict[int, float]()
            due = begun + draw.expovariate(1 / every) if every else float("inf")
            while started[0].poll() is None:
                now = time.monotonic()
                for index in [index for index, until in cut.items() if now >= until]:
                    set_link(nodes[index], "up")
                    del cut[index]
                if now >= due:
                    due += draw.expovariate(1 / (every or 1.0))
                    faults[disturb(draw, nodes, started, cut)] += 1
                time.sleep(0.05)
            seconds = time.monotonic() - begun
            for index in cut:
                set_link(nodes[index], "up")
            code = started[0].returncode
        said = (folder / "output").read_text()
        if every and output:
            output.write_text(said)
        if code != 0:
            raise RuntimeError(f"exit code {code}:\n{said[-5000:]}")
        summary = json.loads((folder / "run" / "summary.json").read_text())
        sittings = [*(folder / "run" / "earlier").glob("*"), folder / "run"]
        step = statistics.fmean(gap for sitting in sittings for gap in gaps(sitting / "ledger" / "rank0.jsonl"))
    return Outcome(seconds, step, summary["loss"], summary["accuracy"], len(sittings), dict(faults))


def gaps(ledger: Path) -> list[float]:
    """Seconds between the steps of a group, but for its first and last ones."""
    records = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    starts = [record["entries"][0]["start"] for record in records if record["step"] is not None and record["entries"]]
    return [after - before for before, after in pairwise(starts)][MARGIN:-MARGIN]


def disturb(
    draw: random.Random, nodes: list[Node], started: list[subprocess.Popen[bytes]], cut: dict[int, float]
) -> str:
    """Do something to a node, and say what. The first node's link stays: its supervisor decides for all."""
    kind = draw.choice(("killed", "stopped", "cut"))
    if kind == "cut":
        index = draw.randrange(1, NUM_NODES)
        set_link(nodes[index], "down")
        cut[index] = time.monotonic() + draw.uniform(*CUT_SECONDS)
        return kind
    pid = worker_of(started[draw.randrange(NUM_NODES)])
    if pid is not None:
        os.kill(pid, signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
    return kind


def main() -> None:
    """Train in peace, then not, and write what is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--every", type=float, default=30.0, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hardware", default="cpu2")
    parser.add_argument("--cells", type=Path, default=Path("runs/chaos.jsonl"), help="where trainings are kept")
    parser.add_argument("--output", type=Path, help="where the disturbed run's output is kept")
    parsed = parser.parse_args()
    parsed.cells.parent.mkdir(exist_ok=True)
    found, outcomes = read_cells(parsed.cells, _Cell), []
    for every in (None, parsed.every):
        cell = _Cell(parsed.steps, every, parsed.seed)
        if cell not in found:
            found[cell] = train(*cell, parsed.output)._asdict()
            keep_cell(parsed.cells, cell, found[cell])
        outcomes.append(Outcome(**found[cell]))
    peace, chaos = outcomes
    shares = [one.step * parsed.steps / one.seconds for one in (peace, chaos)]
    done = ", ".join(f"{number} {kind}" for kind, number in sorted(chaos.faults.items()))
    torch.set_num_threads(1)  # as many as the ranks have, for the result file
    body = "\n".join(
        [
            f"{NUM_NODES} workers, each on a node of its own, {parsed.steps} steps of SqueezeNet 1.1 on digits, int4.",
            f"Faults, on average every {parsed.every:g} s, seed {parsed.seed}: {done}.",
            "",
            f"**{shares[1] / shares[0]:.1%} of the throughput is kept**: of its seconds the disturbed run spent "
            f"{shares[1]:.1%} in steps as long as they are where nothing happens, the other one {shares[0]:.1%}. Each "
            f"is held against its own steps, since the machine's speed changes between runs. One run each: no spread.",
            "",
            "| | seconds | ms a step undisturbed | groups | loss | accuracy |",
            "|---|---|---|---|---|---|",
            _row("in peace", peace),
            _row("disturbed", chaos),
            "",
            "Replicas were equal at the end of both, or the run would have failed.",
        ]
    )
    print(write_result("chaos", parsed.hardware, "Training while workers are lost", body))


def _row(name: str, one: Outcome) -> str:
    ended = f"{one.loss:.4f} | {one.accuracy:.2%}"
    return f"| {name} | {one.seconds:.0f} | {1000 * one.step:.1f} | {one.groups} | {ended} |"


if __name__ == "__main__":
    main()
