"""Step time over links of several speeds: the paper's claim is about time, so measure when fewer bytes save any.

    python benchmarks/shaped_step_time.py [--rounds 2]         # root; makes clusters of 4 nodes

Each cell is a training run on a `dtrain cluster`, whose every step is in rank 0's ledger. Cells are kept in --cells as
they are measured, and those that are there are not measured again. Rounds go through all cells, every second one
backwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from harness import RESULTS, commit, quartiles, write_result
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from dtrain.report.svg import INK, MUTED, SERIES, drawing, new_axes, to_svg

NUM_NODES = 4
RATES = {"100mbit": 100e6, "1gbit": 1e9, "unshaped": math.inf}
METHODS = ("none", "fp16", "int8", "int4", "one_bit", "top_k", "power_sgd")
YARDSTICK = "fp16"
WARMUP = 2
SETTINGS = (
    "data=synthetic",
    "data.image_size=64",
    "data.num_classes=1000",
    "data.num_train_images=1000",
    "data.num_test_images=8",
    "data.num_workers=0",
    "eval_every_epochs=0",
    "threads=1",
    "observe.progress=false",
    "backend.timeout_seconds=600",  # the first broadcast of AlexNet at 100 Mbit/s takes more than a minute
)


@dataclass(frozen=True)
class Model:
    """What is trained, how many images a rank takes per step, and how many steps are timed at each rate."""

    name: str
    batch_size: int
    steps: Mapping[str, int]


MODELS = (
    Model("squeezenet1_1", 16, {"100mbit": 20, "1gbit": 30, "unshaped": 30}),
    Model("alexnet", 8, {"100mbit": 3, "1gbit": 6, "unshaped": 8}),
)


@dataclass(frozen=True)
class Cell:
    """One run on one cluster. `exposed` is what steps waited once backward was done; the codec's time overlaps."""

    model: str
    rate: str
    method: str
    round: int
    wire_bytes: float
    step_seconds: tuple[float, ...]
    codec_seconds: tuple[float, ...]
    exposed_seconds: tuple[float, ...]
    commit: str


def measure(model: Model, rate: str, method: str, round_: int) -> Cell:
    """Train on a cluster of its own. Raises RuntimeError with the run's output if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        shaping = [] if rate == "unshaped" else ["--rate", rate]
        command = [sys.executable, "-m", "dtrain.cli", "cluster", "run", "--nodes", str(NUM_NODES), *shaping, "--"]
        command += [sys.executable, "-m", "dtrain.train", f"model={model.name}", "model.num_classes=1000", *SETTINGS]
        command += [f"compressor={method}", f"batch_size={model.batch_size}", f"run_dir={folder}/run"]
        command += [f"num_steps={WARMUP + model.steps[rate]}"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
        lines = (Path(folder) / "run" / "ledger" / "rank0.jsonl").read_text().splitlines()
    steps = [step for step in map(json.loads, lines) if step["step"] is not None][WARMUP:]
    assert len(steps) == model.steps[rate]
    sent = [sum(e["wire_bytes"] for e in step["entries"] if e["purpose"] == "gradient") for step in steps]
    times = {key: tuple(step["times"][key] for step in steps) for key in ("step", "codec", "exposed_comm")}
    return Cell(
        model.name,
        rate,
        method,
        round_,
        statistics.median(sent),
        times["step"],
        times["codec"],
        times["exposed_comm"],
        commit(),
    )


def measure_all(path: Path, rounds: int) -> list[Cell]:
    """Every cell of every round, from the file where it is there already, else measured and added to it."""
    cells = [_cell(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(cell.model, cell.rate, cell.method, cell.round) for cell in cells}
    for round_ in range(rounds):
        wanted = [(model, rate, method) for model in MODELS for rate in RATES for method in METHODS]
        for model, rate, method in wanted if round_ % 2 == 0 else reversed(wanted):
            if (model.name, rate, method, round_) in known:
                continue
            cell = measure(model, rate, method, round_)
            cells.append(cell)
            with path.open("a") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
            print(f"{round_} {model.name} {rate} {method}: {statistics.median(cell.step_seconds):.3f} s", flush=True)
    return cells


def _cell(line: str) -> Cell:
    content = json.loads(line)
    return Cell(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


@dataclass(frozen=True)
class Row:
    """All rounds of one model, rate and method together: seconds, medians over their steps."""

    wire_bytes: float
    step: float
    quartiles: tuple[float, float]
    codec: float
    exposed: float

    @property
    def compute(self) -> float:
        """What remains of the step: forward, backward, the optimizer."""
        return self.step - self.exposed


def row(cells: Sequence[Cell]) -> Row:
    steps = [seconds for cell in cells for seconds in cell.step_seconds]
    low, middle, high = quartiles(steps)
    return Row(
        cells[0].wire_bytes,
        middle,
        (low, high),
        statistics.median(seconds for cell in cells for seconds in cell.codec_seconds),
        statistics.median(seconds for cell in cells for seconds in cell.exposed_seconds),
    )


Rows = Mapping[tuple[str, str], Row]
"""(rate, method) -> row, of one model."""


def break_even(rows: Rows, method: str) -> float | None:
    """The rate in bits per second above which the method takes longer than fp16; inf where it never does, 0 if always.

    Between two measured rates the ratio of times is interpolated on logarithmic axes. None where the crossing lies
    between the fastest shaped link and an unshaped one, whose rate has no number.
    """
    ratios = {rate: rows[rate, method].step / rows[rate, YARDSTICK].step for rate in RATES}
    names = list(RATES)
    if ratios[names[0]] >= 1:
        return 0.0
    for lower, upper in itertools.pairwise(names):
        if ratios[upper] >= 1:
            if math.isinf(RATES[upper]):
                return None
            share = math.log(1 / ratios[lower]) / math.log(ratios[upper] / ratios[lower])
            return float(RATES[lower] * (RATES[upper] / RATES[lower]) ** share)
    return math.inf


def verdict(rows: Rows, method: str) -> str:
    """In words, where the method stops paying."""
    rate = break_even(rows, method)
    if method == YARDSTICK:
        return "the yardstick"
    if rate is None:
        return "pays at 1 Gbit/s, not unshaped"
    if rate == 0:
        return "never: slower at 100 Mbit/s already"
    return "pays at every rate" if math.isinf(rate) else f"up to about {rate / 1e6:,.0f} Mbit/s"


def chart(rows: Rows, model: Model) -> Path:
    """Time relative to fp16's against the link's rate: below the line at 1 a method pays."""
    name = f"shaped-{model.name}"
    places = [math.log10(rate / 1e6) if math.isfinite(rate) else 4.0 for rate in RATES.values()]
    with drawing(name):
        figure, axes = new_axes(6.2, 3.8)
        axes.axhline(1, color=INK, linewidth=1.2)
        for method, colour in zip(METHODS, SERIES, strict=False):
            ratios = [rows[rate, method].step / rows[rate, YARDSTICK].step for rate in RATES]
            axes.plot(places[:2], ratios[:2], color=colour, marker="o", label=method, linewidth=1.6)
            axes.plot(places[1:], ratios[1:], color=colour, marker="o", linewidth=1, linestyle=":")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, at: ("100 Mbit/s", "1 Gbit/s", "unshaped")[at] if at is not None else "")
        )
        axes.set_ylabel("step time / step time with fp16", color=MUTED)
        figure.legend(loc="outside right upper", frameon=False)
        words = f"Step time of {model.name} relative to fp16 against the rate of the links."
        svg = to_svg(figure, name, words)
    path = RESULTS / f"shaped_step_time_{model.name}.svg"
    path.write_text(svg.replace("<svg ", '<svg style="background: #fff" ', 1) + "\n")
    return path


def report(cells: Sequence[Cell]) -> str:
    """A table and a chart per model."""
    parts = [
        f"{NUM_NODES} nodes with one rank each over gloo, all on this machine's cores, so that computing and coding "
        "take longer than on machines of their own, and links count for less. Times are rank 0's, medians over the "
        f"steps of all rounds, after {WARMUP} steps: compute is forward, backward and the optimizer; exposed is what "
        "the step then waited for its exchange; the codec overlaps with both. Methods have their default options "
        f"(`conf/compressor/`). Settings: `{' '.join(SETTINGS)}`. "
        f"Commits of the runs: {', '.join(sorted({cell.commit for cell in cells}))}."
    ]
    for model in MODELS:
        of_model = [cell for cell in cells if cell.model == model.name]
        rows = {
            (rate, method): row([cell for cell in of_model if (cell.rate, cell.method) == (rate, method)])
            for rate in RATES
            for method in METHODS
        }
        path = chart(rows, model)
        parts += [
            f"\n## {model.name} at 64x64, batch {model.batch_size} per rank, 1000 classes\n",
            f"![time relative to fp16]({path.name})\n",
            "| link | method | wire bytes | step, ms | quartiles | compute | codec | exposed | step / fp16's |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for (rate, method), r in rows.items():
            low, high = r.quartiles
            parts.append(
                f"| {rate} | {method} | {r.wire_bytes:,.0f} | {1e3 * r.step:.1f} | {1e3 * low:.1f} to {1e3 * high:.1f} "
                f"| {1e3 * r.compute:.1f} | {1e3 * r.codec:.1f} | {1e3 * r.exposed:.1f} "
                f"| {r.step / rows[rate, YARDSTICK].step:.2f} |"
            )
        parts += ["", "Where each stops paying against fp16 (interpolated between measured rates):", ""]
        parts += [f"- `{method}`: {verdict(rows, method)}" for method in METHODS if method != YARDSTICK]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    parser.add_argument("--cells", type=Path, default=Path("runs/shaped_step_time.jsonl"), help="what was measured")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    arguments.cells.parent.mkdir(parents=True, exist_ok=True)
    body = report(measure_all(arguments.cells, arguments.rounds))
    print(body)
    print(write_result("shaped_step_time", arguments.hardware, "Step time over shaped links", body))


if __name__ == "__main__":
    main()
