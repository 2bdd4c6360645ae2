"""A compressor in a Horovod program, in place of hvd.DistributedOptimizer.

The program keeps its optimizer: what an exchange needs is hooked to its step.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dtrain.comm.horovod import HorovodCommunicator
from dtrain.comm.horovod import num_workers as num_workers
from dtrain.exchange import Compressor
from dtrain.meter.ledger import Activity, Ledger
from dtrain.sync.every_step import EveryStep
from dtrain.sync.models import check_parameters
from dtrain.sync.synchronizer import NOTHING_SPENT, Spent


class HorovodSynchronizer:
    """A `Synchronizer` that averages a model's gradients whenever its optimizer steps. Made by `attach`."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, compressor: Compressor, *, seed: int = 0) -> None:
        self.ledger = Ledger()
        """What the exchange of gradients sends, not the program's own hvd calls; a record is closed after each step."""
        self.ledger.activity = Activity.TRAIN
        self._communicator = HorovodCommunicator(self.ledger)
        self._synchronizer = EveryStep(
            model, compressor, self._communicator, self.ledger, seed=seed, check_finite=False
        )
        self._step = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        atexit.register(self.close)  # a thread that lets go of a tensor while the interpreter ends aborts the process

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes inside only accumulate; the next one outside exchanges the sum."""
        return self._synchronizer.no_sync()

    def before_step(self) -> Spent:
        """Called by the optimizer's step."""
        return self._synchronizer.before_step()

    def after_step(self) -> Spent:
        """Called by the optimizer's step."""
        spent = self._synchronizer.after_step()
        self.ledger.close(self._step)
        self._step += 1
        return spent

    @property
    def ends_with_step(self) -> bool:
        """See `Synchronizer`."""
        return True

    def align(self) -> Spent:
        """Replicas are equal after every step."""
        return NOTHING_SPENT

    def discard(self) -> None:
        """See `Synchronizer`."""
        self._synchronizer.discard()

    def state_dict(self) -> dict[str, Any]:
        """After the last step: see `States.state_dict`."""
        return self._synchronizer.state_dict()

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """See `States.load_state_dict`."""
        self._synchronizer.load_state_dict(*saved)

    def close(self) -> None:
        """Let go of the model and the optimizer, and end the threads. The program's end does so too."""
        atexit.unregister(self.close)
        for hook in self._hooks:
            hook.remove()
        self._synchronizer.close()
        self._communicator.close()

    def _before_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if any(value is not None for value in (*arguments[1:], *keywords.values())):
            raise ValueError("step() takes no closure here: call backward before it, so that gradients are exchanged")
        self.before_step()

    def _after_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.after_step()


def attach(model: nn.Module, optimizer: Optimizer, compressor: Compressor, *, seed: int = 0) -> HorovodSynchronizer:
    """Exchange the gradients of `model` through `compressor` whenever `optimizer` steps.

    Raises ValueError before hvd.init(), and for an optimizer that exchanges gradients itself.
    """
    check_parameters(model)
    if hasattr(optimizer, "skip_synchronize"):
        raise ValueError(
            "this optimizer is hvd.DistributedOptimizer, which exchanges gradients itself: give the plain one"
        )
    return HorovodSynchronizer(model, optimizer, compressor, seed=seed)
