"""Random bits that belong to a seed: what torch's generator draws, the Mersenne Twister of 32 bits.

Matsumoto and Nishimura, Mersenne Twister (ACM TOMACS 8, 1998). On a CPU kernels draw the same bits: torch's generator
is asked for one number at a time, theirs makes 624 in a few loops.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

SKIPPED = 64 * 1024
"""Words at a time, where another source has drawn some already."""


class Source(Protocol):
    """Draws from the start of the sequence on; `position` counts words."""

    position: int

    def fill(self, words: Tensor) -> None:
        """Draw the next `words`."""
        ...


class Twisters(Protocol):
    """Kernels that draw, on a CPU."""

    def twister(self, seed: int) -> Source:
        """What draws the bits that belong to a seed."""
        ...


class _Torch:
    def __init__(self, seed: int, device: torch.device) -> None:
        self.position = 0
        self._generator = torch.Generator(device).manual_seed(seed)

    def fill(self, words: Tensor) -> None:
        words.random_(-(2**63), None, generator=self._generator)
        self.position += words.numel()


class RandomBits:
    """Words of 64 random bits, the same by whichever code they are drawn.

    `position` is how many were drawn so far. Set back, the same ones are drawn again.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._sources: dict[bool, Source] = {}
        self.position = 0

    def fill(self, words: Tensor, kernels: Twisters | None = None) -> None:
        """Draw the next `words`: contiguous int64, on the device of these bits. By kernels, if given."""
        source = self._sources.get(kernels is None)
        if source is None or source.position > self.position:
            source = _Torch(self._seed, self._device) if kernels is None else kernels.twister(self._seed)
            self._sources[kernels is None] = source
        while source.position < self.position:
            source.fill(words.new_empty(min(SKIPPED, self.position - source.position)))
        source.fill(words)
        self.position = source.position
