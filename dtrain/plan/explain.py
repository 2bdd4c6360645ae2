"""What a compressor would put on the network, round by round, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from dtrain import compressors
from dtrain.comm.simulated import RehearsalCommunicator
from dtrain.exchange import Bucket, Context, Op
from dtrain.meter.wire import wire_bytes
from dtrain.sync.buckets import assign, layout_of, trainable
from dtrain.sync.drive import drive
from dtrain.vision import models


@dataclass(frozen=True)
class Round:
    """One collective of a step: what each rank hands over, and what it must send for it."""

    bucket: int
    op: str
    payload_bytes: int
    wire_bytes: float


@dataclass(frozen=True)
class Explanation:
    """One step of a compressor on a model. Savings are against a dense all_reduce; None for a single worker."""

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
    built = compressors.build(compressor, **options)
    network = models.build(model, num_classes=num_classes)
    rounds = tuple(_rehearse(network, built, world_size, backend, step))
    num_parameters = sum(p.numel() for _, p in trainable(network))
    wire = sum(r.wire_bytes for r in rounds)
    dense = wire_bytes(backend, Op.ALL_REDUCE, 4 * num_parameters, world_size)
    return Explanation(
        compressor=compressor,
        model=model,
        world_size=world_size,
        step=step,
        num_parameters=num_parameters,
        rounds=rounds,
        payload_bytes=sum(r.payload_bytes for r in rounds),
        wire_bytes=wire,
        saving_vs_fp32=dense / wire if wire else None,
        saving_vs_fp16=dense / 2 / wire if wire else None,
    )


def _rehearse(network: nn.Module, compressor: Any, world_size: int, backend: str, step: int) -> Iterator[Round]:
    for index, parameters in enumerate(assign(trainable(network))):
        layout = layout_of(parameters)
        bucket = Bucket(torch.randn(layout.numel, generator=torch.Generator().manual_seed(index)), layout)
        communicator = RehearsalCommunicator(world_size)
        drive(compressor.exchange(bucket, compressor.init(bucket), Context(0, world_size, step)), communicator)
        for op, payload in communicator.requests:
            yield Round(index, op, payload, wire_bytes(backend, op, payload, world_size))


def explain_table(explanation: Explanation) -> Group:
    """The rounds as a table, with their sum and what it saves."""
    table = Table(show_footer=True, box=None)
    table.add_column("bucket", "sum")
    table.add_column("collective")
    table.add_column("payload, B", f"{explanation.payload_bytes:,}", justify="right")
    table.add_column("wire, B", f"{explanation.wire_bytes:,.0f}", justify="right")
    for r in explanation.rounds:
        table.add_row(str(r.bucket), r.op, f"{r.payload_bytes:,}", f"{r.wire_bytes:,.0f}")
    title = f"{explanation.compressor} on {explanation.model}, {explanation.world_size} workers: each rank, each step"
    if explanation.saving_vs_fp32 is None:
        return Group(Text(title), table, Text("One worker sends nothing."))
    saving = f"{explanation.saving_vs_fp32:.2f}x fewer bytes than fp32, {explanation.saving_vs_fp16:.2f}x than fp16"
    return Group(Text(title), table, Text(saving))
