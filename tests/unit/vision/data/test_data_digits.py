import numpy as np
import pytest
from PIL import Image

from dtrain.vision.data import open_dataset


def whole(split, image_size: int = 8):
    dataset = open_dataset("digits", split=split, image_size=image_size)
    return dataset.read(range(len(dataset)))


def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
    return sorted((int(label), *image.ravel().tolist()) for image, label in zip(images, labels, strict=True))


def test_both_splits_together_are_scikit_learns_digits() -> None:
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn, the origin of digits.npz, is not installed"
    )
    origin = datasets.load_digits()
    (train_images, train_labels), (test_images, test_labels) = whole("train"), whole("test")
    images = np.concatenate([train_images, test_images])
    expected = (origin.images.astype(np.int64) * 255 // 16).astype(np.uint8)
    assert (images[:, :1] == images).all()  # grey in three channels
    assert rows(images[:, 0], np.concatenate([train_labels, test_labels])) == rows(expected, origin.target)


def test_the_split_is_fixed_and_holds_a_fifth_of_every_class() -> None:
    train, test = np.bincount(whole("train")[1]), np.bincount(whole("test")[1])
    assert (len(train), len(test)) == (10, 10)
    assert (train.sum(), test.sum()) == (1438, 359)
    assert np.abs(test / (train + test) - 0.2).max() < 0.003
    assert whole("test")[1][:8].tolist() == [0, 4, 7, 9, 5, 6, 9, 8]


def test_digits_are_upscaled_bilinearly_to_any_size() -> None:
    small, large = whole("test")[0], whole("test", image_size=32)[0]
    assert large.shape == (359, 3, 32, 32)
    assert large.dtype == np.uint8
    expected = np.asarray(Image.fromarray(small[5, 0]).resize((32, 32), Image.Resampling.BILINEAR))
    assert (large[5] == expected).all()


def test_the_documented_statistics_are_those_of_the_training_images_at_32() -> None:
    dataset = open_dataset("digits", split="train", image_size=32)
    pixels = whole("train", image_size=32)[0] / 255
    assert dataset.mean == pytest.approx((pixels.mean(),) * 3, abs=1e-4)
    assert dataset.std == pytest.approx((pixels.std(),) * 3, abs=1e-4)


def test_digits_are_never_mirrored() -> None:
    assert not open_dataset("digits", split="train", image_size=32).augmentation.flip
