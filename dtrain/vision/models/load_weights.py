"""Weights from files that others made, into a model: all of them or none.

What a file claims to hold is compared with the model before anything is copied (and, for .npz, before anything is
allocated), so a file that does not fit leaves the model as it was. This is the only module of the project that may call
torch.load, and only with weights_only=True.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors.torch import load_file
from torch import Tensor, nn

from dtrain.files import short
from dtrain.vision.models.alexnet import AlexNet
from dtrain.vision.models.squeezenet import SqueezeNet
from dtrain.vision.models.weight_format import FORMATS, format_of

T = TypeVar("T")

_CUSTOMARY_KEYS = ("state_dict", "model_state_dict", "model")
"""Under which training programs keep the state dict in what they save."""
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DDP, torch.compile, FSDP and activation checkpointing put into the names of parameters."""
_NOT_ALLOWED = re.compile(r"GLOBAL (\S+) was not an allowed|Unsupported (?:global|class|operand)[: ]+(?:GLOBAL )?(\S+)")


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Copy every tensor of the file at `path` into `model`, cast to the dtype and device that the model has there.

    The content says how the file is read, whatever its suffix:
        safetensors: tensors by the model's state-dict names.
        saved by torch: such a state dict, torchvision's for one, or a mapping that has it as "state_dict",
            "model_state_dict" or "model". Objects that are not tensors, numbers or texts are refused.
        .npz: arrays by Caffe layer name, `<layer>|w` (convolutions OIHW, fc: out x in) and `<layer>|b`; only for
            SqueezeNet and AlexNet.

    In names, what DDP (`module.`), torch.compile (`_orig_mod.`) and FSDP put into them is passed over.

    Options without weights are the caller's affair: published weights want those of `dtrain.vision.models.PUBLISHED`.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is no file of weights, cannot be read, or does not fit the model; the message names the
            first tensor that is missing, not the model's, of another shape or kind, or not finite. The model is then
            unchanged.
    """
    path = Path(path)
    targets: dict[str, Tensor] = model.state_dict()
    if any(target.is_meta for target in targets.values()):
        raise ValueError("the model is on the meta device, where weights have no memory: build it on cpu")
    kind = format_of(path)
    if kind == "npz":
        targets = {caffe: targets[name] for caffe, name in _caffe_names(model).items()}
        _check_fit(path, _read(path, _npz_claims), targets)
        tensors = _read(path, _npz_tensors)
    else:
        tensors = _read(path, load_file if kind == "safetensors" else _torch_tensors)
        names = _without_wrappers(tensors, targets)
        tensors = {names[name]: tensor for name, tensor in tensors.items()}
    _check_fit(path, {name: _Claim.of(tensor) for name, tensor in tensors.items()}, targets)
    cast = {name: tensors[name].to(target.dtype) for name, target in targets.items()}
    _check_finite(path, cast)
    for name, target in targets.items():
        target.copy_(cast[name])


def _without_wrappers(names: Iterable[str], targets: Iterable[str]) -> dict[str, str]:
    """What each name is without wrappers; itself, if the model has modules of such a name, or two would be one."""
    shorter = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    own = any(part in _WRAPPERS for target in targets for part in target.split("."))
    return {name: name for name in shorter} if own or len(set(shorter.values())) < len(shorter) else shorter


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


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{path}: {name!r} holds NaN or Inf: the run that wrote it had diverged; take an earlier checkpoint"
            )


def _read(path: Path, reader: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    try:
        return reader(path)
    except _NotWeightsError as error:
        raise ValueError(f"cannot read {path} as weights: {short(error, 600)}") from None
    except Exception as error:  # a damaged file makes these parsers raise some fifteen kinds of exception
        raise ValueError(
            f"cannot read {path} as weights ({type(error).__name__}): "
            f"if it is truncated, fetch it again; if it is of another format, save it as {FORMATS}"
        ) from error


class _NotWeightsError(Exception):
    """A sound file of torch that is something else; the message says what, and the cure."""


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refused(str(error)) or error from None
    if _is_state_dict(content):
        return dict(content)
    keys = [key for key in _CUSTOMARY_KEYS if isinstance(content, Mapping) and _is_state_dict(content.get(key))]
    if len(keys) == 1:
        return dict(content[keys[0]])
    if keys:
        raise _NotWeightsError(f"it has state dicts as {', '.join(keys)}: save the one that you mean, alone")
    held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise _NotWeightsError(
        f"it holds {held or 'nothing'}, and no state dict as {', '.join(_CUSTOMARY_KEYS)}: save model.state_dict(), "
        "tensors by name, nothing else"
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _refused(message: str) -> _NotWeightsError | None:
    """What torch refuses to load with weights_only=True; None for any other error."""
    if "TorchScript" in message:
        return _NotWeightsError("it is a TorchScript program: save the state_dict() of what torch.jit.load gives")
    if (found := _NOT_ALLOWED.search(message)) is None:
        return None
    return _NotWeightsError(
        f"it holds Python objects ({found[1] or found[2]}), which may run code as they are read, where weights are "
        "tensors by name, nothing else: where you trust the file, save its state dict alone"
    )


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
