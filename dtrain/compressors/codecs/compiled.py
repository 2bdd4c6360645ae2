"""Which code encodes and decodes in this process: torch's operations, or kernels that numba compiles.

Torch's are the reference, and what is used where numba is not installed, on other devices than a CPU, and for what no
kernel is written for. Messages and states are the same, bit for bit, so ranks need not agree on it (ADR 21).
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dtrain.arguments import check_name

CODECS = ("auto", "torch", "numba")
VARIABLE = "DTRAIN_CODEC"
"""Of the environment: what `auto` is. Without it, numba where that can be used."""

_in_use: str | None = None


def choose(codec: str) -> str:
    """From now on this process uses "torch" or "numba"; "auto" is numba where that can be used. Returns which it is.

    Raises ValueError for another name, and for numba where it cannot be used.
    """
    global _in_use
    label = "codec="
    if codec == "auto" and VARIABLE in os.environ:
        codec, label = os.environ[VARIABLE], f"{VARIABLE}="
    check_name(label, codec, CODECS)
    obstacle = None if codec == "torch" else why_not_numba()
    if codec == "numba" and obstacle is not None:
        raise ValueError(f"{label}numba cannot be used: {obstacle}")
    if codec == "numba":
        _kernels()
    _in_use = "numba" if codec != "torch" and obstacle is None else "torch"
    return _in_use


def in_use() -> str:
    """ "torch" or "numba"; what "auto" is, where nobody chose."""
    return choose("auto") if _in_use is None else _in_use


@cache
def why_not_numba() -> str | None:
    """What keeps numba from being used here, with the cure; None where nothing does. Does not import it."""
    if find_spec("numba") is None:
        return 'numba is not installed: pip install "dtrain[fast]", or leave codec=auto'
    factor = torch.full((67,), 1.0 + 2.0**-12, dtype=torch.float32, device="cpu")  # some vectors, and a rest
    if not (torch.addcmul(-torch.ones_like(factor), factor, factor) == 2.0**-11 + 2.0**-24).all():  # else 2^-11
        return "this processor rounds products before it adds them, and kernels do not: use codec=torch"
    if not _keeps_machine_code():
        return "numba has nowhere to keep machine code: set NUMBA_CACHE_DIR to a folder, or use codec=torch"
    return None


def kernels_for(*values: Tensor, dtype: torch.dtype = torch.float32) -> ModuleType | None:
    """The kernels, where they are in use and these values are what they take: contiguous, of `dtype`, on a CPU."""
    global _in_use
    if in_use() == "torch" or any(v.dtype != dtype or v.device.type != "cpu" or not v.is_contiguous() for v in values):
        return None
    try:
        return _kernels()
    except ValueError as error:  # nobody asked for numba, or `choose` had raised it
        print(f"dtrain: warning: {error}; torch encodes", file=sys.stderr, flush=True)
        _in_use = "torch"
        return None


@cache
def _kernels() -> ModuleType:
    try:
        from dtrain.compressors.codecs import kernels
    except Exception as error:  # of another numpy or processor, or nowhere to keep machine code after all
        raise ValueError(f"numba is installed but does not work ({error}): repair it, or use codec=torch") from error
    return kernels


def _keeps_machine_code() -> bool:
    """Whether one of the folders in which numba keeps it can be written to."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return True
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - may have no home
    nearest = (folder for folder in (cache_home, *cache_home.parents) if os.path.exists(folder))  # noqa: PTH110 - nor be let in
    return any(os.access(folder, os.W_OK | os.X_OK) for folder in (Path(__file__).parent, *islice(nearest, 1)))
