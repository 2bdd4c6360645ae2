"""Writing checkpoints beside training, each rank its part.

(docs/adr/0022-checkpoints-are-written-beside-training.md)
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.comm import Communicator, all_gather
from dtrain.files import make_folder, write_whole
from dtrain.meter.ledger import Activity, Ledger, Purpose
from dtrain.sync.buckets import trainable
from dtrain.sync.synchronizer import Synchronizer
from dtrain.train.checkpoint import (
    CONSTRAINTS,
    MANIFEST,
    MODEL,
    RANDOM,
    TEACHER,
    Digest,
    Manifest,
    digest,
    optimizer_file,
    rank_file,
    write_manifest,
)
from dtrain.train.checkpoint_folder import folder_of, prune
from dtrain.train.model_files import as_bytes, lay_out, metadata_of
from dtrain.train.progress import Progress


@dataclass(frozen=True)
class _Pending:
    """A checkpoint whose files are being written. `manifest` is still without them."""

    folder: Path
    manifest: Manifest
    written: Mapping[str, Future[Digest]]


class Saver:
    """Writes checkpoints of one rank's run into its directory.

    `save` copies what is to be saved and returns; a thread writes it. Every rank calls `save`, `declare` and `finish`
    after the same steps. Ranks on hosts of their own write there. `settings` are those that a run that goes on must
    have. `keep`: the last so many are kept, and the best; None: all.
    """

    def __init__(
        self,
        run_dir: Path,
        communicator: Communicator,
        ledger: Ledger,
        device: torch.device,
        settings: Mapping[str, Any],
        keep: int | None = None,
    ) -> None:
        self._run_dir, self._communicator, self._ledger, self._device = run_dir, communicator, ledger, device
        self.settings, self._keep = settings, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._buffers: dict[str, Tensor] = {}  # of the last snapshot, which the next is written over
        self._pending: _Pending | None = None
        self._declared: Future[None] | None = None

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
        """Begin one, of the state as it is now; one that is under way is waited for first.

        Raises OSError, with the path, where that one could not be written.
        """
        self.declare()
        rank, world_size = self._communicator.rank, self._communicator.world_size
        self._copy(rank_file(rank), *_of_rank(synchronizer.state_dict()))
        files = [rank_file(rank), optimizer_file(rank)]
        whole = [model.state_dict(), constraints, {} if teacher is None else teacher.state_dict()]
        state = optimizer_tensors(model, optimizer)
        sizes = {name: tensor.nbytes for name, tensor in state.items()}
        share = shares(sizes, world_size, sum(tensor.nbytes for tensors in whole for tensor in tensors.values()))[rank]
        self._copy(optimizer_file(rank), {name: state[name] for name in share})
        if rank == 0:
            self._copy(MODEL, model.state_dict(), metadata_of({**description, "step": progress.step}))
            files.append(MODEL)
            if constraints:
                self._copy(CONSTRAINTS, constraints)
                files.append(CONSTRAINTS)
            if teacher is not None:
                self._copy(TEACHER, teacher.state_dict(), metadata_of(description))
                files.append(TEACHER)
        manifest = Manifest(
            **asdict(progress),
            samples_seen=samples_seen,
            step_samples=step_samples,
            world_size=world_size,
            settings=self.settings,
            files={},
        )
        folder = folder_of(self._run_dir, progress.step)
        written = {name: self._thread.submit(self._write, folder / name, self._buffers[name]) for name in files}
        self._pending = _Pending(folder, manifest, written)

    def is_written(self) -> bool:
        """Whether a checkpoint waits for `declare`, and this rank has its part on the disk.

        Raises OSError, with the path, where one could not be written.
        """
        if self._declared is not None and self._declared.done():
            self._declared.result()
        if self._pending is None:
            return False
        for file in self._pending.written.values():
            if not file.done():
                return False
            file.result()
        return True

    def declare(self) -> None:
        """Say that the checkpoint that is under way, if one is, is whole: its manifest follows at once.

        Waits for this rank's part, and the others. Raises OSError, with the path, where it could not be written.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        written = {name: file.result() for name, file in pending.written.items()}
        rank = self._communicator.rank
        everyone = self._gather(written[rank_file(rank)], written[optimizer_file(rank)])
        for other, (own, share) in enumerate(everyone):
            written |= {rank_file(other): own, optimizer_file(other): share}
        if rank == 0:
            if self._declared is not None:
                self._declared.result()
            manifest = replace(pending.manifest, files=written)
            self._declared = self._thread.submit(self._declare, manifest, pending.folder / MANIFEST)

    def finish(self) -> None:
        """Wait until what was saved is on the disk, on rank 0 with its manifest. Raises OSError, with the path."""
        self.declare()
        if self._declared is not None:
            self._declared.result()

    def close(self) -> None:
        """End the thread; what it has not begun to write is let go of."""
        self._thread.shutdown(cancel_futures=True)

    def _copy(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        self._buffers[name] = lay_out(tensors, metadata, self._buffers.get(name))

    def _write(self, path: Path, buffer: Tensor) -> Digest:
        if not self._run_dir.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run directory is gone", str(self._run_dir))
        make_folder(path.parent)
        content = as_bytes(buffer)
        write_whole(path, content)
        return digest(content)

    def _declare(self, manifest: Manifest, path: Path) -> None:
        write_manifest(manifest, path)
        if self._keep is not None:
            prune(self._run_dir, self._keep)

    def _gather(self, *own: Digest) -> list[list[Digest]]:
        """What each rank says of so many files, by rank."""
        packed = b"".join(one.num_bytes.to_bytes(8, "little") + bytes.fromhex(one.sha256) for one in own)
        with self._ledger.scope(activity=Activity.CHECKPOINT, purpose=Purpose.CONTROL):
            mine = torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(self._device)
            rows = all_gather(self._communicator, mine).cpu().view(self._communicator.world_size, len(own), -1)
        return [
            [Digest(int.from_bytes(bytes(said[:8]), "little"), bytes(said[8:]).hex()) for said in row]
            for row in rows.tolist()
        ]


def shares(sizes: Mapping[str, int], world_size: int, first_has: int) -> list[list[str]]:
    """Who writes what: by rank, names of tensors, so that ranks have about as many bytes each.

    `sizes`: bytes by name. `first_has`: bytes that rank 0 has to write anyway. The largest first, each to the rank that
    has least so far.
    """
    names: list[list[str]] = [[] for _ in range(world_size)]
    loads = [first_has, *[0] * (world_size - 1)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        names[rank].append(name)
        loads[rank] += sizes[name]
    return names


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name. What is not a tensor follows from the step."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in trainable(model)}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _of_rank(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a rank's file holds of a synchroniser's `state_dict()` and this process's random generator."""
    tensors = {
        f"state/{name}/{key}": part for name, parts in state["parameters"].items() for key, part in parts.items()
    }
    counts = {key: value for key, value in state.items() if key != "parameters"}
    tensors[RANDOM] = torch.get_rng_state()
    return tensors, counts
