"""TensorBoard, trackio and wandb get what metrics.jsonl gets, under the same names; what is missing is said first."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from dtrain.observe.figures import EvalFigures, TrainFigures
from dtrain.observe.jsonl import MetricsFile
from dtrain.observe.trackers import TRACKERS, open_tracker
from dtrain.train.config import Observe

TRAIN = TrainFigures(5, 0, 2.25, 0.5, 0.125, 300.0, 4096.0, 0.25, 0.125, 0.0, None, None, 8192.0, (0.5, 0.25))
EVAL = EvalFigures(6, 0, 2.0, 0.75, 359, 4096.0)
STAND_IN = """
said = []
def init(**options):
    if options["name"] == "refused":
        raise RuntimeError("no key\\nis configured")
    said.append(("init", options))
def log(values, step):
    said.append((step, values))
def finish(exit_code=0):
    said.append(f"finished {exit_code}")
"""


def stand_in(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{name}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_figures_have_the_names_and_steps_of_metrics_jsonl(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(name, tmp_path, monkeypatch)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    tracker, file = open_tracker(name, tmp_path / "mine", {"model": "alexnet"}), MetricsFile(tmp_path / "metrics.jsonl")
    for observer in (tracker, file):
        observer.on_phase("", 3)
        observer.on_train(TRAIN)
        observer.on_eval(EVAL)
        observer.on_packed(3)
        observer.close()
    (_, options), *logged, last = sys.modules[name].said
    assert (options["name"], options["project"], options["config"]) == ("mine", "dtrain", {"model": "alexnet"})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line, (step, values) in zip(lines, logged, strict=True):
        assert step == line["step"]
        kind, _ = line.pop("kind"), line.pop("step")
        assert values == {f"{kind}/{key}": value for key, value in line.items() if value is not None}
    assert last == "finished 0"


def test_wandb_hears_of_a_run_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("wandb", tmp_path, monkeypatch)
    with pytest.raises(RuntimeError), ExitStack() as stack:
        stack.push(open_tracker("wandb", tmp_path / "mine", {}).__exit__)
        raise RuntimeError
    assert sys.modules["wandb"].said[-1] == "finished 1"


def test_what_a_tracker_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("wandb", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"observe\.wandb=true: wandb does not begin a run \(no key is configured\)"):
        open_tracker("wandb", tmp_path / "refused", {})


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_said_with_the_cure_before_anything_begins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtrain.observe.trackers.find_spec", lambda name: None)
    assert Observe().trackers == ()
    with pytest.raises(ValueError, match=rf"observe\.{name}=true needs the package {name}: pip install {name}"):
        Observe(**{name: True})


def test_tensorboard_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, {})
    tracker.on_train(TRAIN)
    tracker.on_eval(EVAL)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(5, 2.25)]
    assert [(event.step, event.value) for event in events.Scalars("eval/accuracy")] == [(6, 0.75)]
    assert "train/transfer_seconds" not in events.Tags()["scalars"]
