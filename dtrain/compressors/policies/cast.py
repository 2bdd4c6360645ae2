"""Send floating-point payloads in a narrower type: half the bytes of float32 for fp16 and bf16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic

import torch
from torch import Tensor

from dtrain.compressors.none import NoCompression
from dtrain.exchange import NOT_KEPT, Bucket, Compressor, Context, Exchange, Exchanged, Request, StateT


@dataclass(frozen=True, slots=True)
class Rounded:
    """A contribution that was sent as `dtype`, and arrived so."""

    value: Tensor
    dtype: torch.dtype

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`."""
        residual.sub_(self.value.to(self.dtype).to(self.value.dtype))


@dataclass(frozen=True)
class Cast(Generic[StateT]):
    """Every floating payload of `inner` as `dtype`; answers come back in the payload's own type.

    What a rank contributes through `none` is its share as it was cast. Around another `inner` its contribution is what
    `inner` says, and the rounding of its payloads is in nobody's.
    """

    inner: Compressor[StateT]
    dtype: torch.dtype

    def init(self, bucket: Bucket) -> StateT:
        """The inner state."""
        return self.inner.init(bucket)

    def exchange(self, bucket: Bucket, state: StateT, context: Context) -> Exchange[StateT]:
        """The rounds of `inner`, with payloads of `dtype.itemsize` bytes an element."""
        exact = isinstance(self.inner, NoCompression)  # its payload is a copy already
        inner_context = replace(context, wants_contribution=False) if exact else context
        out = yield from self._as_dtype(self.inner.exchange(bucket, state, inner_context), context)
        if not exact:
            return out
        wanted = context.wants_contribution
        return out._replace(contribution=Rounded(bucket.value, self.dtype) if wanted else NOT_KEPT)

    def _as_dtype(self, exchange: Exchange[StateT], context: Context) -> Exchange[StateT]:
        """The same exchange, whose requests and answers are cast."""
        answer: Any = None
        while True:
            try:
                asked = exchange.send(answer)
            except StopIteration as done:
                out: Exchanged[StateT] = done.value
                return out
            requests = asked if isinstance(asked, tuple) else (asked,)
            received = yield tuple(self._cast(request, context, i) for i, request in enumerate(requests))
            own = tuple(
                got.to(request.payload.dtype) if got.dtype != request.payload.dtype else got
                for got, request in zip(received, requests, strict=True)
            )
            answer = own if isinstance(asked, tuple) else own[0]

    def _cast(self, request: Request, context: Context, i: int) -> Request:
        if not request.payload.is_floating_point():
            return request
        payload = context.scratch.empty(f"cast{i}", request.payload, dtype=self.dtype)
        return Request(request.op, payload.copy_(request.payload))
