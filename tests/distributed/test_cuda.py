"""What needs a CUDA device: NCCL with one rank, and compressors on CUDA tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dtrain.comm.lockstep import lockstep
from dtrain.compressors import COMPRESSORS, build
from dtrain.exchange import Bucket, Context, Layout
from dtrain.meter.clock import CUDA_CLOCK
from dtrain.sync.drive import drive_lockstep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WORLD_SIZE = 2


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_gives_on_cuda_what_it_gives_on_the_cpu(name: str) -> None:
    compressor = build(name)
    layout = Layout(("weight", "bias"), ((64, 33), (64,)))
    means = {}
    for device in ("cpu", "cuda"):
        values = [
            torch.randn(layout.numel, generator=torch.Generator().manual_seed(rank)).to(device)
            for rank in range(WORLD_SIZE)
        ]
        buckets = [Bucket(value, layout) for value in values]
        exchanges = [
            compressor.exchange(bucket, compressor.init(bucket), Context(rank, WORLD_SIZE, step=0))
            for rank, bucket in enumerate(buckets)
        ]
        results = drive_lockstep(exchanges, lockstep(WORLD_SIZE))
        assert results[0].mean.device.type == device
        assert torch.equal(results[0].mean, results[1].mean)
        means[device] = results[0].mean.cpu()
    torch.testing.assert_close(means["cuda"], means["cpu"], rtol=1e-5, atol=1e-6)


def test_training_over_nccl_counts_what_it_exchanges(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dtrain.train", "backend=nccl", "num_steps=5", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["backend"] == "nccl"
    assert summary["payload_bytes_per_step"] == 4 * summary["num_parameters"]


def test_a_cuda_clock_measures_the_work_of_its_stream() -> None:
    start = CUDA_CLOCK.mark()
    torch.cuda._sleep(50_000_000)
    assert CUDA_CLOCK.seconds(start, CUDA_CLOCK.mark()) > 0.005
