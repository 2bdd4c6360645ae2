"""Labelled images for training and evaluation: data sets by name, divided between ranks, delivered as batches.

A data set gives uint8 images for a list of indices (`Dataset`); `sharding` says which indices a rank sees in which
step; `augment` changes a batch; `loader` puts them together and works ahead. To add a data set, write a function that
returns a `Dataset` and name it in `DATASETS`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from dtrain.arguments import check_name, check_options, converted
from dtrain.vision.data.cifar10 import open_cifar10
from dtrain.vision.data.dataset import Dataset, Split
from dtrain.vision.data.digits import open_digits
from dtrain.vision.data.image import read_image
from dtrain.vision.data.image_folder import SUFFIXES as IMAGE_SUFFIXES
from dtrain.vision.data.image_folder import open_image_folder
from dtrain.vision.data.loader import Batch, TrainLoader, eval_batches, train_loader
from dtrain.vision.data.synthetic import open_synthetic

__all__ = [
    "DATASETS",
    "IMAGE_SUFFIXES",
    "Batch",
    "Dataset",
    "Split",
    "TrainLoader",
    "eval_batches",
    "open_dataset",
    "read_image",
    "train_loader",
]

DATASETS: MappingProxyType[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "cifar10": open_cifar10,
        "digits": open_digits,
        "image_folder": open_image_folder,
        "synthetic": open_synthetic,
    }
)

_GIVEN = ("split", "image_size", "root")
"""What a data set's function takes that is no option of it."""


def open_dataset(
    name: str, *, split: Split, image_size: int, root: str | Path | None = None, **options: object
) -> Dataset:
    """One split of the data set called `name`, as square images of `image_size` pixels.

    `root` is the folder of a data set that lives on disk, None for the others; `options` are those of the function in
    DATASETS. Raises ValueError for an unknown name, split or option, a wrong size, and a missing or useless `root`;
    FileNotFoundError for a `root` that does not hold the data.
    """
    check_name("data set ", name, DATASETS)
    check_name("split ", split, ("train", "test"))
    if converted(int, image_size, "image_size") < 1:
        raise ValueError(f"image_size is {image_size}; it must be at least 1 pixel")
    options = check_options(f"data set {name}", DATASETS[name], options, hidden=_GIVEN)
    if "root" not in inspect.signature(DATASETS[name]).parameters:
        if root is not None:
            raise ValueError(f"data set {name} is part of dtrain and reads no folder; leave root unset")
        return DATASETS[name](split=split, image_size=image_size, **options)
    if root is None:
        raise ValueError(f"data set {name} needs a folder: set root (on the command line data.root=FOLDER)")
    folder = Path(converted(str, str(root) if isinstance(root, Path) else root, "root"))
    return DATASETS[name](split=split, image_size=image_size, root=folder.expanduser(), **options)
