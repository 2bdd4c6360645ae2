from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dtrain.train.compose import plain, read_request
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
        (["seed=1,2"], "seed=1,2 names several values: start a run for each"),
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
