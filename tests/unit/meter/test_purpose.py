"""What a collective is for, told by who issues it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dtrain.exchange import Op
from dtrain.meter.ledger import Purpose
from dtrain.meter.purpose import purpose_of

FLOATS, INTEGERS = torch.ones(2), torch.ones(2, dtype=torch.int32)


def issued_by(function: str, module: str, op: Op) -> Purpose:
    """As if a function of this name in this module called a collective, with two frames in between."""
    found: list[Purpose] = []
    namespace: dict[str, Any] = {"__name__": module, "issue": lambda: found.append(between())}
    between: Callable[[], Purpose] = lambda: purpose_of(op, FLOATS)  # noqa: E731
    exec(f"def {function}():\n    issue()\n", namespace)
    namespace[function]()
    return found[0]


def in_backward(op: Op, tensor: Tensor) -> Purpose:
    found: list[Purpose] = []
    value = torch.ones(1, requires_grad=True)
    value.register_hook(lambda gradient: found.append(purpose_of(op, tensor)))
    value.sum().backward()
    return found[0]


@pytest.mark.parametrize("op", [Op.ALL_REDUCE, Op.REDUCE_SCATTER, Op.REDUCE])
def test_a_sum_in_backward_is_one_of_gradients(op: Op) -> None:
    assert in_backward(op, FLOATS) is Purpose.GRADIENT
    assert in_backward(op, torch.ones(2, dtype=torch.complex64)) is Purpose.GRADIENT
    assert in_backward(op, FLOATS.to_sparse()) is Purpose.GRADIENT
    assert in_backward(op, INTEGERS) is Purpose.UNKNOWN
    assert purpose_of(op, FLOATS) is Purpose.UNKNOWN


@pytest.mark.parametrize("op", [Op.ALL_GATHER, Op.ALL_TO_ALL, Op.BROADCAST, Op.SEND, Op.GATHER])
def test_what_is_not_summed_in_backward_is_unknown(op: Op) -> None:
    assert in_backward(op, FLOATS) is Purpose.UNKNOWN


@pytest.mark.parametrize(
    ("function", "module", "op", "expected"),
    [
        ("foreach_all_gather", "torch.distributed.fsdp._fully_shard._fsdp_collectives", Op.ALL_GATHER, "parameters"),
        ("_all_gather_flat_param", "torch.distributed.fsdp._flat_param", Op.ALL_GATHER, "parameters"),
        ("allreduce_bucket", "deepspeed.runtime.engine", Op.ALL_REDUCE, "gradient"),
        ("allreduce_bucket", "deepspeed.runtime.zero.stage_1_and_2", Op.REDUCE, "gradient"),
        ("__avg_scatter_grads", "deepspeed.runtime.zero.stage3", Op.REDUCE_SCATTER, "gradient"),
        ("all_gather_into_tensor_dp_groups", "deepspeed.runtime.utils", Op.ALL_GATHER, "parameters"),
        ("_all_gather_coalesced", "deepspeed.runtime.zero.partition_parameters", Op.ALL_GATHER, "parameters"),
        ("allreduce_bucket", "mine", Op.ALL_REDUCE, "unknown"),
        ("get_grad_norm_direct", "deepspeed.runtime.zero.stage3", Op.ALL_REDUCE, "unknown"),
    ],
)
def test_functions_of_fsdp_and_deepspeed_are_known(function: str, module: str, op: Op, expected: str) -> None:
    assert issued_by(function, module, op) == expected
