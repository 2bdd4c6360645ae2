"""Bytes that all workers send until a network first reaches an accuracy: AlexNet in fp32, SqueezeNet by every method.

    python benchmarks/bytes_to_target.py                    # digits, 2 ranks; runs that are there are not run again
    python benchmarks/bytes_to_target.py --only-done --write

The target is the best accuracy that AlexNet reaches within its budget, and lower ones. Bytes are of the wire, of
all ranks and of everything that a run sends until then: the initial broadcast, updates both ways, metrics, tests.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from accuracy import run
from harness import RESULTS, commit, write_result

COMMON = ("experiment=digits", "log_every=45", "eval_every_epochs=1", "guard=off")
ALEXNET_EPOCHS = 6


class Method(NamedTuple):
    """A network and how its workers exchange."""

    name: str
    settings: tuple[str, ...]
    model: str = "squeezenet1_1"


def local(name: str, compressor: str, every: int, *settings: str) -> Method:
    """Updates of several steps."""
    rounds = ("sync=local", f"sync.every={every}", f"compressor={compressor}")
    return Method(f"{name}, every {every} steps", (*rounds, *settings))


ALEXNET = Method("AlexNet, fp32", (f"num_epochs={ALEXNET_EPOCHS}",), "alexnet")
METHODS = (
    ALEXNET,
    Method("fp32", ()),
    Method("fp16", ("compressor=fp16",)),
    Method("int4 of gradients", ("compressor=int4",)),
    Method("dgc 0.15% of gradients", ("compressor=dgc", "compressor.density=0.0015", "compressor.momentum=null")),
    local("ternary", "ternary", 4),
    local("rotated_signs", "rotated_signs", 4),
    local("rotated_signs", "rotated_signs", 32),
    local("int4", "int4", 16),
    local("top_k 1%", "top_k", 4, "compressor.density=0.01"),
    local("top_k 0.1%", "top_k", 4, "compressor.density=0.001"),
    local("chunked_top_k", "chunked_top_k", 30),
    Method(
        "rotated_signs, streaming, every 32 steps",
        ("sync=streaming", "sync.every=32", "sync.fragments=4", "sync.delay=4", "compressor=rotated_signs"),
    ),
)


class Point(NamedTuple):
    """A test of the network: accuracy in %, and bytes that all ranks had sent."""

    accuracy: float
    total_bytes: float


def curve(method: Method, seed: int, runs: Path) -> list[Point] | None:
    """Of a run, done now or before; None where it diverged."""
    folder = folder_of(runs, method, seed)
    path = folder / "curve.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        settings = (*COMMON, f"model={method.model}", *method.settings, f"seed={seed}", f"run_dir={folder / 'run'}")
        try:
            run([sys.executable, "-m", "dtrain.train", *settings, "overwrite=true", "observe.progress=false"], 2)
        except RuntimeError as error:
            if "is not finite" not in str(error):
                raise
            path.write_text("null\n")
        else:
            path.write_text(json.dumps(read_curve(folder / "run" / "metrics.jsonl")) + "\n")
        (folder / "commit.txt").write_text(commit() + "\n")
        shutil.rmtree(folder / "run", ignore_errors=True)
    points = json.loads(path.read_text())
    return None if points is None else [Point(*point) for point in points]


def read_curve(path: Path) -> list[Point]:
    """Every test of a run, with what all ranks had sent by the logging point at the same step."""
    points, sent = [], 0.0
    for record in map(json.loads, path.read_text().splitlines()):
        if record["kind"] == "train":
            sent = record["total_wire_bytes_all_ranks"]
        else:
            points.append(Point(100 * record["accuracy"], sent))
    return points


def folder_of(runs: Path, method: Method, seed: int) -> Path:
    """Where a run is."""
    return runs / method.name.translate(str.maketrans(" ", "-", ",%.")) / f"seed{seed}"


def bytes_to(points: list[Point] | None, target: float) -> float | None:
    """What had been sent when this accuracy was first reached, if it was."""
    return next((point.total_bytes for point in points or () if point.accuracy >= target), None)


def row(method: Method, curves: list[list[Point] | None], targets: list[float], base: list[float | None]) -> str:
    """Of the table: means over the seeds that reached the target."""
    best = [max(point.accuracy for point in points) for points in curves if points]
    cells = [f"{statistics.mean(best):.2f}" if best else "diverged"]
    for target, dense in zip(targets, base, strict=True):
        reached = [sent for points in curves if (sent := bytes_to(points, target)) is not None]
        if not reached:
            cells.append("not reached")
            continue
        sent = statistics.mean(reached)
        of = "" if len(reached) == len(curves) else f" ({len(reached)} of {len(curves)} seeds)"
        cells.append(f"{sent / 1e6:,.2f} MB, {dense / sent:,.0f}x{of}" if dense else f"{sent / 1e6:,.2f} MB{of}")
    return f"| {method.name} | " + " | ".join(cells) + " |"


def chart(found: dict[Method, list[list[Point] | None]], path: Path) -> None:
    """Accuracy against bytes, logarithmic: the first seed of every method."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5))
    for method, curves in found.items():
        points = curves[0] or []
        axes.plot([p.total_bytes for p in points], [p.accuracy for p in points], label=method.name, marker=".", lw=1)
    axes.set(xscale="log", xlabel="bytes sent by all ranks", ylabel="test accuracy, %", ylim=(80, 100))
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default=[""], nargs="+", metavar="TEXT", help="methods whose name holds one")
    parser.add_argument("--runs", type=Path, default=Path("runs/bytes_to_target"))
    parser.add_argument("--only-done", action="store_true", help="report the runs that are there, and run none")
    parser.add_argument("--write", action="store_true", help="write the result file and the chart")
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the ranks: the result file states it
    runs, found = arguments.runs.resolve(), dict[Method, list[list[Point] | None]]()
    for seed in arguments.seeds:
        for method in METHODS:
            done = (
                runs / method.name.translate(str.maketrans(" ", "-", ",%.")) / f"seed{seed}" / "curve.json"
            ).is_file()
            if done or (not arguments.only_done and any(text in method.name for text in arguments.only)):
                points = curve(method, seed, runs)
                found.setdefault(method, []).append(points)
                print(seed, method.name, points[-1] if points else "diverged", flush=True)
    found = {method: found[method] for method in METHODS if method in found}
    best = min(max(point.accuracy for point in points or ()) for points in found[ALEXNET])
    targets = [best, 97.0, 95.0]
    base = [bytes_to(found[ALEXNET][0], target) for target in targets]
    lines = [row(method, curves, targets, base) for method, curves in found.items()]
    body = (
        f"experiment=digits (images of 40 px, 1000-class head), 2 ranks over gloo; {ALEXNET_EPOCHS} epochs of AlexNet, "
        f"24 of SqueezeNet 1.1, tested after each. The first target, {best:.2f}%, is the best that AlexNet reached. x: "
        "fewer bytes than AlexNet in fp32 until the same accuracy, without what the test itself sends.\n\n"
        f"| network and method | best accuracy, % | bytes to {best:.2f}% | to 97% | to 95% |\n|---|---|---|---|---|\n"
        + "\n".join(lines)
    )
    print(body)
    if arguments.write:
        chart(found, RESULTS / "bytes_to_target.svg")
        print(write_result("bytes_to_target", arguments.hardware, "Bytes to a target accuracy", body))


if __name__ == "__main__":
    main()
