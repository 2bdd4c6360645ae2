"""Top-k: of each bucket only the elements of largest magnitude.

Aji and Heafield, Sparse Communication for Distributed Gradient Descent (EMNLP 2017), section 3; Stich, Cordonnier and
Jaggi, Sparsified SGD with Memory (NeurIPS 2018), Algorithm 1. It needs error feedback, and is registered with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dtrain.compressors.codecs import log_values
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.compressors.sparse_routes import Route, all_gather, route
from dtrain.exchange import NOT_KEPT, Bucket, Compressor, Context, Exchange, Exchanged, State


@dataclass(frozen=True)
class TopK:
    """The max(1, round(density x N)) largest of the bucket's N elements, of equal ones the first.

    A message is ceil((k l + k + ((N - 1) >> l)) / 8) + k value_bits / 8 + 5 bytes, l = floor(log2(N / k)): about 2.5
    an element at density 0.001 with 8-bit values. `route` says who gets it: see `sparse_routes`. Infinities and NaNs
    are the largest of all, so the mean of a bucket that has one is not finite. With one value 1e30 times the others,
    8-bit values have errors of a third, which error feedback repairs in later steps.

    Args:
        density: the fraction that is kept, above 0, at most 1.
        value_bits: 8, 16 or 32 for each value.
    """

    density: float = 0.001
    value_bits: int = 8
    route: Route = all_gather

    def __post_init__(self) -> None:
        check_density(self.density)
        check_value_bits(self.value_bits)

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange[State]:
        """The rounds of `route`."""
        dtype = bucket.value.dtype
        value = bucket.value.to(torch.float32)
        sent = yield from self.route(value, self.density, self.value_bits, context)
        return Exchanged(sent.mean.to(dtype), sent.contribution if context.wants_contribution else NOT_KEPT, state)


def top_k(density: float = 0.001, value_bits: int = 8, exchange: str = "all_gather") -> Compressor:
    """Top-k with error feedback. `exchange`: "all_gather", or "split", whose bytes do not grow with the world size."""
    return ErrorFeedback(TopK(density, value_bits, route(exchange)))


def check_density(density: float) -> None:
    """Raise ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(f"density={density:g} must be above 0 and at most 1: it is the fraction that is kept")


def check_value_bits(value_bits: int) -> None:
    """Raise ValueError for a width that values cannot have."""
    if value_bits not in log_values.CODES:
        raise ValueError(f"value_bits={value_bits} must be one of {', '.join(map(str, log_values.CODES))}")
