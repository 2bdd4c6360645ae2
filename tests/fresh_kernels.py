"""Compiled kernels as a new process has them: none is compiled or loaded yet."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from dtrain.compressors.codecs import compiled


def load() -> ModuleType:
    """Another copy of the module of kernels."""
    known = compiled._kernels()
    spec = importlib.util.spec_from_file_location(known.__name__, known.__file__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


def signatures(kernels: ModuleType) -> dict[str, list[Any]]:
    """Of each kernel those that are ready."""
    return {name: kernel.signatures for name, kernel in vars(kernels).items() if hasattr(kernel, "py_func")}
