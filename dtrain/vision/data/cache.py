"""Decode a small data set once: decoded pixels are kept in memory from the first time that an image is read.

What is kept is what decoding gave, before augmentation, so epochs see the same bits with and without the cache.
It is all or nothing: a cache of part of a large data set costs the same memory and saves little.
"""

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.dataset import Source


def cached(source: Source, *, image_size: int, cache_bytes: int) -> Source:
    """`source` with its pixels kept in memory if all fit into `cache_bytes` (per process), else `source` itself."""
    if len(source.labels) * 3 * image_size**2 > cache_bytes:
        return source
    return CachedSource(source, image_size)


class CachedSource:
    """A source that reads every image of the inner one at most once, or twice if two threads ask for it at once."""

    def __init__(self, inner: Source, image_size: int) -> None:
        self._inner = inner
        self._images = np.empty(
            (len(inner.labels), 3, image_size, image_size), np.uint8
        )  # the OS commits it as it fills
        self._filled = np.zeros(len(inner.labels), np.bool_)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._inner.labels

    def read_images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        missing = indices[~self._filled[indices]]
        if missing.size:
            self._images[missing] = self._inner.read_images(missing)
            self._filled[missing] = True  # only now: another thread may look
        return self._images[indices]
