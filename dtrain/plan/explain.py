"""What a compressor would put on the network, round by round, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from dtrain import compressors
from dtrain.comm.simulated import SimulatedCommunicator
from dtrain.compressors.trials import Trial, in_words, trials_with
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, Request
from dtrain.meter.saving import savings
from dtrain.meter.wire import wire_bytes
from dtrain.sync.buckets import assign, layout_of, trainable
from dtrain.sync.drive import Pipeline
from dtrain.vision import models


@dataclass(frozen=True)
class Round:
    """One collective of a step: the buckets it is for, what each rank hands over, and what it must send for it.

    Buckets are counted in the order of their exchange, from 0; the small messages of several travel in one collective.
    """

    buckets: tuple[int, ...]
    op: str
    payload_bytes: int
    wire_bytes: float


@dataclass(frozen=True)
class Explanation:
    """One step of a compressor on a model. Savings are against a dense all_reduce; None for a single worker.

    `trials` say what the method cost in accuracy where it was tried.
    """

    compressor: str
    model: str
    world_size: int
    step: int
    num_parameters: int
    rounds: tuple[Round, ...]
    payload_bytes: int
    wire_bytes: float
    saving_vs_fp32: float | None
    saving_vs_fp16: float | None
    trials: tuple[Trial, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def explain(
    compressor: str,
    *,
    model: str,
    world_size: int,
    num_classes: int = 1000,
    backend: str = "gloo",
    step: int = 0,
    **options: Any,
) -> Explanation:
    """Rehearse step `step` of `compressor`, with its `options`, on the gradients of `model` among `world_size` workers.

    Raises ValueError for names and options that do not exist.
    """
    if world_size < 1:
        raise ValueError(f"--world-size {world_size} must be at least 1")
    if step < 0:
        raise ValueError(f"--step {step} must be 0 or more")
    built = compressors.build(compressor, **options)
    network = models.build(model, num_classes=num_classes)
    rounds = tuple(_rehearse(network, built, world_size, backend, step))
    num_parameters = sum(p.numel() for _, p in trainable(network))
    wire = sum(r.wire_bytes for r in rounds)
    return Explanation(
        compressor=compressor,
        model=model,
        world_size=world_size,
        step=step,
        num_parameters=num_parameters,
        rounds=rounds,
        payload_bytes=sum(r.payload_bytes for r in rounds),
        wire_bytes=wire,
        **savings(wire, backend=backend, grad_bytes=4 * num_parameters, world_size=world_size)._asdict(),
        trials=trials_with(compressor, options),
    )


def _rehearse(network: nn.Module, compressor: Compressor, world_size: int, backend: str, step: int) -> list[Round]:
    """What one step sends: every bucket's exchange, by the pipeline that training runs, in its order."""
    rounds: list[Round] = []
    bucket_of: dict[int, int] = {}
    """By the request's identity, from the moment that it is asked for until it is started."""

    def on_start(request: Request) -> None:
        buckets = sorted({bucket_of[id(part)] for part in request.parts or (request,)})
        wire = wire_bytes(backend, request.op, request.payload_bytes, world_size)
        rounds.append(Round(tuple(buckets), request.op, request.payload_bytes, wire))

    def noted(exchange: Exchange, index: int) -> Exchange:
        answer = None
        while True:
            try:
                asked = exchange.send(answer)
            except StopIteration as done:
                return cast("Exchanged", done.value)
            bucket_of.update({id(request): index for request in (asked if isinstance(asked, tuple) else (asked,))})
            answer = yield asked

    pipeline = Pipeline(SimulatedCommunicator(world_size, backend=backend, on_start=on_start))
    for index, parameters in enumerate(assign(trainable(network))):
        layout = layout_of(parameters)
        value = torch.randn(layout.numel, generator=torch.Generator().manual_seed(index))
        bucket = Bucket(value, layout)
        exchange = compressor.exchange(bucket, compressor.init(bucket), Context(0, world_size, step))
        pipeline.submit(noted(exchange, index), lambda result: None)
    pipeline.finish()
    return rounds


def explain_table(explanation: Explanation) -> Group:
    """The rounds as a table, with their sum and what it saves."""
    table = Table(show_footer=True, box=None)
    table.add_column("buckets", "sum")
    table.add_column("collective")
    table.add_column("payload, B", f"{explanation.payload_bytes:,}", justify="right")
    table.add_column("wire, B", f"{explanation.wire_bytes:,.0f}", justify="right")
    for r in explanation.rounds:
        table.add_row(_ranges(r.buckets), r.op, f"{r.payload_bytes:,}", f"{r.wire_bytes:,.0f}")
    title = f"{explanation.compressor} on {explanation.model}, {explanation.world_size} workers: each rank, each step"
    if explanation.saving_vs_fp32 is None:
        return Group(Text(title), table, Text("One worker sends nothing."))
    saving = f"{explanation.saving_vs_fp32:.2f}x fewer bytes than fp32, {explanation.saving_vs_fp16:.2f}x than fp16"
    costs = "\n".join(["Accuracy against fp32, as measured:", *in_words(explanation.trials)])
    unknown = "What it costs in accuracy was not measured with these options."
    return Group(Text(title), table, Text(saving), Text(costs if explanation.trials else unknown))


def _ranges(numbers: Sequence[int]) -> str:
    """0 to 4, 6 for 0, 1, 2, 3, 4, 6."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
