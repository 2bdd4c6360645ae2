"""Error feedback: what a lossy method left out is added to the next step's value.

Seide et al., 1-bit SGD (Interspeech 2014); Karimireddy et al., Error Feedback Fixes SignSGD (ICML 2019), Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, runtime_checkable

import torch
from torch import Tensor

from dtrain.exchange import NOT_KEPT, Bucket, Compressor, Context, Exchange, Exchanged, State, StateT


@dataclass(frozen=True)
class Residual(State, Generic[StateT]):
    """What was not sent so far, float32, and the state of the method inside."""

    residual: Bucket
    inner: StateT


@runtime_checkable
class Corrects(Protocol):
    """A method that adds a residual and takes off what it sends while it encodes: fewer passes, and the same bits."""

    def corrects(self, bucket: Bucket) -> bool:
        """Whether it does so for this bucket, where it is now."""
        ...

    def exchange_corrected(
        self, bucket: Bucket, residual: Tensor, left: Tensor, state: Any, context: Context
    ) -> Exchange[Any]:
        """Exchange value + residual, and write to `left` that less what was contributed."""
        ...


@dataclass(frozen=True, slots=True)
class Noted:
    """A contribution as what it subtracted from zeros."""

    minus: Tensor

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        residual.add_(self.minus)


@dataclass(frozen=True)
class ErrorFeedback(Generic[StateT]):
    """Exchange value + decay x residual, and keep what `inner` did not send, in float32 whatever the value's dtype.

    A decay below 1 forgets what was not sent for long (beta in Sarfi et al., SparseLoCo, 2025, Algorithm 1).
    """

    inner: Compressor[StateT]
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay} must be above 0 and at most 1: the fraction of a residual that stays")

    def init(self, bucket: Bucket) -> Residual[StateT]:
        """A residual of zeros, and the inner state."""
        zeros = torch.zeros_like(bucket.value, dtype=torch.float32)
        return Residual(bucket._replace(value=zeros), self.inner.init(bucket))

    def exchange(self, bucket: Bucket, state: Residual[StateT], context: Context) -> Exchange[Residual[StateT]]:
        """The rounds of `inner`."""
        before = state.residual.value
        corrected = context.scratch.alternate("corrected", before)
        if (
            isinstance(self.inner, Corrects)
            and self.decay == 1
            and not context.wants_contribution
            and self.inner.corrects(bucket)
        ):
            apart = replace(context, scratch=context.scratch.inner("inner"))
            out = yield from self.inner.exchange_corrected(bucket, before, corrected, state.inner, apart)
            return out._replace(state=Residual(Bucket(corrected, bucket.layout), out.state))
        torch.add(bucket.value, before, alpha=self.decay, out=corrected)
        asking = replace(context, wants_contribution=True, scratch=context.scratch.inner("inner"))
        out = yield from self.inner.exchange(Bucket(corrected, bucket.layout), state.inner, asking)
        contribution = NOT_KEPT
        if context.wants_contribution:  # twice, and the first use may spoil it: note it apart
            minus = context.scratch.empty("sent", corrected).zero_()
            out.contribution.subtract_from(minus)
            corrected.add_(minus)
            contribution = Noted(minus)
        else:
            out.contribution.subtract_from(corrected)
        kept = Residual(Bucket(corrected, bucket.layout), out.state)
        return Exchanged(out.mean.to(bucket.value.dtype), contribution, kept)
