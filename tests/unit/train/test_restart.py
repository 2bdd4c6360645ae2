"""Which run a start goes on with, from which checkpoint, and that nothing is wiped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dtrain.cli import main
from dtrain.meter.ledger import StepRecord
from dtrain.observe import run_directory
from dtrain.train.checkpoint import MANIFEST, MODEL, Manifest, digest, optimizer_file, rank_file, write_manifest
from dtrain.train.checkpoint_folder import best, find, folder_of, newest, prune
from dtrain.train.config import LATEST
from dtrain.train.restart import ATTEMPTS, choose_start, count_attempt


def write_checkpoint(run_dir: Path, step: int) -> Path:
    folder = folder_of(run_dir, step)
    folder.mkdir(parents=True)
    names = (MODEL, optimizer_file(0), optimizer_file(1), rank_file(0), rank_file(1))
    for name in names:
        (folder / name).write_text(f"{name} {step} {run_dir.name}")
    files = {name: digest((folder / name).read_bytes()) for name in names}
    write_manifest(Manifest(step, 0, 8 * step, 8 * step, 8, 2, {}, files), folder / "manifest.json")
    return folder


def harm(folder: Path) -> None:
    (folder / MODEL).write_text("something else")


def config(run_dir: Path | None, *, resume: str | None = None, overwrite: bool = False) -> Any:
    named = SimpleNamespace(name="m")
    shown = None if run_dir is None else str(run_dir)
    return SimpleNamespace(model=named, compressor=named, run_dir=shown, resume=resume, overwrite=overwrite)


@pytest.fixture(autouse=True)
def under_an_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.chdir(tmp_path)
    yield


def begin(run_dir: Path, *steps: int) -> Path:
    run_directory.make(run_dir, {}, goes_on=False)
    (run_dir / "summary.json").write_text('{"complete": false}')
    for step in steps:
        write_checkpoint(run_dir, step)
    return run_dir


def another_agent(monkeypatch: pytest.MonkeyPatch, name: str = "none") -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)


def test_the_same_agent_goes_on_from_the_newest_even_where_the_run_may_be_overwritten(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", 5, 10)
    for overwrite in (False, True):
        start = choose_start(config(run_dir, overwrite=overwrite))
        assert start.checkpoint is not None
        assert (start.run_dir, start.goes_on) == (run_dir, True)
        assert start.checkpoint.folder == folder_of(run_dir, 10)


def test_before_the_first_checkpoint_it_begins_anew_and_says_so(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run")
    (run_dir / "checkpoints" / "step-000005").mkdir(parents=True)  # without its manifest
    start = choose_start(config(run_dir))
    assert (start.goes_on, start.checkpoint) == (True, None)
    assert "beginning anew" in start.lines[-1]


def test_another_job_of_no_name_is_refused_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = begin(tmp_path / "run", 5)
    another_agent(monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")  # it was refused three times before
    with pytest.raises(ValueError, match="holds a run: choose another folder"):
        choose_start(config(run_dir))
    assert not choose_start(config(run_dir, overwrite=True)).goes_on


def test_a_job_of_the_same_name_goes_on_until_its_run_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    run_dir = begin(tmp_path / "run", 5)
    another_agent(monkeypatch, "job-7")
    assert choose_start(config(run_dir)).goes_on
    (run_dir / "summary.json").write_text('{"complete": true}')
    with pytest.raises(ValueError, match="holds a run"):
        choose_start(config(run_dir))


def test_without_a_run_dir_it_finds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = begin(tmp_path / "runs" / "m-m-20260101-000000-000000", 5)
    assert choose_start(config(None)).run_dir == run_dir
    another_agent(monkeypatch)
    assert choose_start(config(None)).run_dir != run_dir


@pytest.mark.parametrize("content", ["", "[]", '{"job": 3}', '{"job": {"agent": null, "id": "none"}}'])
def test_an_environment_that_says_nothing_is_of_nobody(tmp_path: Path, content: str) -> None:
    run_dir = begin(tmp_path / "run", 5)
    (run_dir / "environment.json").write_text(content)
    with pytest.raises(ValueError, match="holds a run"):
        choose_start(config(run_dir))


def test_without_an_agent_only_who_asks_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = begin(tmp_path / "run", 5)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(ValueError, match="or resume=latest to go on with it"):
        choose_start(config(run_dir))
    start = choose_start(config(run_dir, resume=LATEST))
    assert start.checkpoint is not None
    assert not choose_start(config(tmp_path / "new", resume=LATEST)).goes_on
    (run_dir / "summary.json").write_text('{"complete": true}')
    assert not choose_start(config(run_dir, resume=LATEST, overwrite=True)).goes_on


def test_what_does_not_verify_is_skipped_and_named(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", 5, 10, 15)
    harm(folder_of(run_dir, 15))
    (folder_of(run_dir, 10) / "manifest.json").write_text("")  # as a loss of power leaves it
    start = choose_start(config(run_dir))
    assert start.checkpoint is not None
    assert start.checkpoint.folder == folder_of(run_dir, 5)
    assert "step-000015" in start.lines[0]
    assert "step-000010" in start.lines[1]
    assert start.lines[2] == f"going on from {folder_of(run_dir, 5)}"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def swap(one: Path, two: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda new: os.truncate(new / rank_file(1), 9), "rank1.safetensors is not the file that was saved"),
    "empty": (lambda new: os.truncate(new / MODEL, 0), "model.safetensors is not the file that was saved"),
    "a bit flipped": (lambda new: flip_a_bit(new / optimizer_file(1)), "optimizer1.safetensors is not the file that"),
    "of another rank": (lambda new: swap(new / rank_file(0), new / rank_file(1)), "is not the file that was saved"),
    "of another step": (
        lambda new: shutil.copy(new.with_name("step-000005") / rank_file(0), new),
        "rank0.safetensors is not the file that was saved",
    ),
    "missing": (lambda new: (new / rank_file(1)).unlink(), "rank1.safetensors: no such file"),
    "manifest missing": (lambda new: (new / MANIFEST).unlink(), "is not whole"),
    "manifest torn": (lambda new: os.truncate(new / MANIFEST, 200), "not a checkpoint of this version"),
    "manifest of another run": (
        lambda new: shutil.copy(write_checkpoint(new.parents[2] / "other", 10) / MANIFEST, new),
        "is not the file that was saved",
    ),
    "manifest of another step": (
        lambda new: shutil.copy(new.with_name("step-000005") / MANIFEST, new),
        "holds the checkpoint of step 5",
    ),
    "all of another step": (
        lambda new: shutil.copytree(new.with_name("step-000005"), new, dirs_exist_ok=True),
        "holds the checkpoint of step 5",
    ),
    "unreadable": (lambda new: (new / MODEL).unlink() or (new / MODEL).mkdir(), "model.safetensors: no such file"),
}


@pytest.mark.parametrize(("harm", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_whatever_befell_the_newest_it_is_skipped_with_its_reason_and_the_one_before_taken(
    tmp_path: Path, harm: Callable[[Path], Any], said: str
) -> None:
    run_dir = begin(tmp_path / "run", 5, 10)
    harm(folder_of(run_dir, 10))
    start = choose_start(config(run_dir, resume=LATEST))
    assert start.checkpoint is not None
    assert start.checkpoint.folder == folder_of(run_dir, 5)
    skipped, going_on = start.lines
    assert skipped.startswith(f"skipped a checkpoint: {folder_of(run_dir, 10)}")
    assert said in skipped
    assert going_on == f"going on from {folder_of(run_dir, 5)}"


def test_where_none_will_do_it_is_an_error_and_all_is_kept(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", 5)
    harm(folder_of(run_dir, 5))
    with pytest.raises(ValueError, match="no checkpoint that can be gone on from"):
        choose_start(config(run_dir, overwrite=True))
    assert folder_of(run_dir, 5).is_dir()


def test_a_checkpoint_that_keeps_failing_is_passed_over_and_one_step_makes_it_good(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", 5, 10)
    for _ in range(ATTEMPTS):
        checkpoint = choose_start(config(run_dir)).checkpoint
        assert checkpoint is not None
        assert checkpoint.folder == folder_of(run_dir, 10)
        forget = count_attempt(run_dir, checkpoint)
    start = choose_start(config(run_dir))
    assert start.checkpoint is not None
    assert start.checkpoint.folder == folder_of(run_dir, 5)
    assert "again and again" in start.lines[0]
    forget(StepRecord(step=None, entries=(), times=None))
    assert choose_start(config(run_dir)).checkpoint == start.checkpoint
    forget(StepRecord(step=11, entries=(), times=None))
    found = choose_start(config(run_dir)).checkpoint
    assert found is not None
    assert found.folder == folder_of(run_dir, 10)


def test_a_job_that_is_killed_at_its_start_again_and_again_is_no_reason_to_give_up(tmp_path: Path) -> None:
    """It may be the machine's doing; torchrun's --max-restarts is the bound."""
    run_dir = begin(tmp_path / "run", 5, 10)
    for expected in [*ATTEMPTS * [10], *ATTEMPTS * [5], 10, 10]:
        start = choose_start(config(run_dir))
        assert start.checkpoint is not None
        assert start.checkpoint.folder == folder_of(run_dir, expected)
        count_attempt(run_dir, start.checkpoint)
    assert "there is no other" in start.lines[-2]


def test_a_sitting_s_files_are_kept_and_checkpoints_stay(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", 5)
    (run_dir / "ledger" / "rank1.jsonl").write_text("first")
    for sitting in (1, 2):
        run_directory.make(run_dir, {"sitting": sitting}, goes_on=True)
        (run_dir / "ledger" / "rank0.jsonl").write_text(str(sitting))
    assert (run_dir / "earlier" / "1" / "ledger" / "rank1.jsonl").read_text() == "first"
    assert json.loads((run_dir / "earlier" / "2" / "environment.json").read_text())["launch"] == {"sitting": 1}
    assert sorted(path.name for path in (run_dir / "ledger").iterdir()) == ["rank0.jsonl"]
    assert newest(run_dir)[0] is not None


def test_no_other_process_trains_in_a_folder_meanwhile_nor_replaces_it(
    tmp_path: Path,
) -> None:
    run_dir = begin(tmp_path / "run", 5)
    for _ in range(2):  # it is let go of at the end
        with run_directory.claimed(run_dir):
            run_directory.make(run_dir, {}, goes_on=False)  # the claim outlives what is replaced
            said = f"another job trains in run_dir={run_dir}: wait"
            with pytest.raises(ValueError, match=said), run_directory.claimed(run_dir):
                pass
    assert sorted(path.name for path in run_dir.iterdir()) == ["environment.json", "ledger"]


def evaluated(run_dir: Path, accuracies: dict[int, float]) -> None:
    lines = [json.dumps({"kind": "eval", "step": step, "accuracy": value}) for step, value in accuracies.items()]
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "ev']))


def test_the_last_ones_and_the_one_before_the_best_evaluation_are_kept(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", 5, 10, 15, 20)
    evaluated(run_dir, {4: 0.99, 7: 0.9, 14: 0.8})  # the first before any checkpoint
    assert best(run_dir, [5, 10, 15, 20]) == 5
    (run_dir / "checkpoints" / "step-000012").mkdir()
    (run_dir / "checkpoints" / "step-000025").mkdir()  # may be under way
    assert [folder.name for folder in prune(run_dir, 1)] == ["step-000010", "step-000012", "step-000015"]
    assert [found.step for found in find(run_dir)] == [5, 20, 25]


def test_the_best_of_an_earlier_sitting_counts(tmp_path: Path) -> None:
    run_dir = begin(tmp_path / "run", 5, 10)
    evaluated(run_dir, {6: 0.9})
    run_directory.make(run_dir, {}, goes_on=True)
    evaluated(run_dir, {11: 0.5})
    assert best(run_dir, [5, 10]) == 5


def test_the_command_lists_verifies_and_prunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = begin(tmp_path / "run", 5, 10, 15)
    harm(folder_of(run_dir, 10))
    assert main(["checkpoint", "list", str(run_dir), "--json"]) == 0
    assert [each["step"] for each in json.loads(capsys.readouterr().out)] == [5, 10, 15]
    assert main(["checkpoint", "verify", str(run_dir)]) == 1
    assert "step 10: " in (said := capsys.readouterr().out)
    assert "is not the file that was saved" in said
    assert main(["checkpoint", "prune", str(run_dir), "--keep", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 2
    assert main(["checkpoint", "verify", str(run_dir)]) == 0
    assert main(["checkpoint", "list", str(tmp_path)]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
