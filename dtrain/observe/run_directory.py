"""A run's directory, and the files that say what was run, where, and by which job.

A job that is started again (by torchrun's agent after a failure, or after other workers came or left; by a scheduler
that put it back into its queue) finds the directory that it wrote before, and its next sitting goes on in it. What
the sitting before left, all but checkpoints, is kept in `earlier/<n>`. (docs/adr/0020-a-job-knows-its-own-run.md)
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dtrain.files import make_folder, move_into, read_file, read_json, write_whole
from dtrain.meter.command_line import without_secrets
from dtrain.observe.process import this_process

CHECKPOINTS, EARLIER, RESUMED = "checkpoints", "earlier", "resumed.json"
"""What a next sitting leaves where it is."""
CONFIG = "config.yaml"
_ENVIRONMENT = "environment.json"
_VARIABLES = ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_NO_ID = "none"
"""What torchrun calls every job that was given no --rdzv-id and is not --standalone."""


def choose(run_dir: str | None, default_name: str, *, overwrite: bool) -> Path:
    """Where results will go, as an absolute path; nothing is made yet.

    Raises ValueError for a folder that holds something: an earlier run without `overwrite`, anything else always.
    """
    path = Path(run_dir) if run_dir else Path("runs") / f"{default_name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir={path} is a file: choose a folder")
    if path.is_dir() and any(path.iterdir()):
        if not holds_run(path):
            raise ValueError(f"run_dir={path} holds something that is not a run: choose another folder")
        if not overwrite:
            raise ValueError(
                f"run_dir={path} holds a run: choose another folder, or add overwrite=true to replace it, or "
                "resume=latest to go on with it"
            )
    return path.resolve()


def holds_run(path: Path) -> bool:
    """Whether a run was begun in this folder."""
    return (path / "ledger").is_dir() or (path / _ENVIRONMENT).is_file()


def is_complete(path: Path) -> bool:
    """Whether the run in this folder came to its end."""
    return _read(path / "summary.json").get("complete") is True


def of_this_job(run_dir: str | None, default_name: str) -> Path | None:
    """The folder of an earlier sitting of the job that this process is part of, as an absolute path; None if none is.

    Without `run_dir` it is looked for where `choose` would have made it.
    """
    job = _job()
    if job is None:
        return None
    folders = [Path(run_dir)] if run_dir else sorted(Path("runs").glob(f"{default_name}-*"), reverse=True)
    return next((folder.resolve() for folder in folders if _is_of(folder, job)), None)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Make the folder that `choose` gave, and hold it: no other process of this host trains in it meanwhile.

    The kernel lets go of it when this process ends, however it does. A file system whose folders cannot be locked
    (NFS) protects from nothing. Raises ValueError where the folder cannot be made, or another process has it.
    """
    try:
        make_folder(path)
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _cannot_be_made(path, error) from None
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another job trains in run_dir={path}: wait until it has ended, or choose another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(opened)


def _cannot_be_made(path: Path, error: OSError) -> ValueError:
    return ValueError(f"run_dir={path} cannot be made ({error.strerror}): choose another folder")


def make(path: Path, launch: Mapping[str, Any], *, goes_on: bool) -> None:
    """Make the folder that `choose` gave, in place of the run it held; of one that goes on, keep what it left.

    environment.json is there from the first, so that a job that is killed now finds its folder again. Raises
    ValueError where that cannot be done.
    """
    try:
        if goes_on:
            _keep_sitting(path)
        elif path.is_dir():
            for left in path.iterdir():  # not the folder, which is claimed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        make_folder(path)
        write_environment(path, launch)
        make_folder(path / "ledger")
    except OSError as error:
        raise _cannot_be_made(path, error) from None


def write_environment(path: Path, launch: Mapping[str, Any]) -> None:
    """environment.json: host and process of rank 0, hardware, versions, launcher, job, command (without secrets)."""
    content = {
        "command": without_secrets(sys.argv),
        "launch": dict(launch),
        "job": _job(),
        "host": platform.node(),
        "process": this_process(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads_per_rank": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    write_whole(path / _ENVIRONMENT, json.dumps(content, indent=2) + "\n")


def versions() -> dict[str, str]:
    """What the figures of a run depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("dtrain", "torch", "hydra-core")}}


def _keep_sitting(path: Path) -> None:
    number = 1 + max((int(kept.name) for kept in (path / EARLIER).glob("*") if kept.name.isdecimal()), default=0)
    folder, copied = path / EARLIER / str(number), (_ENVIRONMENT, CONFIG)
    stays = (CHECKPOINTS, EARLIER, RESUMED, *copied)
    move_into(folder, [left for left in sorted(path.iterdir()) if left.name not in stays])
    for name in copied:  # not moved: a job that is killed now could not go on without them
        if (path / name).is_file():
            write_whole(folder / name, read_file(path / name))


def _job() -> dict[str, Any] | None:
    """What tells the job of this process from others: torchrun's name for it, and the agent, a process, by its start.

    None where no agent of torchrun's started it: nothing else starts ranks again by itself.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = os.getppid()
    try:
        fields = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19])  # clock ticks after the machine's start; field 22 of proc(5)
        booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, IndexError, ValueError):
        return {"id": os.environ["TORCHELASTIC_RUN_ID"], "agent": None}
    return {"id": os.environ["TORCHELASTIC_RUN_ID"], "agent": [booted, agent, started]}


def _is_of(folder: Path, job: Mapping[str, Any]) -> bool:
    """Whether this job wrote the folder.

    The same agent did for certain. Who starts it again as a job of the same name (another agent: after a host is gone,
    or a scheduler's) means to go on as long as there is anything left to do; names may be given to one job after the
    other.
    """
    wrote = _read(folder / _ENVIRONMENT).get("job")
    if not isinstance(wrote, dict):
        return False
    if job["agent"] is not None and wrote.get("agent") == job["agent"]:
        return True
    return job["id"] != _NO_ID and wrote.get("id") == job["id"] and not is_complete(folder)


def _read(path: Path) -> dict[str, Any]:
    """A file of JSON; nothing where it is missing, empty or broken."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
