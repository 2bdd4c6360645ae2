"""What `compressor=auto` takes beside every fixed method that it chooses from, and how soon it follows another link.

    python benchmarks/auto.py --minutes 30          # root; makes clusters of 2 nodes on this machine's cores
    python benchmarks/auto.py --only-done           # the result file of what was measured

Runs are kept in --runs and not run again. A round goes through all methods at a rate, every second one backwards, so
that they are compared with runs of the same minutes. What auto takes to measure, before its first step, is left out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import keep_cell, quartiles, read_cells, write_result
from plan_error import on_cluster, settings_for, settings_of

from dtrain import compressors
from dtrain.cluster.namespaces import network, rate_of_link
from dtrain.cluster.processes import run_on_all
from dtrain.plan.candidates import candidates, parse

NODES = 2
RATES = ("30mbit", "100mbit", "1gbit", "unshaped")
STEPS = {"squeezenet1_1": 24, "alexnet": 4}
WARMUP = 2
AUTO = "auto"
SLOWEST = ("alexnet", "30mbit", "none")
"""More than a minute a step, and of no use to anybody."""
CHANGE_AFTER, CHANGE_STEPS = 45, 130
"""Steps before the link changes, and of the whole run."""


class Cell(NamedTuple):
    model: str
    rate: str
    method: str
    round: int


class Change(NamedTuple):
    """Of a link, in the middle of a run."""

    before: str
    after: str


CHANGES = (Change("30mbit", "1gbit"), Change("1gbit", "30mbit"))


def methods() -> list[str]:
    """Auto, and all that it chooses from."""
    fixed = [
        one.label
        for one in candidates("sgd", NODES)
        if one.exchanged == "gradient"
        and one.known("sgd", NODES) == "holds"
        and not compressors.keeps_momentum(one.compressor)
    ]
    return [AUTO, *fixed]


def measure(cell: Cell) -> dict[str, Any]:
    """A run on a cluster of its own."""
    with tempfile.TemporaryDirectory() as folder:
        shaping = [] if cell.rate == "unshaped" else ["--rate", cell.rate]
        settings = ["compressor=auto"] if cell.method == AUTO else settings_for(parse(cell.method))
        command = ["--nodes", str(NODES), *shaping, "--", sys.executable, "-m", "dtrain.train"]
        command += [*settings_of(cell.model), *settings, f"run_dir={folder}/run", "log_every=1000"]
        on_cluster([*command, f"num_steps={WARMUP + STEPS[cell.model]}"])
        lines = (Path(folder) / "run" / "ledger" / "rank0.jsonl").read_text().splitlines()
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    times = [step["times"]["step"] for step in map(json.loads, lines) if step["step"] is not None][WARMUP:]
    low, middle, high = quartiles(times)
    return {"seconds": middle, "low": low, "high": high, "chosen": summary.get("chosen")}


class Output(io.StringIO):
    """Of all nodes. Remembers after how many steps a choice was said."""

    def __init__(self, metrics: Path) -> None:
        super().__init__()
        self._metrics = metrics
        self.choices: list[tuple[int, str]] = []

    def write(self, text: str) -> int:
        if "auto: " in text and "measuring" not in text:
            self.choices.append((num_steps(self._metrics), text.split("auto: ")[1].split(". ")[0]))
        return super().write(text)


def num_steps(metrics: Path) -> int:
    return metrics.read_text().count('"kind": "train"') if metrics.is_file() else 0


def measure_change(change: Change) -> dict[str, Any]:
    """A run whose link changes: what was chosen, after how many steps, and what steps took before and after."""
    with tempfile.TemporaryDirectory() as folder, network(NODES, rate_of_link(change.before)) as nodes:
        run = Path(folder) / "run"
        output = Output(run / "metrics.jsonl")
        command = [sys.executable, "-m", "dtrain.train", *settings_of("squeezenet1_1"), "compressor=auto"]
        command += [f"run_dir={run}", "log_every=1", f"num_steps={CHANGE_STEPS}"]
        codes: list[int] = []
        os.environ["OMP_NUM_THREADS"] = "1"

        def follow() -> None:
            while num_steps(run / "metrics.jsonl") < CHANGE_AFTER and not codes:
                time.sleep(0.02)
            for node in nodes:
                node.shape(rate_of_link(change.after))

        thread = threading.Thread(target=follow)
        thread.start()
        codes.append(run_on_all(nodes, command, output))
        thread.join()
        if codes != [0]:
            raise RuntimeError(output.getvalue())
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        steps = [record["step_seconds"] for record in records if record["kind"] == "train"]
    return {
        "choices": output.choices,
        "before": statistics.median(steps[WARMUP:CHANGE_AFTER]),
        "between": statistics.median(steps[CHANGE_AFTER : CHANGE_AFTER + 20]),
        "after": statistics.median(steps[-20:]),
    }


def wanted(models: Sequence[str], rounds: int) -> Iterable[Cell]:
    for round_ in range(rounds):
        for model in models:
            for rate in RATES:
                order = methods() if round_ % 2 == 0 else methods()[::-1]
                yield from (Cell(model, rate, m, round_) for m in order if (model, rate, m) != SLOWEST)


def report(measured: dict[Cell, dict[str, Any]], changes: dict[Change, dict[str, Any]]) -> str:
    """Of auto in each model and rate, and of the changes."""
    lines = [
        "| model | link | auto chose | its step, ms | to fp16 | fastest fixed | its step, ms | auto to it | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, rate in dict.fromkeys((cell.model, cell.rate) for cell in measured):
        cells = {cell: found for cell, found in measured.items() if (cell.model, cell.rate) == (model, rate)}
        rounds = sorted({cell.round for cell in cells})
        fixed = [m for m in methods()[1:] if all(Cell(model, rate, m, r) in cells for r in rounds)]
        if not fixed or not all(Cell(model, rate, AUTO, r) in cells for r in rounds):
            continue

        def seconds(method: str, at: tuple[str, str] = (model, rate)) -> list[float]:
            return [measured[Cell(*at, method, r)]["seconds"] for r in rounds]  # noqa: B023

        best = min(fixed, key=lambda method: statistics.median(seconds(method)))
        mine = seconds(AUTO)
        to_fp16, to_best = (
            statistics.median(a / b for a, b in zip(mine, seconds(other), strict=True)) for other in ("fp16", best)
        )
        chosen = ", ".join(dict.fromkeys(str(cells[Cell(model, rate, AUTO, r)]["chosen"]) for r in rounds))
        ms = f"{1000 * statistics.median(mine):,.0f}"
        theirs = f"{1000 * statistics.median(seconds(best)):,.0f}"
        told = (model, rate, chosen, ms, f"{to_fp16:.3f}", best, theirs, f"{to_best:.3f}", str(len(rounds)))
        lines.append(f"| {' | '.join(told)} |")
    lines += [
        "",
        f"Links that change after {CHANGE_AFTER} steps of squeezenet1_1; steps are counted from there.",
        "",
        "| from | to | chosen at first | then | after steps | step before, ms | after the change | after the choice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for change, one in changes.items():
        (_, first), *later = one["choices"]
        then = ", ".join(label for _, label in later) or "the same"
        when = ", ".join(str(step - CHANGE_AFTER) for step, _ in later) or "-"
        ms = [f"{1000 * one[key]:,.0f}" for key in ("before", "between", "after")]
        lines.append(f"| {change.before} | {change.after} | {first} | {then} | {when} | {' | '.join(ms)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--runs", type=Path, default=Path("runs/auto"))
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--only-done", action="store_true", help="report what is there, and write the result file")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    kept, changed = arguments.runs / "measured.jsonl", arguments.runs / "changes.jsonl"
    measured, changes = read_cells(kept, Cell), read_cells(changed, Change)
    until = time.monotonic() + 60 * arguments.minutes
    for change in CHANGES if not arguments.only_done else ():
        if change not in changes:
            changes[change] = measure_change(change)
            keep_cell(changed, change, changes[change])
    for cell in wanted(arguments.models, arguments.rounds) if not arguments.only_done else ():
        if cell in measured or time.monotonic() > until:
            continue
        measured[cell] = measure(cell)
        keep_cell(kept, cell, measured[cell])
    body = (
        f"{NODES} nodes are network namespaces of this machine, one rank each on one thread, over gloo; images of "
        f"64 px. Medians of {STEPS['squeezenet1_1']} steps of squeezenet1_1 (16 images a rank) and "
        f"{STEPS['alexnet']} of AlexNet (8) in each run; ratios are of runs of the same round, medians over rounds."
        f"\n\n{report(measured, changes)}"
    )
    print(body)
    if arguments.only_done:
        print(write_result("auto", arguments.hardware, "compressor=auto beside what it chooses from", body))


if __name__ == "__main__":
    main()
