"""Error feedback: what a lossy method left out is added to the next step's value.

Seide et al., 1-bit SGD (Interspeech 2014); Karimireddy et al., Error Feedback Fixes SignSGD (ICML 2019), Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, State


@dataclass(frozen=True)
class ErrorFeedback:
    """Exchange value + residual, and keep what `inner` did not send: residual = corrected - local."""

    inner: Compressor

    def init(self, bucket: Bucket) -> State:
        """A residual of zeros, and the inner state."""
        return {"residual": bucket._replace(value=torch.zeros_like(bucket.value)), "inner": self.inner.init(bucket)}

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of `inner`."""
        residual, inner_state = state["residual"], state["inner"]
        assert isinstance(residual, Bucket)
        assert not isinstance(inner_state, Bucket)
        corrected = torch.add(bucket.value, residual.value, out=context.scratch.alternate("corrected", residual.value))
        out = yield from self.inner.exchange(
            Bucket(corrected, bucket.layout),
            inner_state,
            replace(context, wants_local=True, scratch=context.scratch.inner("inner")),
        )
        if out.local is None:  # lossless: all of it was sent
            local, left = corrected.clone(), corrected.zero_()
        else:
            local, left = out.local, corrected.sub_(out.local)
        kept: State = {"residual": Bucket(left, bucket.layout), "inner": out.state}
        return Exchanged(out.mean, local, kept)
