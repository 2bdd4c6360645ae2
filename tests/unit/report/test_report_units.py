"""How numbers are written: the same quantity always the same way, MB = 10^6, the unit always there."""

import math

import pytest

from dtrain.report import units


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0 B"),
        (96, "96 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (999_999, "1.00 MB"),
        (4_941_984, "4.94 MB"),
        (243_860_896, "244 MB"),
        (1.5e18, "1,500 PB"),
        (None, "-"),
    ],
)
def test_bytes_have_three_figures_and_decimal_units(value: float | None, written: str) -> None:
    assert units.short_bytes(value) == written


def test_exact_bytes_lose_nothing() -> None:
    assert units.exact_bytes(243_860_896) == "243,860,896 B"
    assert units.exact_bytes(6_589_312.5) == "6,589,312.5 B"


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "-"), (0.0, "0 s"), (4.2e-5, "42.0 µs"), (0.206, "206 ms"), (1.82, "1.82 s"), (75.0, "75.0 s")],
)
def test_seconds_have_three_figures(value: float | None, written: str) -> None:
    assert units.seconds(value) == written


@pytest.mark.parametrize(("value", "written"), [(0.5, "0.50x"), (49.3447, "49.3x"), (1054.2, "1,054x"), (None, "-")])
def test_ratios_end_in_x(value: float | None, written: str) -> None:
    assert units.ratio(value) == written


def test_a_diverged_loss_is_not_a_number_to_compare() -> None:
    assert units.plain(math.nan, 4) == units.plain(math.inf, 4) == "not finite"
    assert units.plain(2.3, 4) == "2.3000"
