"""benchmarks/gpu.py, which runs where a GPU is, by what of it a CPU can do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from programs import REPOSITORY, run

SCRIPT = str(REPOSITORY / "benchmarks" / "gpu.py")
PARTS = ("messages", "compressors", "throughput", "training", "two ranks", "amp", "memory", "meter")


def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = run([sys.executable, SCRIPT, "--device", "cpu", "--quick"], tmp_path).expect()
    assert "Failed: none." in done.stdout
    assert [f"## {part.capitalize()}" for part in PARTS] == [x for x in done.stdout.splitlines() if x.startswith("## ")]
    assert done.stdout.count("| equal |") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run([sys.executable, SCRIPT], tmp_path).expect(2)
    assert done.stderr == "torch sees no CUDA device: add --device cpu for what of it a CPU can do\n"
