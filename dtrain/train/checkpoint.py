"""Checkpoints: a run saved so that it can go on as if it had never stopped.

A checkpoint is a folder that is whole once it has its manifest, which says what every other file must be:

    model.safetensors         the model, as at the end of a run; written by rank 0
    optimizer<k>.safetensors  rank k's share of the optimizer's tensors, by parameter name; written by rank k
    constraints.safetensors   what pruning and weight sharing fixed in the model (`constraints.py`), if anything
    teacher.safetensors       the model as it was before, where it is the teacher
    rank<k>.safetensors       what rank k alone has: its compressor's state and random generator's; written by rank k
    manifest.json             progress, settings, size and SHA-256 of every file; written last

Of version 2, which is still read, all of the optimizer was in one file, optimizer.safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dtrain.files import write_whole
from dtrain.train.model_files import parse_tensors
from dtrain.train.progress import Progress

MANIFEST, FORMAT, _FORMAT_2 = "manifest.json", "dtrain-checkpoint-3", "dtrain-checkpoint-2"
MODEL, _OPTIMIZER_2 = "model.safetensors", "optimizer.safetensors"
CONSTRAINTS, TEACHER = "constraints.safetensors", "teacher.safetensors"
RANDOM = "random/cpu"
"""The name of the random generator's state in a rank's file."""


class Digest(NamedTuple):
    """Of a file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint says of itself. `step_samples` is the run's `Course`'s."""

    step: int
    epoch: int
    position: int
    samples_seen: int
    step_samples: int
    world_size: int
    settings: Mapping[str, Any]
    files: Mapping[str, Digest]

    @property
    def progress(self) -> Progress:
        """How far the run had come."""
        return Progress(self.step, self.epoch, self.position)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, whose files are verified as they are read."""

    folder: Path
    manifest: Manifest

    def has(self, name: str) -> bool:
        """Whether it has this file."""
        return name in self.manifest.files

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What a file holds. Raises ValueError or FileNotFoundError, naming the file and the cure."""
        return parse_tensors(self._content(name), self.folder / name)

    def description(self) -> dict[str, Any]:
        """Of the model."""
        return _metadata(self._content(MODEL), self.folder / MODEL)

    def optimizer(self) -> dict[str, tuple[Tensor, Path]]:
        """The optimizer's tensors, with the file that each is from."""
        files = [_OPTIMIZER_2] if self.has(_OPTIMIZER_2) else _of_ranks(optimizer_file, self.manifest.world_size)
        return {name: (tensor, self.folder / file) for file in files for name, tensor in self.tensors(file).items()}

    def rank(self, rank: int) -> tuple[dict[str, Any], Tensor]:
        """What one rank had: its synchroniser's state dict, and its random generator's state."""
        path, content = self.folder / rank_file(rank), self._content(rank_file(rank))
        tensors, parameters = parse_tensors(content, path), dict[str, dict[str, Tensor]]()
        random = tensors.pop(RANDOM)
        for name, tensor in tensors.items():
            _, parameter, key = name.split("/")
            parameters.setdefault(parameter, {})[key] = tensor
        return {**_metadata(content, path), "parameters": parameters}, random

    def verify(self) -> None:
        """Read every file. Raises ValueError or FileNotFoundError for the first that is not the one that was saved."""
        for name in self.manifest.files:
            path = self._path(name)
            with path.open("rb") as file:
                self._check(path, Digest(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()))

    def identity(self) -> str:
        """The SHA-256 of the manifest, and so of everything."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()

    def _content(self, name: str) -> bytes:
        content = self._path(name).read_bytes()
        self._check(self.folder / name, digest(content))
        return content

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if name not in self.manifest.files:
            raise ValueError(f"{self.folder / MANIFEST} does not name {name}: this is no checkpoint of such a run")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give a whole checkpoint, with the files of all ranks")
        return path

    def _check(self, path: Path, found: Digest) -> None:
        if found != self.manifest.files[path.name]:
            raise ValueError(
                f"{path} is not the file that was saved (its size or SHA-256 is another): copy the checkpoint "
                "again, or give another"
            )


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises ValueError or FileNotFoundError, naming the cure."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no whole checkpoint ({MANIFEST} is missing): give another")
    try:
        return Checkpoint(folder, _parse(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this version ({error}): give another") from None


def _parse(content: Any) -> Manifest:
    if content["format"] == "dtrain-checkpoint-1":
        raise ValueError("it was saved without checksums; start a run from its weights with init_weights")
    if content["format"] not in (FORMAT, _FORMAT_2):
        raise ValueError(f"format {content['format']}")
    counts = {name: content[name] for name in ("step", "epoch", "position", "samples_seen")}
    sizes = {name: content[name] for name in ("step_samples", "world_size")}
    for name, value in {**counts, **sizes}.items():
        if type(value) is not int or value < (1 if name in sizes else 0):
            raise ValueError(f"{name} is {value!r}")
    files = {name: Digest(int(file["bytes"]), str(file["sha256"])) for name, file in content["files"].items()}
    optimizer = [_OPTIMIZER_2] if content["format"] == _FORMAT_2 else _of_ranks(optimizer_file, sizes["world_size"])
    expected = {MODEL, *optimizer, *_of_ranks(rank_file, sizes["world_size"])}
    if not expected <= files.keys():
        raise ValueError(f"{min(expected - files.keys())} is not listed")
    return Manifest(**counts, **sizes, settings=dict(content["settings"]), files=files)


def rank_file(rank: int) -> str:
    """The name of what rank `rank` alone has."""
    return f"rank{rank}.safetensors"


def optimizer_file(rank: int) -> str:
    """The name of rank `rank`'s share of the optimizer."""
    return f"optimizer{rank}.safetensors"


def _of_ranks(file: Callable[[int], str], world_size: int) -> list[str]:
    return [file(rank) for rank in range(world_size)]


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Declare the checkpoint whole."""
    files = {name: {"bytes": file.num_bytes, "sha256": file.sha256} for name, file in manifest.files.items()}
    content = {"format": FORMAT, **asdict(manifest), "settings": dict(manifest.settings), "files": files}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def digest(content: bytes | memoryview) -> Digest:
    """Of a file's content."""
    return Digest(len(content), hashlib.sha256(content).hexdigest())


def _metadata(content: bytes, path: Path) -> dict[str, Any]:
    """What was saved besides the tensors; the header of safetensors is JSON behind its length."""
    length = int.from_bytes(content[:8], "little")
    try:
        found: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["dtrain"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: was not saved as part of a checkpoint: give another") from None
    return found
