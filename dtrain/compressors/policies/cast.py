"""Send floating-point payloads in a narrower type: half the bytes of float32 for fp16 and bf16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from dtrain.compressors.none import NoCompression
from dtrain.exchange import Bucket, Compressor, Context, Exchange, Exchanged, Request, State


@dataclass(frozen=True)
class Cast:
    """Every floating payload of `inner` as `dtype`; answers come back in the payload's own type.

    What a rank contributes through `none` is its share as it was cast, and what that leaves out is in the remainder.
    Around another `inner`, the rounding of its payloads is in nobody's.
    """

    inner: Compressor
    dtype: torch.dtype

    def init(self, bucket: Bucket) -> State:
        """The inner state."""
        return self.inner.init(bucket)

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange:
        """The rounds of `inner`, with payloads of `dtype.itemsize` bytes an element."""
        exact = isinstance(self.inner, NoCompression)
        exchange = self.inner.exchange(bucket, state, replace(context, remainder=None) if exact else context)
        answer: Any = None
        while True:
            try:
                asked = exchange.send(answer)
            except StopIteration as done:
                out: Exchanged = done.value
                break
            requests = asked if isinstance(asked, tuple) else (asked,)
            narrow = [self._narrow(request, context, i) for i, request in enumerate(requests)]
            received = yield tuple(narrow)
            wide = tuple(
                got.to(request.payload.dtype) if got.dtype != request.payload.dtype else got
                for got, request in zip(received, requests, strict=True)
            )
            answer = wide if isinstance(asked, tuple) else wide[0]
        if exact and context.remainder is not None:
            context.remainder.sub_(bucket.value.to(self.dtype).to(bucket.value.dtype))
        return out

    def _narrow(self, request: Request, context: Context, i: int) -> Request:
        if not request.payload.is_floating_point():
            return request
        payload = context.scratch.empty(f"narrow{i}", request.payload, dtype=self.dtype)
        return Request(request.op, payload.copy_(request.payload))
