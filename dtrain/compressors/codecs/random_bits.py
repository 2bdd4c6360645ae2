"""Random bits that belong to a seed: what torch's generator draws, the Mersenne Twister of 32 bits.

Matsumoto and Nishimura, Mersenne Twister (ACM TOMACS 8, 1998). On a CPU kernels draw the same bits: torch's generator
is asked for one number at a time, theirs makes 624 in a few loops.
"""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

SKIPPED = 64 * 1024
"""Words at a time, where another source has drawn some already."""


class _Source(Protocol):
    """Draws from the start of the sequence on; `position` counts words."""

    position: int

    def fill(self, words: Tensor) -> None: ...


class _Torch:
    def __init__(self, seed: int, device: torch.device) -> None:
        self.position = 0
        self._generator = torch.Generator(device).manual_seed(seed)

    def fill(self, words: Tensor) -> None:
        words.random_(-(2**63), None, generator=self._generator)
        self.position += words.numel()


class _Twister:
    def __init__(self, seed: int, kernels: ModuleType) -> None:
        self.position = 0
        self._kernels = kernels
        self._state, self._following = (np.empty(kernels.TWISTER_NUMBERS, np.uint32) for _ in range(2))
        self._drawn = np.empty(kernels.TWISTER_NUMBERS // 2, np.uint64)
        self._used = self._drawn.size
        kernels.seed_twister(np.uint32(seed & 0xFFFFFFFF), self._state)

    def fill(self, words: Tensor) -> None:
        out = words.numpy().view(np.uint64)
        self._used = self._kernels.draw_words(self._state, self._following, self._drawn, self._used, out)
        self.position += words.numel()


class RandomBits:
    """Words of 64 random bits, the same by whichever code they are drawn.

    `position` is how many were drawn so far. Set back, the same ones are drawn again.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._sources: dict[bool, _Source] = {}
        self.position = 0

    def fill(self, words: Tensor, kernels: ModuleType | None = None) -> None:
        """Draw the next `words`: contiguous int64, on the device of these bits. By kernels, if given."""
        source = self._sources.get(kernels is None)
        if source is None or source.position > self.position:
            source = _Torch(self._seed, self._device) if kernels is None else _Twister(self._seed, kernels)
            self._sources[kernels is None] = source
        while source.position < self.position:
            source.fill(words.new_empty(min(SKIPPED, self.position - source.position)))
        source.fill(words)
        self.position = source.position
