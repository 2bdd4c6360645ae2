import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dtrain.vision.data import Batch, Dataset, eval_batches, open_dataset, train_loader
from dtrain.vision.data.sharding import epoch_order


def dataset_of(num_images: int, image_size: int = 8) -> Dataset:
    return open_dataset("synthetic", split="train", image_size=image_size, num_train_images=num_images)


def loader_of(dataset: Dataset, **options: object):
    defaults = {"batch_size": 8, "rank": 0, "world_size": 1, "seed": 0, "augment": True, "num_workers": 0}
    return train_loader(dataset, **{**defaults, **options})


def equal(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and one.global_size == other.global_size
    )


def all_equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(map(equal, one, other))


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dtrain-data")]


def test_batches_have_the_promised_types_and_are_normalised() -> None:
    dataset = dataset_of(64)
    loader = loader_of(dataset, batch_size=64, augment=False)
    (batch,) = loader.epoch(0)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    assert (tuple(batch.images.shape), tuple(batch.labels.shape)) == ((64, 3, 8, 8), (64,))
    assert batch.images.is_contiguous()
    images, labels = dataset.read(epoch_order(64, seed=0, epoch=0))
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (dataset.mean, dataset.std))
    expected = torch.from_numpy((images / 255 - mean) / std)
    torch.testing.assert_close(batch.images.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(batch.labels, torch.from_numpy(labels))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(num_workers: int) -> None:
    dataset = dataset_of(100)
    expected = list(loader_of(dataset).epoch(3))
    assert all_equal(list(loader_of(dataset, num_workers=num_workers).epoch(3)), expected)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_many_ranks_train_on_the_very_pixels_of_one_rank_with_the_same_global_batch(world_size: int) -> None:
    dataset = dataset_of(63)
    alone = list(loader_of(dataset, batch_size=12).epoch(1))
    by_rank = [
        list(loader_of(dataset, batch_size=12 // world_size, rank=rank, world_size=world_size).epoch(1))
        for rank in range(world_size)
    ]
    together = [
        Batch(
            torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]), parts[0].global_size
        )
        for parts in zip(*by_rank, strict=True)
    ]
    assert all_equal(together, alone)
    assert together[-1].global_size == 3


def test_epochs_and_seeds_differ_and_an_epoch_repeats() -> None:
    loader = loader_of(dataset_of(40))
    first = list(loader.epoch(0))
    assert all_equal(list(loader.epoch(0)), first)
    assert not all_equal(list(loader.epoch(1)), first)
    assert not all_equal(list(loader_of(dataset_of(40), seed=1).epoch(0)), first)


def test_a_resumed_epoch_continues_bit_for_bit_and_reads_nothing_before() -> None:
    dataset = dataset_of(50)
    whole = list(loader_of(dataset).epoch(2))
    assert loader_of(dataset).steps_per_epoch == len(whole) == 7
    read: list[int] = []

    class Watched:
        labels = dataset.source.labels

        def read_images(self, indices: np.ndarray) -> np.ndarray:
            read.extend(indices.tolist())
            return dataset.source.read_images(indices)

    watched = Dataset(**{**vars(dataset), "source": Watched()})
    assert all_equal(list(loader_of(watched).epoch(2, start=5 * 8)), whole[5:])
    assert len(read) == 50 - 5 * 8
    assert list(loader_of(watched).epoch(2, start=50)) == []
    with pytest.raises(ValueError, match="positions 51 to 50 are not within an epoch of 50 images"):
        loader_of(watched).epoch(2, start=51)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (3, 2), (1, 5)])
def test_another_number_of_workers_continues_an_epoch_without_losing_or_repeating_an_image(
    before: int, after: int
) -> None:
    def labels(world_size: int, **extent: int) -> list[int]:
        loaders = [loader_of(dataset, batch_size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
        return [label for loader in loaders for batch in loader.epoch(1, **extent) for label in batch.labels.tolist()]

    dataset = dataset_of(97)
    stopped = 3 * 4 * before
    seen = labels(before, end=stopped) + labels(after, start=stopped)
    assert sorted(seen) == sorted(labels(1))
    assert len(seen) == 97


def test_summed_losses_over_the_global_size_average_to_the_global_batch_mean_even_with_an_empty_rank() -> None:
    dataset = dataset_of(9, image_size=16)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1)
    )
    model.append(torch.nn.Flatten()).append(torch.nn.Dropout(0.0)).append(torch.nn.Linear(4, 10))

    def gradient(batch: Batch) -> torch.Tensor:
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="sum")
        (loss / batch.global_size).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    (alone,) = loader_of(dataset, batch_size=16, augment=False).epoch(0, start=0)
    expected = gradient(alone)
    last = [
        list(loader_of(dataset, batch_size=2, rank=rank, world_size=4, augment=False).epoch(0)) for rank in range(4)
    ]
    assert [len(batches[-1].labels) for batches in last] == [0, 0, 0, 1]
    assert torch.equal(gradient(last[0][-1]), torch.zeros_like(expected))
    total = sum(gradient(batches[step]) * batches[step].global_size for batches in last for step in range(2))
    torch.testing.assert_close(total / 9, expected)


def test_a_linear_model_learns_digits_through_the_loader() -> None:
    train, test = (open_dataset("digits", split=split, image_size=8) for split in ("train", "test"))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = loader_of(train, batch_size=64, augment=False, num_workers=1)
    for batch in (batch for epoch in range(5) for batch in loader.epoch(epoch)):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    correct = sum((model(batch.images).argmax(1) == batch.labels).sum() for batch in eval_batches(test, batch_size=64))
    assert correct / len(test) > 0.93


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order_over_all_ranks(num_workers: int) -> None:
    dataset = dataset_of(37)
    batches = [
        batch
        for rank in range(3)
        for batch in eval_batches(dataset, batch_size=5, rank=rank, world_size=3, num_workers=num_workers)
    ]
    images, labels = dataset.read(range(37))
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.from_numpy(dataset.normalize(images)))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), torch.from_numpy(labels))
    assert sum(batch.global_size for batch in batches) == 37


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_an_unreadable_image_stops_the_epoch_with_one_line_that_names_the_file(
    tmp_path: Path, num_workers: int
) -> None:
    (tmp_path / "a").mkdir()
    for i in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "7.png").write_bytes(b"broken")
    dataset = open_dataset("image_folder", split="train", image_size=8, root=tmp_path)
    with pytest.raises(ValueError, match=r"7\.png") as raised:
        list(loader_of(dataset, batch_size=2, num_workers=num_workers).epoch(0))
    assert "\n" not in str(raised.value)
    assert not prefetch_threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_threads_are_gone_when_the_training_loop_is_interrupted(error: type[BaseException]) -> None:
    def train() -> None:
        for _ in loader_of(dataset_of(200), num_workers=2).epoch(0):
            assert prefetch_threads()
            raise error

    with pytest.raises(error):
        train()
    assert not prefetch_threads()


def test_work_ahead_is_bounded() -> None:
    dataset = dataset_of(800)
    started: list[int] = []

    class Watched:
        labels = dataset.source.labels

        def read_images(self, indices: np.ndarray) -> np.ndarray:
            started.append(len(indices))
            return dataset.source.read_images(indices)

    batches = loader_of(Dataset(**{**vars(dataset), "source": Watched()}), num_workers=2).epoch(0)
    next(batches)
    time.sleep(0.05)  # time enough to build them all
    assert len(started) <= 4
    batches.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_at_once(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader_of(dataset_of(8), **options)
    with pytest.raises(ValueError, match=message):
        eval_batches(dataset_of(8), **{"batch_size": 8, **options})
