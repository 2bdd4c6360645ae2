"""What a checkpoint says of itself is checked, and what does not fit it is refused in one line that names the file."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from threads import ThreadCommunicator, run_ranks
from torch import nn

from dtrain.compressors import build
from dtrain.meter.ledger import Ledger
from dtrain.sync.every_step import EveryStep
from dtrain.train.checkpoint import CONSTRAINTS, MANIFEST, MODEL, open_checkpoint, optimizer_file, rank_file
from dtrain.train.progress import Progress
from dtrain.train.resume import resume
from dtrain.train.saving import Saver

torch.manual_seed(0)
MODEL_OF_TESTS = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
WORLD_SIZE = 2


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def start(communicator: ThreadCommunicator, model: nn.Module) -> tuple[torch.optim.Optimizer, EveryStep]:
    return sgd(model), EveryStep(model, build("int8"), communicator.duplicate(), Ledger(), overlap=False)


def save(communicator: ThreadCommunicator, folder: Path) -> None:
    """Train three steps and save."""
    model = copy.deepcopy(MODEL_OF_TESTS)
    optimizer, synchronizer = start(communicator, model)
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + communicator.rank)
        model(torch.randn(4, 6, generator=generator)).square().sum().backward()
        synchronizer.before_step()
        optimizer.step()
        synchronizer.after_step()
    saver = Saver(folder, communicator, Ledger(), torch.device("cpu"), {"compressor.name": "int8"})
    saver.save(
        model,
        optimizer,
        synchronizer,
        progress=Progress(3, 0, 24),
        samples_seen=24,
        step_samples=8,
        description={"model": {"name": "tiny"}},
        constraints={"0.weight": torch.ones(5, 6, dtype=torch.bool)},
        teacher=None,
    )
    saver.finish()
    saver.close()
    synchronizer.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    run_ranks(WORLD_SIZE, lambda communicator: save(communicator, folder))
    return folder / "checkpoints" / "step-000003"


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def take_up(folder: Path, model: nn.Module = MODEL_OF_TESTS, world_size: int = WORLD_SIZE) -> None:
    checkpoint = open_checkpoint(folder)

    def body(communicator: ThreadCommunicator) -> None:
        own = copy.deepcopy(model)
        optimizer, synchronizer = start(communicator, own)
        resume(checkpoint, own, optimizer, synchronizer, communicator)

    run_ranks(world_size, body)


def test_a_whole_checkpoint_says_what_it_holds(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    manifest = checkpoint.manifest
    assert manifest.progress == Progress(3, 0, 24)
    assert (manifest.world_size, manifest.samples_seen, manifest.step_samples) == (2, 24, 8)
    assert set(manifest.files) == {
        MODEL,
        CONSTRAINTS,
        *(file(k) for file in (optimizer_file, rank_file) for k in range(2)),
    }
    assert {path.name for path in saved.iterdir()} == {*manifest.files, MANIFEST}
    for name, file in manifest.files.items():
        assert file.num_bytes == (saved / name).stat().st_size
    assert checkpoint.description()["model"] == {"name": "tiny"}
    assert checkpoint.tensors(CONSTRAINTS)["0.weight"].all()
    take_up(saved)


def test_when_the_manifest_takes_its_name_all_else_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power there is a whole checkpoint or none: nothing of one is only in memory."""
    run_dir, synced = tmp_path / "run", list[Path]()
    run_dir.mkdir()
    fsync, replace = os.fsync, Path.replace

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        assert path in synced, "a file takes its name before its content is on the disk"
        synced.append(target)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "replace", renamed)
    run_ranks(WORLD_SIZE, lambda communicator: save(communicator, run_dir))
    folder = run_dir / "checkpoints" / "step-000003"
    last = synced.index(folder / MANIFEST)
    before = synced[:last]
    assert {folder / name for name in open_checkpoint(folder).manifest.files} <= set(before)
    assert {run_dir, run_dir / "checkpoints"} <= set(before)  # the names of new folders
    assert synced[last + 1] == folder


def test_a_run_directory_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the run directory is gone: '.*/run'"):
        run_ranks(1, lambda communicator: save(communicator, tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def swap_ranks(folder: Path) -> None:
    one, two = folder / rank_file(0), folder / rank_file(1)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [MODEL, optimizer_file(1), rank_file(0), rank_file(1)])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip_a_bit, "is not the file that was saved"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not the file that was saved"),
        (lambda path: path.write_bytes(b""), "is not the file that was saved"),
        (Path.unlink, "no such file; give a whole checkpoint"),
        (into_a_folder, "no such file; give a whole checkpoint"),
    ],
    ids=["bit", "short", "empty", "gone", "folder"],
)
def test_a_file_that_is_not_the_one_that_was_saved_is_refused_by_name(
    copied: Path, name: str, harm: Callable[[Path], Any], said: str
) -> None:
    harm(copied / name)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as refused:
        take_up(copied)
    assert name in str(refused.value)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        take_up(copied, world_size=3)


def test_swapped_rank_files_are_refused(copied: Path) -> None:
    swap_ranks(copied)
    with pytest.raises(ValueError, match=r"rank[01]\.safetensors is not the file that was saved"):
        take_up(copied)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": -1}, "step is -1"),
        ({"step": 2.5}, "step is 2.5"),
        ({"step": True}, "step is True"),
        ({"step": "3"}, "step is '3'"),
        ({"position": -8}, "position is -8"),
        ({"epoch": 0.5}, "epoch is 0.5"),
        ({"epoch": -1}, "epoch is -1"),
        ({"samples_seen": -24}, "samples_seen is -24"),
        ({"world_size": 0}, "world_size is 0"),
        ({"world_size": 3}, "optimizer2.safetensors is not listed"),
        ({"step_samples": 0}, "step_samples is 0"),
        ({"step_samples": True}, "step_samples is True"),
        ({"files": {}}, "is not listed"),
        ({"files": None}, "not a checkpoint of this version"),
        ({"settings": 3}, "not a checkpoint of this version"),
        ({"format": "dtrain-checkpoint-9"}, "format dtrain-checkpoint-9"),
        ({"format": "dtrain-checkpoint-1"}, "init_weights"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_manifest_that_makes_no_sense_is_refused(copied: Path, changes: dict[str, Any], said: str) -> None:
    edit(copied, **changes)
    with pytest.raises(ValueError, match=said) as refused:
        open_checkpoint(copied)
    assert str(copied / MANIFEST) in str(refused.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "3"])
def test_a_manifest_of_something_else_is_refused(copied: Path, content: str) -> None:
    (copied / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: not a checkpoint of this version"):
        open_checkpoint(copied)


def test_a_folder_without_a_manifest_is_no_whole_checkpoint(copied: Path) -> None:
    (copied / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        open_checkpoint(copied)


def test_another_model_is_refused_by_what_it_lacks(saved: Path) -> None:
    wider = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
    with pytest.raises(ValueError, match=r"model\.safetensors: 0\.bias has shape \(5,\), this model needs \(7,\)"):
        take_up(saved, wider)
    deeper = nn.Sequential(*copy.deepcopy(MODEL_OF_TESTS), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"model\.safetensors: lacks 3\.bias of this model"):
        take_up(saved, deeper)
    shallower = nn.Sequential(copy.deepcopy(MODEL_OF_TESTS[0]))
    with pytest.raises(ValueError, match=r"model\.safetensors: holds 2\.bias, which this model has not"):
        take_up(saved, shallower)


def resign(folder: Path, name: str) -> None:
    """As somebody who changes a file and its checksum would."""
    import hashlib

    content = (folder / name).read_bytes()
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edit(folder, files={**files, name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}})


def as_version_2(folder: Path) -> None:
    """All of the optimizer in one file."""
    shares = [folder / optimizer_file(rank) for rank in range(WORLD_SIZE)]
    save_file({k: v for share in shares for k, v in load_file(share).items()}, folder / "optimizer.safetensors")
    files = json.loads((folder / MANIFEST).read_text())["files"]
    for share in shares:
        share.unlink()
        del files[share.name]
    edit(folder, format="dtrain-checkpoint-2", files=files)
    resign(folder, "optimizer.safetensors")


def test_version_2_is_still_read(copied: Path, saved: Path) -> None:
    as_version_2(copied)
    old, new = open_checkpoint(copied), open_checkpoint(saved)
    old.verify()
    assert old.optimizer().keys() == new.optimizer().keys()
    assert all(torch.equal(tensor, new.optimizer()[name][0]) for name, (tensor, _) in old.optimizer().items())
    take_up(copied)
    edit(copied, format="dtrain-checkpoint-3")
    with pytest.raises(ValueError, match=r"optimizer0\.safetensors is not listed"):
        open_checkpoint(copied)


def test_a_missing_tensor_is_refused_even_with_a_right_checksum(copied: Path) -> None:
    for name, gone in ((MODEL, "2.bias"), (rank_file(0), "state/2.bias/residual")):
        folder = Path(shutil.copytree(copied, copied.parent / f"without-{gone.replace('/', '-')}"))
        tensors = load_file(folder / name)
        metadata = _metadata(folder / name)
        del tensors[gone]
        save_file(tensors, folder / name, metadata)
        resign(folder, name)
        with pytest.raises(ValueError, match=r"2\.bias"):
            take_up(folder)


def test_a_state_of_the_optimizer_that_does_not_fit_is_refused(copied: Path) -> None:
    tensors = load_file(copied / optimizer_file(1))
    tensors["0.weight/momentum_buffer"] = torch.zeros(3)
    save_file(tensors, copied / optimizer_file(1))
    resign(copied, optimizer_file(1))
    with pytest.raises(ValueError, match=r"0\.weight/momentum_buffer has shape \(3,\)"):
        take_up(copied)


def test_a_state_of_a_parameter_that_the_model_has_not_is_refused(copied: Path) -> None:
    tensors = load_file(copied / optimizer_file(1))
    tensors["9.weight/momentum_buffer"] = tensors.pop("0.weight/momentum_buffer")
    save_file(tensors, copied / optimizer_file(1))
    resign(copied, optimizer_file(1))
    with pytest.raises(ValueError, match=r"optimizer1\.safetensors: holds a state of '9\.weight', which this model"):
        take_up(copied)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    run_ranks(1, lambda communicator: save(communicator, tmp_path))
    expected = torch.rand(5)
    torch.manual_seed(99)
    take_up(tmp_path / "checkpoints" / "step-000003", world_size=1)
    assert torch.equal(torch.rand(5), expected)


def test_with_another_number_of_workers_random_numbers_are_those_of_the_new_seed(saved: Path) -> None:
    torch.manual_seed(99)
    expected = torch.rand(5)
    torch.manual_seed(99)
    take_up(saved, world_size=3)
    assert torch.equal(torch.rand(5), expected)


def _metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found
