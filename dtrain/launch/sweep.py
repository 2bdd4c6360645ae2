"""A training for each combination of settings, one after the other, each by `dtrain launch` in a folder of its own.

What a sweep has done is what its folders hold, so the same command goes on with it: a run that is complete is not
trained again, one that was interrupted goes on from its newest checkpoint.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf
from yaml import YAMLError

from dtrain.arguments import on_signals
from dtrain.files import read_json
from dtrain.observe import run_directory
from dtrain.train.compose import Combination, combinations, plain, read_request
from dtrain.train.config import from_data
from dtrain.train.parent import end_with_parent

PREEMPTED = 75
"""How a run ends that somebody else told to save and end."""
SAVED_EVERY = "save_every=1min"
"""Unless the settings say otherwise; of these checkpoints the last is kept."""
_OURS = {"run_dir": "--output says where", "overwrite": "remove a run's folder", "resume": "it goes on by itself"}
_NOT_COMPARED = ("run_dir", "overwrite", "resume", "resume_changes", "observe", "save_every", "keep_checkpoints")
"""What does not change what a run comes to."""
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Planned:
    """One combination: its name and folder, how it is started, and whether that is done already."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    is_done: bool

    def line(self) -> str:
        """For a POSIX shell; a comment where nothing is to be run."""
        command = shlex.join(["dtrain", *self.arguments])
        return f"# done: {command}" if self.is_done else command


@dataclass(frozen=True)
class Outcome:
    """What became of the combinations: those that are complete, those that failed with their exit codes, and the exit
    code of a sweep that was told to stop (None: it came to its end)."""

    complete: tuple[Planned, ...]
    failed: Mapping[str, int]
    stopped: int | None


def plan(settings: Sequence[str], ranks: int, output: Path) -> tuple[Planned, ...]:
    """Every combination of the settings, in order, under `ranks` ranks, in folders in `output`.

    Raises ValueError, naming the cure, for a setting that is wrong in any combination, and for a folder that holds a
    run with other settings.
    """
    _refuse_ours(settings)
    listed = combinations(settings)
    names = _names(listed)
    keys = [setting.partition("=")[0].lstrip("+") for setting in settings]
    extra = [text for text in (SAVED_EVERY, "keep_checkpoints=1") if text.partition("=")[0] not in keys]
    planned = []
    for name, combination in zip(names, listed, strict=True):
        folder = output / name
        try:
            is_done = _is_done(folder, _configuration(combination.settings), ranks)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if combination.varied else str(error)) from None
        own = (*combination.settings, *extra, f"run_dir={_quoted(folder)}", "resume=latest")
        planned.append(Planned(name, folder, ("launch", "-n", str(ranks), *own), is_done))
    return tuple(planned)


def run(planned: Sequence[Planned], output: TextIO) -> Outcome:
    """Train each that is not done, to its end; what they print goes to `output`.

    One that fails is named on standard error, and the next has its turn. SIGINT, SIGTERM and SIGHUP have the one
    that runs saved, and end the sweep; a second signal ends its ranks at once.
    """
    complete: list[Planned] = []
    failed: dict[str, int] = {}
    received: list[signal.Signals] = []
    with on_signals(received.append, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for number, one in enumerate(planned, start=1):
            what = "done already" if one.is_done else "goes on" if run_directory.holds_run(one.folder) else "begins"
            print(f"{one.name}: {what} ({number} of {len(planned)})", file=output, flush=True)
            code = 0 if one.is_done else _train(one, output, received)
            if received or code in (PREEMPTED, 128 + signal.SIGTERM):  # its own, or of the agent of its ranks
                return Outcome(tuple(complete), failed, 128 + received[0] if received else PREEMPTED)
            if code == 0 and run_directory.is_complete(one.folder):
                complete.append(one)
            else:
                failed[one.name] = code
                print(f"dtrain sweep: {one.name} failed with exit code {code}", file=sys.stderr, flush=True)
    return Outcome(tuple(complete), failed, None)


def _train(one: Planned, output: TextIO, received: list[signal.Signals]) -> int:
    command = [sys.executable, "-m", "dtrain.cli", *one.arguments]
    process = subprocess.Popen(  # in a session of its own, so that Ctrl-C reaches it through us alone
        command, stdout=output, start_new_session=True, preexec_fn=end_with_parent
    )
    told = 0
    while process.poll() is None:
        if len(received) > told:
            told += 1
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM if told == 1 else signal.SIGKILL)  # ranks end with their agent
        time.sleep(_POLL_SECONDS)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _configuration(settings: Sequence[str]) -> dict[str, Any]:
    """All that the settings come to. Raises ValueError, naming the cure, for a mistake."""
    composed = read_request(settings).composed
    assert composed is not None
    data = plain(composed)
    from_data(data)
    return data


def _refuse_ours(settings: Sequence[str]) -> None:
    for setting in settings:
        if setting.startswith("-"):
            raise ValueError(f"{setting} stands behind a setting: put options before settings")
        key = setting.partition("=")[0].lstrip("+~")
        if key in _OURS:
            raise ValueError(f"{key} is the sweep's own, one for each combination: leave it out ({_OURS[key]})")


def _names(listed: Sequence[Combination]) -> list[str]:
    """Of folders: the values that vary, with the settings' names where values alone do not say what they are of."""
    names = ["-".join(map(_named, combination.varied)) or "run" for combination in listed]
    safe = [re.sub(r"[^\w.+-]", "_", name) for name in names]
    for name in (name for name in safe if safe.count(name) > 1):
        raise ValueError(f"two combinations would have the folder {name}: tell them apart by other values")
    return safe


def _named(varied: tuple[str, str]) -> str:
    key, value = varied
    return value if key in _GROUPS else f"{key.rpartition('.')[2]}_{value}"


_GROUPS = ("model", "compressor", "data", "optimizer", "sync", "backend", "experiment")
"""Whose values say what they are of."""


def _quoted(folder: Path) -> str:
    """As Hydra's grammar has a text of any characters."""
    text = str(folder)
    return text if re.fullmatch(r"[A-Za-z0-9_./+-]+", text) else "'" + text.replace("'", "\\'") + "'"


def _is_done(folder: Path, wanted: Mapping[str, Any], ranks: int) -> bool:
    """Whether the run in this folder is complete. Raises ValueError for one with other settings, or ranks."""
    if not folder.is_dir() or not run_directory.holds_run(folder):
        return False
    try:
        held = OmegaConf.to_container(OmegaConf.load(folder / run_directory.CONFIG))
        world_size = read_json(folder / "summary.json")["world_size"]
    except FileNotFoundError:
        return False  # it was stopped before it began
    except (OSError, ValueError, TypeError, KeyError, YAMLError) as error:
        raise ValueError(f"{folder} holds a run that cannot be read ({error}): remove it, or mend it") from None
    if not isinstance(held, dict):
        raise ValueError(f"{folder} holds a run that cannot be read: remove it, or mend it")
    other = [key for key in {**wanted, **held} if key not in _NOT_COMPARED and wanted.get(key) != held.get(key)]
    if other or world_size != ranks:
        what = f"{', '.join(sorted(map(str, other)))} differ" if other else f"on {world_size} ranks"
        raise ValueError(f"{folder} holds a run with other settings ({what}): give another --output, or remove it")
    return run_directory.is_complete(folder)
