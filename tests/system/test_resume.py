"""A run that goes on from a checkpoint: with as many ranks bit for bit, and with another number of them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from programs import Ended, dtrain_command, finish, read_summary, run, start, train_command, under_torchrun
from safetensors.torch import load_file

SETTINGS = (
    "guard=off",  # which is not about accuracy
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
    assert_same_end(whole_run, tmp_path / "rest")


def assert_same_end(one: Path, other: Path, step: int = 8) -> None:
    for name in ("model", "optimizer0", "optimizer1", "rank0", "rank1"):
        path = f"checkpoints/step-{step:06d}/{name}.safetensors"
        whole, rest = load_file(one / path), load_file(other / path)
        assert whole.keys() == rest.keys()
        assert all(torch.equal(whole[key], rest[key]) for key in whole), name


def share_without_momentum(folder: Path) -> float:
    state = load_file(folder / "rank0.safetensors")
    momenta = [value for key, value in state.items() if key.endswith("momentum_buffer")]
    return sum(int((m == 0).sum()) for m in momenta) / sum(m.numel() for m in momenta)


def test_a_run_is_resumed_within_a_local_round_and_masks_the_momentum_of_what_it_sends(tmp_path: Path) -> None:
    local = ("sync=local", "sync.every=3", "num_steps=6", "save_every=2")
    train(2, tmp_path / "run", *local).expect(0)
    train(2, tmp_path / "rest", *local, f"resume={checkpoint(tmp_path / 'run')}").expect(0)
    assert_same_end(tmp_path / "run", tmp_path / "rest", step=6)
    within, after = (share_without_momentum(tmp_path / "run" / "checkpoints" / f"step-00000{n}") for n in (4, 6))
    assert after - within == pytest.approx(0.01, rel=0.3)  # density


def test_a_run_is_resumed_with_a_fragment_under_way(tmp_path: Path) -> None:
    streaming = ("sync=streaming", "sync.every=6", "sync.fragments=2", "sync.delay=2", "sync.kept=0.25")
    streaming += ("sync.outer=nesterov", "num_steps=12", "save_every=4")  # exchanged after 3, taken up after 5
    train(2, tmp_path / "run", *streaming).expect(0)
    assert any("local.mean" in key for key in load_file(checkpoint(tmp_path / "run") / "rank0.safetensors"))
    train(2, tmp_path / "rest", *streaming, f"resume={checkpoint(tmp_path / 'run')}").expect(0)
    assert_same_end(tmp_path / "run", tmp_path / "rest", step=12)


SMALL = ("data=synthetic", "data.num_train_images=100", "data.num_test_images=20", "num_epochs=2")


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (3, 2)])
def test_another_number_of_workers_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, before: int, after: int) -> None:
    """What the run did not train on yet, and no more; in the unit tests for every compressor, sample by sample."""
    middle = -(-100 // (8 * before)) + 1  # one step into the second epoch
    train(before, tmp_path / "first", *SMALL, f"save_every={middle}").expect(0)
    folder = tmp_path / "first" / "checkpoints" / f"step-{middle:06d}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["samples_seen"], manifest["world_size"]) == (100 + 8 * before, before)
    train(after, tmp_path / "second", *SMALL, "save_every=1", "log_every=1", f"resume={folder}").expect(0)
    steps = -(-(100 - 8 * before) // (8 * after))
    summary = read_summary(tmp_path / "second")
    assert (summary["complete"], summary["num_steps"]) == (True, steps)
    last = json.loads(
        (tmp_path / "second" / "checkpoints" / f"step-{middle + steps:06d}" / "manifest.json").read_text()
    )
    assert (last["samples_seen"], last["epoch"], last["position"]) == (200, 2, 0)
    assert (last["world_size"], last["step_samples"]) == (after, 8 * before)


def test_a_run_that_torchrun_starts_again_goes_on_and_wipes_nothing(tmp_path: Path) -> None:
    """Of the two ranks one is killed; `overwrite=true` is for other runs than its own."""
    command = under_torchrun(2, "-m", "dtrain.train", *SETTINGS, *SMALL, "num_epochs=20", "save_every=3")
    command.insert(command.index("--standalone"), "--max-restarts=1")
    process = start([*command, "log_every=1", "overwrite=true", "run_dir=run"], tmp_path)
    try:
        first, deadline = tmp_path / "run" / "checkpoints" / "step-000003" / "manifest.json", time.monotonic() + 120
        while not first.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.1)
        (*_, last) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(last), signal.SIGKILL)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    ended = finish(process, 120).expect(0)
    begun = f"going on from {tmp_path / 'run' / 'checkpoints' / 'step-'}"
    assert ended.stdout.count(begun) == 1
    step = int(ended.stdout.partition(begun)[2][:6])
    summary = read_summary(tmp_path / "run")
    assert (summary["complete"], summary["num_steps"]) == (True, 20 * 7 - step)  # of 16, and 4 images
    assert read_summary(tmp_path / "run" / "earlier" / "1")["complete"] is False
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == step + 1


def test_resume_skips_what_is_broken_and_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    train(2, tmp_path / "run", *SMALL, "num_epochs=1", "save_every=2", "keep_checkpoints=2").expect(0)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000004", "step-000006"]
    (checkpoints / "step-000006" / "manifest.json").write_bytes(b"")  # as a loss of power leaves it
    ended = run(dtrain_command("resume", "run", "num_epochs=2"), tmp_path).expect(0)
    assert f"skipped a checkpoint: {checkpoints / 'step-000006' / 'manifest.json'}" in ended.stdout
    assert f"going on from {checkpoints / 'step-000004'}" in ended.stdout
    assert read_summary(tmp_path / "run")["num_steps"] == 3 + 7  # of 36, then 100 images, still 16 a step


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["optimizer.learning_rate=0.5"], ["optimizer.learning_rate was 0.01 and is 0.5", "resume_changes=["]),
        (["compressor=int8"], ['compressor.name was "top_k" and is "int8"', "init_weights"]),
        (["model=squeezenet1_0"], ['model.name was "squeezenet1_1" and is "squeezenet1_0"', "init_weights"]),
        (["optimizer.learning_rate=0.5", "resume_changes=[seed]"], ["resume_changes names seed, which may not differ"]),
        (["resume_changes=[batch_size]", "resume=null"], ["resume_changes is for resume=FOLDER"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_does_not_fit_a_checkpoint_is_listed_before_anything_is_begun(
    whole_run: Path, tmp_path: Path, settings: list[str], parts: list[str]
) -> None:
    base = [s for s in SETTINGS if not (s.startswith("compressor") and "compressor=int8" in settings)]
    command = train_command(*base, "run_dir=run", f"resume={checkpoint(whole_run)}", *settings)
    ended = run(command, tmp_path).expect(2)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("dtrain: error: ")
    assert all(part in line for part in parts), line
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_named_may_differ(whole_run: Path, tmp_path: Path) -> None:
    changes = ["optimizer.learning_rate=0.005", "batch_size=4"]
    named = "resume_changes=[optimizer.learning_rate,batch_size]"
    train(2, tmp_path / "run", "num_steps=6", f"resume={checkpoint(whole_run)}", *changes, named).expect(0)
    assert read_summary(tmp_path / "run")["num_steps"] == 4  # two steps of the plan are four of half the size


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
