"""What every data set looks like to the rest of dtrain: uint8 images by a list of indices, and the facts about them.

A source produces images; a Dataset adds what training must know about them. Batches are read whole because one fancy
index over an array costs less than a Python call per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.augment import Augment
from dtrain.vision.data.image import resize_batch

Split = Literal["train", "test"]


class Source(Protocol):
    """Where images come from. Reading must be thread-safe and give the same pixels every time."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every image, int64 (len,)."""
        ...

    def read_images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A new uint8 array (N, 3, image_size, image_size) with the images of `indices` (N,), N >= 0."""
        ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set: square RGB images with integer labels."""

    name: str
    split: Split
    classes: tuple[str, ...]  # names by label
    image_size: int  # height and width, pixels
    mean: tuple[float, float, float]  # per channel, of pixels scaled to 0..1
    std: tuple[float, float, float]
    augmentation: Augment  # what "augment" means for these images
    source: Source

    def __post_init__(self) -> None:
        assert len(self.source.labels) > 0, "an opener refuses an empty data set"
        assert 0 <= self.source.labels.min() <= self.source.labels.max() < len(self.classes)

    def __len__(self) -> int:
        return len(self.source.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images, uint8 (N, 3, image_size, image_size), and labels, int64 (N,), in the order of `indices`.

        Raises ValueError that names the file if an image cannot be read.
        """
        index = np.asarray(indices, dtype=np.int64)
        return self.source.read_images(index), self.source.labels[index]

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(images / 255 - mean) / std per channel, float32 (N, 3, H, W)."""
        std = np.array(self.std).reshape(1, 3, 1, 1)
        scaled = images.astype(np.float32)
        scaled *= (1 / (255 * std)).astype(np.float32)
        scaled -= (np.array(self.mean).reshape(1, 3, 1, 1) / std).astype(np.float32)
        return scaled


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images held in memory: uint8 (len, C, H, H), C = 1 (repeated into RGB) or 3, resized as they are read."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    image_size: int

    def read_images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = resize_batch(self.images[indices], self.image_size)
        return np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images
