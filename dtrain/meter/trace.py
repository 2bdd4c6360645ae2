"""The file that `python -m dtrain.meter --trace` writes: what a job's steps are made of, to predict it elsewhere.

docs/metering.md has the format. Files come from anywhere, so whatever is in them is checked before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from dtrain.exchange import Op
from dtrain.files import parse_json, read_file, short
from dtrain.meter.ledger import Purpose

VERSION = 1
MAX_STEPS = 1000
MAX_COLLECTIVES = 400_000
MAX_BYTES = 1 << 27
"""Of a file; a collective takes up to 200."""
_MAX_PARAMETERS = 1_000_000
_MAX_COUNT = 1 << 53
"""JSON's numbers are exact up to there."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TracedCollective:
    """One collective, as rank 0 saw it. Times are seconds since its step's start; `end` is None where it is not known.

    It belongs to the step in which it started, and may end in a later one. `dtype` is that of what was handed over, as
    torch names it, or None.
    """

    op: Op
    payload_bytes: int
    dtype: str | None
    group_size: int
    start: float
    end: float | None
    purpose: Purpose

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data, to the nanosecond."""
        return {
            "op": self.op,
            "payload_bytes": self.payload_bytes,
            "dtype": self.dtype,
            "group_size": self.group_size,
            "start": round(self.start, 9),
            "end": None if self.end is None else round(self.end, 9),
            "purpose": self.purpose,
        }


@dataclass(frozen=True, slots=True)
class TracedStep:
    """From the end of one optimizer step to that of the next; `seconds` of wall time."""

    seconds: float
    collectives: tuple[TracedCollective, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Steps of a job as rank 0 saw them, one after the other, and what the job ran on.

    `parameters` are elements and dtype of each trainable parameter of the job's optimizers, in their order.
    `num_threads` is torch's on rank 0, `cores` how many it may use, `ranks_on_host` how many ranks share them.
    `momentum` and `betas` are those of the optimizer's first group of parameters, None where it has none.
    """

    world_size: int
    backend: str | None
    device: str
    num_threads: int
    cores: int
    ranks_on_host: int
    parameters: tuple[tuple[int, str], ...]
    optimizer: str
    momentum: float | None
    betas: tuple[float, float] | None
    steps: tuple[TracedStep, ...] = field(repr=False)

    @property
    def num_parameters(self) -> int:
        """Trainable elements."""
        return sum(numel for numel, _ in self.parameters)

    @property
    def parameter_bytes(self) -> int:
        """Bytes that they take."""
        return sum(numel * element_bytes(dtype) for numel, dtype in self.parameters)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data, which `read_trace` reads."""
        optimizer: dict[str, Any] = {"name": self.optimizer}
        if self.momentum is not None:
            optimizer["momentum"] = self.momentum
        if self.betas is not None:
            optimizer["betas"] = list(self.betas)
        return {
            "version": VERSION,
            "world_size": self.world_size,
            "backend": self.backend,
            "device": self.device,
            "num_threads": self.num_threads,
            "cores": self.cores,
            "ranks_on_host": self.ranks_on_host,
            "num_parameters": self.num_parameters,
            "parameter_bytes": self.parameter_bytes,
            "parameters": [list(parameter) for parameter in self.parameters],
            "optimizer": optimizer,
            "steps": [
                {"seconds": round(step.seconds, 9), "collectives": [one.as_json() for one in step.collectives]}
                for step in self.steps
            ],
        }


def element_bytes(dtype: str) -> int:
    """Bytes of one element of a dtype that torch names so. Raises ValueError for a name that it does not know."""
    known = getattr(torch, dtype, None) if dtype.isidentifier() else None
    if not isinstance(known, torch.dtype):
        raise ValueError(f"torch has no dtype {dtype[:40]!r}")
    return known.itemsize


def read_trace(path: Path) -> Trace:
    """The trace in a file.

    Raises ValueError, in one line that names the file, for one that is no trace, is cut off, or holds what cannot be;
    OSError for one that cannot be read.
    """
    text = read_file(path, MAX_BYTES)
    try:
        if not text.strip():
            raise ValueError("it is empty; the job that should have written it has not ended, or was killed")
        return _trace(_Fields(parse_json(text), "the file"))
    except ValueError as error:
        raise ValueError(f"{path} is no trace of python -m dtrain.meter --trace: {short(error)}") from None


class _Fields:
    """An object of the file, whose values are checked as they are taken out. `where` names it in errors."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise ValueError(f"{where} is not an object")
        self._data, self._where = data, where

    def _take(self, name: str, what: str, check: Callable[[Any], T | None]) -> T:
        found = check(self._data.get(name))
        if found is None:
            raise ValueError(f"{name} of {self._where} is not {what}")
        return found

    def count(self, name: str, least: int = 0) -> int:
        def check(value: Any) -> int | None:
            return value if type(value) is int and least <= value <= _MAX_COUNT else None

        return self._take(name, f"a whole number from {least} on", check)

    def seconds(self, name: str) -> float:
        return self._take(name, "a number of seconds", _number)

    def text(self, name: str) -> str:
        return self._take(name, "a short text", _short)

    def dtype(self, name: str) -> str:
        dtype = self.text(name)
        element_bytes(dtype)
        return dtype

    def one_of(self, name: str, words: type[T]) -> T:
        def check(value: Any) -> T | None:
            try:
                return words(value)  # type: ignore[call-arg]
            except ValueError:
                return None

        return self._take(name, f"one that dtrain knows ({words.__name__})", check)

    def objects(self, name: str, at_most: int) -> list[_Fields]:
        def check(value: Any) -> list[_Fields] | None:
            if not isinstance(value, list) or len(value) > at_most:
                return None
            return [_Fields(item, f"{name}[{number}]") for number, item in enumerate(value)]

        return self._take(name, f"a list of at most {at_most:,}", check)

    def part(self, name: str) -> _Fields:
        return _Fields(self._data.get(name), name)

    def get(self, name: str) -> Any:
        return self._data.get(name)


def _number(value: Any) -> float | None:
    """A finite number from 0 on, as a float."""
    if type(value) is int and 0 <= value <= _MAX_COUNT:
        return float(value)
    return value if type(value) is float and math.isfinite(value) and value >= 0 else None


def _short(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() else None


def _trace(fields: _Fields) -> Trace:
    if (version := fields.count("version")) != VERSION:
        raise ValueError(f"its version is {version}, and this dtrain reads {VERSION}")
    optimizer = fields.part("optimizer")
    trace = Trace(
        world_size=fields.count("world_size", 1),
        backend=None if fields.get("backend") is None else fields.text("backend"),
        device=fields.text("device"),
        num_threads=fields.count("num_threads", 1),
        cores=fields.count("cores", 1),
        ranks_on_host=fields.count("ranks_on_host", 1),
        parameters=_parameters(fields.get("parameters")),
        optimizer=optimizer.text("name"),
        momentum=None if optimizer.get("momentum") is None else optimizer.seconds("momentum"),
        betas=_betas(optimizer.get("betas")),
        steps=tuple(map(_step, fields.objects("steps", MAX_STEPS))),
    )
    if not trace.steps:
        raise ValueError("it holds no step; the optimizer of the job stepped less than twice")
    if trace.ranks_on_host > trace.world_size:
        raise ValueError("ranks_on_host is more than world_size")
    for name in ("num_parameters", "parameter_bytes"):
        if fields.count(name) != getattr(trace, name):
            raise ValueError(f"{name} is not what its parameters add up to")
    return trace


def _parameters(data: Any) -> tuple[tuple[int, str], ...]:
    if not isinstance(data, list) or len(data) > _MAX_PARAMETERS:
        raise ValueError(f"parameters is not a list of at most {_MAX_PARAMETERS:,}")
    for item in data:
        if not (isinstance(item, list) and len(item) == 2 and type(item[0]) is int and 0 <= item[0] <= _MAX_COUNT):
            raise ValueError("one of parameters is not a pair of elements and dtype")
        if _short(item[1]) is None:
            raise ValueError("a dtype of parameters is not a short text")
        element_bytes(item[1])
    return tuple((numel, dtype) for numel, dtype in data)


def _betas(data: Any) -> tuple[float, float] | None:
    if data is None:
        return None
    numbers = [_number(item) for item in data] if isinstance(data, list) and len(data) == 2 else [None]
    if None in numbers:
        raise ValueError("betas of the optimizer are not two numbers")
    return numbers[0] or 0.0, numbers[1] or 0.0


def _step(fields: _Fields) -> TracedStep:
    return TracedStep(
        fields.seconds("seconds"), tuple(map(_collective, fields.objects("collectives", MAX_COLLECTIVES)))
    )


def _collective(fields: _Fields) -> TracedCollective:
    collective = TracedCollective(
        op=fields.one_of("op", Op),
        payload_bytes=fields.count("payload_bytes"),
        dtype=None if fields.get("dtype") is None else fields.dtype("dtype"),
        group_size=fields.count("group_size", 1),
        start=fields.seconds("start"),
        end=None if fields.get("end") is None else fields.seconds("end"),
        purpose=Purpose.UNKNOWN if fields.get("purpose") is None else fields.one_of("purpose", Purpose),
    )
    if collective.end is not None and collective.end < collective.start:
        raise ValueError("a collective ends before it starts")
    return collective
