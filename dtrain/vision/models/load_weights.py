"""Weights from files that others made, into a model: all of them or none.

What a file claims to hold is compared with the model before anything is copied (and, for .npz, before anything is
allocated), so a file that does not fit leaves the model as it was. This is the only module of the project that may call
torch.load, and only with weights_only=True.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors.torch import load_file
from torch import Tensor, nn

from dtrain.vision.models.alexnet import AlexNet
from dtrain.vision.models.squeezenet import SqueezeNet

T = TypeVar("T")

FORMATS = {
    ".safetensors": "safetensors",
    ".pth": "a state dict saved by torch (tensors by name, nothing else)",
    ".pt": "a state dict saved by torch (tensors by name, nothing else)",
    ".npz": "numpy arrays by name",
}


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Copy every tensor of the file at `path` into `model`, cast to the dtype and device that the model has there.

    The suffix says how the file is read:
        .safetensors: tensors by the model's state-dict names.
        .pth, .pt: a state dict saved by torch, such as torchvision's; anything but tensors in it is refused.
        .npz: arrays by Caffe layer name, `<layer>|w` (convolutions OIHW, fc: out x in) and `<layer>|b`; only for
            SqueezeNet and AlexNet.

    Options without weights are the caller's affair: published weights want those of `dtrain.vision.models.PUBLISHED`.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the suffix is unknown, the file cannot be read, or it does not fit the model; the message names the
            first tensor that is missing, not the model's, or of another shape or kind. The model is then unchanged.
    """
    path = Path(path)
    targets: dict[str, Tensor] = model.state_dict()
    if any(target.is_meta for target in targets.values()):
        raise ValueError("the model is on the meta device, where weights have no memory: build it on cpu")
    if path.suffix not in FORMATS:
        raise ValueError(f"cannot tell the format of {path} by its suffix: need one of {', '.join(FORMATS)}")
    if not path.exists():
        raise FileNotFoundError(f"no weight file at {path}: check the path, or download it first")
    if path.suffix == ".npz":
        targets = {caffe: targets[name] for caffe, name in _caffe_names(model).items()}
        _check_fit(path, _read(path, _npz_claims), targets)
        tensors = _read(path, _npz_tensors)
    else:
        tensors = _read(path, load_file if path.suffix == ".safetensors" else _torch_tensors)
    _check_fit(path, {name: _Claim.of(tensor) for name, tensor in tensors.items()}, targets)
    for name, target in targets.items():
        target.copy_(tensors[name])


@dataclass(frozen=True)
class _Claim:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    is_floating_point: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "_Claim":
        dense = tensor.layout == torch.strided
        dtype = str(tensor.dtype if dense else tensor.layout).removeprefix("torch.")
        return cls(tuple(tensor.shape), dtype, dense and tensor.is_floating_point())


def _check_fit(path: Path, claims: Mapping[str, _Claim], targets: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first tensor, in the model's order, that `targets` and the file do not share."""
    cure = "build the model with the name and options that the file was made with (num_classes among them)"
    for name, target in targets.items():
        if name not in claims:
            raise ValueError(f"{path} has no {name!r}, which the model needs: {cure}")
        claim = claims[name]
        if claim.shape != tuple(target.shape):
            raise ValueError(
                f"{path}: {name!r} is {claim.shape} in the file, {tuple(target.shape)} in the model: {cure}"
            )
        if claim.is_floating_point != target.is_floating_point():
            raise ValueError(f"{path}: {name!r} holds {claim.dtype}, not weights as {target.dtype}: decode it first")
    for name in claims:
        if name not in targets:
            raise ValueError(f"{path} has {name!r}, which the model lacks: {cure}")


def _read(path: Path, reader: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    try:
        return reader(path)
    except Exception as error:  # a damaged file makes these parsers raise some fifteen kinds of exception
        raise ValueError(
            f"cannot read {path} as {FORMATS[path.suffix]} ({type(error).__name__}): "
            "if it is truncated, fetch it again; if it is of another format, save it as this one"
        ) from error


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("not a state dict")
    return dict(state)


def _npz_claims(path: Path) -> dict[str, _Claim]:
    """What the headers say, read without the arrays, whose claimed size may be anything."""
    claims = {}
    with ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as member:
                version = npy.read_magic(member)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read_header(member)
            claims[entry.removesuffix(".npy")] = _Claim(shape, str(dtype), dtype.kind == "f")
    return claims


def _npz_tensors(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _caffe_names(model: nn.Module) -> dict[str, str]:
    """Caffe's name of each tensor of `model`, in the model's order -> its state-dict name."""
    if not isinstance(model, SqueezeNet | AlexNet):
        raise ValueError(f"no Caffe layer names are known for {type(model).__name__}: save its weights as .safetensors")
    return {
        f"{layer}|{kind}": f"{path}.{parameter}"
        for layer, path in model.caffe_layers.items()
        for kind, parameter in (("w", "weight"), ("b", "bias"))
    }
