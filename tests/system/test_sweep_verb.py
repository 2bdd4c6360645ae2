"""A sweep as its user has it: stopped, gone on with, and compared, with one combination that cannot be trained."""

import json
import signal
import sys
import time
from pathlib import Path

from programs import finish, start

SETTINGS = ["model=squeezenet1_1", "batch_size=2", "num_steps=30", "log_every=1", "compressor=none,one_bit"]
COMMAND = [sys.executable, "-m", "dtrain.cli", "sweep", "-o", "sweep", *SETTINGS, "data.image_size=32"]


def test_a_sweep_that_is_stopped_goes_on_from_the_checkpoint_and_compares_what_trained(tmp_path: Path) -> None:
    first = start(COMMAND, tmp_path)
    metrics, deadline = tmp_path / "sweep" / "none" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    stopped = finish(first, 120).expect(130)
    assert stopped.stderr.endswith("dtrain sweep: stopped; the same command goes on\n")
    (saved,) = (tmp_path / "sweep" / "none" / "checkpoints").glob("step-*")

    again = finish(start(COMMAND, tmp_path), 240).expect(1)  # one_bit under momentum is refused
    assert f"going on from {saved}" in again.stdout
    assert "dtrain sweep: one_bit failed with exit code 2" in again.stderr
    assert json.loads((tmp_path / "sweep" / "none" / "summary.json").read_text())["complete"]
    assert "accuracy" in again.stdout

    third = finish(start([*COMMAND, "--json"], tmp_path), 120).expect(1).json
    assert [run["label"] for run in third["runs"]] == ["none"]
    assert third["failed"] == {"one_bit": 2}
