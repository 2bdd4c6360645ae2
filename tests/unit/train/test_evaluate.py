"""`dtrain evaluate` on files that were made to do harm: what they ask for is compared with what they hold first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dtrain.train.evaluate import evaluate
from dtrain.train.model_files import FORMAT
from dtrain.vision import models

OPTIONS = {"base_e": 8, "incr_e": 0, "pct3x3": 0.5, "freq": 1, "squeeze_ratio": 0.5, "conv1_channels": 4}
MODEL = {"name": "squeezenet", "num_classes": 10, "options": OPTIONS}
DATA = {"name": "digits", "options": {}, "image_size": 32, "classes": [], "mean": [0.3] * 3, "std": [0.3] * 3}


def written(path: Path, **description: Any) -> Path:
    """A small network of digits, with another description."""
    told = {"format": FORMAT, "model": MODEL, "data": DATA, "step": 3} | description
    torch.manual_seed(0)
    save_file(models.build("squeezenet", num_classes=10, **OPTIONS).state_dict(), path, {"dtrain": json.dumps(told)})
    return path


def evaluated(path: Path, **given: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"name": None, "root": None, "image_size": None, "split": "test", "batch_size": 512}
    return evaluate(path, **asked | given)


def test_a_sound_file_is_evaluated(tmp_path: Path) -> None:
    result = evaluated(written(tmp_path / "m.safetensors"))
    assert (result["num_images"], result["step"], result["model"]) == (359, 3, "squeezenet")
    assert 0 <= result["accuracy"] < 0.5


def test_weights_of_another_precision_are_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors")
    halved = {
        name: value.half() for name, value in models.build("squeezenet", num_classes=10, **OPTIONS).state_dict().items()
    }
    save_file(halved, path, {"dtrain": json.dumps({"format": FORMAT, "model": MODEL, "data": DATA, "step": 3})})
    assert evaluated(path)["num_images"] == 359


HUGE = 2_000_000_000


@pytest.mark.parametrize(
    "model",
    [
        {},
        None,
        [],
        {"name": "squeezenet"},
        {"name": "squeezenet", "num_classes": 10},
        {"name": ["squeezenet"], "num_classes": 10, "options": {}},
        {"name": "alexnet", "num_classes": HUGE, "options": {}},
        {"name": "alexnet", "num_classes": 1 << 62, "options": {}},
        {"name": "alexnet", "num_classes": 10**18, "options": []},
        MODEL | {"num_classes": True},
        MODEL | {"num_classes": 11},
        MODEL | {"options": OPTIONS | {"conv1_kernel": HUGE}},
        MODEL | {"options": OPTIONS | {"conv1_kernel": 1 << 63}},
        MODEL | {"options": OPTIONS | {"conv1_channels": HUGE}},
        MODEL | {"options": OPTIONS | {"base_e": HUGE}},
        MODEL | {"options": OPTIONS | {"incr_e": HUGE}},
        MODEL | {"options": OPTIONS | {"incr_e": 10**19}},
        MODEL | {"options": OPTIONS | {"num_classes": 3}},
        MODEL | {"options": {"": 1}},
        MODEL | {"ranks": {"nope": 3}},
        MODEL | {"ranks": {"features.0": HUGE}},
        MODEL | {"ranks": {"features.0": -1}},
        MODEL | {"ranks": {"features.0": "3"}},
        MODEL | {"ranks": {"": 3}},
        MODEL | {"ranks": ["features.0"]},
    ],
)
def test_a_model_that_the_file_does_not_hold_is_refused_and_takes_no_memory(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ValueError) as refused:
        evaluated(written(tmp_path / "m.safetensors", model=model))
    assert str(refused.value).startswith(f"{tmp_path}/m.safetensors: ")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [],
        DATA | {"name": "nope"},
        DATA | {"name": 3},
        DATA | {"name": "cifar10"},
        DATA | {"image_size": HUGE},
        DATA | {"image_size": 0},
        DATA | {"image_size": True},
        DATA | {"image_size": "32"},
        DATA | {"image_size": 5},
        DATA | {"mean": [0.3]},
        DATA | {"mean": [0.3, 0.3, "x"]},
        DATA | {"std": [0.3, 0.3, 0.0]},
        DATA | {"std": None},
        DATA | {"std": [float("inf")] * 3},
        DATA | {"options": {"root": "/etc"}},
        DATA | {"options": {"split": "train"}},
        DATA | {"options": {"image_size": 3}},
        DATA | {"options": {"x": 3}},
        DATA | {"options": []},
        DATA | {"name": "cifar10", "options": {"download": True}},
        DATA | {"name": "synthetic", "options": {"num_classes": HUGE}},
        DATA | {"name": "synthetic", "options": {"num_test_images": 1 << 60}},
        DATA | {"name": "synthetic", "options": {"num_test_images": [1]}},
        DATA | {"name": "synthetic", "options": {"num_test_images": "many"}},
        DATA | {"name": "synthetic", "options": {"data_seed": {}}},
        DATA | {"name": "synthetic", "options": {"num_classes": 11}},
    ],
)
def test_data_that_make_no_sense_are_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(ValueError) as refused:
        evaluated(written(tmp_path / "m.safetensors", data=data))
    assert str(refused.value).isprintable()


def test_a_larger_image_than_a_file_may_ask_for_the_user_may_ask_for(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors", data=DATA | {"image_size": 5000})
    with pytest.raises(ValueError, match="5,000 pixels a side: give --image-size"):
        evaluated(path)
    assert evaluated(path, image_size=32)["num_images"] == 359
