"""A mistake in what is asked for: one clear line with the cure, exit code 2, once, and no traceback."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from programs import Ended, dtrain_command, finish, run, start, train_command, under_torchrun

pytestmark = pytest.mark.timeout(300)


def the_line(ended: Ended) -> str:
    """The one line about the mistake."""
    ended.expect(2)
    assert "Traceback" not in ended.stdout + ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("dtrain: error:"))
    return line


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["batch_sizes=4"], "batch_sizes"),
        (["+batch_sizes=4"], "batch_sizes is not a setting (did you mean batch_size?); there are: model, data"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["num_steps=5", "num_epochs=1"], "num_steps and num_epochs are both set: set one to null"),
        (["model=resnet50"], "squeezenet1_1"),
        (["compressor=gzip"], "fp16"),
        (["backend=tcp"], "gloo"),
        (["backend=nccl"], "use backend=gloo"),
        (["data=image_folder"], "data.root=FOLDER"),
        (["data=image_folder", "data.root=/nowhere"], "/nowhere"),
        (["data=cifar10", "data.root=."], "cifar-10"),
        (["init_weights=/nowhere/model.safetensors"], "/nowhere/model.safetensors"),
        (["model.num_classes=3"], "model.num_classes=3 is fewer than the 10"),
        (["data.image_size=8"], "17"),
        (["+model._target_=os.system"], "_target_ is refused"),
        (["observe.nic_interface=eth99"], "choose one of"),
        (["resume=/nowhere"], "/nowhere"),
        (["compressor=one_bit", "+compressor.density=0.5"], "density"),
        (["batch_size"], "batch_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_the_cure(tmp_path: Path, settings: list[str], part: str) -> None:
    if settings == ["backend=nccl"] and _has_cuda():
        pytest.skip("this machine has what backend=nccl needs")
    ended = run(train_command(*settings), tmp_path)
    assert part in the_line(ended)
    assert ended.stderr.strip().count("\n") == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def test_under_torchrun_it_is_said_once(tmp_path: Path) -> None:
    ended = run(under_torchrun(3, "-m", "dtrain.train", "num_steps=5", "num_epochs=1"), tmp_path)
    ended.expect(1)  # torchrun's own code
    lines = ended.stderr.splitlines()
    said = "dtrain: error: num_steps and num_epochs are both set: set one to null (a recipe may have set it)"
    assert [line for line in lines if line.startswith("dtrain: error:")] == [said]
    assert said in lines[-2]  # and once more at the end of what torchrun has to say


def test_a_launcher_that_cannot_be_joined_is_named(tmp_path: Path) -> None:
    from programs import environment

    env = environment({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"})
    ended = run(train_command("num_steps=1"), tmp_path, env=env)
    assert "start them with torchrun" in the_line(ended)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["evaluate", "nowhere.safetensors"], "nowhere.safetensors"),
        (["evaluate", "text.txt"], "text.txt"),
        (["compare", "nowhere"], "nowhere"),
        (["claims", "."], "summary.json"),
        (["report", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_verbs_say_it_the_same_way(tmp_path: Path, arguments: list[str], part: str) -> None:
    (tmp_path / "text.txt").write_text("not a model")
    assert part in the_line(run(dtrain_command(*arguments), tmp_path))


@pytest.mark.parametrize(
    "command",
    [
        train_command("num_steps=100000", "log_every=1", "run_dir=run"),
        dtrain_command("plan", "--nodes", "2", "--link", "1gbit", "model=squeezenet1_1"),
    ],
    ids=["train", "plan"],
)
def test_ctrl_c_is_one_line_whatever_is_under_way(tmp_path: Path, command: list[str]) -> None:
    process = start(command, tmp_path)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGINT)
    ended = finish(process, 30).expect(130)
    said = ended.stderr + "".join(ended.stdout.splitlines(keepends=True)[-1:])
    assert "dtrain: interrupted" in said or "stopped after step" in said
    assert ended.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    "command",
    [
        dtrain_command("explain", "top_k"),
        dtrain_command("completion", "bash"),
        train_command("--cfg", "job"),
        train_command("num_steps=20", "log_every=1", "batch_size=8", "run_dir=run"),
    ],
    ids=["a table", "text", "settings", "progress"],
)
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, command: list[str]) -> None:
    process = start(command, tmp_path)
    assert process.stdout is not None
    process.stdout.close()  # as head does, once it has its lines
    process.stdout = None
    assert finish(process, 60).expect(141).stderr == ""


def test_help_and_version(tmp_path: Path) -> None:
    assert "train" in run(dtrain_command("--help"), tmp_path).expect(0).stdout
    assert run(dtrain_command("--version"), tmp_path).expect(0).stdout.startswith("dtrain ")
    assert "batch_size" in run(dtrain_command("train", "--cfg", "job"), tmp_path).expect(0).stdout


def test_a_gradient_that_is_not_finite_fails_with_one_line_that_names_the_parameter(tmp_path: Path) -> None:
    settings = ["optimizer.learning_rate=1e30", "num_steps=20", "batch_size=8", "run_dir=run", "observe.progress=false"]
    ended = run(train_command(*settings), tmp_path).expect(1)
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("dtrain: error: the gradient of ")
    assert "is not finite in step" in line
