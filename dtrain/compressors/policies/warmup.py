"""One method for the first steps, another from then on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic

from typing_extensions import TypeVar

from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, State

FirstT = TypeVar("FirstT", bound=State, default=Any)
ThenT = TypeVar("ThenT", bound=State, default=Any)


@dataclass(frozen=True)
class InTurn(State, Generic[FirstT, ThenT]):
    """The states of both methods, whichever is on."""

    first: FirstT
    then: ThenT


@dataclass(frozen=True)
class Warmup(Generic[FirstT, ThenT]):
    """`first` while context.step < steps, `then` afterwards, each with its own state.

    A residual that `first` still holds when it ends is not handed on: let `first` be lossless.
    """

    first: Compressor[FirstT]
    then: Compressor[ThenT]
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"warm-up of {self.steps} steps: give 0 or more")

    def init(self, bucket: Bucket) -> InTurn[FirstT, ThenT]:
        """Both states."""
        return InTurn(self.first.init(bucket), self.then.init(bucket))

    def exchange(
        self, bucket: Bucket, state: InTurn[FirstT, ThenT], context: Context
    ) -> Exchange[InTurn[FirstT, ThenT]]:
        """The rounds of whichever method is on."""
        if context.step < self.steps:
            first = yield from self.first.exchange(bucket, state.first, context)
            return Exchanged(first.mean, first.contribution, replace(state, first=first.state))
        then = yield from self.then.exchange(bucket, state.then, context)
        return Exchanged(then.mean, then.contribution, replace(state, then=then.state))
