import pytest

from dtrain.meter.transfer import split_transfer


def test_the_rank_that_came_last_shows_the_transfer_and_the_others_waited() -> None:
    split = split_transfer([[5.0, 1.0], [1.0, 1.0], [3.0, 1.0]])
    assert split is not None
    assert split.transfer == pytest.approx(2.0)
    assert split.straggler_wait == pytest.approx((4 + 0 + 2) / 3)
    assert split.wait_by_rank == (0.0, pytest.approx(2.0), 0.0)


def test_transfer_and_waiting_add_up_to_the_mean_over_ranks() -> None:
    seconds = [[0.5, 0.25, 2.0], [0.75, 0.125, 4.0]]
    split = split_transfer(seconds)
    assert split is not None
    assert split.transfer + split.straggler_wait == pytest.approx(sum(map(sum, seconds)) / 2)


def test_nothing_timed_is_no_split_and_not_zero() -> None:
    assert split_transfer([]) is None
    assert split_transfer([[], []]) is None


def test_one_rank_waits_for_nobody() -> None:
    assert split_transfer([[1.0, 2.0]]) == (3.0, 0.0, (0.0,))
