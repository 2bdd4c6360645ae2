"""Keeps what rank 0 does in some steps, for a trace."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from dtrain.meter.ledger import Entry, StepRecord
from dtrain.meter.trace import MAX_COLLECTIVES, Trace, TracedCollective, TracedStep


class Tracer:
    """A ledger's sink, which keeps the collectives that start between the first step's beginning and the last's end.

    It keeps times and records alone: a trace is made of them at the end.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_marks = num_steps + 1
        self._marks: list[float] = []
        self._entries: list[Entry] = []
        self._lock = threading.Lock()
        self._parameters: dict[int, tuple[int, str]] = {}
        self._optimizers: set[int] = set()
        self._optimizer: dict[str, Any] = {}
        self._backend: str | None = None
        self._device = "cpu"

    def on_begin(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step, perhaps for the first time."""
        if id(optimizer) in self._optimizers or len(self._marks) == self._num_marks:
            return
        self._optimizers.add(id(optimizer))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    dtype = str(parameter.dtype).removeprefix("torch.")
                    self._parameters.setdefault(id(parameter), (parameter.numel(), dtype))
                    self._device = parameter.device.type

    def on_step(self, optimizer: Optimizer) -> None:
        """A step has ended, and the next begins."""
        if not self._marks:
            group = optimizer.param_groups[0]
            self._optimizer = {"name": type(optimizer).__name__}
            self._optimizer |= {name: group[name] for name in ("momentum", "betas") if group.get(name) is not None}
            self._backend = dist.get_backend() if dist.is_initialized() else None
        if len(self._marks) < self._num_marks:
            self._marks.append(time.perf_counter())

    def __call__(self, record: StepRecord) -> None:
        marks = self._marks
        if not marks:
            return
        last = marks[-1] if len(marks) == self._num_marks else float("inf")
        with self._lock:
            kept = [entry for entry in record.entries if marks[0] <= entry.start < last]
            self._entries.extend(kept[: MAX_COLLECTIVES - len(self._entries)])

    def trace(self, world_size: int, ranks_on_host: int) -> Trace:
        """What was kept so far, in whole steps."""
        marks = list(self._marks)
        with self._lock:
            entries = sorted(self._entries, key=lambda entry: entry.start)
        if len(entries) == MAX_COLLECTIVES:  # of the step in which the last one is, others may be missing
            marks = [mark for mark in marks if mark <= entries[-1].start]
        steps: list[list[TracedCollective]] = [[] for _ in marks[1:]]
        for entry in entries:
            number = bisect_right(marks, entry.start) - 1
            if number < len(steps):
                steps[number].append(_collective(entry, marks[number]))
        betas = self._optimizer.get("betas")
        momentum = self._optimizer.get("momentum")
        return Trace(
            world_size=world_size,
            backend=self._backend,
            device=self._device,
            num_threads=torch.get_num_threads(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            ranks_on_host=ranks_on_host,
            parameters=tuple(self._parameters.values()),
            optimizer=self._optimizer.get("name", "none"),
            momentum=None if momentum is None else float(momentum),
            betas=None if betas is None else (float(betas[0]), float(betas[1])),
            steps=tuple(
                TracedStep(end - start, tuple(collectives))
                for (start, end), collectives in zip(pairwise(marks), steps, strict=True)
            ),
        )


def _collective(entry: Entry, step_start: float) -> TracedCollective:
    start = entry.start - step_start
    end = None if entry.seconds is None else start + entry.seconds
    return TracedCollective(entry.op, entry.payload_bytes, entry.dtype, entry.world_size, start, end, entry.purpose)
