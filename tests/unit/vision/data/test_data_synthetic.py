from dataclasses import replace

import numpy as np
import pytest

from dtrain.vision.data import open_dataset
from dtrain.vision.data.synthetic import SyntheticSource


def whole(split, **options):
    dataset = open_dataset("synthetic", split=split, **{"image_size": 8, **options})
    return dataset.read(range(len(dataset)))


def test_a_linear_model_learns_it_and_carries_over_to_the_test_split() -> None:
    images, labels = whole("train")
    centroids = np.stack([images[labels == label].mean(axis=0) for label in range(10)])
    test_images, test_labels = whole("test")
    distances = ((test_images[:, None].astype(float) - centroids) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == test_labels).mean() > 0.95


def test_images_repeat_bit_for_bit_and_change_with_the_data_seed() -> None:
    images, _ = whole("train")
    assert (whole("train")[0] == images).all()
    assert (whole("train", data_seed=1)[0] != images).mean() > 0.9


def test_splits_share_no_noise() -> None:
    images, test_images = whole("train", num_classes=1)[0], whole("test", num_classes=1)[0]
    assert not (test_images[:, None] == images[None, :256]).all(axis=(2, 3, 4)).any()
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_images_share_no_stretch_of_noise() -> None:
    source = open_dataset("synthetic", split="train", image_size=8).source
    assert isinstance(source, SyntheticSource)
    noise = replace(source, prototypes=np.zeros_like(source.prototypes)).read_images(np.arange(100))
    stretches = noise.reshape(-1, 8)
    assert len(np.unique(stretches, axis=0)) == len(stretches)


@pytest.mark.parametrize("image_size", [1, 3, 31, 227])
def test_any_size_and_count_can_be_made(image_size: int) -> None:
    options = {"image_size": image_size, "num_classes": 3, "num_train_images": 7, "num_test_images": 2}
    images, labels = whole("train", **options)
    assert images.shape == (7, 3, image_size, image_size)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert len(whole("test", **options)[1]) == 2


def test_an_image_does_not_depend_on_the_batch_that_it_is_read_in() -> None:
    dataset = open_dataset("synthetic", split="train", image_size=7)
    images, _ = dataset.read(range(20))
    assert (dataset.read([13, 2])[0] == images[[13, 2]]).all()


def test_the_documented_statistics_are_right() -> None:
    dataset = open_dataset("synthetic", split="train", image_size=8, num_classes=500)
    pixels = dataset.read(range(len(dataset)))[0] / 255
    assert dataset.mean[0] == pytest.approx(pixels.mean(), abs=0.01)
    assert dataset.std[0] == pytest.approx(pixels.std(), abs=0.01)


@pytest.mark.parametrize("option", ["num_classes", "num_train_images", "num_test_images"])
def test_a_count_of_zero_is_refused_by_name(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        open_dataset("synthetic", split="train", image_size=8, **{option: 0})
