"""Top-k of each chunk, in two bits a value: what SparseLoCo exchanges of many local steps.

Sarfi, Thérien, Lidin and Belilovsky, Communication Efficient LLM Pre-training with SparseLoCo (2025), Algorithm 1:
chunks of 4096 of which 64 are sent, 2-bit values, error feedback that decays by 0.95. Published are 12 bits an index;
here they are a number of 7.4 (`codecs.combinations`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dtrain.compressors.codecs import combinations
from dtrain.compressors.codecs.chunks import ChunkFormat
from dtrain.compressors.codecs.selection import num_kept
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.compressors.top_k import check_density
from dtrain.exchange import NOT_KEPT, Bucket, Compressor, Context, Exchange, Exchanged, Op, Request, Sparse, State


@dataclass(frozen=True)
class ChunkedTopK:
    """The max(1, round(density x chunk)) largest of each `chunk` neighbours in a bucket, zeros continuing the last.

    A bucket of fewer elements is one chunk. Every rank sends a message of `ChunkFormat.num_bytes` to all, 9.6 bits a
    value with the defaults: one all_gather, so the saving against a dense all_reduce falls with n. A chunk that holds
    an infinity or NaN arrives as such.

    Args:
        density: the fraction that is kept, above 0, at most 1.
        chunk: elements, at least 1.
    """

    density: float = 64 / 4096
    chunk: int = 4096

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1 element")
        combinations.num_bytes(num_kept(self.density, self.chunk), self.chunk)

    def init(self, bucket: Bucket) -> State:
        """Nothing to keep."""
        return State()

    def exchange(self, bucket: Bucket, state: State, context: Context) -> Exchange[State]:
        """One all_gather."""
        dtype, numel = bucket.value.dtype, bucket.value.numel()
        chunk = min(self.chunk, numel)
        form = ChunkFormat(num_kept(self.density, chunk), chunk, -(-numel // chunk))
        value = torch.nn.functional.pad(bucket.value.to(torch.float32), (0, form.num_chunks * chunk - numel))
        everyone = yield Request(Op.ALL_GATHER, form.pack(value.view(form.num_chunks, chunk)))
        indices, values = form.unpack(everyone)
        mean = context.scratch.empty("mean", value).zero_()
        for index, part in zip(indices, values, strict=True):
            mean.index_add_(0, index, part)  # one rank at a time: a fixed order of additions, also on CUDA
        contribution = NOT_KEPT
        if context.wants_contribution:
            own, sent = indices[context.rank], values[context.rank]
            # zeros beyond the end, of a number that the host does not know, come as nothing to the last element
            contribution = Sparse(own.clamp(max=numel - 1), sent.masked_fill(own >= numel, 0.0))
        return Exchanged(mean[:numel].to(dtype), contribution, state)


def chunked_top_k(density: float = 64 / 4096, chunk: int = 4096, decay: float = 0.95) -> Compressor:
    """Top-k of each chunk in error feedback, of which `decay` stays from one exchange to the next."""
    return ErrorFeedback(ChunkedTopK(density, chunk), decay)
