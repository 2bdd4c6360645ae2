from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = Path(sys.executable).with_name("torchrun")
SETTINGS = (
    "compressor=top_k",
    "compressor.density=0.01",
    "bucket_bytes=500000",
    "first_bucket_bytes=100000",
    "batch_size=8",
    "eval_every_epochs=0",
    "observe.progress=false",
)


def train(world_size: int, run_dir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(TORCHRUN), "--standalone", f"--nproc-per-node={world_size}", "-m", "dtrain.train"),
            *(*SETTINGS, f"run_dir={run_dir}", *overrides),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on 2 ranks, with a checkpoint in the middle."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = train(2, run_dir, "num_steps=8", "save_every=4")
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


def checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "step-000004"


def test_a_resumed_run_ends_in_bitwise_the_same_model_and_residuals(whole_run: Path, tmp_path: Path) -> None:
    done = train(2, tmp_path / "rest", "num_steps=8", "save_every=4", f"resume={checkpoint(whole_run)}")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("model", "optimizer", "rank0", "rank1"):
        path = f"checkpoints/step-000008/{name}.safetensors"
        whole, rest = load_file(whole_run / path), load_file(tmp_path / "rest" / path)
        assert whole.keys() == rest.keys()
        assert all(torch.equal(whole[key], rest[key]) for key in whole), name


def test_a_run_resumes_with_another_number_of_workers(whole_run: Path, tmp_path: Path) -> None:
    done = train(3, tmp_path / "wider", "num_steps=6", f"resume={checkpoint(whole_run)}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_checkpoint_is_one_clear_line(whole_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint(whole_run).iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes()[:-100] if path.name == "rank1.safetensors" else path.read_bytes()
        )
    done = train(1, tmp_path / "run", "num_steps=6", f"resume={broken}")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("dtrain: error:")]
    assert len(errors) == 1
    assert "rank1.safetensors" in errors[0]
