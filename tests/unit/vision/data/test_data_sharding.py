import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.vision.data.sharding import (
    check_batch_size,
    check_rank,
    epoch_order,
    eval_range,
    steps_per_epoch,
    train_share,
)

sizes = st.fixed_dictionaries(
    {"num_images": st.integers(1, 500), "global_batch_size": st.integers(1, 360), "world_size": st.integers(1, 9)}
)


def shares_of_rank(rank: int, *, num_images: int, global_batch_size: int, world_size: int):
    return [
        train_share(start, end=num_images, global_batch_size=global_batch_size, rank=rank, world_size=world_size)
        for start in range(0, num_images, global_batch_size)
    ]


@given(sizes)
def test_every_rank_takes_the_stated_number_of_steps(size: dict[str, int]) -> None:
    num_images = size.pop("num_images")
    by_rank = [shares_of_rank(rank, num_images=num_images, **size) for rank in range(size["world_size"])]
    assert {len(shares) for shares in by_rank} == {
        steps_per_epoch(num_images, global_batch_size=size["global_batch_size"])
    }


@given(sizes)
def test_ranks_together_see_every_image_exactly_once_per_epoch(size: dict[str, int]) -> None:
    seen = [
        position
        for rank in range(size["world_size"])
        for share in shares_of_rank(rank, **size)
        for position in range(share.start, share.stop)
    ]
    assert sorted(seen) == list(range(size["num_images"]))


@given(sizes)
def test_ranks_agree_on_global_sizes_and_their_parts_add_up(size: dict[str, int]) -> None:
    by_rank = [shares_of_rank(rank, **size) for rank in range(size["world_size"])]
    for step_shares in zip(*by_rank, strict=True):  # strict: equal numbers of steps
        assert len({share.global_size for share in step_shares}) == 1
        assert sum(share.stop - share.start for share in step_shares) == step_shares[0].global_size


@given(sizes)
def test_every_step_is_as_even_as_it_goes(size: dict[str, int]) -> None:
    by_rank = [shares_of_rank(rank, **size) for rank in range(size["world_size"])]
    for step_shares in zip(*by_rank, strict=True):
        sizes_of_ranks = [share.stop - share.start for share in step_shares]
        assert max(sizes_of_ranks) - min(sizes_of_ranks) <= 1
    assert all(share.global_size == size["global_batch_size"] for share in by_rank[0][:-1])


@given(sizes)
def test_the_global_batch_of_a_step_does_not_depend_on_the_world_size(size: dict[str, int]) -> None:
    alone = shares_of_rank(0, **{**size, "world_size": 1})
    by_rank = [shares_of_rank(rank, **size) for rank in range(size["world_size"])]
    for whole, *parts in zip(alone, *by_rank, strict=True):
        together = [position for part in parts for position in range(part.start, part.stop)]
        assert together == list(range(whole.start, whole.stop))


@given(st.integers(1, 2000), st.integers(), st.integers(0, 10_000))
def test_an_epoch_is_a_permutation(num_images: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_images, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert (np.sort(order) == np.arange(num_images)).all()


def test_the_order_changes_with_seed_and_with_epoch_and_with_nothing_else() -> None:
    order = epoch_order(100, seed=1, epoch=2)
    assert (order == epoch_order(100, seed=1, epoch=2)).all()
    assert (order != epoch_order(100, seed=2, epoch=2)).any()
    assert (order != epoch_order(100, seed=1, epoch=3)).any()
    assert order[:10].tolist() == [23, 71, 8, 28, 24, 56, 72, 66, 99, 70]  # a checkpoint of today must resume tomorrow


@given(st.integers(1, 500), st.integers(1, 20))
def test_evaluation_counts_every_image_exactly_once(num_images: int, world_size: int) -> None:
    parts = [eval_range(num_images, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [i for part in parts for i in part] == list(range(num_images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        check_rank(rank, world_size)


def test_an_empty_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        check_batch_size(0)
