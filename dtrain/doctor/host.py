"""Checks of this host: versions, cores, clock, disk, shared memory."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dtrain.compressors.codecs import compiled
from dtrain.doctor.check import Check, Severity

_PACKAGES = ("dtrain", "torch", "numpy", "hydra-core", "safetensors")
_RUN_BYTES = 10**9
"""What a run of AlexNet with a few checkpoints takes."""
_SHM_BYTES = 2**30
_CLOCK_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


def versions() -> Check:
    """Python and the packages that results depend on."""
    found = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # of an extra
            found.append(f"{name} {version(name)}")
    return Check("versions", Severity.OK, ", ".join(found))


def codecs() -> list[Check]:
    """What compressors encode with, on a CPU and, where there is one, on a GPU."""
    device_types = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    asked = os.environ.get(compiled.VARIABLE)
    own = [device_type for device_type in device_types if compiled.COMPILERS[device_type] == asked]
    return [codec(device_type) for device_type in own or device_types]


def codec(device_type: str = "cpu") -> Check:
    """What compressors encode with on such a device: kernels that are compiled for it, or torch."""
    name, compiler = "codec" if device_type == "cpu" else f"codec on {device_type}", compiled.COMPILERS[device_type]
    try:
        chosen = compiled.choose("auto", device_type)
    except ValueError as error:
        return Check(name, Severity.ERROR, str(error), f"correct or unset {compiled.VARIABLE}")
    if chosen != "torch":
        return Check(name, Severity.OK, f"{chosen} {version(chosen)}")
    if compiled.VARIABLE in os.environ:
        return Check(name, Severity.OK, f"torch, as {compiled.VARIABLE} says")
    obstacle, _, cure = (compiled.why_not(compiler) or "").partition(": ")
    return Check(name, Severity.NOTE, f"torch, since {obstacle}", cure)


def threads(environ: Mapping[str, str], local_world_size: int) -> Check:
    """Whether the ranks of this host have a core for each of their threads."""
    cores = len(os.sched_getaffinity(0))
    text = environ.get("OMP_NUM_THREADS")
    if text is None:
        return Check(
            "threads",
            Severity.NOTE,
            f"{cores} cores; OMP_NUM_THREADS is not set, so each rank takes all of them",
            "use dtrain launch, which shares the cores out, or set it to cores / ranks per host",
        )
    if not text.isdecimal() or int(text) == 0:
        return Check("threads", Severity.ERROR, f"OMP_NUM_THREADS={text} is not a number of threads", "correct it")
    wanted = int(text) * local_world_size
    finding = f"{cores} cores for {local_world_size} x {text} threads (ranks here x OMP_NUM_THREADS)"
    if wanted > cores:
        share = max(1, cores // local_world_size)
        return Check("threads", Severity.WARNING, finding, f"set OMP_NUM_THREADS={share}, or start fewer ranks")
    return Check("threads", Severity.OK, finding)


def clock() -> Check:
    """Whether something keeps the clock right, as the kernel has it."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # struct timex, no modes: only read
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return Check("clock", Severity.NOTE, "the kernel does not say whether it is synchronised")
    if state == _CLOCK_UNSYNCHRONISED:
        cure = "with several hosts run an NTP client (chrony, systemd-timesyncd), or their logs do not line up"
        return Check("clock", Severity.NOTE, "not synchronised", cure)
    return Check("clock", Severity.OK, "synchronised")


def disk(folder: Path) -> Check:
    """Whether runs can be written, and fit."""
    exists = folder.absolute()
    while not exists.exists():
        exists = exists.parent
    if not exists.is_dir():
        return Check("disk", Severity.ERROR, f"{folder}: {exists} is a file", "choose another run_dir")
    if not os.access(exists, os.W_OK | os.X_OK):
        return Check("disk", Severity.ERROR, f"{exists} cannot be written to", "choose another run_dir")
    free = shutil.disk_usage(exists).free
    finding = f"{free / 1e9:,.1f} GB free for runs in {folder}"
    if free < _RUN_BYTES:
        cure = f"free some: a run with checkpoints can take {_RUN_BYTES / 1e9:g} GB"
        return Check("disk", Severity.WARNING, finding, cure)
    return Check("disk", Severity.OK, finding)


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Through which data loaders' processes, MPI and NCCL exchange on one host."""
    if not folder.is_dir():
        return Check("shared memory", Severity.WARNING, f"there is no {folder}", "mount a tmpfs there")
    usage = shutil.disk_usage(folder)
    finding = f"{folder} has {usage.total / 2**20:,.0f} MiB, {usage.free / 2**20:,.0f} free"
    if usage.free < _SHM_BYTES:
        cure = "enlarge it (in a container --shm-size=1g or --ipc=host), or keep num_workers=0"
        return Check("shared memory", Severity.WARNING, finding, cure)
    return Check("shared memory", Severity.OK, finding)
