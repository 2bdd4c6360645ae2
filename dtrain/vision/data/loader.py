"""Batches in order, built ahead of the training loop by threads.

Threads and not worker processes: the process has a gloo group with threads of its own, which a fork would copy in
an unknown state; Pillow and numpy release the GIL where the time goes; an error arrives as it was raised; and Ctrl-C
has no children to find. The threads call numpy only, because torch would give each of them a pool of OpenMP threads.
What a batch contains depends on its place in the epoch alone, so the number of threads never changes a result.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from dtrain.vision.data.dataset import Dataset
from dtrain.vision.data.sharding import (
    Share,
    check_batch_size,
    check_rank,
    epoch_order,
    eval_range,
    steps_per_epoch,
    train_share,
)

T = TypeVar("T")
_BATCHES_PER_WORKER = 2  # ready or being built: one in hand while the next is made


@dataclass(frozen=True, eq=False)
class Batch:
    """What one rank trains on, or evaluates, in one step.

    In training `global_size` counts the images of the step over all ranks. A rank's part may be smaller than others',
    even empty, in the last step of an epoch: so divide the *sum* of the losses by `global_size`, and the sum over
    ranks is the mean over the global batch. In evaluation `global_size` is just this batch's number of images.
    """

    images: torch.Tensor  # float32 (N, 3, H, W), normalised
    labels: torch.Tensor  # int64 (N,)
    global_size: int


@dataclass(frozen=True, eq=False)
class TrainLoader:
    """The training batches of one rank, epoch by epoch; made by `train_loader`."""

    dataset: Dataset
    batch_size: int  # per rank, and what one may take through the model at once
    global_batch_size: int  # images of a step over all ranks, but for the last of an epoch
    rank: int
    world_size: int
    seed: int
    augment: bool
    num_workers: int

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank."""
        return steps_per_epoch(len(self.dataset), global_batch_size=self.global_batch_size)

    @property
    def num_samples(self) -> int:
        """Of an epoch, over all ranks."""
        return len(self.dataset)

    @property
    def num_parts(self) -> int:
        """In how many parts a rank takes its share of a step, none of them larger than `batch_size`."""
        return -(-self.global_batch_size // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, start: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches of an epoch from the image at position `start` to the one before `end` (None: to its end).

        Positions are those of the epoch's order, which all numbers of workers share; nothing is read before `start`.
        Depends on (seed, epoch, start, end, rank, world_size, global_batch_size) only. Close the iterator, or drop it,
        to stop early. Raises ValueError for positions outside the epoch; iterating raises it for an unreadable image.
        """
        num_images = len(self.dataset)
        end = num_images if end is None else end
        if not 0 <= start <= end <= num_images:
            raise ValueError(f"positions {start} to {end} are not within an epoch of {num_images} images")
        order = epoch_order(num_images, seed=self.seed, epoch=epoch)

        def build(share: Share) -> Batch:
            images, labels = self.dataset.read(order[share.start : share.stop])
            if self.augment:
                positions = np.arange(share.start, share.stop)
                images = self.dataset.augmentation(images, seed=self.seed, epoch=epoch, positions=positions)
            return Batch(torch.from_numpy(self.dataset.normalize(images)), torch.from_numpy(labels), share.global_size)

        size = self.global_batch_size
        shares = (
            train_share(position, end=end, global_batch_size=size, rank=self.rank, world_size=self.world_size)
            for position in range(start, end, size)
        )
        return _in_order(build, shares, self.num_workers)


def train_loader(
    dataset: Dataset, *, batch_size: int, rank: int, world_size: int, seed: int, augment: bool, num_workers: int
) -> TrainLoader:
    """A rank's view of the training set. `batch_size` is per rank; `num_workers` is threads, 0 builds in the caller.

    `augment` applies the data set's own augmentation. Raises ValueError for sizes that make no sense.
    """
    check_batch_size(batch_size)
    check_rank(rank, world_size)
    _check_num_workers(num_workers)
    return TrainLoader(dataset, batch_size, batch_size * world_size, rank, world_size, seed, augment, num_workers)


def eval_batches(
    dataset: Dataset, *, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> Iterator[Batch]:
    """A rank's part of the data set in order, not augmented: over all ranks, every image exactly once.

    Ranks may have different numbers of batches, or none: put no collective inside the loop. Errors as `train_loader`.
    """
    check_batch_size(batch_size)
    check_rank(rank, world_size)
    _check_num_workers(num_workers)
    mine = eval_range(len(dataset), rank=rank, world_size=world_size)

    def build(indices: range) -> Batch:
        images, labels = dataset.read(indices)
        return Batch(torch.from_numpy(dataset.normalize(images)), torch.from_numpy(labels), len(indices))

    return _in_order(build, (mine[i : i + batch_size] for i in range(0, len(mine), batch_size)), num_workers)


def _in_order(build: Callable[[T], Batch], jobs: Iterable[T], num_workers: int) -> Iterator[Batch]:
    """build(job) for every job, in order, up to two batches per worker ahead of the consumer."""
    if num_workers == 0:
        yield from map(build, jobs)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="dtrain-data")
    pending: deque[Future[Batch]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(build, job))
            if len(pending) == num_workers * _BATCHES_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also on Ctrl-C, on an error in a batch, and when the consumer stops early
        pool.shutdown(wait=True, cancel_futures=True)


def _check_num_workers(num_workers: int) -> None:
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; give 0 to load in the training process, or more for threads")
