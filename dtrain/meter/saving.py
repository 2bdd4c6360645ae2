"""What is saved against dense gradients: the one place that says what "dense" costs and when a saving can be stated."""

from __future__ import annotations

from typing import NamedTuple

from dtrain.exchange import Op
from dtrain.meter.wire import wire_bytes


class Savings(NamedTuple):
    """Baseline over what was sent: 4.0 is a quarter of the bytes. None where no saving can be stated."""

    saving_vs_fp32: float | None
    saving_vs_fp16: float | None


def dense_wire_bytes(backend: str, grad_bytes: float, world_size: int) -> float:
    """Bytes that one rank sends in a step for a dense fp32 all_reduce of `grad_bytes`, 4 for each parameter."""
    return wire_bytes(backend, Op.ALL_REDUCE, grad_bytes, world_size)


def savings(wire_bytes_per_step: float | None, *, backend: str, grad_bytes: float, world_size: int) -> Savings:
    """Against a dense all_reduce of the gradients in fp32 and in fp16, by the same backend at the same world size.

    Args:
        wire_bytes_per_step: what one rank sent for gradients, a mean over the whole run, warm-up included; None where
            nothing was counted.

    None at world size 1, where a dense exchange sends nothing either, and where nothing was sent or counted.
    """
    if world_size == 1 or not wire_bytes_per_step:
        return Savings(None, None)
    dense = dense_wire_bytes(backend, grad_bytes, world_size)
    return Savings(dense / wire_bytes_per_step, dense / 2 / wire_bytes_per_step)
