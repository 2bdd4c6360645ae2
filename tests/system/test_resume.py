"""A run that goes on from a checkpoint: with as many ranks bit for bit, and with another number of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from programs import Ended, run, train_command
from safetensors.torch import load_file

SETTINGS = (
    "compressor=top_k",
    "compressor.density=0.01",
    "bucket_bytes=500000",
    "first_bucket_bytes=100000",
    "batch_size=8",
    "eval_every_epochs=0",
    "observe.progress=false",
)


def train(world_size: int, run_dir: Path, *overrides: str) -> Ended:
    return run(train_command(*SETTINGS, f"run_dir={run_dir}", *overrides, ranks=world_size), run_dir.parent)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on 2 ranks, with a checkpoint in the middle."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(2, run_dir, "num_steps=8", "save_every=4").expect(0)
    return run_dir


def checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "step-000004"


def test_a_resumed_run_ends_in_bitwise_the_same_model_and_residuals(whole_run: Path, tmp_path: Path) -> None:
    train(2, tmp_path / "rest", "num_steps=8", "save_every=4", f"resume={checkpoint(whole_run)}").expect(0)
    for name in ("model", "optimizer", "rank0", "rank1"):
        path = f"checkpoints/step-000008/{name}.safetensors"
        whole, rest = load_file(whole_run / path), load_file(tmp_path / "rest" / path)
        assert whole.keys() == rest.keys()
        assert all(torch.equal(whole[key], rest[key]) for key in whole), name


def test_a_run_resumes_with_another_number_of_workers(whole_run: Path, tmp_path: Path) -> None:
    train(3, tmp_path / "wider", "num_steps=6", f"resume={checkpoint(whole_run)}").expect(0)


def test_a_broken_checkpoint_is_one_clear_line(whole_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint(whole_run).iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes()[:-100] if path.name == "rank1.safetensors" else path.read_bytes()
        )
    done = train(1, tmp_path / "run", "num_steps=6", f"resume={broken}")
    assert done.code != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("dtrain: error:")]
    assert len(errors) == 1
    assert "rank1.safetensors" in errors[0]
