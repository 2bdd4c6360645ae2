"""`dtrain.compress(model, "auto", optimizer=...)`: DDP's gradients, exchanged as `plan.choose` chooses."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dtrain import compressors
from dtrain.comm import detect_launch
from dtrain.compressors.none import NoCompression
from dtrain.meter.ledger import Ledger
from dtrain.plan.candidates import NONE, Candidate, parse
from dtrain.plan.choose import Chooser, Watch
from dtrain.plan.subject import ArrivedStep, Subject, of_arrivals
from dtrain.sync.ddp import DdpSynchronizer, checked, hooked
from dtrain.sync.models import check_trained
from dtrain.sync.momentum import kind_of

NUM_FIRST = 3
"""Steps that say nothing: allocations, and DDP's new buckets after the first."""
MOST_ARRIVALS = 10_000
"""Of buckets between two steps of the optimizer: a program may go on without it."""
NUM_MEASURED = 9
"""Steps, without compression, of which a plan is made."""


class AutoDdp(DdpSynchronizer):
    """A `DdpSynchronizer` that chooses its compressor, after a few steps, and again when the link changes.

    A step is from the end of one of the optimizer's to the end of the next. At a change, what the old compressor had
    kept back is let go of. Made by `attach`.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        optimizer: Optimizer,
        ledger: Ledger,
        *,
        seed: int,
        scaler: GradScaler | None,
    ) -> None:
        super().__init__(model, NoCompression(), ledger, seed=seed, scaler=scaler)
        self.candidate = NONE
        self._optimizer, self._tried_as = optimizer, kind_of(optimizer)
        self._steps: deque[ArrivedStep] = deque(maxlen=NUM_MEASURED)
        self._num_steps, self._is_chosen = 0, False
        self._chooser = Chooser(
            self._subject,
            self._tried_as,
            self._communicator,
            ledger,
            detect_launch(os.environ).local_world_size,
            less_often=False,
            tell=_say if self._communicator.rank == 0 else lambda reason: None,
        )
        self._watch = Watch(self._communicator, ledger)
        self._arrivals: list[tuple[float, int]] = []
        self._begun, self._exchanged = time.perf_counter(), 0.0
        self._hook = optimizer.register_step_post_hook(self._on_stepped)

    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """See `DdpSynchronizer`."""
        buffer = bucket.buffer()
        if len(self._arrivals) < MOST_ARRIVALS:
            self._arrivals.append((time.perf_counter() - self._begun, buffer.numel() * buffer.element_size()))
        return super().on_bucket(bucket)

    def state_dict(self) -> dict[str, Any]:
        """That of the compressor, with its label."""
        return {**super().state_dict(), "choice": self.candidate.label}

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """Take up the choice that was saved, and its state."""
        self._take(parse(str(saved[0].get("choice", NONE.label))))
        super().load_state_dict(*({key: part for key, part in state.items() if key != "choice"} for state in saved))

    def close(self) -> None:
        """See `DdpSynchronizer`."""
        self._hook.remove()
        super().close()

    def _end_step(self) -> None:
        super()._end_step()
        self._exchanged = time.perf_counter() - self._begun

    def _on_stepped(self, *arguments: Any) -> None:
        """The optimizer has stepped, which it does on every rank."""
        if not self._arrivals or self._is_closed:
            return
        self.after_step()
        took = time.perf_counter() - self._begun
        last, _ = self._arrivals[-1]
        waited = max(0.0, self._exchanged - last)
        if self._is_chosen:
            if self._watch.has_changed(waited=waited, took=took):
                self._take(self._chooser.choose())
        else:
            self._steps.append(ArrivedStep(tuple(self._arrivals), max(0.0, took - max(last, self._exchanged))))
            self._num_steps += 1
            if self._num_steps == NUM_FIRST + NUM_MEASURED:
                self._take(self._chooser.choose())
        self._arrivals, self._begun = [], time.perf_counter()

    def _subject(self) -> Subject:
        return of_arrivals(self.model.module, self._optimizer, self._tried_as, list(self._steps))

    def _take(self, candidate: Candidate) -> None:
        if candidate != self.candidate:
            self.exchange_through(compressors.build(candidate.compressor, **candidate.options))
        self.candidate, self._is_chosen = candidate, True
        self._watch.begin(candidate.every)


def attach(
    model: nn.Module, optimizer: Optimizer, ledger: Ledger, *, seed: int = 0, scaler: GradScaler | None = None
) -> AutoDdp:
    """Exchange the gradients of a DDP model as is fastest, from a few steps on: see `dtrain.sync.ddp.attach`."""
    ddp = checked(model)
    check_trained(ddp.module, optimizer)  # its steps are what is counted
    return hooked(AutoDdp(ddp, optimizer, ledger, seed=seed, scaler=scaler))


def _say(text: str) -> None:
    print(f"dtrain: {text}", file=sys.stderr, flush=True)
