"""A model on grids that images chose: from its file, find its network and what it takes, and calibrate it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtrain.files import parse_json
from dtrain.pack import PRESETS, Model, OnGrid, Stage, Tensor
from dtrain.pack.tensor import FLOATS, finite
from dtrain.slim.published import CAFFE, published

if TYPE_CHECKING:
    import torch

CALIBRATED = "smallest"
"""The preset that images may calibrate."""
STAND_IN = "dead-leaves"
"""In place of a folder of images: made ones, which need no data."""
_STEP = 0.222
_NUM_IMAGES = 128
_MOST_PIXELS = 1024  # a side
_CAFFE_MEAN = (104 / 255, 117 / 255, 123 / 255)  # blue, green, red


@dataclass(frozen=True)
class _Inputs:
    """What a network takes: square images, their channels less `mean` over `std`, of pixels from 0 to 1."""

    image_size: int
    shorter_side: int
    mean: Sequence[float]
    std: Sequence[float]
    blue_first: bool = False

    def check(self) -> None:
        """Raises ValueError for what no images are."""
        numbers = [*self.mean, *self.std]
        sound = len(self.mean) == len(self.std) == 3 and all(math.isfinite(number) for number in numbers)
        if type(self.image_size) is not int or not 0 < self.image_size <= _MOST_PIXELS or not sound:
            raise ValueError("images that no network takes")


def calibrated(source: Path, model: Model, folder: Path) -> tuple[Model, Sequence[Stage]]:
    """The model with values on grids, calibrated with the folder's images, and the stages that keep them there."""
    from dtrain.slim.calibrate import calibrate, dead_leaves

    network, inputs = _network(source, model)
    if str(folder) == STAND_IN:
        images = _as_taken(dead_leaves(_NUM_IMAGES, inputs.image_size), inputs)
    else:
        images = _as_taken(_images(folder, inputs), inputs)
    found = calibrate(network, images, _STEP, stand_in=str(folder) == STAND_IN)
    changed = {name: Tensor.of_floats(model.tensors[name].dtype, values) for name, values in found.values.items()}
    return Model({**model.tensors, **changed}, model.metadata), (OnGrid(found.steps), *PRESETS[CALIBRATED])


def _network(source: Path, model: Model) -> tuple[torch.nn.Module, _Inputs]:
    """The network whose weights these are, with them, and what it takes."""
    import torch

    from dtrain.vision import models

    if source.suffix == ".safetensors":
        try:
            description = parse_json(model.metadata.get("dtrain", "{}"), not_finite=True)
            data = description["data"]
            with torch.device("meta"):  # nothing is allocated of what it asks for before its weights are seen
                network = models.rebuild(description["model"])
            inputs = _Inputs(data["image_size"], data["image_size"], data["mean"], data["std"])
            inputs.check()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{source}: was not saved by dtrain, so its network is unknown and cannot be calibrated"
            ) from None
    else:
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
        fitting = [name for name in CAFFE if _shapes(published(name)) == shapes]
        if not fitting:
            raise ValueError(f"{source}: these are no published network's weights, so they cannot be calibrated")
        network = models.build(fitting[0], num_classes=1000, **models.PUBLISHED["caffe"][fitting[0]])
        inputs = _Inputs(227, 256, _CAFFE_MEAN, (1 / 255,) * 3, blue_first=True)
    state = network.state_dict()
    if not all(name in model.tensors and model.tensors[name].dtype in FLOATS for name in state):
        raise ValueError(f"{source}: lacks weights of its network, or has them in a type that cannot be calibrated")
    if any(model.tensors[name].shape != tuple(values.shape) for name, values in state.items()):
        raise ValueError(f"{source}: has weights of other shapes than its network, so it cannot be calibrated")
    weights = {name: finite(name, model.tensors[name]).astype(np.float32) for name in state}
    network.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, assign=True)
    return network.eval(), inputs


def _shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _images(folder: Path, inputs: _Inputs) -> NDArray[np.uint8]:
    """Up to _NUM_IMAGES of the images below `folder`, evenly from their sorted paths."""
    from dtrain.vision.data import IMAGE_SUFFIXES, read_image

    paths = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    )
    if not paths:
        raise FileNotFoundError(
            f"no images below {folder}: give a folder of images such as the network is for, or {STAND_IN} for none"
        )
    chosen = sorted({paths[index * len(paths) // _NUM_IMAGES] for index in range(_NUM_IMAGES)})
    return np.stack([read_image(path, inputs.image_size, inputs.shorter_side) for path in chosen])


def _as_taken(images: NDArray[np.uint8], inputs: _Inputs) -> torch.Tensor:
    """By the network."""
    import torch

    pixels = torch.from_numpy(images).float() / 255
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (inputs.mean, inputs.std))
    return ((pixels.flip(1) if inputs.blue_first else pixels) - mean) / std
