"""What ranks agree on between steps, without processes: each tells, and all hear the same."""

from __future__ import annotations

import signal
import struct
import time

import pytest
import torch
from stand_in import stand_in

from dtrain.train import boundary
from dtrain.train.boundary import LOOK_SECONDS, NOTHING, Agreed, Boundary


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(boundary, "time", stand_in(time, monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def look(ranks: list[Boundary], step: int) -> Agreed:
    told = torch.tensor([rank.told(step) for rank in ranks], dtype=torch.float64)  # as it travels
    (heard,) = {rank.heard(told.tolist(), step) for rank in ranks}
    return heard


def begun(number: int, save_seconds: float | None = None) -> list[Boundary]:
    ranks = [Boundary(save_seconds) for _ in range(number)]
    for rank in ranks:
        rank.begin(0)
    return ranks


def test_a_signal_on_one_rank_stops_all_and_all_know_which_it_was(clock: Clock) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        ranks = begun(3)
        assert look(ranks, 1) == NOTHING
        ranks[1].stop.signal = number
        assert look(ranks, 2).stop
        assert [rank.stop.is_preemption for rank in ranks] == 3 * [number == signal.SIGTERM]


def test_of_two_signals_the_one_that_saves_counts(clock: Clock) -> None:
    ranks = begun(2)
    ranks[0].stop.signal, ranks[1].stop.signal = signal.SIGINT, signal.SIGTERM
    assert look(ranks, 1).stop
    assert all(rank.stop.is_preemption for rank in ranks)


def test_the_first_step_is_looked_after_and_then_about_every_two_seconds_by_the_slowest_rank(clock: Clock) -> None:
    ranks = begun(2)
    assert all(rank.is_due(1) for rank in ranks)
    ranks[1].begin(0)
    clock.now += 0.5
    ranks[0].begin(0)  # which waited for the other: a step takes it no time
    look(ranks, 1)
    due = [step for step in range(2, 20) if ranks[0].is_due(step)]
    assert due[0] == 1 + LOOK_SECONDS / 0.5
    assert due == [step for step in range(2, 20) if ranks[1].is_due(step)]


def test_steps_that_take_longer_than_that_are_each_looked_after(clock: Clock) -> None:
    ranks = begun(1)
    for step in range(1, 5):
        clock.now += 30
        assert ranks[0].is_due(step)
        look(ranks, step)


def test_what_is_no_step_does_not_count_as_one(clock: Clock) -> None:
    """An evaluation of a minute must not have ranks look up after every step that follows."""
    ranks = begun(1)
    clock.now += 60
    ranks[0].begin(0)
    clock.now += 0.1
    look(ranks, 1)
    assert not ranks[0].is_due(2)


def test_checkpoints_by_time_go_by_rank_0_s_clock_alone(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = begun(2, 600.0)
    other._saved = -1e6  # its clock is far ahead
    assert not look([first, other], 1).save
    clock.now += 600
    assert look([first, other], 2).save
    assert not look([first, other], 3).save


def test_a_checkpoint_is_declared_once_every_rank_has_written_its_part(clock: Clock) -> None:
    written = [False, False]
    ranks = [Boundary(is_written=lambda rank=rank: written[rank]) for rank in range(2)]  # type: ignore[misc]
    for rank in range(2):
        assert not look(ranks, rank + 1).declare
        written[rank] = True
    assert look(ranks, 3) == Agreed(declare=True)


def test_it_takes_8_bytes() -> None:
    assert struct.calcsize("=d") == boundary._ASKED.size
