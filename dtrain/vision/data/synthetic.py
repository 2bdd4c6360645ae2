"""Images of any size and number, made from a seed: for measuring exchange at ImageNet's sizes without ImageNet.

Every class has a prototype of 4x4 coloured cells; an image is the mean of its class's prototype and of noise that
belongs to the image alone. The task can be learnt, and nothing is stored: each pixel is a hash of its place.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.augment import Augment, crop_padding
from dtrain.vision.data.dataset import Dataset, Split
from dtrain.vision.data.random_bits import Stream, random_bits

_CELLS = 4
_MOST_CLASSES, _MOST_IMAGES = 1 << 20, 1 << 26
# The mean of two independent uniform values in 0..1 has mean 1/2 and standard deviation 1/sqrt(24).
_MEAN = 0.5
_STD = 0.204


def open_synthetic(
    *,
    split: Split,
    image_size: int,
    num_classes: int = 10,
    num_train_images: int = 1024,
    num_test_images: int = 256,
    data_seed: int = 0,
) -> Dataset:
    """Class-dependent images; image i has label i % num_classes. Both splits share prototypes and no noise.

    `data_seed` makes the data and is independent of the seed of the run.

    Raises ValueError for a count below 1, or beyond what memory is for.
    """
    for option, count, most in (
        ("num_classes", num_classes, _MOST_CLASSES),
        ("num_train_images", num_train_images, _MOST_IMAGES),
        ("num_test_images", num_test_images, _MOST_IMAGES),
    ):
        if not 1 <= count <= most:
            raise ValueError(f"synthetic: {option} is {count}; it must be at least 1, and at most {most:,}")
    num_images = num_train_images if split == "train" else num_test_images
    cells = _random_bytes((num_classes, 3, _CELLS, _CELLS), Stream.PROTOTYPE, data_seed)
    return Dataset(
        name="synthetic",
        split=split,
        classes=tuple(f"class_{label}" for label in range(num_classes)),
        image_size=image_size,
        mean=(_MEAN, _MEAN, _MEAN),
        std=(_STD, _STD, _STD),
        augmentation=Augment(flip=False, crop_padding=crop_padding(image_size)),
        source=SyntheticSource(
            labels=np.arange(num_images) % num_classes,
            prototypes=cells,
            image_size=image_size,
            noise_key=(data_seed, 0 if split == "train" else 1),
        ),
    )


@dataclass(frozen=True, eq=False)
class SyntheticSource:
    """Generates images as they are read; see the module's docstring."""

    labels: NDArray[np.int64]
    prototypes: NDArray[np.uint8]  # (num_classes, 3, 4, 4)
    image_size: int
    noise_key: tuple[int, int]

    def read_images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        num_pixels = 3 * self.image_size**2
        words_per_image = -(-num_pixels // 8)
        positions = indices[:, None] * words_per_image + np.arange(words_per_image)
        noise = random_bits(Stream.NOISE, *self.noise_key, positions=positions).astype("<u8").view(np.uint8)
        noise = noise[:, :num_pixels].reshape(-1, 3, self.image_size, self.image_size)
        cell = np.arange(self.image_size) * _CELLS // self.image_size
        prototypes = self.prototypes[self.labels[indices]][:, :, cell[:, None], cell]
        return (prototypes >> 1) + (noise >> 1)


def _random_bytes(shape: tuple[int, ...], stream: Stream, *key: int) -> NDArray[np.uint8]:
    bits = random_bits(stream, *key, positions=np.arange(int(np.prod(shape))))
    return (bits & np.uint64(0xFF)).astype(np.uint8).reshape(shape)
