"""Deep gradient compression: top-k of momentum, accumulated at each worker.

Lin, Han, Mao, Wang and Dally, Deep Gradient Compression (ICLR 2018), Algorithm 4 and sections 3.1 to 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.compressors.sparse_routes import Route, all_gather, route
from dtrain.compressors.top_k import check_density, check_value_bits
from dtrain.exchange import NOT_KEPT, Bucket, Compressor, Context, Exchange, Exchanged, State

FIRST_DENSITY = 0.25
"""What warm-up starts from: the paper's sparsity of 75%."""


@dataclass(frozen=True)
class Velocity(State):
    """u and v of the paper, float32."""

    velocity: Bucket
    accumulated: Bucket


@dataclass(frozen=True)
class Dgc:
    """Per step, with g this worker's share of the mean gradient (clipped, where that is asked for):

        u = momentum u + g                      momentum correction, equation 5
        v = v + u;  send the largest of v       v -= what was sent, u = 0 where something was (factor masking, eq. 7)

    v is the residual, so error feedback around it would count errors twice. The momentum is in what is exchanged: **the
    optimizer's own momentum must be 0**, and its weight decay acts without momentum, so it takes weight_decay /
    (1 - momentum) to decay as much as SGD with momentum does. Messages have `TopK`'s sizes, at this step's density.

    Args:
        density: the fraction that is kept after warm-up.
        value_bits: 8, 16 or 32 for each value.
        momentum: at least 0, less than 1.
        warmup_steps: the density falls exponentially from 0.25 to `density` over so many steps; the paper has four
            epochs of a long run. Count them into the bytes: most are sent here.
        clip_norm: each parameter's local gradient is scaled down to a norm of clip_norm / sqrt(world_size), so that
            their sum has about clip_norm. By parameter and not over all, as buckets are exchanged one by one. None: no.
        route: see `sparse_routes`.
    """

    density: float = 0.001
    value_bits: int = 8
    momentum: float = 0.9
    warmup_steps: int = 0
    clip_norm: float | None = None
    route: Route = all_gather

    def __post_init__(self) -> None:
        check_density(self.density)
        check_value_bits(self.value_bits)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and less than 1")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be 0 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0, or null for no clipping")

    def density_at(self, step: int) -> float:
        """0.25 (density / 0.25)^(step / warmup_steps) during warm-up, `density` afterwards."""
        if step >= self.warmup_steps:
            return self.density
        first = max(FIRST_DENSITY, self.density)
        return float(first * (self.density / first) ** (step / self.warmup_steps))

    def init(self, bucket: Bucket) -> Velocity:
        """u and v, zero."""
        u, v = (torch.zeros_like(bucket.value, dtype=torch.float32) for _ in range(2))
        return Velocity(bucket._replace(value=u), bucket._replace(value=v))

    def exchange(self, bucket: Bucket, state: Velocity, context: Context) -> Exchange[Velocity]:
        """The rounds of `route`."""
        velocity, accumulated = state.velocity, state.accumulated
        u = context.scratch.alternate("velocity", velocity.value)
        v = context.scratch.alternate("accumulated", accumulated.value)
        torch.add(self._clipped(bucket, context), velocity.value, alpha=self.momentum, out=u)
        torch.add(accumulated.value, u, out=v)
        sent = yield from self.route(v, self.density_at(context.step), self.value_bits, context)
        sent.contribution.subtract_from(v)
        u.index_fill_(0, sent.indices, 0.0)
        kept = Velocity(velocity._replace(value=u), accumulated._replace(value=v))
        contribution = sent.contribution if context.wants_contribution else NOT_KEPT
        return Exchanged(sent.mean.to(bucket.value.dtype), contribution, kept)

    def _clipped(self, bucket: Bucket, context: Context) -> Tensor:
        if self.clip_norm is None:
            return bucket.value
        limit = self.clip_norm / context.world_size**1.5  # of a share, which is gradient / world_size
        clipped = context.scratch.empty("clipped", bucket.value)
        pieces = zip(bucket.layout.pieces(bucket.value), bucket.layout.pieces(clipped), strict=True)
        for (_, piece), (_, out) in pieces:
            norm = torch.linalg.vector_norm(piece, dtype=torch.float64)  # squares of float32 would overflow
            torch.mul(piece, (limit / norm).clamp(max=1.0).to(piece.dtype), out=out)
        return clipped


def dgc(
    density: float = 0.001,
    value_bits: int = 8,
    exchange: str = "all_gather",
    momentum: float = 0.9,
    warmup_steps: int = 0,
    clip_norm: float | None = None,
) -> Compressor:
    """Deep gradient compression. `exchange`: "all_gather", or "split", whose bytes do not grow with the world size."""
    return Dgc(density, value_bits, momentum, warmup_steps, clip_norm, route(exchange))
