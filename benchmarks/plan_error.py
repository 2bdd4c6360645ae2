"""How far off plans are: predicted against measured step times over shaped links, on cells that nothing was fitted to.

    python benchmarks/plan_error.py --minutes 30       # root; makes clusters of 2 to 4 nodes on this machine's cores

Calibrated once: each model's step and codecs in this process, and the links by `dtrain.plan.probe` at rates of no cell.
Cells are drawn by seed from rates, nodes, methods and models; a cell whose step is predicted to take longer than
--longest is left out. Measured cells stay in --cells and are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import keep_cell, quartiles, read_cells, write_result
from shaped_step_time import SETTINGS

from dtrain.plan.calibration import Calibration, calibrate, load, save
from dtrain.plan.candidates import Candidate, parse
from dtrain.plan.link import Link, parse_rate
from dtrain.plan.neighbours import neighbours
from dtrain.plan.planner import Job, predict
from dtrain.plan.timeline import Host
from dtrain.train.subject import subject_of

RATES = ("30mbit", "100mbit", "300mbit", "1gbit")
PROBED = ("60mbit", "600mbit")
"""Rates of no cell, at which links are measured: a cell takes latency and core time of the nearer one."""
NODES = (2, 3, 4)
METHODS = (
    "none",
    "fp16",
    "int8",
    "int4",
    "one_bit",
    "top_k density=0.01",
    "power_sgd power_sgd_rank=4",
    "local int4 every=8",
)
MODELS = {"squeezenet1_1": 16, "alexnet": 8}
WARMUP = 2


class Cell(NamedTuple):
    model: str
    nodes: int
    rate: str
    method: str


def settings_of(model: str) -> list[str]:
    return [f"model={model}", "model.num_classes=1000", *SETTINGS, f"batch_size={MODELS[model]}"]


def calibrated(folder: Path, models: Iterable[str]) -> dict[tuple[str, int], Calibration]:
    """Of each model and number of nodes, with all of this machine's cores busy."""
    found = {}
    for model in models:
        subject = None
        for nodes in NODES:
            path = folder / f"{model}-{nodes}.json"
            if not path.exists():
                subject = subject or subject_of(settings_of(model), 1)
                begun = time.perf_counter()
                with neighbours((os.cpu_count() or 1) - 1):
                    save(calibrate(subject, [*map(parse, METHODS)], world_sizes=[nodes]), path)
                print(f"calibrated {model} for {nodes} nodes in {time.perf_counter() - begun:.0f} s", flush=True)
            torch.set_num_threads(1)
            found[model, nodes] = load(path, f"{model}, {MODELS[model]} a rank", METHODS)
    return found


def links(folder: Path) -> dict[tuple[str, int], Link]:
    """As the probe finds them, at the rates of no cell."""
    found = {}
    for rate, nodes in product(PROBED, NODES):
        path = folder / f"link-{rate}-{nodes}.json"
        if not path.exists():
            command = ["--nodes", str(nodes), "--rate", rate, "--", sys.executable, "-m", "dtrain.plan.probe"]
            on_cluster([*command, "--write", str(path.resolve())])
        found[rate, nodes] = Link(**json.loads(path.read_text())["link"])
        print(rate, nodes, found[rate, nodes], flush=True)
    return found


def on_cluster(arguments: Sequence[str]) -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dtrain.cli", "cluster", "run", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")


def predicted(
    cell: Cell, calibrations: dict[tuple[str, int], Calibration], probed: dict[tuple[str, int], Link]
) -> float:
    """Seconds of a step: the rate is given, latency and core time are those of the nearer rate probed."""
    rate = parse_rate(cell.rate)
    near = min(PROBED, key=lambda one: abs(torch.tensor(parse_rate(one) / rate).log().item()))
    link = replace(probed[near, cell.nodes], bits_per_second=rate)
    program = calibrations[cell.model, cell.nodes].program(cell.method, cell.nodes, statistics.median)
    job = Job(cell.nodes, Host(os.cpu_count() or 1, cell.nodes), link)
    return predict(program, job).seconds


def settings_for(candidate: Candidate) -> list[str]:
    settings = [f"compressor={candidate.compressor}", "guard=off"]
    settings += [f"compressor.{name}={value}" for name, value in candidate.options.items()]
    return settings + (["sync=local", f"sync.every={candidate.every}"] if candidate.exchanged == "update" else [])


def measure(cell: Cell, seconds: float) -> dict[str, Any]:
    """Train on a cluster of its own: the mean over whole rounds of local steps, the median of others."""
    candidate = parse(cell.method)
    steps = max(6, min(24, round(20 / seconds)))
    steps = -(-steps // candidate.every) * candidate.every
    with tempfile.TemporaryDirectory() as folder:
        command = ["--nodes", str(cell.nodes), "--rate", cell.rate, "--", sys.executable, "-m", "dtrain.train"]
        command += [*settings_of(cell.model), *settings_for(candidate), f"run_dir={folder}/run", "log_every=1000"]
        warmup = -(-WARMUP // candidate.every) * candidate.every
        on_cluster([*command, f"num_steps={warmup + steps}"])
        lines = (Path(folder) / "run" / "ledger" / "rank0.jsonl").read_text().splitlines()
    times = [step["times"]["step"] for step in map(json.loads, lines) if step["step"] is not None][warmup:]
    assert len(times) == steps, (len(times), steps)
    of_rounds = [statistics.mean(times[i : i + candidate.every]) for i in range(0, steps, candidate.every)]
    low, middle, high = quartiles(of_rounds) if len(of_rounds) > 1 else (of_rounds[0],) * 3
    return {"seconds": middle, "low": low, "high": high, "steps": steps}


def draw(seed: int, models: Sequence[str]) -> list[Cell]:
    """All cells in an order of chance: a rate, a model and a number of nodes at a time, with all its methods."""
    groups = list(product(models, NODES, RATES))
    random.Random(seed).shuffle(groups)
    return [Cell(*group, method) for group in groups for method in METHODS]


def _choice(cells: Sequence[Cell], measured: dict[Cell, dict[str, Any]], expected: dict[Cell, float]) -> str:
    """What a plan would choose, and how much longer it takes than the fastest."""
    chosen = min(cells, key=expected.__getitem__)
    best = min(cells, key=lambda cell: measured[cell]["seconds"])
    regret = measured[chosen]["seconds"] / measured[best]["seconds"] - 1
    return f"chosen {chosen.method}, best {best.method}, regret {regret:.1%}"


def report(measured: dict[Cell, dict[str, Any]], expected: dict[Cell, float]) -> str:
    errors = {cell: abs(expected[cell] / found["seconds"] - 1) for cell, found in measured.items()}
    ordered = sorted(errors.values())
    tenth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    lines = [f"{len(errors)} cells: median error {statistics.median(ordered):.1%}, 90th percentile {tenth:.1%}.", ""]
    for group in dict.fromkeys(cell[:3] for cell in measured):
        cells = [cell for cell in measured if cell[:3] == group]
        if len(cells) == len(METHODS):
            every_step = [cell for cell in cells if not cell.method.startswith("local")]
            of_all, of_those = (_choice(some, measured, expected) for some in (cells, every_step))
            lines.append(f"- {', '.join(map(str, group))}: {of_all}; of each step: {of_those}")
    lines += [
        "",
        "| model | nodes | link | method | predicted, ms | measured, ms | quartiles | error |",
        "|---" * 8 + "|",
    ]
    for cell, found in sorted(measured.items()):
        low, high = 1000 * found["low"], 1000 * found["high"]
        error = expected[cell] / found["seconds"] - 1
        lines.append(
            f"| {cell.model} | {cell.nodes} | {cell.rate} | {cell.method} | {1000 * expected[cell]:.0f} | "
            f"{1000 * found['seconds']:.0f} | {low:.0f} to {high:.0f} | {error:+.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds of a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cells", type=Path, default=Path("runs/plan_error"))
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--only-done", action="store_true", help="report what is there, and write the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cells.mkdir(parents=True, exist_ok=True)
    calibrations, probed = calibrated(arguments.cells, arguments.models), links(arguments.cells)
    cells = draw(arguments.seed, arguments.models)
    expected = {cell: predicted(cell, calibrations, probed) for cell in cells}
    kept = arguments.cells / "measured.jsonl"
    measured = read_cells(kept, Cell)
    until = time.monotonic() + 60 * arguments.minutes
    for cell in cells if not arguments.only_done else ():
        if cell in measured or expected[cell] > arguments.longest or time.monotonic() > until:
            continue
        measured[cell] = measure(cell, expected[cell])
        print(f"predicted {expected[cell]:.3f}:", end=" ")
        keep_cell(kept, cell, measured[cell])
    body = (
        f"Nodes are network namespaces of this machine, one rank each on one thread, over gloo; all share its cores. "
        f"Links were probed at {' and '.join(PROBED)}. Seed {arguments.seed}; cells whose step was predicted to take "
        f"over {arguments.longest:g} s are left out.\n\n{report(measured, expected)}"
    )
    print(body)
    if arguments.only_done:
        print(write_result("plan_error", arguments.hardware, "Predicted against measured step times", body))


if __name__ == "__main__":
    main()
