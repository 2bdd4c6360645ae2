"""What a codec works with during one exchange: buffers the size of a chunk, and random bits of its own."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from dtrain.compressors.codecs.random_bits import RandomBits, Twisters
from dtrain.exchange import Bucket, Context

CHUNK = 768 * 1024
"""Elements worked on at a time on a CPU. Several passes over 3 MB stay in a server's cache, over 25 MB they do not;
with 128 K elements, calling the operations takes as long as the arithmetic."""
CUDA_CHUNK = 16 * 1024 * 1024
"""On a GPU there is a launch to pay for each operation and no such cache: large chunks, of bounded memory."""


class Workspace:
    """Buffers in the bucket's scratch, for values of up to `largest` elements at a time.

    The random bits are a function of (seed, step, rank, first parameter of the bucket): the same in every run, others
    on every rank, in every step and in every bucket.
    """

    def __init__(self, context: Context, bucket: Bucket, largest: int) -> None:
        self.device = bucket.value.device
        padding = 1024  # to fill the last byte of packed codes, or the last block of a rotation
        self.chunk = min(CHUNK if self.device.type == "cpu" else CUDA_CHUNK, largest + padding)
        self._scratch = context.scratch
        self._buffers: dict[str, Tensor] = {}
        self._seeds = 0
        self._key = f"{context.seed} {context.step} {context.rank} {''.join(bucket.layout.names[:1])}"
        self.random_bits = RandomBits(_hashed(self._key), self.device)

    def buffer(self, name: str, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A flat uninitialised tensor of `numel` <= `chunk` elements. It is valid until `name` is asked for again."""
        assert numel <= self.chunk
        if name not in self._buffers:
            like = torch.empty(1, dtype=dtype, device=self.device).expand(self.chunk)
            self._buffers[name] = self._scratch.empty(name, like)
        return self._buffers[name][:numel]

    def dither_(self, codes: Tensor) -> Tensor:
        """Add noise, uniform on (-1/2, 1/2), to contiguous float32 `codes`: rounded afterwards, they are unbiased.

        That rounds up with the probability of the fraction, as QSGD and TernGrad do. The noise is an odd multiple of
        2^-16, so its mean is exactly 0, it never reaches 1/2, and an integer stays what it is.
        """
        noise = self.buffer("noise", codes.numel())
        noise.copy_(self.draw(codes.numel()).bitwise_or_(1))
        codes.view(-1).add_(noise, alpha=2.0**-16)
        return codes

    def draw(self, numel: int, kernels: Twisters | None = None) -> Tensor:
        """So many int16 of random bits, in a buffer; the same by kernels as by torch."""
        bits = self.buffer("bits", -(-numel // 4) * 4, torch.int16)  # four at once
        self.random_bits.fill(bits.view(torch.int64), kernels)
        return bits[:numel]

    def new_seed(self) -> int:
        """A number of 63 bits, another at each call: for what draws by itself, on whatever device."""
        self._seeds += 1
        return _hashed(f"{self._key} {self._seeds}") >> 1


def without_waiting(drawn: Tensor, device: torch.device) -> Tensor:
    """What was drawn on the CPU, on `device`: from pinned memory, so that the host does not wait for the copy."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


def _hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
