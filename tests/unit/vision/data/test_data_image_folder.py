from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dtrain.vision.data import open_dataset
from dtrain.vision.data.cache import CachedSource


def write(path: Path, colour: int = 128, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour, colour)).save(path)
    return path


def opened(root: Path, split="train", image_size: int = 8, **options):
    return open_dataset("image_folder", split=split, image_size=image_size, root=root, **options)


def images_of(dataset) -> NDArray[np.uint8]:
    return dataset.read(range(len(dataset)))[0]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two classes, ten files each, file i of class c all of grey 100*c + i."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(10):
            write(tmp_path / name / f"{i}.png", 100 * label + i)
    return tmp_path


def test_class_folders_alone_are_split_with_every_fifth_file_for_test(flat: Path) -> None:
    train, test = opened(flat), opened(flat, "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert images_of(test)[:, 0, 0, 0].tolist() == [4, 9, 104, 109]
    assert test.read(range(4))[1].tolist() == [0, 0, 1, 1]
    assert images_of(train)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 100, 101, 102, 103, 105, 106, 107, 108]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_are_taken_as_they_are(tmp_path: Path, held_out: str) -> None:
    write(tmp_path / "train" / "a" / "1.png", 1)
    write(tmp_path / "train" / "b" / "deeper" / "2.png", 2)
    write(tmp_path / held_out / "b" / "3.png", 3)
    assert images_of(opened(tmp_path))[:, 0, 0, 0].tolist() == [1, 2]
    test = opened(tmp_path, "test")
    assert test.classes == ("a", "b")
    assert test.read([0])[1].tolist() == [1]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("training", "validation"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("Training", "testing"),
        ("train", "valid"),
    ],
)
def test_splits_are_known_by_their_customary_names_in_any_case(tmp_path: Path, train: str, held_out: str) -> None:
    """Taken for two classes, a network tells them apart perfectly, and has learned nothing."""
    write(tmp_path / train / "a" / "1.png", 1)
    write(tmp_path / train / "b" / "2.png", 2)
    write(tmp_path / held_out / "b" / "3.png", 3)
    assert opened(tmp_path).classes == ("a", "b")
    assert images_of(opened(tmp_path))[:, 0, 0, 0].tolist() == [1, 2]
    assert images_of(opened(tmp_path, "test"))[:, 0, 0, 0].tolist() == [3]


def test_of_a_test_and_a_validation_folder_the_first_is_evaluated(tmp_path: Path) -> None:
    for number, name in enumerate(("Training", "Validation", "Test")):
        write(tmp_path / name / "a" / "1.png", number)
    assert images_of(opened(tmp_path, "test"))[:, 0, 0, 0].tolist() == [2]


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("Train", "training", "test"):
        write(tmp_path / name / "a" / "1.png")
    with pytest.raises(ValueError, match="has Train, training, of which only one can be meant"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("train2017", "val2017"), ("train_images", "test_images"), ("my-training", "x.valid"), ("TrainSet", "testset")],
)
def test_folders_that_look_like_splits_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        for i in range(5):
            write(tmp_path / name / "a" / f"{i}.png")
    for split in ("train", "test"):
        with pytest.raises(
            ValueError, match=rf"{', '.join(sorted(names))} in .* look like splits.*rename them to train"
        ):
            opened(tmp_path, split)


def test_classes_that_only_sound_like_splits_are_classes(tmp_path: Path) -> None:
    names = ("test_tube", "train_station", "trains")
    for name in names:
        for i in range(5):
            write(tmp_path / name / f"{i}.png")
    (tmp_path / "train_station" / "2019").mkdir()
    write(tmp_path / "test_tube" / "2019" / "1.png")
    assert opened(tmp_path).classes == names


def test_a_val_folder_alone_can_be_evaluated_but_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a" / "1.png")
    assert len(opened(tmp_path, "test")) == 1
    with pytest.raises(FileNotFoundError, match="no folder train"):
        opened(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("boat", "train"):
        for i in range(5):
            write(tmp_path / name / f"{i}.png")
    assert opened(tmp_path).classes == ("boat", "train")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1", "I;16"])
def test_every_pixel_format_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 200 * 256 + 7, np.uint16))
        expected = 200
    else:
        image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
        expected = 255
    path = tmp_path / "a" / ("1.tiff" if mode == "CMYK" else "1.png")
    path.parent.mkdir()
    image.save(path)
    write(tmp_path / "a" / "2.png")
    images = images_of(opened(tmp_path))
    assert images.shape == (2, 3, 8, 8)
    assert (images[0] == expected).all()


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert("P")
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "1.png", transparency=bytes(range(256)))
    assert (images_of(opened(tmp_path))[0, 0] == 255).all()


def test_an_image_is_scaled_by_its_shorter_side_and_cropped_centrally(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 48, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    scaled = Image.fromarray(pixels).resize((24, 8), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled)[:, 8:16].transpose(2, 0, 1)
    assert (images_of(opened(tmp_path))[0] == expected).all()
    scaled = Image.fromarray(pixels).resize((36, 12), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled)[2:10, 14:22].transpose(2, 0, 1)
    cropped = images_of(opened(tmp_path, shorter_side=12))[0]
    assert np.abs(cropped.astype(int) - expected).max() <= 1  # the fixed-point coefficients of a crop round apart


def test_a_shorter_side_above_the_image_size_makes_a_plain_central_crop(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    image = images_of(opened(tmp_path, image_size=11, shorter_side=16))[0]
    assert (image == pixels[2:13, 2:13].transpose(2, 0, 1)).all()


def test_a_long_thin_image_does_not_blow_up_memory(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", size=(60_000, 1))
    assert images_of(opened(tmp_path, image_size=224)).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0truncated"])
def test_an_unreadable_file_is_an_error_that_names_it(flat: Path, content: bytes) -> None:
    (flat / "cat" / "3.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cat/3\.png as an image .*replace or remove"):
        images_of(opened(flat))


def test_a_truncated_file_is_an_error_that_names_it(flat: Path) -> None:
    path = flat / "cat" / "0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"cat/0\.jpg"):
        images_of(opened(flat))


def test_a_decompression_bomb_is_an_error_that_names_the_file(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"cat/0\.png .*decompression bomb"):
        images_of(opened(flat))


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a" / "1.tiff")
    with pytest.raises(ValueError, match="convert the file to 8 bits"):
        images_of(opened(tmp_path))


def test_other_files_and_hidden_ones_are_ignored(flat: Path) -> None:
    for name in ("cat/notes.txt", "cat/.hidden.png", "cat/Thumbs.db", "README.md"):
        (flat / name).write_text("not an image")
    (flat / ".git").mkdir()
    write(flat / "dog" / "UPPER.PNG")
    assert len(opened(flat)) + len(opened(flat, "test")) == 21
    assert opened(flat).classes == ("cat", "dog")


def test_what_is_missing_is_named_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; set root"):
        opened(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no class folders in"):
        opened(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"no images in class folder .*cat; add some or remove"):
        opened(tmp_path)
    write(tmp_path / "cat" / "1.png")
    with pytest.raises(ValueError, match="make root/train and root/test yourself"):
        opened(tmp_path, "test")


def test_a_split_folder_is_held_to_its_training_classes(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.png")
    write(tmp_path / "test" / "b" / "1.png")
    with pytest.raises(ValueError, match=r"has classes that .* has not: b"):
        opened(tmp_path, "test")
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "a")
    (tmp_path / "test" / "a" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"no images in .*test"):
        opened(tmp_path, "test")


def test_train_and_test_folders_of_bare_images_are_not_taken_for_two_classes(tmp_path: Path) -> None:
    write(tmp_path / "train" / "1.png")
    write(tmp_path / "test" / "1.png")
    with pytest.raises(ValueError, match=r"no class folders in .*train"):
        opened(tmp_path)


def test_the_cache_changes_no_pixel_and_reads_every_file_once(flat: Path) -> None:
    uncached = opened(flat, cache_bytes=0)
    expected = images_of(uncached)
    cached = opened(flat, cache_bytes=16 * 3 * 8 * 8)
    assert isinstance(cached.source, CachedSource)
    assert (cached.read([3, 5])[0] == expected[[3, 5]]).all()
    assert (images_of(cached) == expected).all()
    for path in flat.rglob("*.png"):
        path.unlink()
    assert (cached.read([15, 0, 0])[0] == expected[[15, 0, 0]]).all()
    assert not isinstance(opened_source_of_one_byte_less(flat), CachedSource)


def opened_source_of_one_byte_less(root: Path):
    for i in range(5):
        write(root / "cat" / f"{i}.png")
    (root / "dog").rmdir()
    return opened(root, cache_bytes=4 * 3 * 8 * 8 - 1).source


def test_options_that_make_no_sense_are_refused(flat: Path) -> None:
    with pytest.raises(ValueError, match="shorter_side is 4"):
        opened(flat, shorter_side=4)
    with pytest.raises(ValueError, match="std above 0"):
        opened(flat, std=[1, 1, 0])
    assert not opened(flat, flip=False).augmentation.flip
