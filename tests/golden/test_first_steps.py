"""The first steps of a run, pinned: another loss or another byte is a change of what dtrain computes or sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import run, train_command

LOSSES = (2.348378, 2.259472, 2.329318, 2.388236, 2.422974)
TOTALS = {
    # phase, purpose, operation: (collectives, payload bytes, wire bytes); 727,626 parameters in two buckets,
    # none of which is broadcast: both ranks have built the same model
    "train gradient all_reduce": (10, 14552520, 14552520.0),
    "train metrics all_gather": (5, 280, 280.0),
    "eval metrics all_gather": (2, 32, 32.0),
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps of squeezenet1_1 on digits, on two ranks."""
    path = tmp_path_factory.mktemp("golden") / "run"
    settings = ["num_steps=5", "log_every=1", "batch_size=16", "model.dropout=0", "observe.progress=false"]
    run(train_command(*settings, f"run_dir={path}", ranks=2), path.parent).expect(0)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_losses_are_those_of_the_day_they_were_pinned(run_dir: Path) -> None:
    losses = [line["loss"] for line in lines(run_dir / "metrics.jsonl") if line["kind"] == "train"]
    assert losses == pytest.approx(LOSSES, rel=1e-4)


def test_rank_0_s_ledger_adds_up_to_what_it_did(run_dir: Path) -> None:
    totals: dict[str, tuple[int, int, float]] = {}
    for record in lines(run_dir / "ledger" / "rank0.jsonl"):
        for entry in record["entries"]:
            if entry["purpose"] == "control":
                continue  # the length of the run directory's path
            key = f"{entry['phase']} {entry['purpose']} {entry['op']}"
            count, payload, wire = totals.get(key, (0, 0, 0.0))
            totals[key] = (count + 1, payload + entry["payload_bytes"], wire + entry["wire_bytes"])
    assert totals == TOTALS
