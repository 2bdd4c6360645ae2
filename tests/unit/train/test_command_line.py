from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from dtrain.train.compose import plain, read_request, read_resumed
from dtrain.train.config import from_data


def refused(*arguments: str) -> str:
    with pytest.raises(ValueError) as caught:
        composed = read_request(arguments).composed
        assert composed is not None
        from_data(plain(composed))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["modle=alexnet"], "modle is not a setting (did you mean model?)"),
        (["batchsize=4"], "batchsize is not a setting (did you mean batch_size?)"),
        (
            ["optimizer.lr=3"],
            "optimizer.lr is not a setting (did you mean learning_rate?): optimizer has name, ",
        ),
        (
            ["compressor=top_k", "compressor.densty=1"],
            "compressor.densty is not a setting (did you mean density?): compressor has name, density",
        ),
        (["~phasess"], "phasess is not a setting (did you mean phases?)"),
        (["model=resnet50"], "model=resnet50 does not exist: choose one of alexnet, "),
        (["experiment=imagenet"], "experiment=imagenet does not exist: choose one of cifar10, "),
        (["optimizer=adam"], "optimizer=adam does not exist (did you mean adamw?): choose one of adamw, sgd"),
        (["batch_size"], "'batch_size' is not of the form KEY=VALUE"),
        (["batch_size=[1,"], "is not of the form KEY=VALUE, or its value needs quotes"),
        (["run_dir=${nowhere}"], "Interpolation key 'nowhere' not found"),
        (["--num_steps", "5"], "there is no option --num_steps: settings are KEY=VALUE, so write num_steps=5"),
        (["--cfg", "hydra"], "--cfg hydra does not exist: choose one of job"),
        (["-m", "seed=1"], "-m"),
        (["experiment=cifar10", "optimizer=adamw"], "not tried with optimizer=adamw, so it has no learning rate"),
        (["seed=1,2"], "seed=1,2 names several values: `dtrain sweep` trains with each"),
        (["model=alexnet,squeezenet1_1"], "names several values"),
        (["--config-dir", "/nowhere"], "--config-dir /nowhere is no folder"),
        (["+model._target_=os.system"], "_target_ is refused"),
        (["optimizer=adamw", "optimizer.momentum=0.5"], "optimizer.momentum is not a setting: optimizer has name,"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_the_cure(arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


def test_the_configuration_is_printed_and_can_be_read() -> None:
    request = read_request(["--cfg", "job", "model=alexnet", "optimizer=adamw"])
    assert request.composed is None
    settings = yaml.safe_load(request.text)
    assert (settings["model"]["name"], settings["optimizer"]["beta2"]) == ("alexnet", 0.999)
    assert "hydra" not in settings


def test_help_lists_what_can_be_chosen() -> None:
    text = read_request(["--help"]).text
    assert "optimizer: adamw, sgd" in text
    assert "--cfg" in text


def test_settings_and_options_may_stand_in_any_order() -> None:
    assert yaml.safe_load(read_request(["seed=3", "--cfg", "job", "batch_size=7"]).text)["batch_size"] == 7


def test_a_folder_of_the_user_s_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nbatch_size: 5\n")
    request = read_request(["--config-dir", str(tmp_path), "experiment=mine"])
    assert request.composed is not None
    assert from_data(plain(request.composed)).batch_size == 5


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        (["experiment=digits"], 0.005),
        (["experiment=digits", "optimizer=adamw"], 0.001),
        (["experiment=cifar10"], 0.01),
        (["experiment=cifar10", "optimizer=adamw", "optimizer.learning_rate=0.002"], 0.002),
    ],
)
def test_a_recipe_s_learning_rate_is_the_optimizer_s(settings: list[str], rate: float) -> None:
    composed = read_request(settings).composed
    assert composed is not None
    assert from_data(plain(composed)).optimizer.learning_rate == rate


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    request = read_request(["experiment=digits", "batch_size=8", "overwrite=true", "resume_changes=[batch_size]"])
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(request.composed, resolve=True))
    return run_dir


def test_a_run_goes_on_in_its_own_directory_with_its_own_settings_but_those_that_are_given(begun: Path) -> None:
    settings = ["num_steps=7", "num_epochs=null", "resume_changes=[optimizer.learning_rate]", "backend=mpi"]
    composed = read_resumed([str(begun), *settings, "optimizer.learning_rate=0.5"]).composed
    assert composed is not None
    config = from_data(plain(composed))
    assert (config.run_dir, config.resume, config.overwrite) == (str(begun), "latest", False)
    assert (config.batch_size, config.num_steps, config.num_epochs) == (8, 7, None)
    assert (config.resume_changes, config.optimizer.learning_rate) == (("optimizer.learning_rate",), 0.5)
    assert config.backend.name == "mpi"
    unchanged = read_resumed([str(begun)]).composed
    assert unchanged is not None
    assert from_data(plain(unchanged)).resume_changes == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["num_step=7"], r"num_step=7 changes no setting of this run \(did you mean num_steps\?\)"),
        (["+batch_size=7"], r"\+batch_size=7 changes no setting"),
        (["~data"], "~data changes no setting"),
        (["experiment=cifar10"], "experiment=cifar10 changes no setting"),
        (["backend=tcp"], "backend=tcp does not exist: choose one of"),
        (["batch_size"], "is not of the form KEY=VALUE"),
        (["--json"], "see `dtrain resume --help`"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_changed_of_a_run_is_said(begun: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_resumed([str(begun), *arguments])


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "3", "a: ${", b"\xff\xfe\x00"], ids=repr)
def test_a_configuration_that_is_none_is_refused_by_name(begun: Path, content: str | bytes) -> None:
    path = begun / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"config\.yaml|model"):
        composed = read_resumed([str(begun)]).composed
        assert composed is not None
        from_data(plain(composed))


def test_what_is_no_run_is_not_resumed(begun: Path) -> None:
    with pytest.raises(ValueError, match="resume needs a run's directory"):
        read_resumed([])
    with pytest.raises(ValueError, match=r"holds no run \(config\.yaml is missing\)"):
        read_resumed([str(begun.parent)])
    assert read_resumed(["--help"]).composed is None


def test_a_run_that_was_begun_from_a_checkpoint_of_another_and_has_none_yet_is_not_begun_anew(begun: Path) -> None:
    request = read_request(["resume=/other/checkpoints/step-000100", "run_dir=run"])
    (begun / "config.yaml").write_text(OmegaConf.to_yaml(request.composed, resolve=True))
    with pytest.raises(ValueError, match="start it again from /other/checkpoints/step-000100"):
        read_resumed([str(begun)])
