import numpy as np
import pytest
from numpy.typing import NDArray

from dtrain.vision.data.augment import Augment, crop_padding

POSITIONS = np.arange(400)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(1, 256, (400, 3, 16, 16), dtype=np.uint8)  # never black


def augmented(augment: Augment, images: NDArray[np.uint8], positions: NDArray[np.int64] = POSITIONS, epoch: int = 0):
    return augment(images, seed=3, epoch=epoch, positions=positions)


def test_every_image_is_a_crop_of_the_padded_original_perhaps_mirrored(images: NDArray[np.uint8]) -> None:
    results = augmented(Augment(flip=True, crop_padding=2), images)
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    found = set()
    for i, result in enumerate(results):
        matches = [
            (top, left, mirror)
            for top in range(5)
            for left in range(5)
            for mirror in (False, True)
            if (padded[i, :, top : top + 16, left : left + 16][..., :: -1 if mirror else 1] == result).all()
        ]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) == 50  # 400 images reach all 5 x 5 offsets, mirrored and not


def test_half_of_the_images_are_mirrored_and_none_without_flip(images: NDArray[np.uint8]) -> None:
    flipped = augmented(Augment(flip=True, crop_padding=0), images)
    mirrored = (flipped == images[..., ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == images).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    assert (augmented(Augment(flip=False, crop_padding=0), images) == images).all()


def test_an_image_is_augmented_alike_in_any_batch(images: NDArray[np.uint8]) -> None:
    augment = Augment(flip=True, crop_padding=2)
    part = np.array([17, 399, 4])
    assert (augmented(augment, images[part], part) == augmented(augment, images)[part]).all()


def test_another_epoch_augments_differently(images: NDArray[np.uint8]) -> None:
    augment = Augment(flip=True, crop_padding=2)
    assert (augmented(augment, images, epoch=1) != augmented(augment, images, epoch=0)).any()


def test_the_input_is_left_alone_and_an_empty_batch_stays_empty(images: NDArray[np.uint8]) -> None:
    before = images.copy()
    augment = Augment(flip=True, crop_padding=2)
    augmented(augment, images)
    assert (images == before).all()
    assert augmented(augment, images[:0], POSITIONS[:0]).shape == (0, 3, 16, 16)


def test_padding_is_four_pixels_at_cifar_size() -> None:
    assert crop_padding(32) == 4
