"""Write the result file of the CIFAR-10 recipe from finished runs, one for each seed.

    for seed in 0 1 2; do
      OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node=2 -m dtrain.train experiment=cifar10 \
        data=image_folder data.root=CIFAR data.image_size=32 data.augment=false \
        data.mean=[0.4914,0.4822,0.4465] data.std=[0.247,0.2435,0.2616] seed=$seed run_dir=runs/cifar10/seed$seed
    done
    python benchmarks/cifar10.py runs/cifar10/seed0 runs/cifar10/seed1 runs/cifar10/seed2
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from harness import write_result


def evaluations(run: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "eval"]


def body(runs: list[Path]) -> str:
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    incomplete = [s["run"] for s in summaries if not s["complete"]]
    if incomplete:
        raise ValueError(f"incomplete runs: {', '.join(incomplete)}")
    curves = [evaluations(run) for run in runs]
    accuracies = [s["accuracy"] for s in summaries]
    first = summaries[0]
    stepping = ", ".join(f"{s['num_steps'] * s['step_seconds_median'] / 60:.1f}" for s in summaries)
    minutes = ", ".join(f"{s['seconds'] / 60:.1f}" for s in summaries)
    header = " | ".join(f"seed {s['seed']}" for s in summaries)
    rows = [
        f"| {points[0]['epoch'] + 1} | {points[0]['wire_bytes'] / 1e9:.2f} | "
        + " | ".join(f"{100 * point['accuracy']:.2f}" for point in points)
        + " |"
        for points in zip(*curves, strict=True)
    ]
    return "\n".join(
        [
            f"`{first['model']}` ({first['variant']}, {first['num_parameters']:,} parameters), "
            f"{first['world_size']} ranks x batch {first['batch_size_per_rank']}, {first['num_steps']:,} steps, "
            f"compressor `{first['compressor']}`.",
            "The images are a lossy JPEG copy of CIFAR-10 (50,000 to train, 10,000 to test), as class folders.",
            "",
            f"Test accuracy {100 * statistics.mean(accuracies):.2f}% "
            f"({100 * min(accuracies):.2f} to {100 * max(accuracies):.2f} over {len(runs)} seeds). "
            f"Training took {minutes} minutes by the clock, on a machine that did other work at the same time and "
            f"paused the runs now and then; the number of steps times the median step is {stepping} minutes.",
            "",
            "Recipe (`conf/experiment/cifar10.yaml`): SGD, momentum 0.9, weight decay 2e-4, learning rate 0.01 falling "
            "linearly to 0, no ReLU after conv10, dropout 0.5, no augmentation.",
            "",
            f"| epoch | gradient bytes sent by rank 0, GB | {header} |",
            "|---|---|" + "---|" * len(runs),
            *rows,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--hardware", default="cpu2", help="the machine's name in the result file")
    arguments = parser.parse_args()
    text = body(arguments.runs)
    print(text)
    print(write_result("cifar10", arguments.hardware, "CIFAR-10: accuracy of the recipe", text))


if __name__ == "__main__":
    main()
