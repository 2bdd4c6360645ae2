"""What the optimizer changed is exchanged, instead of the gradient: every step, or every few of them.

Each worker takes steps of its own, with an optimizer state of its own, from weights that all have in common; then the
mean of what these steps changed becomes the next common change. Every step: the update is what is compressed, whose
elements an adaptive optimizer has made of one size, where on gradients the error of a small element is divided by the
small root of its second moment. Every H steps it is local SGD (Stich, ICLR 2019), or federated averaging (McMahan et
al., AISTATS 2017, Algorithm 1) of workers who all take part.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dtrain.comm import Communicator
from dtrain.exchange import Bucket, Compressor, Contribution, Exchange, Exchanged
from dtrain.meter.clock import clock_for
from dtrain.meter.ledger import Ledger
from dtrain.sync.buckets import BUCKET_BYTES, FIRST_BUCKET_BYTES, NamedParameter, assign, layout_of, trainable
from dtrain.sync.engine import Engine
from dtrain.sync.own_parts import OwnParts
from dtrain.sync.states import States
from dtrain.sync.synchronizer import NOTHING_SPENT, NonFiniteGradientError, Spent


class _Slot:
    """A bucket of this model: its parameters, and the weights that all workers have in common as a flat vector."""

    def __init__(self, parameters: list[NamedParameter], world_size: int) -> None:
        self.share = 1.0 / world_size
        self.names = [name for name, _ in parameters]
        self.parameters = [p for _, p in parameters]
        self.layout = layout_of(parameters)
        first = self.parameters[0]
        self.common = torch.empty(self.layout.numel, dtype=first.dtype, device=first.device)
        self.commons = [view for _, view in self.layout.pieces(self.common)]
        self.bucket = Bucket(torch.empty_like(self.common), self.layout)
        self.changes = [view for _, view in self.layout.pieces(self.bucket.value)]
        self.mean: Tensor | None = None
        self.sent: Tensor | None = None  # minus what this rank contributed to it, where that is asked for
        self.take_common()

    @torch.no_grad()
    def take_common(self) -> None:
        """The parameters as they are now are what all workers have in common."""
        for common, parameter in zip(self.commons, self.parameters, strict=True):
            common.copy_(parameter)

    @torch.no_grad()
    def fill(self) -> None:
        """This rank's share of the mean change. As a gradient: what is to be subtracted."""
        for change, common, parameter in zip(self.changes, self.commons, self.parameters, strict=True):
            torch.sub(common, parameter, out=change)
        self.bucket.value.mul_(self.share)

    def spoil(self, name: str) -> None:
        """Make the mean change of a parameter NaN on every rank."""
        self.changes[self.names.index(name)].view(-1)[0] = float("nan")

    @torch.no_grad()
    def put_back(self, *, changed: bool) -> None:
        """The parameters become what all workers have in common, with the mean change or without."""
        if changed:
            assert self.mean is not None
            self.common.sub_(self.mean)
        for common, parameter in zip(self.commons, self.parameters, strict=True):
            parameter.copy_(common)

    @torch.no_grad()
    def note_sent(self, contribution: Contribution) -> None:
        """Keep what this rank contributed, which lies in memory that the next exchange writes to."""
        self.sent = torch.zeros_like(self.common, dtype=torch.float32) if self.sent is None else self.sent.zero_()
        contribution.subtract_from(self.sent)

    @torch.no_grad()
    def mask_momentum(self, optimizer: Optimizer) -> None:
        """Momentum of elements that this rank sent becomes zero, but for parameters that it sent whole."""
        assert self.sent is not None
        for parameter, (_, sent) in zip(self.parameters, self.layout.pieces(self.sent != 0), strict=True):
            momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(sent & ~sent.all(), 0.0)


class Local:
    """Exchanges what `every` steps of the optimizer changed in `model`: a `Synchronizer`.

    Gradients stay each worker's own, and so does the optimizer's state: `state_dict` holds it. Replicas are equal after
    each exchange. Buffers (the statistics of BatchNorm) are each worker's own.

    A gradient that is not finite on one rank makes the whole local round one that does not count, on every rank alike:
    weights go back to what they were before it. That rank's optimizer is as it was before its bad step, those of the
    others have made theirs.

    Args:
        model: the same on every worker; a plain one.
        optimizer: of this model's parameters, the worker's own.
        compressor: how a bucket is exchanged.
        communicator: used for changes of weights alone.
        ledger: where the scopes of the exchange are opened.
        every: steps from one exchange to the next, at least 1.
        masks_momentum: for compressors that send few elements: SGD's momentum of what this rank sent becomes zero, as
            it is in what was sent already: momentum factor masking (Lin et al., Deep Gradient Compression, ICLR 2018,
            equation 7), with the momentum where it is.
        seed: the same on every worker; for compressors that draw random numbers.
        check_finite: look for NaN and Inf in gradients and in mean changes, at the price of reading them once more.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        compressor: Compressor,
        communicator: Communicator,
        ledger: Ledger,
        *,
        every: int = 1,
        masks_momentum: bool = False,
        seed: int = 0,
        first_bucket_bytes: int = FIRST_BUCKET_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
        check_finite: bool = True,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1: it is the number of steps between two exchanges")
        parameters = trainable(model)
        if not parameters:
            raise ValueError("the model has no trainable parameter: nothing to synchronise")
        rank, world_size = communicator.rank, communicator.world_size
        self._parameters, self._rank, self._world_size = parameters, rank, world_size
        self._every, self._check_finite = every, check_finite
        self._masked = optimizer if masks_momentum else None
        self._states = States(
            compressor, parameters, rank=rank, world_size=world_size, seed=seed, check_finite=check_finite
        )
        buckets = assign(parameters, first_bytes=first_bucket_bytes, cap_bytes=bucket_bytes)
        self._slots = [_Slot(bucket, world_size) for bucket in buckets]
        self._own = OwnParts(parameters, optimizer)
        device = self._slots[0].common.device
        self._clock = clock_for(device)
        self._engine = Engine(communicator, ledger, device, overlap=False)
        self._made = 0  # steps since the last exchange
        self._bad: str | None = None  # a parameter whose gradient was not finite in this local round
        self._pending = False  # this step has begun, and has not been counted yet

    @property
    def num_buckets(self) -> int:
        """Buckets in an exchange."""
        return len(self._slots)

    def no_sync(self) -> AbstractContextManager[None]:
        """Nothing is exchanged in backward passes, whichever they are."""
        return nullcontext()

    def before_step(self) -> Spent:
        """Gradients stay as they are, this rank's own; where one is not finite, the optimizer is given none at all."""
        self._pending = True
        if self._check_finite and (bad := self._not_finite()) is not None:
            self._bad = bad
            for _, parameter in self._parameters:
                parameter.grad = None
        return NOTHING_SPENT

    def after_step(self) -> Spent:
        """Exchange what was changed, if this step is the last of a local round.

        Raises NonFiniteGradientError, on every rank alike, where it looks for NaN and Inf and finds one.
        """
        self._pending = False
        self._made += 1
        if self._made < self._every:
            return NOTHING_SPENT
        return self.align()

    def align(self) -> Spent:
        """End the local round now. Nothing is sent where no step was made since the last exchange."""
        if self._made == 0:
            return NOTHING_SPENT
        start = self._clock.mark()
        for slot in self._slots:
            slot.fill()
            if self._bad in slot.names:
                slot.spoil(self._bad)
            self._submit(slot)
        self._engine.finish()
        bad = self._states.not_finite()
        self._made, self._bad, step = 0, None, self._states.step
        kept = bad is None or not self._check_finite
        for slot in self._slots:
            slot.put_back(changed=kept)
            if kept and self._masked is not None:
                slot.mask_momentum(self._masked)
        self._states.commit()
        if not kept:
            assert bad is not None
            raise NonFiniteGradientError(bad, step)
        return Spent(self._clock.seconds(start, self._clock.mark()), self._engine.take_codec_seconds())

    def discard(self) -> None:
        """This rank's step is left out, whatever others do; the local round goes on, and with it the exchange."""
        if self._pending:
            with suppress(NonFiniteGradientError):  # what was to be left out
                self.after_step()

    def state_dict(self) -> dict[str, Any]:
        """See `States`; with the optimizer's state, and within a local round what this rank has changed so far."""
        saved = self._states.state_dict()
        parts = saved["parameters"]
        self._own.add_optimizer(parts)
        if self._made:
            for slot in self._slots:
                self._own.add_round(parts, slot.names, slot.commons, slot.parameters)
        return {**saved, "made": self._made}

    def load_state_dict(self, *saved: Mapping[str, Any]) -> None:
        """See `States`. The model has the weights that were saved with it.

        With another number of ranks each optimizer state becomes the mean of those that were saved, and no local round
        may be under way: call `align` before such a state is saved.
        """
        made, states, take = self._own.split_off(saved, self._rank, self._world_size)
        self._states.load_state_dict(*states)
        rounds = take()
        for slot in self._slots:
            slot.take_common()
            for name, common, parameter in zip(slot.names, slot.commons, slot.parameters, strict=True):
                if name in rounds:
                    common.copy_(rounds[name].common)
                    parameter.data.copy_(rounds[name].value)
        self._made, self._bad, self._pending = made, None, False

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()

    def _not_finite(self) -> str | None:
        """The first parameter whose gradient holds NaN or Inf, if any: one cheap pass, then a second look."""
        gradients = [(name, p.grad) for name, p in self._parameters if p.grad is not None]
        if not gradients:
            return None
        sums = [torch.sparse.sum(g) if g.is_sparse else g.sum(dtype=torch.float32) for _, g in gradients]
        if torch.isfinite(torch.stack(sums)).all():
            return None
        values = [(name, g.coalesce().values() if g.is_sparse else g) for name, g in gradients]
        return next((name for name, g in values if not torch.isfinite(g).all()), None)

    def _submit(self, slot: _Slot) -> None:
        def start() -> Exchange:
            return self._states.exchange(slot.bucket, wants_contribution=self._masked is not None)

        def keep(result: Exchanged) -> None:
            if self._masked is not None:
                slot.note_sent(result.contribution)
            self._states.stage(slot.layout, result)
            slot.mean = result.mean

        self._engine.submit(start, keep)
