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
from dtrain.compressors.codecs import compiled
from dtrain.compressors.codecs.workspace import Workspace
from dtrain.exchange import Bucket, Context, Layout
from dtrain.meter.clock import CUDA_CLOCK
from dtrain.sync.drive import drive_lockstep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WORLD_SIZE = 2


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_gives_on_cuda_what_it_gives_on_the_cpu(name: str) -> None:
    compressor = build(name, **({"rounding": "nearest"} if name == "ternary" else {}))  # each device draws its own bits
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


@pytest.mark.parametrize("name", ["int8", "int4", "one_bit", "ternary"])
@pytest.mark.parametrize("special", [[], [float("nan"), float("inf"), -0.0, 1e-45, 3.4e38]])
def test_triton_says_what_torch_says(name: str, special: list[float]) -> None:
    if (obstacle := compiled.why_not_triton()) is not None:
        pytest.skip(obstacle)
    codec = build(name, **({} if name == "one_bit" else {"rounding": "nearest"})).inner.codec
    device = torch.device("cuda")
    for numel in (1, 639, 2049, 100_003):
        values = torch.randn(numel, device=device).exp_().mul_(torch.randn(numel, device=device))
        values[: len(special)] = torch.tensor(special[:numel], device=device)
        residual = torch.randn(numel, device=device)
        workspace = Workspace(Context(0, 1, 0), Bucket(values, Layout(("values",), ((numel,),))), numel)
        found = []
        for chosen in ("torch", "triton"):
            compiled.choose(chosen, "cuda")
            message, left = torch.empty(codec.num_bytes(numel), dtype=torch.uint8, device=device), residual.clone()
            codec.encode_corrected(values, residual, left, message, workspace, subtract=True)
            decoded, grown = torch.empty_like(values), residual.clone()
            codec.decode(message, decoded, workspace)
            codec.decode(message, grown, workspace, add=-1.0)
            found.append([message, *(one.view(torch.uint8) for one in (left, decoded, grown))])
        compiled.choose("auto", "cuda")
        for by_torch, by_triton in zip(*found, strict=True):
            assert torch.equal(by_torch, by_triton)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_an_exchange_waits_for_no_value_but_where_it_says_so(name: str) -> None:
    """torch's own watch: `.item()`, sizes found out and copies from memory that is not pinned."""
    if name in ("chunked_top_k", "rotated_signs"):
        pytest.skip("says so: docs/compressors.md")
    layout = Layout(("weight", "bias"), ((64, 33), (64,)))
    compressor, bucket = build(name), Bucket(torch.randn(layout.numel, device="cuda"), layout)
    state = compressor.init(bucket)
    for step in range(2):  # the first compiles
        exchanges = [compressor.exchange(bucket, state, Context(0, 1, step))]
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            state = drive_lockstep(exchanges, lockstep(1))[0].state
        finally:
            torch.cuda.set_sync_debug_mode("default")
