"""How many steps lie between two exchanges: all the same, growing, or by the learning rate."""

from __future__ import annotations

from typing import Any

import pytest

from dtrain.sync.fragments import Fragments
from dtrain.sync.rounds import Rounds


def exchanges(rounds: Rounds, num_steps: int, rate: float = 0.1) -> list[int]:
    """The steps after which there is one."""
    found, step = [], 0
    while (step := step + rounds.length(step, rate)) <= num_steps:
        found.append(step)
    return found


def test_rounds_are_as_long_as_every_says() -> None:
    assert exchanges(Rounds(4), 12) == [4, 8, 12]


def test_the_start_is_exchanged_step_by_step() -> None:
    assert exchanges(Rounds(4, start_after=3), 12) == [1, 2, 3, 7, 11]


def test_growing_rounds_are_a_fraction_of_the_steps_before_them_and_no_longer_than_every() -> None:
    assert exchanges(Rounds(4, growth=0.5), 24) == [1, 2, 3, 4, 6, 9, 13, 17, 21]


@pytest.mark.parametrize(("rate", "length"), [(0.1, 4), (0.05, 4), (0.01, 9), (0.003, 100), (0.0, 2**31)])
def test_the_quadratic_rule(rate: float, length: int) -> None:
    assert Rounds(4, qsr=0.03).length(0, rate) == length


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"start_after": -1}, "start_after=-1"),
        ({"growth": -0.1}, "growth=-0.1"),
        ({"growth": float("nan")}, "growth=nan"),
        ({"qsr": float("inf")}, "qsr=inf"),
    ],
)
def test_what_no_round_can_be_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rounds(**setting)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_each_fragment_has_one_turn_a_round_the_last_at_its_end(count: int, length: int) -> None:
    turns = [Fragments(count).due(position, length) for position in range(1, length + 1)]
    assert [fragment for due in turns for fragment in due] == list(range(count))
    assert count - 1 in turns[-1]


def test_a_delay_ends_before_the_next_turn() -> None:
    fragments = Fragments(3, delay=5)
    assert [fragments.delay_within(length) for length in (1, 3, 6, 9, 18, 30)] == [0, 0, 1, 2, 5, 5]
