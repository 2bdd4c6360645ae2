from __future__ import annotations

import random
from statistics import median

import pytest

from dtrain.observe import sample as module
from dtrain.observe.sample import CAPACITY, Sample


def filled(values: list[float]) -> Sample:
    sample = Sample()
    for value in values:
        sample.add(value)
    return sample


def test_up_to_its_capacity_the_median_is_exact() -> None:
    values = [random.Random(0).random() for _ in range(CAPACITY)]
    assert filled(values).median() == median(values)


def test_beyond_it_every_second_then_every_fourth_value_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 4)
    kept = {n: list(filled([float(k) for k in range(n)])._kept) for n in (4, 5, 8, 9, 16, 17)}
    assert kept == {
        4: [0, 1, 2, 3],
        5: [0, 2, 4],
        8: [0, 2, 4, 6],
        9: [0, 4, 8],
        16: [0, 4, 8, 12],
        17: [0, 8, 16],
    }


def test_a_million_values_take_no_more_room_than_four_thousand() -> None:
    sample = filled([k / 1e6 for k in range(1_000_000)])
    assert CAPACITY // 2 <= len(sample._kept) <= CAPACITY
    assert sample.count == 1_000_000
    assert sample.median() == pytest.approx(0.5, abs=0.001)


def test_the_same_values_give_the_same_median() -> None:
    values = [random.Random(1).random() for _ in range(3 * CAPACITY)]
    assert filled(values).median() == filled(values).median()


def test_what_was_not_measured_is_left_out() -> None:
    sample = Sample()
    for value in (None, 1.0, None, 3.0):
        sample.add(value)
    assert (sample.count, sample.median()) == (2, 2.0)
    assert Sample().median() is None
