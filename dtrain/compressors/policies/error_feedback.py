"""Error feedback: what a lossy method left out is added to the next step's value.

Seide et al., 1-bit SGD (Interspeech 2014); Karimireddy et al., Error Feedback Fixes SignSGD (ICML 2019), Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, State


@dataclass(frozen=True)
class ErrorFeedback:
    """Exchange value + residual, and keep what `inner` did not send, in float32 whatever the value's dtype."""

    inner: Compressor

    def init(self, bucket: Bucket) -> State:
        """A residual of zeros, and the inner state."""
        return {
            "residual": bucket._replace(value=torch.zeros_like(bucket.value, dtype=torch.float32)),
            "inner": self.inner.init(bucket),
        }

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of `inner`."""
        residual, inner_state = state["residual"], state["inner"]
        assert isinstance(residual, Bucket)
        assert not isinstance(inner_state, Bucket)
        corrected = torch.add(bucket.value, residual.value, out=context.scratch.alternate("corrected", residual.value))
        # somebody around wants to know what was sent: note it apart, and subtract it then
        sent = None if context.remainder is None else context.scratch.empty("sent", corrected).zero_()
        inner_context = replace(
            context, remainder=corrected if sent is None else sent, scratch=context.scratch.inner("inner")
        )
        out = yield from self.inner.exchange(Bucket(corrected, bucket.layout), inner_state, inner_context)
        if sent is not None and context.remainder is not None:
            corrected.add_(sent)
            context.remainder.add_(sent)
        kept: State = {"residual": Bucket(corrected, bucket.layout), "inner": out.state}
        return Exchanged(out.mean.to(bucket.value.dtype), kept)
