"""The line of --every."""

from __future__ import annotations

import itertools
import threading

import pytest

from dtrain.meter.live import LiveReport, SoFar, line, parse_interval


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1h", 3600), ("2", 2), ("1.5m", 90)])
def test_an_interval_has_a_unit_or_is_seconds(text: str, seconds: float) -> None:
    assert parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0", "0.5", "-5s", "1d", "5 m", "1e9", "nan", "200h"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a time such as 30s, 5m or 1h"):
        parse_interval(text)


def so_far(seconds: float, steps: int, collectives: int, **purposes: float) -> SoFar:
    return SoFar(seconds, steps, collectives, sum(purposes.values()), purposes)


def test_a_line_adds_up_ranks_and_has_rates_since_the_last() -> None:
    before = [so_far(10.0, 20, 40, gradient=9e6), so_far(9.0, 20, 40, gradient=9e6)]
    now = [so_far(20.0, 60, 120, gradient=18e6, unknown=2e6), so_far(18.0, 60, 119, gradient=18e6)]
    assert line(before, now) == (
        "20 s: 2 ranks sent 38.00 MB in 239 collectives (gradient 95%, unknown 5%); 2.10 MB/s of late; "
        "60 steps, 250 ms each of late"
    )


def test_the_first_line_is_of_all_so_far_and_names_ranks_that_have_said_nothing() -> None:
    assert line([None, None, None], [so_far(5.0, 0, 1, parameters=1e6), None, so_far(4.0, 0, 0)]) == (
        "5 s: 3 ranks sent 1.00 MB in 1 collectives (parameters 100%); 200.00 KB/s of late; silent: rank 1"
    )


def test_a_rank_that_says_nothing_new_is_silent_and_steps_that_stand_still_are_said() -> None:
    past = so_far(10.0, 7, 9, gradient=1e3)
    now = [so_far(20.0, 7, 9, gradient=1e3), past]
    assert line([past, past], now).endswith("; 0 B/s of late; 7 steps, none of late; silent: rank 1")


def test_each_line_is_about_what_came_since_the_one_before() -> None:
    moments = itertools.count()
    said: list[str] = []
    enough = threading.Event()

    def read() -> SoFar:
        moment = float(next(moments))  # twice as fast each second
        return so_far(moment, 0, 1, gradient=1e6 * moment**2)

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            enough.set()

    report = LiveReport(0.001, None, 0, 1, read, say)
    assert enough.wait(10)
    report.end()
    assert [text.partition("; ")[2] for text in said[:3]] == [f"{rate}.00 MB/s of late" for rate in (1, 3, 5)]
