"""Writing checkpoints, each rank its part."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.comm import Communicator, all_gather
from dtrain.files import make_folder
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.sync.buckets import trainable
from dtrain.sync.synchronizer import Synchronizer
from dtrain.train.checkpoint import (
    CONSTRAINTS,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    RANDOM,
    TEACHER,
    Digest,
    Manifest,
    digest,
    rank_file,
    write_manifest,
)
from dtrain.train.checkpoint_folder import folder_of, prune
from dtrain.train.model_files import save_model, save_tensors
from dtrain.train.progress import Progress


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints of one rank's run into its directory; every rank calls `save` after the same step.

    Ranks on hosts of their own write there. `settings` are those that a run that goes on must have. `keep`: the last so
    many are kept, and the best; None: all.
    """

    run_dir: Path
    communicator: Communicator
    ledger: Ledger
    device: torch.device
    settings: Mapping[str, Any]
    keep: int | None = None

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        synchronizer: Synchronizer,
        *,
        progress: Progress,
        samples_seen: int,
        step_samples: int,
        description: Mapping[str, Any],
        constraints: Mapping[str, Tensor],
        teacher: nn.Module | None,
    ) -> None:
        """Write one. It is on the disk, the manifest last, when rank 0 returns. Raises OSError, with the path."""
        folder, communicator = folder_of(self.run_dir, progress.step), self.communicator
        if not self.run_dir.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run directory is gone", str(self.run_dir))
        make_folder(folder)
        written = {}
        own = _save_rank(synchronizer.state_dict(), folder / rank_file(communicator.rank))
        if communicator.rank == 0:
            described = {**description, "step": progress.step}
            names: dict[Tensor, str] = {parameter: name for name, parameter in trainable(model)}
            written[MODEL] = digest(save_model(model, folder / MODEL, described))
            written[OPTIMIZER] = digest(save_tensors(_optimizer_tensors(optimizer, names), folder / OPTIMIZER))
            if constraints:
                written[CONSTRAINTS] = digest(save_tensors(constraints, folder / CONSTRAINTS))
            if teacher is not None:
                written[TEACHER] = digest(save_model(teacher, folder / TEACHER, description))
        everyone = self._gather(own)  # every rank has written
        written |= {rank_file(rank): digest for rank, digest in enumerate(everyone)}
        if communicator.rank == 0:
            manifest = Manifest(
                **asdict(progress),
                samples_seen=samples_seen,
                step_samples=step_samples,
                world_size=communicator.world_size,
                settings=self.settings,
                files=written,
            )
            write_manifest(manifest, folder / MANIFEST)
            if self.keep is not None:
                prune(self.run_dir, self.keep)

    def _gather(self, own: Digest) -> list[Digest]:
        packed = bytearray(own.num_bytes.to_bytes(8, "little") + bytes.fromhex(own.sha256))
        with self.ledger.scope(activity=Activity.CHECKPOINT, purpose=Purpose.CONTROL):
            mine = torch.frombuffer(packed, dtype=torch.uint8).to(self.device)
            rows = [bytes(row.tolist()) for row in all_gather(self.communicator, mine).cpu()]
        return [Digest(int.from_bytes(row[:8], "little"), row[8:].hex()) for row in rows]


def _optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name. What is not a tensor follows from the step."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _save_rank(state: Mapping[str, Any], path: Path) -> Digest:
    """Write a synchroniser's `state_dict()` and this process's random generator."""
    tensors = {
        f"state/{name}/{key}": part for name, parts in state["parameters"].items() for key, part in parts.items()
    }
    counts = {key: value for key, value in state.items() if key != "parameters"}
    tensors[RANDOM] = torch.get_rng_state()
    return digest(save_tensors(tensors, path, {"dtrain": json.dumps(counts, sort_keys=True)}))
