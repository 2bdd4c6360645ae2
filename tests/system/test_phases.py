"""A run in phases, by 2 ranks: what each exchanges, what is left of the weights, and going on in the middle of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from programs import dtrain_command, read_summary, run, train_command
from safetensors.torch import load_file
from torch import Tensor

from dtrain.pack import from_bytes, read_safetensors, unpack

pytestmark = pytest.mark.timeout(600)

DENSITY, BITS = 0.33, 4
NUM_PARAMETERS = 727_626  # of SqueezeNet 1.1 with 10 classes
SETTINGS = (
    "experiment=deep_compression",
    "~phases.dense.num_epochs",
    "~phases.prune.num_epochs",
    "~phases.share.num_epochs",
    "+phases.dense.num_steps=4",
    "+phases.prune.num_steps=4",
    "+phases.share.num_steps=4",
    f"phases.prune.density={DENSITY}",
    f"phases.share.bits={BITS}",
    "batch_size=8",
    "eval_every_epochs=0",
    "save_every=2",
    "compressor=fp16",
    "log_every=2",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    done = run(train_command(*SETTINGS, "run_dir=run", ranks=2), folder).expect(0)
    (folder / "run" / "stdout.txt").write_text(done.stdout)
    return folder / "run"


def model_after(run_dir: Path, step: int) -> dict[str, Tensor]:
    return load_file(run_dir / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.dim() > 1}


def test_the_summary_says_what_each_phase_exchanged_and_it_falls(whole: Path) -> None:
    summary = read_summary(whole)
    assert [phase["name"] for phase in summary["phases"]] == ["dense", "prune", "share"]
    assert [phase["steps"] for phase in summary["phases"]] == [4, 4, 4]
    pruned, shared = weights(model_after(whole, 8)), weights(load_file(whole / "model.safetensors"))
    survivors = sum(round(DENSITY * weight.numel()) for weight in pruned.values())
    centroids = sum(len(weight[weight != 0].unique()) for weight in shared.values())
    biases = NUM_PARAMETERS - sum(weight.numel() for weight in pruned.values())
    values = [NUM_PARAMETERS, survivors + biases, centroids + biases]
    assert [phase["exchanged_values"] for phase in summary["phases"]] == values
    assert [phase["payload_bytes_per_step"] for phase in summary["phases"]] == [2 * count for count in values]  # fp16
    assert [phase["wire_bytes_per_step"] for phase in summary["phases"]] == [2 * count for count in values]  # 2 ranks
    assert all(0 <= phase["accuracy"] <= 1 for phase in summary["phases"])
    assert summary["payload_bytes_per_step"] == 2 * sum(values) / 3


def test_the_terminal_says_so_too(whole: Path) -> None:
    lines = [line for line in (whole / "stdout.txt").read_text().splitlines() if line.startswith("phase ")]
    assert [line.split(":")[0] for line in lines] == ["phase dense", "phase prune", "phase share"]
    assert f"4 steps, {NUM_PARAMETERS:,} values, {2 * NUM_PARAMETERS:,} B handed over" in lines[0]


def test_pruned_weights_stay_zero_and_shared_ones_equal_while_they_train(whole: Path) -> None:
    first, second = weights(model_after(whole, 6)), weights(model_after(whole, 8))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    last = weights(load_file(whole / "model.safetensors"))
    for name in first:
        assert int((first[name] != 0).sum()) == round(DENSITY * first[name].numel())
        assert torch.equal(first[name] == 0, second[name] == 0)
        assert torch.equal(second[name] == 0, last[name] == 0)
        assert len(last[name].unique()) <= 2**BITS


def test_the_packed_model_is_the_trained_one_and_small(whole: Path) -> None:
    packed = (whole / "model.dtz").read_bytes()
    assert read_summary(whole)["packed_bytes"] == len(packed) < NUM_PARAMETERS / 4
    trained, unpacked = read_safetensors(whole / "model.safetensors"), unpack(from_bytes(packed))
    assert trained.tensors.keys() == unpacked.tensors.keys()
    assert all(np.array_equal(trained.tensors[name].data, t.data) for name, t in unpacked.tensors.items())
    run(dtrain_command("evaluate", str(whole / "model.safetensors")), whole).expect(0)


@pytest.mark.parametrize("step", [4, 6, 10])
def test_a_run_goes_on_in_the_middle_of_a_phase_and_between_two_bit_for_bit(
    whole: Path, tmp_path: Path, step: int
) -> None:
    folder = whole / "checkpoints" / f"step-{step:06d}"
    run(train_command(*SETTINGS, "run_dir=rest", f"resume={folder}", ranks=2), tmp_path).expect(0)
    for path in ("model.safetensors", "checkpoints/step-000012/optimizer1.safetensors"):
        one, two = load_file(whole / path), load_file(tmp_path / "rest" / path)
        assert all(torch.equal(one[name], two[name]) for name in one), path
    assert (whole / "model.dtz").read_bytes() == (tmp_path / "rest" / "model.dtz").read_bytes()


def test_adamw_keeps_what_phases_fixed_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Its steps divide by roots of means: equal weights must stay equal, and pruned ones zero, all the same."""
    settings = [*SETTINGS, "optimizer=adamw", "optimizer.learning_rate=0.001", "compressor=int8", "save_every=1"]
    run(train_command(*settings, "run_dir=whole", ranks=2), tmp_path).expect(0)
    pruned, shared = (weights(model_after(tmp_path / "whole", step)) for step in (8, 12))
    moved = weights(model_after(tmp_path / "whole", 10))
    for name in pruned:
        assert int((pruned[name] != 0).sum()) == round(DENSITY * pruned[name].numel())
        assert torch.equal(pruned[name] == 0, shared[name] == 0)
        assert len(shared[name].unique()) <= 2**BITS
    assert any(not torch.equal(moved[name], shared[name]) for name in shared)
    folder = tmp_path / "whole" / "checkpoints" / "step-000010"
    run(train_command(*settings, "run_dir=rest", f"resume={folder}", ranks=2), tmp_path).expect(0)
    for path in ("model.safetensors", "checkpoints/step-000012/optimizer1.safetensors"):
        one, two = load_file(tmp_path / "whole" / path), load_file(tmp_path / "rest" / path)
        assert all(torch.equal(one[name], two[name]) for name in one), path


def test_a_teacher_needs_no_labels(whole: Path, tmp_path: Path) -> None:
    """From trained weights, with the uncompressed model as teacher, also across a resume."""
    settings = [s for s in SETTINGS if "dense" not in s and "share" not in s]
    settings += ["~phases.dense", "~phases.share", f"init_weights={whole / 'model.safetensors'}", "teacher=before"]
    run(train_command(*settings, "run_dir=one", ranks=2), tmp_path).expect(0)
    folder = tmp_path / "one" / "checkpoints" / "step-000002"
    teacher, started = load_file(folder / "teacher.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(teacher[name], started[name]) for name in started)
    run(train_command(*settings, "run_dir=two", f"resume={folder}", ranks=2), tmp_path).expect(0)
    assert (tmp_path / "one" / "model.dtz").read_bytes() == (tmp_path / "two" / "model.dtz").read_bytes()


def test_a_low_rank_network_trains_and_exchanges_its_factors(tmp_path: Path) -> None:
    settings = [s for s in SETTINGS if "phases" not in s]
    settings += ["~phases", "+phases.thin={energy: 0.5, num_steps: 2}", "+phases.thinner={density: 0.5, num_steps: 4}"]
    run(train_command(*settings, "run_dir=one", ranks=2), tmp_path).expect(0)
    phases = read_summary(tmp_path / "one")["phases"]
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    assert "features.12.expand3x3.0.weight" in tensors
    assert phases[0]["exchanged_values"] == sum(tensor.numel() for tensor in tensors.values()) < NUM_PARAMETERS
    assert phases[1]["exchanged_values"] == sum(
        int((t != 0).sum()) if t.dim() > 1 else len(t) for t in tensors.values()
    )
    run(dtrain_command("evaluate", str(tmp_path / "one" / "model.safetensors")), tmp_path).expect(0)
    folder = tmp_path / "one" / "checkpoints" / "step-000004"
    run(train_command(*settings, "run_dir=two", f"resume={folder}", ranks=2), tmp_path).expect(0)
    assert (tmp_path / "one" / "model.dtz").read_bytes() == (tmp_path / "two" / "model.dtz").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("phases.share.bits=16",), "bits=16 must be from 1 to 12"),
        (("+phases.prune.densities={conv1: 0.5}", "phases.dense.num_epochs=0"), "densities names 'conv1'"),
        (("teacher=nowhere.safetensors",), "no weight file at nowhere.safetensors"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    done = run(train_command("experiment=deep_compression", *settings, "run_dir=run"), tmp_path).expect(2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("dtrain: error:")]
    assert len(errors) == 1
    assert message in errors[0]
