"""Where the steps of anybody's program are: one ends when its optimizer steps.

torch calls hooks around the step of every `torch.optim.Optimizer`, so nothing is wrapped or replaced.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dtrain.meter.c10d import keep_dynamo_out

_log = logging.getLogger(__name__)


def follow_steps(on_step: Callable[[Optimizer], None], on_begin: Callable[[Optimizer], None] | None = None) -> None:
    """Have `on_step` called after each step of this process from now on, with the optimizer that took it.

    Of several optimizers the one that ends its step first tells steps, as long as it lives: a GAN's step has one of
    each. An optimizer that steps within another's step, or a class within the step of its subclass, counts once. What
    `on_step` raises is logged, and it is called no more: a meter must not fail the program.

    Hooks stay for good, since torch may be going through them; after an error they do nothing. `on_begin` is called
    before the step of every optimizer, the outer one first.
    """
    teller: weakref.ref[Optimizer] | None = None
    under_way = failed = False

    def call(function: Callable[[Optimizer], None], optimizer: Optimizer) -> None:
        nonlocal failed
        try:
            function(optimizer)
        except Exception as error:
            failed = True
            _log.warning("dtrain: steps are not followed any more: %s: %s", type(error).__name__, error)

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal under_way
        under_way = True
        if on_begin is not None and not failed:
            call(on_begin, optimizer)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal under_way, teller
        if failed or not under_way:
            return
        under_way = False
        if teller is None or teller() is None:
            teller = weakref.ref(optimizer)
        if teller() is optimizer:
            call(on_step, optimizer)

    for hook, register in ((before, register_optimizer_step_pre_hook), (after, register_optimizer_step_post_hook)):
        keep_dynamo_out(hook.__code__)  # where it is a frame of its own; where it would be inlined:
        hook._torchdynamo_disable = True  # type: ignore[attr-defined]
        register(hook)
