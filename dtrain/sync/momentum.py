"""A compressor for the gradients of a program's optimizer: one that it bears, with the momentum in one of the two.

Lin et al., Deep Gradient Compression (ICLR 2018), section 3.2: what is sent rarely must be accumulated with the
momentum, which outside acts on what arrives late all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from dtrain import compressors
from dtrain.compressors import trials
from dtrain.compressors.trials import TRIED_MOMENTUM, Guard
from dtrain.exchange import Compressor


def compressor_for(
    optimizer: Optimizer, name: str, options: Mapping[str, Any], guard: Guard, world_size: int
) -> Compressor:
    """The compressor of that name for the gradients that `optimizer` steps with; its momentum may be taken over.

    Raises ValueError for a name or option that does not exist, for what was measured to fail, and as `take_over` does.
    """
    compressors.build(name, **options)  # a mistake in it is said before what it would cost
    kind = kind_of(optimizer)
    trials.check(name, options, optimizer=kind, exchanged="gradient", world_size=world_size, guard=guard)
    return compressors.build(name, **take_over(name, options, optimizer))


def kind_of(optimizer: Optimizer) -> str | None:
    """As trials know optimizers: "sgd" with so much momentum, "adamw" for all Adams, None for what was not tried."""
    adams = torch.optim.Adam | torch.optim.AdamW | torch.optim.NAdam | torch.optim.RAdam
    if isinstance(optimizer, adams):
        return "adamw"
    momentum = max((group.get("momentum", 0.0) for group in optimizer.param_groups), default=0.0)
    return "sgd" if isinstance(optimizer, torch.optim.SGD) and momentum >= TRIED_MOMENTUM else None


def take_over(compressor: str, options: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The options of a compressor that keeps the momentum of this SGD, which then has none; others as they are.

    Weight decay had acted through the momentum, and is multiplied by 1 / (1 - momentum), as much as it added up to.
    Raises ValueError, naming the cure, for a momentum that cannot be taken over.
    """
    if not compressors.keeps_momentum(compressor):
        return dict(options)
    momenta = {float(group.get("momentum", 0.0)) for group in optimizer.param_groups}
    if "momentum" in options and any(momenta) and options["momentum"]:
        raise ValueError(f"momentum is in the optimizer and in {compressor}: leave it out of one of them")
    if "momentum" not in options and kind_of(optimizer) == "adamw":
        raise ValueError(
            f"{compressor} keeps the momentum, and Adam's cannot be taken over: take ternary, or give momentum=0.0"
        )
    if not isinstance(optimizer, torch.optim.SGD) or momenta == {0.0} or "momentum" in options:
        return dict(options)
    if len(momenta) > 1:
        raise ValueError(
            f"{compressor} keeps one momentum, and the optimizer's groups have {sorted(momenta)}: give one"
        )
    if any(group["nesterov"] for group in optimizer.param_groups):
        raise ValueError(f"{compressor} keeps plain momentum: build SGD with nesterov=False")
    (momentum,) = momenta
    for group in optimizer.param_groups:
        group["momentum"] = 0.0
        group["weight_decay"] /= 1.0 - momentum
    optimizer.register_step_pre_hook(_refuse_momentum)
    return {**options, "momentum": momentum}


def _refuse_momentum(optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
    if any(group["momentum"] for group in optimizer.param_groups):
        raise ValueError(
            "something gave the optimizer a momentum again, which the compressor keeps: cycle_momentum=False"
        )
