"""Which images each rank sees, and when: the part of data parallelism that must never lose or repeat an image.

An epoch is one permutation of the training set, the same on every rank, cut into global batches of
`batch_size * world_size` images; rank r takes the r-th contiguous part of every global batch. So the global batch of a
step does not depend on the world size as long as the global batch size is the same: 2 ranks x 16 train on the
images that 1 rank x 32 trains on, in the same order.

A global batch is named by where in the order it starts, not by its number: so an epoch that was begun by some number of
workers is continued by another, from the image where it was.

The last global batch holds what is left. It is divided as evenly as it goes, which keeps three promises at
once: no image is dropped, none is repeated, and every rank takes the same number of steps (each step is a
collective). The price is that ranks may hold unequal parts of it, even none when fewer images than ranks are left. So a
rank's loss must be *summed* over its images and divided by the size of the global batch (`Share.global_size`); the
sum over ranks is then the mean over the global batch, and an empty part adds exact zeros to the exchange.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.vision.data.random_bits import Stream, random_bits


@dataclass(frozen=True)
class Share:
    """One rank's part of one global batch: positions start..stop-1 of the epoch's order."""

    start: int
    stop: int
    global_size: int  # images in the whole global batch, over all ranks


def check_rank(rank: int, world_size: int) -> None:
    """ValueError unless 0 <= rank < world_size."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside world_size {world_size}: ranks are 0 to world_size - 1")


def check_batch_size(batch_size: int) -> None:
    """ValueError unless batch_size >= 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give at least 1 image per rank")


def epoch_order(num_images: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of 0..num_images-1, int64, in which an epoch visits the training set; the same on all ranks."""
    bits = random_bits(Stream.SHUFFLE, seed, epoch, positions=np.arange(num_images))
    return np.argsort(bits, kind="stable")


def steps_per_epoch(num_images: int, *, global_batch_size: int) -> int:
    """Steps that every rank takes in an epoch. The last step may be a smaller one."""
    return -(-num_images // global_batch_size)


def train_share(start: int, *, end: int, global_batch_size: int, rank: int, world_size: int) -> Share:
    """What `rank` takes of the global batch from position `start` on: an even part.

    `end` is where the epoch, or this part of it, ends: 0 <= start < end.
    """
    assert 0 <= start < end, f"position {start} is not before {end}"
    global_size = min(global_batch_size, end - start)
    return Share(
        start=start + rank * global_size // world_size,
        stop=start + (rank + 1) * global_size // world_size,
        global_size=global_size,
    )


def eval_range(num_images: int, *, rank: int, world_size: int) -> range:
    """The images that `rank` evaluates: contiguous, every image at exactly one rank, sizes at most 1 apart."""
    return range(rank * num_images // world_size, (rank + 1) * num_images // world_size)
