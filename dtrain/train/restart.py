"""Where a run writes, and what of an earlier sitting of its own it goes on from.

(docs/adr/0020-a-job-knows-its-own-run.md)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dtrain.files import write_whole
from dtrain.meter.ledger import StepRecord
from dtrain.observe import run_directory
from dtrain.observe.run_directory import RESUMED
from dtrain.train.checkpoint import Checkpoint
from dtrain.train.checkpoint_folder import newest
from dtrain.train.config import LATEST, TrainConfig

ATTEMPTS = 2
"""A restarted job takes up a checkpoint so often without making a step from it; then the one before has its turn, while
there is one."""


@dataclass(frozen=True)
class Start:
    """Rank 0's. `goes_on`: the directory has an earlier sitting of this run, which is kept.

    `checkpoint`: of that sitting, to go on from. `lines` tell people what was found.
    """

    run_dir: Path
    goes_on: bool = False
    checkpoint: Checkpoint | None = None
    lines: tuple[str, ...] = ()


def choose_start(config: TrainConfig) -> Start:
    """Look where this run writes, and what it left there before; nothing is made or changed yet.

    Raises ValueError, naming the cure, for a directory that holds something else.
    """
    name = f"{config.model.name}-{config.compressor.name}"
    again = run_directory.of_this_job(config.run_dir, name)
    run_dir = again
    if again is None and config.resume == LATEST:
        asked = Path(str(config.run_dir))
        if run_directory.holds_run(asked) and not (config.overwrite and run_directory.is_complete(asked)):
            run_dir = asked.resolve()
    if run_dir is None:
        return Start(_choose_new(config, name))
    failing = [one for one, times in _attempts(run_dir).items() if times >= ATTEMPTS] if again is not None else []
    checkpoint, skipped = newest(run_dir, failing)
    lines = [f"skipped a checkpoint: {why}" for why in skipped]
    if checkpoint is not None:
        lines.append(f"going on from {checkpoint.folder}")
    else:
        lines.append(f"beginning anew in {run_dir}, where no checkpoint was finished yet")
    return Start(run_dir, True, checkpoint, tuple(lines))


def count_attempt(run_dir: Path, checkpoint: Checkpoint) -> Callable[[StepRecord], None]:
    """Note that this checkpoint is taken up; what is returned, a ledger's sink, forgets that after the first step."""
    identity, path = checkpoint.identity(), run_dir / RESUMED
    attempts = _attempts(run_dir)
    write_whole(path, json.dumps({**attempts, identity: attempts.get(identity, 0) + 1}) + "\n")
    pending = [identity]

    def forget(record: StepRecord) -> None:
        if record.step is not None and pending:
            write_whole(path, json.dumps({one: n for one, n in _attempts(run_dir).items() if one != pending[0]}) + "\n")
            pending.clear()

    return forget


def _choose_new(config: TrainConfig, name: str) -> Path:
    run_dir = run_directory.choose(config.run_dir, name, overwrite=config.overwrite)
    inside = config.resume not in (None, LATEST) and Path(str(config.resume)).resolve().is_relative_to(run_dir)
    if inside:
        raise ValueError(
            f"resume={config.resume} lies in run_dir={run_dir}, which would be replaced: choose another run_dir"
        )
    return run_dir


def _attempts(run_dir: Path) -> dict[str, int]:
    """How often each checkpoint, by its identity, was taken up without a step."""
    try:
        content = json.loads((run_dir / RESUMED).read_text(encoding="utf-8"))
        return {str(identity): int(times) for identity, times in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
