"""The checkpoints of a run: which there are, whether each is whole, which to go on from and which to keep."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.files import parse_json, read_file
from dtrain.observe.run_directory import CHECKPOINTS, EARLIER
from dtrain.train.checkpoint import MANIFEST, Checkpoint, open_checkpoint

_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Found:
    """A checkpoint's folder. `checkpoint` is None where its manifest is missing or makes no sense, which `fault` says.

    `size_bytes`: of its files.
    """

    folder: Path
    step: int
    size_bytes: int
    checkpoint: Checkpoint | None
    fault: str | None

    @property
    def is_unfinished(self) -> bool:
        """Whether nobody ever said that it was whole: a run was ended while it wrote."""
        return not (self.folder / MANIFEST).exists()


def folder_of(run_dir: Path, step: int) -> Path:
    """Where a run's checkpoint after so many steps is."""
    return run_dir / CHECKPOINTS / f"step-{step:06d}"


def find(run_dir: Path) -> list[Found]:
    """A run's checkpoints, by their manifests alone, the newest last."""
    folders = [(path, _NAME.fullmatch(path.name)) for path in (run_dir / CHECKPOINTS).glob("step-*") if path.is_dir()]
    return sorted((_look(path, int(name[1])) for path, name in folders if name), key=lambda found: found.step)


def verify(found: Found) -> str | None:
    """Why a checkpoint cannot be gone on from; None where every file is the one that was saved."""
    if found.checkpoint is None:
        return found.fault
    try:
        found.checkpoint.verify()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def newest(run_dir: Path, passed_over: Collection[str] = ()) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, with why each newer one was skipped.

    `passed_over`: identities of those not to take while there is another. None where the run has not finished any yet.
    Raises ValueError, with all reasons, where there are some and none will do: to begin again is not for us to choose.
    """
    skipped: list[str] = []
    all_found, again = find(run_dir), list[Checkpoint]()
    for found in reversed(all_found):
        fault = verify(found)
        if fault is None and found.checkpoint is not None:
            if found.checkpoint.identity() not in passed_over:
                return found.checkpoint, skipped
            again.append(found.checkpoint)
            fault = f"{found.folder}: taken up again and again, and no step was made from it"
        skipped.append(str(fault))
    if again:
        return again[0], [*skipped, f"there is no other, so {again[0].folder} has its turn once more"]
    if all(found.is_unfinished for found in all_found):
        return None, skipped
    raise ValueError(
        f"run_dir={run_dir} has no checkpoint that can be gone on from: {'; '.join(skipped)}: mend one, or choose "
        "another run_dir to begin anew"
    )


def best(run_dir: Path, steps: Iterable[int]) -> int | None:
    """Of these steps, the last before the run's best evaluation, in any of its sittings."""
    scores = {int(line["step"]): float(line["accuracy"]) for line in _evaluations(run_dir)}
    before = {scored: max((step for step in steps if step <= scored), default=None) for scored in scores}
    known = [(scores[scored], scored) for scored, step in before.items() if step is not None]
    return before[max(known)[1]] if known else None


def prune(run_dir: Path, keep: int) -> list[Path]:
    """Remove all but the last `keep` checkpoints that are whole, and the best; of unfinished ones those before them.

    Returns what was removed. Raises OSError, with the path.
    """
    all_found = find(run_dir)
    whole = [found.step for found in all_found if found.checkpoint is not None]
    if not whole:
        return []
    kept = {*whole[-keep:], best(run_dir, whole)}
    removed = [found.folder for found in all_found if found.step < whole[-1] and found.step not in kept]
    for folder in removed:
        (folder / MANIFEST).unlink(missing_ok=True)  # first: half of one is never taken for a whole one
        shutil.rmtree(folder)
    return removed


def _look(folder: Path, step: int) -> Found:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if not (folder / MANIFEST).exists():
        fault = f"{folder} is not whole: a run ended while it wrote it, or is writing it"
        return Found(folder, step, size, None, fault)
    try:
        checkpoint = open_checkpoint(folder)
        if checkpoint.manifest.step != step:
            raise ValueError(f"{folder} holds the checkpoint of step {checkpoint.manifest.step}: copy it again")
        return Found(folder, step, size, checkpoint, None)
    except (ValueError, OSError) as error:
        return Found(folder, step, size, None, str(error))


def _evaluations(run_dir: Path) -> Iterator[dict[str, Any]]:
    for path in [*run_dir.glob(f"{EARLIER}/*/metrics.jsonl"), run_dir / "metrics.jsonl"]:
        if path.is_file():
            for line in read_file(path).decode("utf-8", "replace").splitlines():
                try:
                    content = parse_json(line, not_finite=True)
                except ValueError:  # the last line of a run that was killed
                    continue
                if isinstance(content, dict) and content.get("kind") == "eval":
                    yield content
