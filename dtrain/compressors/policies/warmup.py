"""One method for the first steps, another from then on."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, State


@dataclass(frozen=True)
class Warmup:
    """`first` while context.step < steps, `then` afterwards, each with its own state.

    A residual that `first` still holds when it ends is not handed on: let `first` be lossless.
    """

    first: Compressor
    then: Compressor
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"warm-up of {self.steps} steps: give 0 or more")

    def init(self, bucket: Bucket) -> State:
        """Both states."""
        return {"first": self.first.init(bucket), "then": self.then.init(bucket)}

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of whichever method is on."""
        key = "first" if context.step < self.steps else "then"
        active = self.first if key == "first" else self.then
        inner = state[key]
        assert not isinstance(inner, Bucket)
        out = yield from active.exchange(bucket, inner, context)
        return Exchanged(out.mean, {**state, key: out.state})
