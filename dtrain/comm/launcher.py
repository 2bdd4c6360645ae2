"""Which launcher started this process, and where it stands among the workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dtrain.comm import slurm


@dataclass(frozen=True)
class Launch:
    """A worker's place. `launcher` is torchrun, mpirun, horovodrun, srun or none."""

    launcher: str
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


_VARIABLES = {
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_LOCAL_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE"),
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpiexec": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
}


def threads_per_rank(launch: Launch, environ: Mapping[str, str]) -> int:
    """How many of the cores that this process may use are its own: Slurm says it of its tasks, others share them."""
    if slurm.is_task(environ):
        return slurm.threads_per_task(environ)
    return max(1, usable_cores() // launch.local_world_size)


def usable_cores() -> int:
    """The cores of this host that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def detect_launch(environ: Mapping[str, str]) -> Launch:
    """The launch that these environment variables describe; one worker on its own where they describe none.

    Raises ValueError for variables that contradict themselves, and for tasks of srun that have no ranks.
    """
    for launcher, names in _VARIABLES.items():
        if names[0] not in environ or names[2] not in environ:
            continue
        try:
            rank, world_size = int(environ[names[0]]), int(environ[names[2]])
            local_rank = int(environ.get(names[1], 0))
            local_world_size = int(environ.get(names[3], world_size))
        except ValueError:
            values = ", ".join(f"{name}={environ.get(name)}" for name in names)
            raise ValueError(f"{launcher} set variables that are not numbers ({values}): start again with it") from None
        if not 0 <= rank < world_size or not 0 <= local_rank < local_world_size:
            values = ", ".join(f"{name}={environ.get(name)}" for name in names)
            raise ValueError(f"{launcher} set variables that contradict themselves ({values}): unset or correct them")
        name = "mpirun" if launcher == "mpiexec" else launcher
        return Launch(name, rank, local_rank, world_size, local_world_size)
    if slurm.is_task(environ):
        return replace(detect_launch(slurm.read_task(environ)), launcher="srun")
    return Launch("none", 0, 0, 1, 1)
