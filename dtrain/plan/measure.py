"""What a model's step takes of a core here: computing it, and exchanging its gradients or updates with each method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from dtrain.compressors.none import NoCompression
from dtrain.exchange import Compressor
from dtrain.meter.ledger import Ledger
from dtrain.plan.program import Await, Instruction, Lane, Program, Signal, Work
from dtrain.plan.recording import Recorder
from dtrain.sync.buckets import trainable
from dtrain.sync.every_step import EveryStep
from dtrain.sync.local import Local, Method

MOST, FEWEST, LONG_SECONDS = 9, 2, 1.5
"""Repetitions that count, after a first that does not; once they have taken so long, no more than the fewest."""


def core_clock() -> Callable[[], float]:
    """Seconds of this thread on a core where it computes alone; where torch takes more threads, those of the day."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def measure_step(model: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> list[Lane]:
    """Compute lanes of a few steps alone, without an exchange: they say when each bucket is ready.

    Args:
        model: on the device where it is to train.
        loss: forward, of one batch: a scalar that has a gradient.
        optimizer: of the model's parameters.
    """
    recorder = Recorder(1, clock=core_clock())
    synchronizer = EveryStep(model, NoCompression(), recorder, Ledger(), overlap=False, lane=recorder)
    lanes = []
    for counts in _repetitions():
        recorder.leave_out()
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        synchronizer.before_step()
        optimizer.step()
        synchronizer.after_step()
        program = recorder.take()
        if counts:
            lanes.append(program.compute)
    synchronizer.close()
    optimizer.zero_grad(set_to_none=True)
    return lanes


def record_gradients(model: nn.Module, compressor: Compressor, *, world_size: int) -> list[Lane]:
    """Exchange lanes of steps whose gradients go through `compressor` among so many workers."""
    recorder = Recorder(world_size, clock=core_clock())
    synchronizer = EveryStep(model, compressor, recorder, Ledger(), overlap=False, lane=recorder)
    lanes, gradients = [], _gradients(model)
    for counts in _repetitions():
        for (_, parameter), gradient in zip(trainable(model), gradients, strict=True):
            parameter.grad = gradient.clone()
        recorder.leave_out()
        synchronizer.before_step()
        synchronizer.after_step()
        program = recorder.take()
        if counts:
            lanes.append(program.exchange)
    synchronizer.close()
    model.zero_grad(set_to_none=True)
    return lanes


def record_updates(
    model: nn.Module, optimizer: torch.optim.Optimizer, compressor: Compressor, method: Method, *, world_size: int
) -> list[Program]:
    """Rounds of steps whose updates are exchanged (`sync.local`), the steps themselves left out."""
    recorder = Recorder(world_size, clock=core_clock())
    local = Local(model, optimizer, compressor, recorder, Ledger(), method=method, check_finite=False, lane=recorder)
    parameters: list[Tensor] = [parameter for _, parameter in trainable(model)]
    kept = [parameter.detach().clone() for parameter in parameters]
    changes = [change.mul_(0.1) for change in _gradients(model)]
    every, programs = method.rounds.every, []
    for counts in _repetitions():
        for _ in range(every):
            with torch.no_grad():
                for parameter, change in zip(parameters, changes, strict=True):
                    parameter.add_(change)
            recorder.leave_out()
            recorder.add_step()
            local.before_step()
            local.after_step()
        program = recorder.take(steps=every)
        if counts:
            programs.append(program)
    local.close()
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return programs


def _repetitions() -> Iterator[bool]:
    """Whether each counts."""
    yield False
    begun = time.perf_counter()
    for done in range(MOST):
        if done >= FEWEST and time.perf_counter() - begun > LONG_SECONDS:
            return
        yield True


def _gradients(model: nn.Module) -> list[Tensor]:
    """Normal ones, of about the size that trained models have."""
    shapes = [parameter for _, parameter in trainable(model)]
    return [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).mul_(1e-3).to(p) for i, p in enumerate(shapes)
    ]


def spread_evenly(sizes: Sequence[int], *, forward: float, backward: float, after: float) -> Lane:
    """A compute lane of which only the times are known: buckets are ready in proportion to these sizes."""
    lane: list[Instruction] = [Work(forward)]
    for number, size in enumerate(sizes):
        lane += [Work(backward * size / sum(sizes)), Signal(("ready", number))]
    return (*lane, Await(("finished", 0)), Work(after))
