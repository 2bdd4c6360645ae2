"""Checkpoints are written beside training: what is saved is the state at the step, and what fails is said."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoint import MODEL_OF_TESTS, start
from threads import ThreadCommunicator, run_ranks
from torch import Tensor, nn

from dtrain.meter.ledger import Ledger
from dtrain.train import saving
from dtrain.train.checkpoint import MANIFEST, MODEL, open_checkpoint, optimizer_file, rank_file
from dtrain.train.checkpoint_folder import folder_of, newest
from dtrain.train.progress import Progress
from dtrain.train.saving import Saver, shares


class Run:
    """One rank's."""

    def __init__(self, communicator: ThreadCommunicator, run_dir: Path, keep: int | None = None) -> None:
        self.model, self.ledger = copy.deepcopy(MODEL_OF_TESTS), Ledger()
        self.optimizer, self.synchronizer = start(communicator, self.model)
        self.saver = Saver(run_dir, communicator, self.ledger, torch.device("cpu"), {}, keep)
        self.rank, self.step = communicator.rank, 0

    def train(self) -> None:
        generator = torch.Generator().manual_seed(10 * self.step + self.rank)
        self.model(torch.randn(4, 6, generator=generator)).square().sum().backward()
        self.synchronizer.before_step()
        self.optimizer.step()
        self.synchronizer.after_step()
        self.step += 1

    def save(self) -> None:
        self.saver.save(
            self.model,
            self.optimizer,
            self.synchronizer,
            progress=Progress(self.step, 0, 8 * self.step),
            samples_seen=8 * self.step,
            step_samples=8,
            description={},
            constraints={},
            teacher=None,
        )

    def close(self) -> None:
        self.saver.close()
        self.synchronizer.close()


class Disk:
    """One that takes as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_free = threading.Event()
        write_whole = saving.write_whole

        def write(path: Path, content: memoryview) -> None:
            assert self.is_free.wait(30)
            write_whole(path, content)

        monkeypatch.setattr(saving, "write_whole", write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.is_free.set()


def contents(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {path.name: load_file(path) for path in folder.glob("*.safetensors")}


def test_what_is_saved_is_the_state_at_the_step_however_far_training_goes_on_meanwhile(
    tmp_path: Path, disk: Disk
) -> None:
    at_once, beside = tmp_path / "at once", tmp_path / "beside"

    def body(communicator: ThreadCommunicator, run_dir: Path, wait: bool) -> None:
        run = Run(communicator, run_dir)
        for _ in range(2):
            run.train()
        run.save()
        if wait:
            run.saver.finish()
        for _ in range(3):
            run.train()
        assert run.saver.is_written() is False
        assert wait or not list(folder_of(run_dir, 2).glob("*.safetensors"))
        run.train()  # after which the other has looked, too
        if not wait and run.rank == 0:
            disk.is_free.set()
        run.saver.finish()
        run.close()

    for run_dir, wait in ((at_once, True), (beside, False)):
        run_dir.mkdir()
        disk.is_free.set() if wait else disk.is_free.clear()
        run_ranks(2, lambda c, run_dir=run_dir, wait=wait: body(c, run_dir, wait))  # type: ignore[misc]
    one, two = contents(folder_of(at_once, 2)), contents(folder_of(beside, 2))
    assert one.keys() == two.keys() == {MODEL, *(f(rank) for f in (optimizer_file, rank_file) for rank in range(2))}
    for name, tensors in one.items():
        assert all(torch.equal(tensors[key], two[name][key]) for key in tensors if key != "random/cpu"), name
    open_checkpoint(folder_of(beside, 2)).verify()


def test_a_checkpoint_is_whole_once_all_ranks_have_declared_it_and_the_next_save_does(tmp_path: Path) -> None:
    def body(communicator: ThreadCommunicator) -> None:
        run = Run(communicator, tmp_path)
        run.train()
        run.save()
        while not run.saver.is_written():
            pass
        assert not (folder_of(tmp_path, 1) / MANIFEST).exists()
        run.train()
        buffers = {name: buffer.data_ptr() for name, buffer in run.saver._buffers.items()}
        run.save()  # which waits for the one before
        assert {name: buffer.data_ptr() for name, buffer in run.saver._buffers.items()} == buffers
        run.saver.finish()
        run.close()

    run_ranks(2, body)
    for step in (1, 2):
        open_checkpoint(folder_of(tmp_path, step)).verify()


def test_a_write_that_fails_is_said_with_its_path_and_what_was_saved_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(communicator: ThreadCommunicator) -> None:
        run = Run(communicator, tmp_path)
        run.train()
        run.save()
        run.saver.finish()
        run.train()
        monkeypatch.setattr(saving, "write_whole", full)
        run.save()
        try:
            with pytest.raises(OSError, match="No space left") as failed:
                while not run.saver.is_written():
                    pass
            assert failed.value.filename == str(folder_of(tmp_path, 2) / rank_file(0))
        finally:
            run.close()

    def full(path: Path, content: memoryview) -> None:
        raise OSError(28, "No space left on device", str(path))

    run_ranks(1, body)
    found, skipped = newest(tmp_path)
    assert found is not None
    assert found.folder == folder_of(tmp_path, 1)
    assert "is not whole" in skipped[0]


def test_a_run_directory_that_vanishes_is_said_and_not_made_again(tmp_path: Path, disk: Disk) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    def body(communicator: ThreadCommunicator) -> None:
        run = Run(communicator, run_dir)
        run.train()
        run.save()
        while not folder_of(run_dir, 1).is_dir():
            pass
        run_dir.rename(tmp_path / "elsewhere")
        disk.is_free.set()
        try:
            run.saver.finish()
        finally:
            run.close()

    with pytest.raises(FileNotFoundError, match="/run/checkpoints"):
        run_ranks(1, body)
    assert not run_dir.exists()


def test_old_ones_are_removed_by_the_thread_that_declares(tmp_path: Path) -> None:
    def body(communicator: ThreadCommunicator) -> None:
        run = Run(communicator, tmp_path, keep=1)
        for _ in range(3):
            run.train()
            run.save()
        run.saver.finish()
        run.close()

    run_ranks(2, body)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]


@pytest.mark.parametrize(
    ("world_size", "first_has", "expected"),
    [
        (1, 100, [["b", "c", "a", "d"]]),
        (2, 100, [[], ["b", "c", "a", "d"]]),
        (2, 0, [["b"], ["c", "a", "d"]]),
        (3, 40, [[], ["b"], ["c", "a", "d"]]),
    ],
)
def test_shares_are_about_equal_in_bytes(world_size: int, first_has: int, expected: list[list[str]]) -> None:
    assert shares({"a": 10, "b": 40, "c": 20, "d": 8}, world_size, first_has) == expected


def test_no_rank_writes_everything(tmp_path: Path) -> None:
    def body(communicator: ThreadCommunicator) -> None:
        model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))
        run = Run(communicator, tmp_path)
        run.model = model
        run.optimizer = torch.optim.AdamW(model.parameters())
        run.synchronizer.close()
        _, run.synchronizer = start(communicator, model)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
        run.save()
        run.saver.finish()
        run.close()

    run_ranks(4, body)
    written = {path.name: path.stat().st_size for path in folder_of(tmp_path, 0).iterdir()}
    model = written[MODEL]
    assert written[optimizer_file(0)] < 500
    assert all(0.55 * model < written[optimizer_file(rank)] < 0.85 * model for rank in (1, 2, 3))
    tensors = open_checkpoint(folder_of(tmp_path, 0)).optimizer()
    assert len(tensors) == 3 * 16
