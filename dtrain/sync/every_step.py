"""The trainer's own synchroniser: deterministic buckets, filled during backward, exchanged beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.comm import Communicator
from dtrain.exchange import (
    Bucket,
    Compressor,
    Context,
    Exchange,
    Exchanged,
    Scratch,
    put_together,
    share_out,
    take_apart,
)
from dtrain.meter.clock import clock_for
from dtrain.meter.ledger import Ledger
from dtrain.sync.buckets import BUCKET_BYTES, FIRST_BUCKET_BYTES, NamedParameter, assign, layout_of, trainable
from dtrain.sync.engine import Engine


class NonFiniteGradientError(ArithmeticError):
    """A mean gradient holds NaN or Inf; raised on every rank alike, since all have the same mean."""

    def __init__(self, parameter: str, step: int) -> None:
        super().__init__(f"the gradient of {parameter} is not finite in step {step}")
        self.parameter, self.step = parameter, step


class _Slot:
    """A bucket of this model: its parameters, their place in the flat vector, and the compressor's state for it."""

    def __init__(
        self, parameters: list[NamedParameter], compressor: Compressor, world_size: int, check_finite: bool
    ) -> None:
        self.share, self.check_finite = 1.0 / world_size, check_finite
        self.parameters = [p for _, p in parameters]
        layout = layout_of(parameters)
        first = self.parameters[0]
        self.bucket = Bucket(torch.zeros(layout.numel, dtype=first.dtype, device=first.device), layout)
        self.views = [view for _, view in layout.pieces(self.bucket.value)]
        self.state = compressor.init(self.bucket)
        self.scratch = Scratch()
        self.result: Exchanged | None = None
        self.total: Tensor | None = None
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

    def keep(self, result: Exchanged) -> None:
        """Take the result of the exchange, with the sum of its mean: one cheap pass that NaN and Inf cannot survive."""
        self.result, self.total = result, result.mean.sum() if self.check_finite else None

    def not_finite(self) -> str | None:
        """The first parameter whose mean holds NaN or Inf, if any. A sum can also overflow, hence the second look."""
        assert self.result is not None
        if self.total is None or torch.isfinite(self.total):
            return None
        pieces = self.bucket.layout.pieces(self.result.mean)
        return next((name for name, mean in pieces if not torch.isfinite(mean).all()), None)

    def hand_back(self) -> None:
        """Every parameter's gradient becomes its part of the mean, without a copy."""
        assert self.result is not None
        for parameter, (_, mean) in zip(self.parameters, self.bucket.layout.pieces(self.result.mean), strict=True):
            parameter.grad = mean


class EagerSynchronizer:
    """Averages the gradients of `model` over all workers.

    A step is `loss.backward()`, `finish()`, `optimizer.step()`, `commit()`. In backward each gradient moves into its
    bucket and a full bucket is exchanged, overlapped with the rest of backward unless `overlap` is off; `finish` waits
    for all of it and sets every `parameter.grad` to the mean. Parameters that got no gradient count as zeros. A step
    that is not committed leaves the compressor's state as it was.

    Args:
        model: the same on every worker.
        compressor: how a bucket is exchanged.
        communicator: used for gradients alone while backward runs.
        ledger: where the scopes of the exchange are opened.
        seed: the same on every worker; for compressors that draw random numbers.
        check_finite: look for NaN and Inf in the means, at the price of reading them once more.
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
    ) -> None:
        self._compressor, self._communicator, self._seed = compressor, communicator, seed
        buckets = assign(trainable(model), first_bytes=first_bucket_bytes, cap_bytes=bucket_bytes)
        if not buckets:
            raise ValueError("the model has no trainable parameter: nothing to synchronise")
        self._slots = [_Slot(bucket, compressor, communicator.world_size, check_finite) for bucket in buckets]
        device = self._slots[0].bucket.value.device
        self._clock = clock_for(device)
        self._engine = Engine(communicator, ledger, device, overlap=overlap)
        self._step, self._next, self._accumulating = 0, 0, False
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
        """Backward passes inside only accumulate; the next one outside exchanges the sum."""
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def finish(self) -> float:
        """Wait for the exchange and set the gradients. Returns the seconds waited: the exposed communication.

        Raises NonFiniteGradientError, on every rank alike, where a mean holds NaN or Inf; then `discard` the step.
        """
        start = self._clock.mark()
        for slot in self._slots[self._next :]:
            for index in sorted(slot.missing):
                slot.fill(index)
            self._submit(slot)
        self._next = 0
        for slot in self._slots:
            slot.start_anew()
        self._engine.finish()
        end = self._clock.mark()
        for slot in self._slots:
            slot.hand_back()
            parameter = slot.not_finite()
            if parameter is not None:
                raise NonFiniteGradientError(parameter, self._step)
        return self._clock.seconds(start, end)

    def commit(self) -> None:
        """Keep the states of the step that just finished."""
        for slot in self._slots:
            if slot.result is not None:
                slot.state = slot.result.state
        self.discard()

    def discard(self) -> None:
        """Forget the step that just finished: the compressor's states stay as they were before it."""
        for slot in self._slots:
            slot.result = None
        self._step += 1

    def take_codec_seconds(self) -> float:
        """Seconds spent in the compressor since the last call."""
        return self._engine.take_codec_seconds()

    def state_dict(self) -> dict[str, Any]:
        """{"step": int, "parameters": {name: {path: tensor}}}: the committed state, by parameter name, copied."""
        parameters: dict[str, dict[str, Tensor]] = {}
        for slot in self._slots:
            for name, parts in take_apart(slot.state).items():
                parameters[name] = {path: part.clone() for path, part in parts.items()}
        return {"step": self._step, "parameters": parameters}

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """Take up a saved state, whatever the bucketing it was saved under.

        Give the states of all the ranks that saved, in order: `exchange.share_out` says what this one takes of them.
        Raises ValueError where they do not fit.
        """
        known = {name for slot in self._slots for name in slot.bucket.layout.names}
        unknown = sorted({name for state in saved for name in state["parameters"]} - known)
        if unknown:
            raise ValueError(f"saved state of parameter {unknown[0]!r}, which this model does not have")
        ranks = [state["parameters"] for state in saved]
        rank, world_size = self._communicator.rank, self._communicator.world_size
        for slot in self._slots:
            template = self._compressor.init(slot.bucket)
            slot.state = put_together(template, share_out(template, ranks, rank, world_size))
        self._step = int(saved[0]["step"])

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
        communicator, step = self._communicator, self._step

        def start() -> Exchange:
            context = Context(communicator.rank, communicator.world_size, step, seed=self._seed, scratch=slot.scratch)
            return self._compressor.exchange(slot.bucket, slot.state, context)

        self._engine.submit(start, slot.keep)
