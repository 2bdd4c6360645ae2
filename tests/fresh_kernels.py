"""Compiled kernels as a new process has them: none is compiled or loaded yet."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from dtrain.compressors.codecs import compiled


def load() -> ModuleType:
    """Another copy of the module of loops."""
    known = compiled._numba_loops()
    spec = importlib.util.spec_from_file_location(known.__name__, known.__file__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


def signatures(loops: ModuleType) -> dict[str, list[Any]]:
    """Of each loop those that are ready."""
    return {name: loop.signatures for name, loop in vars(loops).items() if hasattr(loop, "py_func")}
