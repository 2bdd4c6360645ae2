"""Run directories as training writes them, for the tests of the report; and a test that they keep DESIGN.md's word."""

import json
import math
from pathlib import Path
from typing import Any

from dtrain.report import load_runs

ALEXNET = {"model": "alexnet", "variant": "paper layout (grouped convolutions, LRN)", "num_parameters": 60_965_224}
SQUEEZENET = {
    "model": "squeezenet1_1",
    "variant": "paper layout, none bypass, final ReLU on",
    "num_parameters": 1_235_496,
}


def summary_of(name: str, **changes: Any) -> dict[str, Any]:
    """A sound summary of a run of squeezenet1_1 on two ranks; bytes follow parameters and world size."""
    base = SQUEEZENET | changes
    parameters, world_size = base["num_parameters"], base.get("world_size", 2)
    payload = 4 * parameters
    wire = 2 * payload * (world_size - 1) / world_size
    alone = world_size == 1
    return {
        "schema": 1,
        "run": name,
        "num_classes": 1000,
        "image_size": 64,
        "data": "digits",
        "world_size": world_size,
        "backend": "gloo",
        "compressor": "none",
        "num_steps": 180,
        "batch_size_per_rank": 32,
        "grad_bytes": payload,
        "payload_bytes_per_step": 0 if alone else payload,
        "wire_bytes_per_step": int(wire) if wire.is_integer() else wire,
        "nic_bytes_per_step": None,
        "init_wire_bytes": payload * (world_size - 1),
        "saving_vs_fp32": None if alone else 1.0,
        "saving_vs_fp16": None if alone else 0.5,
        "accuracy": 0.9833,
        "loss": 0.0613,
        "images_per_second": 310.4,
        "step_seconds_median": 0.206,
        "exposed_comm_seconds_median": 0.0 if alone else 0.011,
        "codec_seconds_median": 0.0004,
        "transfer_seconds_median": 0.0 if alone else 0.018,
        "straggler_wait_seconds_median": 0.0 if alone else 0.0031,
        "stragglers": [],
        "total_wire_bytes_all_ranks": wire * 180 * world_size + payload,
        "wire_bytes_by_phase_and_purpose": {
            "init/parameters": payload * (world_size - 1),
            "train/gradient": wire * 180,
            "train/metrics": 2880,
            "eval/metrics": 96,
        },
        "seed": 0,
        "versions": {"dtrain": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.2"},
        "complete": True,
        **base,
    }


def metrics_of(summary: dict[str, Any], every: int = 5) -> list[dict[str, Any]]:
    """Falling loss and rising accuracy, with an evaluation every 30 steps."""
    records: list[dict[str, Any]] = []
    for step in range(every, summary["num_steps"] + 1, every):
        progress = 1 - math.exp(-step / 40)
        sent = (summary["wire_bytes_per_step"] or 0) * step
        shared = {"step": step, "wire_bytes": sent}
        wobble = 0.25 * math.sin(step * 12.9898) * math.exp(-step / 60)
        records.append(
            {
                "kind": "train",
                **shared,
                "total_wire_bytes_all_ranks": sent * summary["world_size"],
                "epoch": step // 45,
                "loss": 6.9 * (1 - progress) + 0.05 + abs(wobble),
                "accuracy": min(1.0, max(0.0, progress * 0.99 + wobble / 4)),
                "learning_rate": 0.04 * (1 - step / 200),
                "images_per_second": 310.4,
                "step_seconds": 0.2,
                "exposed_comm_seconds": 0.01,
            }
        )
        if step % 30 == 0:
            accuracy = (summary["accuracy"] or 0.9) * progress
            records.append(
                {"kind": "eval", **shared, "loss": 6.9 * (1 - progress) + 0.06, "accuracy": accuracy, "num_images": 360}
            )
    return records


def write_run(directory: Path, **changes: Any) -> Path:
    """Writes a run directory, its summary changed as told, and returns it."""
    directory.mkdir(parents=True)
    summary = summary_of(changes.pop("run", directory.name), **changes)
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    lines = [json.dumps(record) + "\n" for record in metrics_of(summary)]
    (directory / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


def write_demo(root: Path) -> list[Path]:
    """The two runs of `make demo`."""
    alexnet = write_run(
        root / "alexnet",
        **ALEXNET,
        accuracy=0.9694,
        loss=0.1102,
        images_per_second=35.1,
        step_seconds_median=1.82,
        exposed_comm_seconds_median=0.61,
        codec_seconds_median=0.021,
        transfer_seconds_median=0.77,
        straggler_wait_seconds_median=0.09,
        stragglers=[{"rank": 1, "host": "node1", "share_of_wait": 0.93, "share_of_step": 0.0495}],
    )
    return [alexnet, write_run(root / "squeezenet1_1")]


PROMISED = """
    run model variant num_parameters world_size backend compressor num_steps batch_size_per_rank grad_bytes
    payload_bytes_per_step wire_bytes_per_step nic_bytes_per_step init_wire_bytes saving_vs_fp32 saving_vs_fp16
    accuracy loss step_seconds_median exposed_comm_seconds_median codec_seconds_median total_wire_bytes_all_ranks
    seed versions complete
"""


def test_example_runs_have_every_key_that_the_design_promises(tmp_path: Path) -> None:
    assert set(PROMISED.split()) <= set(summary_of("a"))
    assert [run.run for run in load_runs(write_demo(tmp_path))] == ["alexnet", "squeezenet1_1"]
