"""Gradients averaged every step: deterministic buckets, filled during backward, exchanged beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.comm import Communicator
from dtrain.exchange import Bucket, Compressor, Exchange, Exchanged
from dtrain.meter.clock import clock_for
from dtrain.meter.ledger import Ledger
from dtrain.sync.buckets import BUCKET_BYTES, FIRST_BUCKET_BYTES, NamedParameter, assign, layout_of, trainable
from dtrain.sync.engine import Engine
from dtrain.sync.lanes import Lane
from dtrain.sync.states import States
from dtrain.sync.synchronizer import NOTHING_SPENT, NonFiniteGradientError, Spent


class _Slot:
    """A bucket of this model: its parameters, and their place in the flat vector."""

    def __init__(self, parameters: list[NamedParameter], world_size: int) -> None:
        self.share = 1.0 / world_size
        self.parameters = [p for _, p in parameters]
        layout = layout_of(parameters)
        first = self.parameters[0]
        self.bucket = Bucket(torch.zeros(layout.numel, dtype=first.dtype, device=first.device), layout)
        self.views = [view for _, view in layout.pieces(self.bucket.value)]
        self.mean: Tensor | None = None
        self.start_anew()

    def start_anew(self) -> None:
        """Another step: no gradient is here yet."""
        self.missing = set(range(len(self.parameters)))

    def fill(self, index: int) -> None:
        """Take this rank's share of a parameter's mean gradient into the flat vector; the gradient itself is freed."""
        parameter = self.parameters[index]
        if parameter.grad is None:
            self.views[index].zero_()
        else:
            torch.mul(parameter.grad, self.share, out=self.views[index])
            parameter.grad = None
        self.missing.discard(index)

    def hand_back(self) -> None:
        """Every parameter's gradient becomes its part of the mean, without a copy."""
        assert self.mean is not None
        for parameter, (_, mean) in zip(self.parameters, self.bucket.layout.pieces(self.mean), strict=True):
            parameter.grad = mean


class EveryStep:
    """Averages the gradients of `model` over all workers: a `Synchronizer`.

    In backward each gradient moves into its bucket and a full bucket is exchanged, overlapped with the rest of backward
    unless `overlap` is off; `before_step` waits for all of it and sets every `parameter.grad` to the mean. Parameters
    that got no gradient count as zeros.

    Args:
        model: the same on every worker.
        compressor: how a bucket is exchanged.
        communicator: used for gradients alone while backward runs.
        ledger: where the scopes of the exchange are opened.
        seed: the same on every worker; for compressors that draw random numbers.
        check_finite: look for NaN and Inf in the means, at the price of reading them once more.
        lane: where exchanges run: that of the model's device unless another is given.
    """

    def __init__(
        self,
        model: nn.Module,
        compressor: Compressor,
        communicator: Communicator,
        ledger: Ledger,
        *,
        seed: int = 0,
        first_bucket_bytes: int = FIRST_BUCKET_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
        overlap: bool = True,
        check_finite: bool = True,
        lane: Lane | None = None,
    ) -> None:
        parameters = trainable(model)
        buckets = assign(parameters, first_bytes=first_bucket_bytes, cap_bytes=bucket_bytes)
        if not buckets:
            raise ValueError("the model has no trainable parameter: nothing to synchronise")
        rank, world_size = communicator.rank, communicator.world_size
        self._states = States(
            compressor, parameters, rank=rank, world_size=world_size, seed=seed, check_finite=check_finite
        )
        self._ledger, self._check_finite = ledger, check_finite
        self._slots = [_Slot(bucket, world_size) for bucket in buckets]
        device = self._slots[0].bucket.value.device
        self._clock = clock_for(device)
        self._engine = Engine(communicator, ledger, device, overlap=overlap, lane=lane)
        self._next, self._accumulating = 0, False
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._hook(slot, i))
            for slot in self._slots
            for i, parameter in enumerate(slot.parameters)
        ]

    @property
    def num_buckets(self) -> int:
        """Buckets in a step."""
        return len(self._slots)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """See `Synchronizer`."""
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def before_step(self) -> Spent:
        """Wait for the exchange and set the gradients to the mean. See `Synchronizer`."""
        start = self._clock.mark()
        for slot in self._slots[self._next :]:
            for index in sorted(slot.missing):
                slot.fill(index)
            self._submit(slot)
        self._next = 0
        for slot in self._slots:
            slot.start_anew()
        self._engine.finish()
        self._ledger.rounds += 1
        end = self._clock.mark()
        for slot in self._slots:
            slot.hand_back()
        parameter = self._states.not_finite()
        if parameter is not None and self._check_finite:
            raise NonFiniteGradientError(parameter, self._states.step)
        return Spent(self._clock.seconds(start, end), self._engine.take_codec_seconds())

    def after_step(self) -> Spent:
        """Keep the states of the step that just finished. See `Synchronizer`."""
        self._states.commit()
        return Spent(0.0, 0.0)

    @property
    def ends_with_step(self) -> bool:
        """See `Synchronizer`."""
        return True

    def align(self) -> Spent:
        """Replicas are equal after every step."""
        return NOTHING_SPENT

    @property
    def num_own_steps(self) -> int:
        """See `Reversible`."""
        return 0

    def roll_back(self) -> None:
        """See `Reversible`. Parameters change in the optimizer's step alone, after the exchange."""
        self._states.undo()

    def discard(self) -> None:
        """See `Synchronizer`."""
        self._engine.take_codec_seconds()
        self._states.discard()

    def state_dict(self) -> dict[str, Any]:
        """See `States`."""
        return self._states.state_dict()

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """See `States`."""
        self._states.load_state_dict(*saved)

    def close(self) -> None:
        """Let go of the model and end the thread."""
        for hook in self._hooks:
            hook.remove()
        self._engine.close()

    def _hook(self, slot: _Slot, index: int) -> Any:
        def on_gradient(parameter: Tensor) -> None:
            if self._accumulating:
                return
            if index not in slot.missing:
                raise RuntimeError("a second backward pass before the step: run all but the last inside no_sync()")
            slot.fill(index)
            while self._next < len(self._slots) and not self._slots[self._next].missing:
                self._submit(self._slots[self._next])
                self._next += 1

        return on_gradient

    def _submit(self, slot: _Slot) -> None:
        def start() -> Exchange:
            return self._states.exchange(slot.bucket)

        def keep(result: Exchanged) -> None:
            self._states.stage(slot.bucket.layout, result)
            slot.mean = result.mean

        self._engine.submit(start, keep)
