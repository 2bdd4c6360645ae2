"""Which settings matter: that all ranks share, and that a checkpoint must be resumed with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dtrain.train.config import TrainConfig

Settings = Mapping[str, Any]
"""By dotted name, values as JSON has them."""

_OF_A_HOST = (
    "run_dir",
    "overwrite",
    "threads",
    "codec",  # messages are the same
    "init_weights",  # rank 0's weights go to everybody
    "resume",  # of this and the next what they hold is compared, not where it is
    "teacher",
    "observe.progress",
    "observe.nic_interface",
    "observe.profile",
    "observe.prometheus.host",
    "observe.prometheus.port",
    "observe.prometheus.targets",
    "observe.prometheus.textfile",
    "data.root",
    "data.download",
    "data.num_workers",
    "data.cache_bytes",
)
"""May differ from rank to rank."""
_OF_A_SITTING = (
    "num_steps",
    "num_epochs",
    "log_every",
    "eval_every_epochs",
    "save_every",
    "keep_checkpoints",
    "backend",
    "overlap",
    "bucket_bytes",
    "first_bucket_bytes",
    "observe",
    "guard",
    "resume_changes",
)
"""May differ, besides those, between the run that saved a checkpoint and the one that goes on: how far, how watched."""
_FIXED = ("model", "data", "compressor", "optimizer.name", "sync.name", "seed", "phases", "facts")
"""What a checkpoint's content is of: another value makes another run, for which there is init_weights."""

_SHOWN, _SHOWN_LETTERS = 8, 200
"""Of differences between ranks, and of a name or value, in a line of an error."""


def shared_by_ranks(config: TrainConfig, facts: Settings) -> Settings:
    """What must be the same on every rank. `facts` are those of data and model that no setting says."""
    return _without(_flat(config, facts), _OF_A_HOST)


def kept_in_checkpoints(config: TrainConfig, facts: Settings) -> Settings:
    """What a run that goes on must share with the one that saved."""
    return _without(_flat(config, facts), (*_OF_A_HOST, *_OF_A_SITTING))


def check_resumable(saved: Settings, now: Settings, changes: Iterable[str], folder: Path) -> None:
    """Raise ValueError, listing what differs and what may, unless `now` fits what a checkpoint was saved with.

    `changes` names settings that the user wants to differ.
    """
    wanted = set(changes)
    known = sorted(name for name in now if not _within(name, _FIXED))
    for name in sorted(wanted - set(known)):
        raise ValueError(f"resume_changes names {name}, which may not differ; these may: {', '.join(known)}")
    differing = [name for name in sorted({*saved, *now} - wanted) if saved.get(name) != now.get(name)]
    if not differing:
        return
    listed = "; ".join(f"{name} was {_shown(saved, name)} and is {_shown(now, name)}" for name in differing)
    free = [name for name in differing if not _within(name, _FIXED)]
    cures = ["give what it was saved with"]
    if len(free) == len(differing):
        cures.append(f"add resume_changes=[{','.join(free)}] to go on all the same")
    else:
        cures.append("start a new run from its weights (init_weights=.../model.safetensors)")
    raise ValueError(f"{folder} was saved with other settings: {listed}. {', or '.join(cures)}")


def difference_of(ranks: list[Settings]) -> str | None:
    """The settings in which ranks differ, with the values and who has them; None where there are none."""
    faults = []
    for name in dict.fromkeys(name for settings in ranks for name in settings):
        holders: dict[str, list[int]] = {}
        for rank, settings in enumerate(ranks):
            holders.setdefault(_shown(settings, name), []).append(rank)
        if len(holders) > 1:
            values = " and ".join(f"{value} on {name_ranks(who)}" for value, who in holders.items())
            faults.append(f"{_printable(name)} is {values}")
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more if faults else None


def name_ranks(ranks: list[int]) -> str:
    """One rank or several, in words."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _shown(settings: Settings, name: str) -> str:
    """A value as JSON, as far as it fits into a line."""
    return json.dumps(settings[name])[:_SHOWN_LETTERS] if name in settings else "not set"


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:_SHOWN_LETTERS])


def _flat(config: TrainConfig, facts: Settings) -> dict[str, Any]:
    return dict(_items(config, "")) | {f"facts.{name}": value for name, value in facts.items()}


def _items(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    """Every setting below `value` by its dotted name. What a name of a registry is told stands beside the name."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            below = name if field.name == "options" else f"{name}.{field.name}".lstrip(".")
            yield from _items(getattr(value, field.name), below)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _items(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def _without(settings: Settings, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not _within(name, names)}


def _within(name: str, groups: tuple[str, ...]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)
