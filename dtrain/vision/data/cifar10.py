"""CIFAR-10 from its official binary archive, whose format is plain records: nothing to unpickle.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html:
50,000 training and 10,000 test images of 32x32 in 10 classes. A record is one byte of label and 3072 bytes of pixels,
channel by channel (red, green, blue), row by row; a file is 10,000 records.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.archive import Archive, unpacked
from dtrain.vision.data.augment import Augment, crop_padding
from dtrain.vision.data.dataset import ArraySource, Dataset, Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Over the pixels of the 50,000 training images, RGB, scaled to 0..1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
RECORD_BYTES = 1 + 3 * 32 * 32
FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
OFFICIAL = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    num_bytes=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    member_bytes=dict.fromkeys((*FILES["train"], *FILES["test"]), 10_000 * RECORD_BYTES),
)


def open_cifar10(
    *, split: Split, image_size: int, root: Path, download: bool = False, archive: Archive = OFFICIAL
) -> Dataset:
    """CIFAR-10 below `root`: a folder that holds cifar-10-batches-bin or the archive (or is to hold the download).

    The archive is unpacked beside itself. Images are held in memory at 32x32 (154 MB for train) and resized bilinearly
    when read. Augmentation mirrors and moves by up to an eighth of the image. Raises what `unpacked` raises, and
    ValueError for files of the wrong size or content.
    """
    folder = unpacked(archive, root, download=download)
    records = np.concatenate([_read_records(folder / name, archive.member_bytes[name]) for name in FILES[split]])
    return Dataset(
        name="cifar10",
        split=split,
        classes=CLASSES,
        image_size=image_size,
        mean=MEAN,
        std=STD,
        augmentation=Augment(flip=True, crop_padding=crop_padding(image_size)),
        source=ArraySource(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64), image_size),
    )


def _read_records(path: Path, num_bytes: int) -> NDArray[np.uint8]:
    cure = f"delete {path.parent} and unpack the archive again"
    if not path.is_file():
        raise FileNotFoundError(f"cifar10: there is no {path}; {cure}")
    if path.stat().st_size != num_bytes:
        raise ValueError(f"cifar10: {path} has {path.stat().st_size} bytes instead of {num_bytes}; {cure}")
    records = np.fromfile(path, np.uint8).reshape(-1, RECORD_BYTES)
    if records[:, 0].max() >= len(CLASSES):
        raise ValueError(f"cifar10: {path} holds label {records[:, 0].max()}, above 9; {cure}")
    return records
