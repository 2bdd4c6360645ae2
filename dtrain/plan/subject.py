"""What a plan is made for: a model that is here, one of the user's, a job that runs or was traced, or just a size."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dtrain.exchange import Op
from dtrain.meter.trace import TracedStep, read_trace
from dtrain.plan.measure import measure_step, spread_evenly
from dtrain.plan.program import Await, Instruction, Lane, Signal, Work
from dtrain.sync.buckets import assign, trainable

FORWARD_SHARE = 1 / 3
"""Of a step's computing, where only the whole is known: backward is about two forwards (Kaplan et al., 2020)."""
WIDTH, TENSOR_ELEMENTS = 1024, 2**20
"""Of a model of which only the size is known: square matrices, as many as make it up."""

Loss = Callable[[], Tensor]


class ArrivedStep(NamedTuple):
    """When gradients came to be exchanged, in seconds since the step's start, with their bytes; and what it did after
    the exchange."""

    arrivals: tuple[tuple[float, int], ...]
    seconds_after: float


@dataclass(frozen=True)
class Subject:
    """A model and how long its step takes: `loss` gives one batch's, to be measured; or `step` says it.

    `tried_as` is how trials of methods know the optimizer ("sgd" with momentum, "adamw"); None for others.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    tried_as: str | None
    loss: Loss | None = None
    step: tuple[Lane, ...] = ()

    def measured_step(self) -> tuple[Lane, ...]:
        """Known, or measured now."""
        return self.step if self.loss is None else tuple(measure_step(self.model, self.loss, self.optimizer))


def of_module(place: str, optimizer: str | None) -> Subject:
    """`file.py:function`: a function without arguments that gives (model, loss); loss() computes one batch's.

    Raises ValueError or FileNotFoundError, naming the cure.
    """
    name, found, function = place.rpartition(":")
    path = Path(name)
    if not found:
        raise ValueError(f"--module {place}: write file.py:function")
    if not path.is_file():
        raise FileNotFoundError(f"--module {place}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ValueError(f"--module {place}: {path} has no {function}")
    made = getattr(module, function)()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise ValueError(f"--module {place}: {function}() must return (model, loss), loss() giving one batch's loss")
    model, loss = made
    return Subject(place, model, _optimizer(model, optimizer), optimizer, loss)


def of_job(
    model: nn.Module, optimizer: torch.optim.Optimizer, tried_as: str | None, loss: Callable[[nn.Module], Tensor]
) -> Subject:
    """A job of this process, by a copy of what it trains; `loss` gives one batch's of a model."""
    copied = copy.deepcopy(model)
    idle = type(optimizer)(copied.parameters(), **{**optimizer.defaults, "lr": 0.0})
    return Subject("this job", copied, idle, tried_as, lambda: loss(copied))


def of_arrivals(
    model: nn.Module, optimizer: torch.optim.Optimizer, tried_as: str | None, steps: Sequence[ArrivedStep]
) -> Subject:
    """A job of this process whose gradients are exchanged by others, by a copy of its model and what steps told."""
    copied = copy.deepcopy(model)
    sizes = _bucket_sizes(copied)
    return Subject("this job", copied, optimizer, tried_as, step=tuple(lane_of(step, sizes) for step in steps))


def of_size(num_parameters: int, seconds: float, optimizer: str | None) -> Subject:
    """A model of so many parameters whose step computes so long: in square matrices, ready in proportion to size."""
    _check_memory(num_parameters)
    model = _matrices(num_parameters)
    step = (_known_step(model, seconds),)
    return Subject(f"{num_parameters:,} parameters", model, _optimizer(model, optimizer), optimizer, step=step)


def of_trace(path: Path) -> Subject:
    """A job as `python -m dtrain.meter --trace` saw it: when its gradients were ready, by their bytes, and the rest.

    Raises ValueError for a file that is none, or whose steps exchanged nothing.
    """
    trace = read_trace(path)
    _check_memory(trace.num_parameters)
    model = nn.Module()
    for number, (size, _) in enumerate(trace.parameters):
        shape = (size // WIDTH, WIDTH) if size % WIDTH == 0 else (size,)
        model.register_parameter(f"parameter{number}", nn.Parameter(torch.zeros(shape)))
    sizes = _bucket_sizes(model)
    lanes = tuple(lane_of(arrived, sizes) for step in trace.steps if (arrived := _arrived(step)) is not None)
    if not lanes:
        raise ValueError(f"{path}: no step exchanged gradients: trace a job of several workers")
    tried = {"AdamW": "adamw", "SGD": "sgd" if trace.momentum else None}.get(trace.optimizer)
    return Subject(
        f"{path.name}, {trace.num_parameters:,} parameters", model, _optimizer(model, tried), tried, step=lanes
    )


def _check_memory(num_parameters: int) -> None:
    """Raises ValueError where they do not fit into memory here, where what is planned is measured."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * num_parameters > memory:
        raise ValueError(
            f"{num_parameters:,} parameters take {4 * num_parameters / 1e9:,.0f} GB, and there are {memory / 1e9:,.0f} "
            "here: plan for a part of the model"
        )


def _arrived(step: TracedStep) -> ArrivedStep | None:
    """What came after the last collective's end is the optimizer; what it waited before that is left out."""
    exchanges = [one for one in step.collectives if one.op in (Op.ALL_REDUCE, Op.REDUCE_SCATTER) and one.payload_bytes]
    if not exchanges:
        return None
    last = max((one.end if one.end is not None else one.start) for one in exchanges)
    arrivals = tuple((one.start, one.payload_bytes) for one in exchanges)
    return ArrivedStep(arrivals, max(0.0, step.seconds - last))


def lane_of(step: ArrivedStep, sizes: Sequence[int]) -> Lane:
    """A step's compute lane, in buckets of these sizes: each is ready when as large a share of all bytes had come."""
    whole = sum(num_bytes for _, num_bytes in step.arrivals)
    ends = list(accumulate(num_bytes / whole for _, num_bytes in step.arrivals))
    lane: list[Instruction] = []
    now = 0.0
    for number, size in enumerate(accumulate(sizes)):
        place = next((i for i, end in enumerate(ends) if end >= size / sum(sizes) - 1e-9), len(ends) - 1)
        ready = max(now, step.arrivals[place][0])
        lane += [Work(ready - now), Signal(("ready", number))]
        now = ready
    return (*lane, Await(("finished", 0)), Work(step.seconds_after))


def _bucket_sizes(model: nn.Module) -> list[int]:
    return [sum(p.numel() for _, p in bucket) for bucket in assign(trainable(model))]


def _matrices(num_parameters: int) -> nn.Module:
    model = nn.Module()
    whole, rest = divmod(num_parameters, TENSOR_ELEMENTS)
    for i, size in enumerate([TENSOR_ELEMENTS] * whole + [rest] * bool(rest)):
        shape = (size // WIDTH, WIDTH) if size % WIDTH == 0 else (size,)
        model.register_parameter(f"weight{i}", nn.Parameter(torch.zeros(shape)))
    return model


def _known_step(model: nn.Module, seconds: float) -> Lane:
    sizes = _bucket_sizes(model)
    forward = FORWARD_SHARE * seconds
    return spread_evenly(sizes, forward=forward, backward=seconds - forward, after=0.0)


def _optimizer(model: nn.Module, name: str | None) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-4)
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9 if name == "sgd" else 0.0)


def parse_count(text: str) -> int:
    """25600000, `25.6M` or `1.3B`. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.strip().lower().replace(",", ""))
    count = round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]]) if match else 0
    if count < 1:
        raise ValueError(f"--params {text} must be a number of parameters, such as 25.6M")
    return count
