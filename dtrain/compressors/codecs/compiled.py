"""Which code encodes and decodes in this process: torch's operations, or kernels that numba or Triton compiles.

Torch's are the reference, and what is used where no compiler is installed and for what no kernel is written for.
Numba's kernels are for CPUs (ADR 21), Triton's for CUDA devices (ADR 24). Messages and states are the same, bit for
bit, so ranks need not agree on it.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.arguments import check_name
from dtrain.compressors.codecs.kernels import Kernels

CODECS = ("auto", "torch", "numba", "triton")
VARIABLE = "DTRAIN_CODEC"
"""Of the environment: what `auto` is. Without it, what compiles for the device, where that can be used."""
COMPILERS = {"cpu": "numba", "cuda": "triton"}
"""By type of device."""


class _Choice(NamedTuple):
    """What was asked for, under which name, for which type of device."""

    codec: str = "auto"
    label: str = "codec="
    device_type: str = "cpu"


_choice: _Choice | None = None
_in_use: dict[str, str] = {}
"""By type of device."""


def choose(codec: str, device_type: str = "cpu") -> str:
    """From now on this process uses "torch", "numba" or "triton", and trains on such a device. Returns which it is.

    "auto" is what compiles for the device, where that can be used. Raises ValueError for another name, and for a
    compiler by name that cannot be used here, or not for this type of device.
    """
    global _choice
    label = "codec="
    if codec == "auto" and VARIABLE in os.environ:
        codec, label = os.environ[VARIABLE], f"{VARIABLE}="
    check_name(label, codec, CODECS)
    chosen = _resolve(asked := _Choice(codec, label, device_type), device_type)
    if codec == "numba":
        _numba_kernels()
    _choice = asked
    _in_use.clear()
    _in_use[device_type] = chosen
    return chosen


def check_variable() -> None:
    """Raise ValueError where the environment asks for what cannot be had on any device of this host."""
    codec = os.environ.get(VARIABLE, "auto")
    check_name(f"{VARIABLE}=", codec, CODECS)
    if codec in COMPILERS.values() and (obstacle := why_not(codec)) is not None:
        raise ValueError(f"{VARIABLE}={codec} cannot be used: {obstacle}")


def in_use(device_type: str | None = None) -> str:
    """ "torch", "numba" or "triton": on such a device, or on that for which it was chosen.

    What "auto" is, where nobody chose. Raises ValueError where another was asked for that does not run there.
    """
    if _choice is None:
        choose("auto", device_type or "cpu")
    assert _choice is not None
    device_type = device_type or _choice.device_type
    if device_type not in _in_use:
        _in_use[device_type] = _resolve(_choice, device_type)
    return _in_use[device_type]


def _resolve(asked: _Choice, device_type: str) -> str:
    if asked.codec == "torch":
        return "torch"
    own = COMPILERS.get(device_type)
    if asked.codec == "auto":
        return own if own is not None and why_not(own) is None else "torch"
    obstacle = why_not(asked.codec)
    if obstacle is None and asked.codec != own and not _is_interpreted(asked.codec, device_type):
        obstacle = f"values are on {device_type}, where it does not run: use codec=auto"
    if obstacle is not None:
        raise ValueError(f"{asked.label}{asked.codec} cannot be used: {obstacle}")
    return asked.codec


def why_not(compiler: str) -> str | None:
    """What keeps numba, or triton, from being used here, with the cure; None where nothing does. Imports neither."""
    return why_not_numba() if compiler == "numba" else why_not_triton()


@cache
def why_not_numba() -> str | None:
    """See `why_not`."""
    if find_spec("numba") is None:
        return 'numba is not installed: pip install "dtrain[fast]", or leave codec=auto'
    factor = torch.full((67,), 1.0 + 2.0**-12, dtype=torch.float32, device="cpu")  # some vectors, and a rest
    if not (torch.addcmul(-torch.ones_like(factor), factor, factor) == 2.0**-11 + 2.0**-24).all():  # else 2^-11
        return "this processor rounds products before it adds them, and kernels do not: use codec=torch"
    if not _keeps_machine_code():
        return "numba has nowhere to keep machine code: set NUMBA_CACHE_DIR to a folder, or use codec=torch"
    return None


@cache
def why_not_triton() -> str | None:
    """See `why_not`."""
    if find_spec("triton") is None:
        return "triton is not installed: take a build of torch for CUDA, which brings it, or leave codec=auto"
    if _is_interpreted("triton", "cpu"):
        return None
    if torch.version.hip is not None:
        return "kernels were never tried on AMD's devices: use codec=torch"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: leave codec=auto"
    return None


def _is_interpreted(compiler: str, device_type: str) -> bool:
    """Whether kernels for a GPU run on a CPU, in Triton's interpreter."""
    return compiler == "triton" and device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def kernels_for(*values: Tensor) -> Kernels | None:
    """The kernels for codecs of blocks, where they are in use and take these values: contiguous float32, on one device.

    Raises ValueError where they were asked for by name and do not run there.
    """
    device = values[0].device
    if any(v.dtype != torch.float32 or v.device != device or not v.is_contiguous() for v in values):
        return None
    codec = in_use(device.type)
    if codec == "torch":
        return None
    try:
        return _numba_kernels() if codec == "numba" else _triton_kernels(device)
    except ValueError as error:
        _give_up(codec, device.type, error)
        return None


def sparse_loops_for(value: Tensor, dtype: torch.dtype = torch.float32) -> ModuleType | None:
    """Numba's loops for sparse messages, where it is in use and takes this value: contiguous, of `dtype`, on a CPU."""
    if value.dtype != dtype or not value.is_contiguous() or in_use(value.device.type) != "numba":
        return None
    try:
        return _numba_loops()
    except ValueError as error:
        _give_up("numba", "cpu", error)
        return None


def _give_up(codec: str, device_type: str, error: ValueError) -> None:
    """Raise it where the codec was asked for; else torch encodes, and it is said."""
    if _choice is not None and _choice.codec == codec:
        raise error
    print(f"dtrain: warning: {error}; torch encodes", file=sys.stderr, flush=True)
    _in_use[device_type] = "torch"


@cache
def _numba_loops() -> ModuleType:
    try:
        from dtrain.compressors.codecs import numba_loops
    except Exception as error:  # of another numpy or processor, or nowhere to keep machine code after all
        raise ValueError(f"numba is installed but does not work ({error}): repair it, or use codec=torch") from error
    return numba_loops


@cache
def _numba_kernels() -> Kernels:
    _numba_loops()
    from dtrain.compressors.codecs.numba_kernels import NumbaKernels

    return NumbaKernels()


@cache
def _triton_kernels(device: torch.device) -> Kernels:
    """Compiled and compared with torch once for each device, for which the host waits."""
    cure = "repair it, or use codec=torch"
    try:
        from dtrain.compressors.codecs.triton_kernels import TritonKernels, differ_from_torch

        kernels = TritonKernels(device)
        different = differ_from_torch(kernels, device)
    except Exception as error:  # of another torch or driver, or no C compiler for its launcher
        raise ValueError(f"triton is installed but does not work ({_first_line(error)}): {cure}") from error
    if different:
        raise ValueError(f"triton's {different[0]} does not say what torch says on {device}: use codec=torch")
    return kernels


def _first_line(error: Exception) -> str:
    """What it says, or its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _keeps_machine_code() -> bool:
    """Whether one of the folders in which numba keeps it can be written to."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return True
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - may have no home
    nearest = (folder for folder in (cache_home, *cache_home.parents) if os.path.exists(folder))  # noqa: PTH110 - nor be let in
    return any(os.access(folder, os.W_OK | os.X_OK) for folder in (Path(__file__).parent, *islice(nearest, 1)))
