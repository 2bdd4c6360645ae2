"""Run a Python program inside this process as `python SCRIPT` or `python -m MODULE` would run it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, NamedTuple


class Program(NamedTuple):
    """A program that was found but not started: how to get its code, and the attributes of its `__main__`."""

    code: Callable[[], CodeType]
    attributes: dict[str, Any]
    argv: list[str]
    folder: str
    """What becomes `sys.path[0]`."""


def find_script(path: str, arguments: Sequence[str]) -> Program:
    """The program in a file. Raises ValueError if it cannot be read."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"can't open {path}: {error.strerror}") from None
    file = os.path.join(Path.cwd(), path)  # noqa: PTH118 which python leaves as it is, "./" included
    attributes = {"__file__": file, "__loader__": SourceFileLoader("__main__", file), "__spec__": None}
    return Program(
        lambda: compile(source, file, "exec", dont_inherit=True),
        {**attributes, "__package__": None, "__cached__": None},
        [path, *arguments],
        os.path.dirname(os.path.realpath(path)),  # noqa: PTH120
    )


def find_module(name: str, arguments: Sequence[str]) -> Program:
    """The program in a module, or in the `__main__` of a package. Raises ValueError if there is none.

    It is looked for from the working directory, as `python -m` does; its parent packages are imported.
    """
    folder = str(Path.cwd())
    before = list(sys.path)
    if not sys.flags.safe_path:
        sys.path[0:1] = [folder]
    try:
        spec = _spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = _spec(f"{name}.__main__")
    finally:
        sys.path[:] = before
    get_code = getattr(spec.loader, "get_code", None) if spec is not None else None
    if spec is None or get_code is None:
        raise ValueError(f"no module named {name}, or it cannot be run")
    origin = spec.origin or name
    attributes = {"__file__": spec.origin, "__loader__": spec.loader, "__spec__": spec, "__package__": spec.parent}
    return Program(lambda: get_code(spec.name), {**attributes, "__cached__": spec.cached}, [origin, *arguments], folder)


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot import {name}: {error}") from None


def run(program: Program) -> None:
    """Run it as `__main__`, to its end. What it raises comes out; printed at top level, it shows no caller's frame."""
    main = ModuleType("__main__")
    main.__dict__.update(program.attributes)
    sys.modules["__main__"] = main
    sys.argv[:] = program.argv
    if not sys.flags.safe_path:
        sys.path[0] = program.folder
    try:
        exec(program.code(), main.__dict__)
    except BaseException as error:
        _hide_our_frames(error)
        raise


def _hide_our_frames(error: BaseException) -> None:
    """The interpreter prints the error as if the program had been started by itself, with the hook in force now."""
    hook, trace = sys.excepthook, error.__traceback__
    own = trace.tb_next if trace is not None else None
    while own is not None and own.tb_frame.f_code.co_filename == __file__:  # a SyntaxError has no other
        own = own.tb_next

    def show(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if value is error:
            value, trace = value.with_traceback(own), own
        hook(kind, value, trace)

    sys.excepthook = show
