"""Which backends can run here, and why others cannot."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from dtrain.comm import mpi, torch_dist
from dtrain.doctor.check import Check, Severity

_MAKES = {"MPICH": ("HYDRA", "MPICH"), "Open MPI": ("Open MPI", "OpenRTE", "PRRTE", "prte")}


def gloo() -> Check:
    """torch's CPU backend, which everything falls back on."""
    if torch_dist.is_built("gloo"):
        return Check("gloo", Severity.OK, "found")
    return Check("gloo", Severity.ERROR, "this torch was built without it", "install torch from its own wheels")


def nccl() -> Check:
    """torch's CUDA backend."""
    if not torch_dist.is_built("nccl"):
        cure = "with a GPU, install a CUDA build of torch"
        return Check("nccl", Severity.NOTE, "not here: this torch was built without it", cure)
    if not torch.cuda.is_available():
        return Check("nccl", Severity.NOTE, "not here: torch sees no CUDA device", "with a GPU, install its driver")
    return Check("nccl", Severity.OK, f"found, {torch.cuda.device_count()} device(s)")


def mpi_stack(python: str = sys.executable) -> Check:
    """mpi4py, its MPI, and a launcher of the same make."""
    try:
        library = mpi.library_version()
    except ValueError as error:
        finding, _, cure = str(error).rpartition(": ")
        return Check("mpi", Severity.NOTE, f"not here: {finding}", cure)
    mpiexec = _beside(python, "mpiexec")
    if mpiexec is None:
        cure = "install the launcher of that MPI (pip install 'dtrain[mpi]' brings MPICH's)"
        return Check("mpi", Severity.WARNING, f"{library}, but there is no mpiexec", cure)
    make, launcher_make = _make(library), _make(_output(mpiexec, "--version"))
    if make != launcher_make:
        cure = f"put the mpiexec of {make} first in PATH, or name it in MPIEXEC"
        finding = f"mpi4py uses {make}, but {mpiexec} is of {launcher_make}: every rank would be alone"
        return Check("mpi", Severity.WARNING, finding, cure)
    return Check("mpi", Severity.OK, f"{library}, {mpiexec}")


def horovod() -> Check:
    """Horovod, and what it was built with."""
    try:
        found = distribution("horovod")
    except PackageNotFoundError:
        return Check("horovod", Severity.NOTE, "not here: horovod is not installed")
    # Its library says so; importing horovod would take seconds.
    libraries = [path for path in found.files or () if path.match("horovod/torch/mpi_lib_v2*.so")]
    controllers: list[str] = []
    if libraries:
        with suppress(OSError):
            library = ctypes.CDLL(str(libraries[0].locate()))
            built = {"Gloo": library.horovod_gloo_built, "MPI": library.horovod_mpi_built}
            controllers = [name for name, is_built in built.items() if is_built()]
    if not controllers:
        cure = "build it again with HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1"
        return Check("horovod", Severity.WARNING, f"{found.version}, which does not load beside this torch", cure)
    return Check("horovod", Severity.OK, f"{found.version}, with {' and '.join(controllers)}")


def _beside(python: str, program: str) -> str | None:
    """A program of this interpreter's environment, else the one on PATH."""
    return shutil.which(program, path=str(Path(python).parent)) or shutil.which(program)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _make(text: str) -> str:
    return next((make for make, words in _MAKES.items() if any(word in text for word in words)), "an unknown make")
