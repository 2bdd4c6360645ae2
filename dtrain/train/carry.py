"""What a worker takes with it from one group of workers into the next: a checkpoint that is never written.

Whoever has come as far as rank 0 goes on with its own: model, optimizer, what its compressor held back. Any other, new
or one whose last step was cut off when the others had made it, takes those of rank 0, who sends them to all as
safetensors, and of its compressor's state what is the same on every rank (`exchange.share_out`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from dtrain.comm import Communicator, broadcast
from dtrain.comm.membership import Group
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.train.checkpoint import CONSTRAINTS, MODEL, RANDOM, TEACHER, Manifest
from dtrain.train.saving import optimizer_tensors

_IN_MEMORY = Path("the state of another worker")
_OPTIMIZER, _OWN = "optimizer", "own"


@dataclass(frozen=True)
class Carried:
    """One worker's, between groups: what a checkpoint has, and what is of the process.

    `files` has tensors by name for each file that a checkpoint would have, its own under `own`; `described` is
    the model's description and `counts` what a synchroniser's state holds besides tensors.
    """

    manifest: Manifest
    run_dir: Path
    files: Mapping[str, Mapping[str, Tensor]]
    described: Mapping[str, Any]
    counts: Mapping[str, Any]
    folder: Path = _IN_MEMORY

    def has(self, name: str) -> bool:
        """See `Checkpoint`."""
        return name in self.files

    def tensors(self, name: str) -> dict[str, Tensor]:
        """See `Checkpoint`."""
        return dict(self.files[name])

    def optimizer(self) -> dict[str, tuple[Tensor, Path]]:
        """See `Checkpoint`."""
        return {name: (tensor, self.folder) for name, tensor in self.files[_OPTIMIZER].items()}

    def description(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        return dict(self.described)

    def rank(self, rank: int) -> tuple[dict[str, Any], Tensor]:
        """See `Checkpoint`: of this worker, or rank 0's where it was taken from there."""
        parameters = dict[str, dict[str, Tensor]]()
        tensors = dict(self.files[_OWN])
        random = tensors.pop(RANDOM)
        for name, tensor in tensors.items():
            _, parameter, key = name.split("/")
            parameters.setdefault(parameter, {})[key] = tensor
        return {**self.counts, "rank": rank, "world_size": self.manifest.world_size, "parameters": parameters}, random

    def identity(self) -> str:
        """See `Checkpoint`: workers that go on together are at the same step."""
        return f"in memory, step {self.manifest.step}"


def carry(
    manifest: Manifest,
    run_dir: Path,
    described: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    constraints: Mapping[str, Tensor],
    teacher: nn.Module | None,
) -> Carried:
    """What a worker has after a step. `state` is its synchroniser's; of the rest no copies are made."""
    files: dict[str, Mapping[str, Tensor]] = {
        MODEL: model.state_dict(),
        _OPTIMIZER: optimizer_tensors(model, optimizer),
    }
    if constraints:
        files[CONSTRAINTS] = constraints
    if teacher is not None:
        files[TEACHER] = teacher.state_dict()
    own = {f"state/{name}/{key}": part for name, parts in state["parameters"].items() for key, part in parts.items()}
    counts = {key: value for key, value in state.items() if key not in ("parameters", "rank", "world_size")}
    kept = {**files, _OWN: {**own, RANDOM: torch.get_rng_state()}}
    return Carried(manifest, run_dir, kept, described, counts)


def share(carried: Carried | None, group: Group, communicator: Communicator, ledger: Ledger) -> Carried | None:
    """What each worker of a new group goes on with; None where none of them has come anywhere."""
    rank, steps = communicator.rank, group.steps
    if steps[0] < 0:
        return None
    taken = None
    if any(group.lacks_state(other) for other in range(len(steps))):
        with ledger.scope(activity=Activity.CHECKPOINT, purpose=Purpose.PARAMETERS):
            taken = _send(carried if rank == 0 else None, communicator)
    if not group.lacks_state(rank):
        assert carried is not None
        return replace(carried, manifest=replace(carried.manifest, world_size=len(steps)))
    assert taken is not None
    return taken


def _send(carried: Carried | None, communicator: Communicator) -> Carried:
    """Rank 0's, on every rank, as if one worker had saved it."""
    content = b"" if carried is None else _to_bytes(carried)
    size = int(broadcast(communicator, torch.tensor([len(content)])))
    buffer = (
        torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(size, dtype=torch.uint8)
    )
    return _from_bytes(broadcast(communicator, buffer).numpy().tobytes())


def _to_bytes(carried: Carried) -> bytes:
    about = {
        "manifest": asdict(replace(carried.manifest, world_size=1, files={})),
        "run_dir": str(carried.run_dir),
        "described": carried.described,
        "counts": carried.counts,
        "files": list(carried.files),
    }
    tensors = {
        f"{file}:{name}": tensor.detach().cpu().contiguous()
        for file, named in carried.files.items()
        for name, tensor in named.items()
    }
    content: bytes = save(tensors, {"dtrain": json.dumps(about)})
    return content


def _from_bytes(content: bytes) -> Carried:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"]["dtrain"])
    files: dict[str, dict[str, Tensor]] = {file: {} for file in about["files"]}
    for name, tensor in load(content).items():
        file, _, inside = name.partition(":")
        files[file][inside] = tensor
    manifest = Manifest(**about["manifest"])
    return Carried(manifest, Path(about["run_dir"]), files, about["described"], about["counts"])
