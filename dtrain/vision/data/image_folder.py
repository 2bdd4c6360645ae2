"""Any tree of class folders as a data set: the layout in which most people already have their images.

Two layouts are understood. `root/train/<class>/...` with `root/test/<class>/...` is taken as it is; the folders may be
called `training`, `testing`, `val`, `valid` or `validation`, in any case, and of a test and a validation folder the
first is evaluated. `root/<class>/...` alone is split: with the files of a class sorted by path, every fifth is test.
That is deterministic, stratified, and leaves a fifth for test, provided that a class has five images. Labels number the
class names in sorted order; class folders may have folders inside. Hidden files and files without an image's suffix are
ignored.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.augment import Augment, crop_padding
from dtrain.vision.data.cache import cached
from dtrain.vision.data.dataset import Dataset, Split
from dtrain.vision.data.image import read_image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The customary statistics of ImageNet's training images, RGB, scaled to 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TEST_EVERY = 5
_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VALIDATION = ("val", "valid", "validation")


def open_image_folder(
    *,
    split: Split,
    image_size: int,
    root: Path,
    shorter_side: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    flip: bool = True,
    cache_bytes: int = 2**30,
) -> Dataset:
    """The images below `root`, shorter side scaled to `shorter_side` (`image_size` if None), then cropped centrally.

    `flip` says whether augmentation may mirror images. Decoded images are kept in memory, per process, if all of the
    split's fit into `cache_bytes`. Files are opened when read: a broken one raises ValueError that names it then.
    Raises FileNotFoundError for a missing folder and ValueError for one without classes or images.
    """
    shorter_side = image_size if shorter_side is None else shorter_side
    if shorter_side < image_size:
        raise ValueError(f"image_folder: shorter_side is {shorter_side}; it must be at least image_size, {image_size}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"image_folder: mean and std need three values each, std above 0; got {mean} and {std}")
    classes, paths = find_images(root, split)
    source = FolderSource(
        paths=tuple(path for of_class in paths for path in of_class),
        labels=np.repeat(np.arange(len(classes)), [len(of_class) for of_class in paths]),
        image_size=image_size,
        shorter_side=shorter_side,
    )
    return Dataset(
        name="image_folder",
        split=split,
        classes=classes,
        image_size=image_size,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        augmentation=Augment(flip=flip, crop_padding=crop_padding(image_size)),
        source=cached(source, image_size=image_size, cache_bytes=cache_bytes),
    )


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Decodes image files as they are read. `paths` are strings because a million Path objects are heavy."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    image_size: int
    shorter_side: int

    def read_images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(indices), 3, self.image_size, self.image_size), np.uint8)
        for i, index in enumerate(indices):
            images[i] = read_image(Path(self.paths[index]), self.image_size, self.shorter_side)
        return images


def find_images(root: Path, split: Split) -> tuple[tuple[str, ...], list[list[str]]]:
    """Class names in sorted order and, for each, the sorted paths of its images of `split`; nothing is opened."""
    if not root.is_dir():
        raise FileNotFoundError(f"image_folder: there is no folder {root}; set root to a folder of class folders")
    if _has_split_folders(root):
        return _find_in_split_folder(root, split)
    classes = _class_names(root)
    paths = _find_in_classes(root, classes, empty_allowed=False)
    tested = [[path for i, path in enumerate(of_class, 1) if i % _TEST_EVERY == 0] for of_class in paths]
    if split == "test":
        if not any(tested):
            raise ValueError(
                f"image_folder: no class in {root} has the {_TEST_EVERY} images of which one would be kept for test; "
                "add images, or make root/train and root/test yourself"
            )
        return classes, tested
    return classes, [sorted(set(of_class) - set(test)) for of_class, test in zip(paths, tested, strict=True)]


def _has_split_folders(root: Path) -> bool:
    """Whether folders below `root` are splits. A class may be called "train": alone, and without folders inside.

    Raises ValueError where they look like splits under names that are not known.
    """
    train, held_out = _split_folder(root, _TRAIN), _held_out(root)
    if train is not None and held_out is not None:
        return True
    if any(folder is not None and _folders(folder) for folder in (train, held_out)):
        return True
    nested = [name for name in _folders(root) if _folders(root / name) and not _holds_images(root / name)]
    alike = [[name for name in nested if words & _words(name)] for words in (set(_TRAIN), {*_TEST, *_VALIDATION})]
    if all(alike):
        listed = ", ".join(sorted({*alike[0], *alike[1]}))
        raise ValueError(
            f"image_folder: {listed} in {root} look like splits, not like classes; rename them to train and test, or "
            "put the images right into the folder of their class"
        )
    return False


def _split_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder below `root` that has one of these names, in any case. Raises ValueError if there are several."""
    found = [root / name for name in _folders(root) if name.lower() in names]
    if len(found) > 1:
        listed = ", ".join(folder.name for folder in found)
        raise ValueError(
            f"image_folder: {root} has {listed}, of which only one can be meant; rename or remove the other"
        )
    return found[0] if found else None


def _held_out(root: Path) -> Path | None:
    return _split_folder(root, _TEST) or _split_folder(root, _VALIDATION)


def _words(name: str) -> set[str]:
    """Of train2017 and trainset: train."""
    return {word.removesuffix("set") for word in re.split(r"[^a-z]+", name.lower())}


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(SUFFIXES) for entry in entries)


def _find_in_split_folder(root: Path, split: Split) -> tuple[tuple[str, ...], list[list[str]]]:
    train = _split_folder(root, _TRAIN)
    folder = train if split == "train" else _held_out(root)
    if folder is None:
        raise FileNotFoundError(
            f"image_folder: {root} has no folder {'train' if split == 'train' else 'test or val'} "
            f"beside {', '.join(_folders(root))}; make one with the same class folders inside"
        )
    classes = _class_names(train or folder)
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise ValueError(f"image_folder: {folder} has classes that {train} has not: {', '.join(unknown)}")
    paths = _find_in_classes(folder, classes, empty_allowed=split == "test")
    if not any(paths):
        raise ValueError(f"image_folder: there are no images in {folder}; known suffixes: {_known_suffixes()}")
    return classes, paths


def _find_in_classes(folder: Path, classes: tuple[str, ...], *, empty_allowed: bool) -> list[list[str]]:
    paths = [_images_below(folder / name) for name in classes]
    for name, of_class in zip(classes, paths, strict=True):
        if not of_class and not empty_allowed:
            raise ValueError(
                f"image_folder: there are no images in class folder {folder / name}; add some or remove the folder "
                f"(known suffixes: {_known_suffixes()})"
            )
    return paths


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(_folders(folder))
    if not names:
        raise ValueError(
            f"image_folder: there are no class folders in {folder}; "
            "put the images of each class into a folder of its own, named after it"
        )
    return names


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images_below(folder: Path) -> list[str]:
    return sorted(
        f"{parent}/{name}"
        for parent, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and name.lower().endswith(SUFFIXES)
    )


def _known_suffixes() -> str:
    return " ".join(SUFFIXES)
