"""Bytes per step over the paper's design space: a few steps of each network on 2 ranks, as the ledger counted them.

    python benchmarks/design_space.py

Section 5's sweeps of the squeeze ratio (SR) and of the share of 3x3 filters, version 1.1, both bypasses, and AlexNet:
1000 classes, tiny synthetic images, since what is exchanged does not depend on them. The runs stay in --runs, for
`dtrain claims` and `dtrain report`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import RESULTS, write_result
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dtrain.report import Run, claims, load_runs
from dtrain.report.squeezenet.architecture import CLASSES, complexity
from dtrain.report.squeezenet.tables import SPACE

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    *("data=synthetic", "data.image_size=40", "data.num_train_images=16", "data.num_test_images=2", "batch_size=2"),
    *("num_steps=3", "optimizer.learning_rate=0.001", "eval_every_epochs=0", "overwrite=true"),
]


def networks() -> dict[str, list[str]]:
    """Settings of each network by its name here; one that is in both sweeps comes once."""
    chosen: dict[int, tuple[str, list[str]]] = {}
    for what, options, *_ in SPACE:
        settings = ["model=squeezenet", *(f"model.{key}={value}" for key, value in options.items())]
        chosen.setdefault(complexity("squeezenet", **options).num_parameters, (what, settings))
    others = {
        "version 1.1": ["model=squeezenet1_1"],
        "complex bypass": ["model=squeezenet1_0", "model.bypass=complex"],
        "AlexNet": ["model=alexnet"],
    }
    return dict(chosen.values()) | others


def train(name: str, settings: Sequence[str], folder: Path) -> Path:
    """Three steps on 2 ranks; the run directory."""
    run_dir = folder / name.replace(",", "").replace(" ", "-").replace("%", "pct")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "dtrain.train", *settings, f"model.num_classes={CLASSES}", *SETTINGS, f"run_dir={run_dir}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    print(f"{name}: {run_dir}", flush=True)
    return run_dir


def table(names: Sequence[str], runs: Sequence[Run]) -> str:
    paper = {what: figure for what, _, figure, _ in SPACE}
    rows = [
        "| network | the paper | parameters | MB | MiB | payload, B a step | wire, B a step and rank | B a parameter |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in sorted(zip(names, runs, strict=True), key=lambda pair: pair[1].num_parameters):
        wire, payload = run.wire_bytes_per_step or 0, run.payload_bytes_per_step or 0
        rows.append(
            f"| {name} | {paper.get(name, '')} | {run.num_parameters:,} | {4 * run.num_parameters / 1e6:.2f} "
            f"| {4 * run.num_parameters / 2**20:.2f} | {payload:,.0f} | {wire:,.0f} | {wire / run.num_parameters:.6f} |"
        )
    return "\n".join(rows)


def draw(names: Sequence[str], runs: Sequence[Run], path: Path) -> None:
    """Bytes against parameters, both axes logarithmic, with the line of 4 B a parameter."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    parameters = [run.num_parameters for run in runs]
    ends = [min(parameters) / 1.5, max(parameters) * 1.5]
    axes.plot(ends, [4 * end for end in ends], color="#8fa3b8", linewidth=1, label="4 B a parameter: the ring, 2 ranks")
    for label, colour, chosen in (
        ("squeeze ratio", "#0b63b8", lambda name: name.startswith("SR")),
        ("share of 3x3 filters, SR 0.5", "#c2510a", lambda name: name.startswith("3x3")),
        ("others", "#087f5b", lambda name: not name.startswith(("SR", "3x3"))),
    ):
        shown = [run for name, run in zip(names, runs, strict=True) if chosen(name)]
        sent = [run.wire_bytes_per_step for run in shown]
        axes.plot([run.num_parameters for run in shown], sent, "o", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="wire bytes per step and rank")
    axes.grid(True, color="#dfe3e8")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/design_space"), help="where the runs go")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    chosen = networks()
    runs = load_runs([train(name, settings, options.runs.resolve()) for name, settings in chosen.items()])
    names = list(chosen)
    judged = {one.claim.key: one.finding for one in claims(runs)}
    line = judged["communication_is_a_line"]
    title = "Bytes per step over the paper's design space"
    body = [
        f"{CLASSES} classes, 2 ranks, gloo, compressor none, 3 steps on synthetic images of 40x40, seed 0. Bytes are "
        "the ledger's: payload is what a rank hands over, wire what it sends for that. Sizes are 4 B a parameter. The "
        "paper's column is its own figures, from ImageNet; no accuracy is measured here.",
        table(names, runs),
        f"Bytes against parameters: {line.verdict.value}. {line.measured}",
    ]
    path = write_result("design_space", options.hardware, title, "\n\n".join(body))
    chart = path.with_suffix(".svg")
    draw(names, runs, chart)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n![Wire bytes per step against parameters]({chart.relative_to(RESULTS)})\n")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
