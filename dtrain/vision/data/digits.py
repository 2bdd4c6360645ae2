"""The 1797 handwritten digits of 8x8 pixels: a real data set that ships with the package and trains in seconds.

Origin: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licensed under CC BY 4.0. digits.npz holds the repository's test part in the order in
which scikit-learn's `load_digits` gives it: `images` uint8 (1797, 8, 8) with values 0..16, `labels` uint8 (1797,).
Nothing else was changed.
"""

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.augment import Augment, crop_padding
from dtrain.vision.data.dataset import ArraySource, Dataset, Split
from dtrain.vision.data.image import resize_batch
from dtrain.vision.data.random_bits import Stream, random_bits

_NUM_IMAGES = 1797
_TEST_FRACTION = 0.2
# Over the pixels of the training images at 32x32 (upscaling smooths: std is 0.376 at 8x8), scaled to 0..1.
_MEAN = 0.3045
_STD = 0.3234


def open_digits(*, split: Split, image_size: int) -> Dataset:
    """1438 training or 359 test digits, 0..16 scaled to 0..255, upscaled bilinearly, grey in three channels.

    The split is stratified and fixed: a fifth of each class, rounded, is test, whatever the seed of the run.
    Augmentation moves digits by up to an eighth of the image and never mirrors them.
    """
    with (files("dtrain.vision.data") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        levels, labels = arrays["images"], arrays["labels"].astype(np.int64)
    assert levels.shape == (_NUM_IMAGES, 8, 8) and labels.shape == (_NUM_IMAGES,)
    chosen = np.flatnonzero(_is_test(labels) == (split == "test"))
    grey = (levels[chosen, None].astype(np.uint16) * 255 // 16).astype(np.uint8)
    return Dataset(
        name="digits",
        split=split,
        classes=tuple("0123456789"),
        image_size=image_size,
        mean=(_MEAN, _MEAN, _MEAN),
        std=(_STD, _STD, _STD),
        augmentation=Augment(flip=False, crop_padding=crop_padding(image_size)),
        source=ArraySource(resize_batch(grey, image_size), labels[chosen], image_size),
    )


def _is_test(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    test = np.zeros(len(labels), np.bool_)
    order = np.argsort(random_bits(Stream.SPLIT, positions=np.arange(len(labels))), kind="stable")
    for label in range(10):
        of_class = order[labels[order] == label]
        test[of_class[: round(_TEST_FRACTION * len(of_class))]] = True
    return test
