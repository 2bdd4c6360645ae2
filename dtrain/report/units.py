"""How numbers are written, in one place, so that a page never shows the same quantity in two ways.

MB is 10^6 bytes. Units are always shown. A figure that a run does not have is a dash.
"""

from __future__ import annotations

import math

MISSING = "-"


def count(value: float | None) -> str:
    """A number of things, to the nearest whole one: `1,235,496`."""
    return MISSING if value is None else f"{value:,.0f}"


def exact_bytes(value: float | None) -> str:
    """Bytes in full: `4,941,984 B`; a mean that is not whole has one decimal."""
    if value is None:
        return MISSING
    return f"{count(value)} B" if float(value).is_integer() else f"{value:,.1f} B"


def short_bytes(value: float | None) -> str:
    """Bytes to three figures, in decimal units: `4.94 MB`."""
    return MISSING if value is None else _scaled(value, ("B", "KB", "MB", "GB", "TB", "PB"))


def short_count(value: float) -> str:
    """A count to three figures: `1.24 M`."""
    return _scaled(value, ("", "K", "M", "G", "T")).rstrip()


def seconds(value: float | None) -> str:
    """A duration to three figures: `412 ms`."""
    if value is None:
        return MISSING
    if value == 0:
        return "0 s"
    if value >= 1:
        return f"{_three_figures(value)} s"
    if value >= 1e-3:
        return f"{_three_figures(value * 1e3)} ms"
    return f"{_three_figures(value * 1e6)} µs"


def milliseconds(value: float | None, *, unit: bool = True) -> str:
    """A step's time as plans say it: `1,608 ms`, below 10 ms with two decimals."""
    if value is None:
        return MISSING
    text = f"{1e3 * value:,.0f}" if value >= 0.00995 or value == 0 else f"{1e3 * value:.2f}"
    return f"{text} ms" if unit else text


def rate(bits_per_second: float | None) -> str:
    """Of a link, to three figures: `1.00 Gbit/s`."""
    return MISSING if bits_per_second is None else _scaled(bits_per_second, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"))


def ratio(value: float | None) -> str:
    """How many times: `49.3x`."""
    if value is None:
        return MISSING
    return f"{value:,.2f}x" if value < 10 else f"{value:,.1f}x" if value < 1000 else f"{value:,.0f}x"


def percent(value: float | None) -> str:
    """A fraction as per cent, to a tenth: `98.3%`."""
    return MISSING if value is None else f"{100 * value:.1f}%"


def plain(value: float | None, decimals: int) -> str:
    """A number without a unit, with as many decimals; `not finite` for a loss that diverged."""
    if value is None:
        return MISSING
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "not finite"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while power < len(units) - 1 and float(_three_figures(value / 1000**power).replace(",", "")) >= 1000:
        power += 1
    scaled = value / 1000**power
    return f"{count(value) if power == 0 else _three_figures(scaled)} {units[power]}"


def _three_figures(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"
