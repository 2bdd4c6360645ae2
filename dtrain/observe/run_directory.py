"""A run's directory, and the files that say what was run and where."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dtrain.files import write_whole
from dtrain.observe.process import this_process

_VARIABLES = ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def choose(run_dir: str | None, default_name: str, *, overwrite: bool) -> Path:
    """Where results will go, as an absolute path; nothing is made yet.

    Raises ValueError for a folder that holds something: an earlier run without `overwrite`, anything else always.
    """
    path = Path(run_dir) if run_dir else Path("runs") / f"{default_name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir={path} is a file: choose a folder")
    if path.is_dir() and any(path.iterdir()):
        if not (path / "ledger").is_dir():
            raise ValueError(f"run_dir={path} holds something that is not a run: choose another folder")
        if not overwrite:
            raise ValueError(f"run_dir={path} holds a run: choose another folder, or add overwrite=true to replace it")
    return path.resolve()


def make(path: Path) -> None:
    """Make the folder that `choose` gave, in place of the run it held. Raises ValueError where that cannot be done."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        (path / "ledger").mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"run_dir={path} cannot be made ({error.strerror}): choose another folder") from None


def write_environment(path: Path, launch: Mapping[str, Any]) -> None:
    """environment.json: host and process of rank 0, hardware, versions, launcher, command."""
    content = {
        "command": sys.argv,
        "launch": dict(launch),
        "host": platform.node(),
        "process": this_process(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads_per_rank": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    write_whole(path / "environment.json", json.dumps(content, indent=2) + "\n")


def versions() -> dict[str, str]:
    """What the figures of a run depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("dtrain", "torch", "hydra-core")}}
