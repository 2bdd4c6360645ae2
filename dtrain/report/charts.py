"""The charts of a report: pure functions from runs to figures, with what a figure cannot show said in words.

A chart that has nothing to show is None; a run that a chart cannot show (a world size of 1 sends nothing, and zero has
no place on a logarithmic axis) is named in the chart's note instead of vanishing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from dtrain.report import units
from dtrain.report.curves import Curve, Point
from dtrain.report.runs import Run
from dtrain.report.svg import (
    CODEC,
    COMPUTE,
    EXPOSED,
    INK,
    MUTED,
    SERIES,
    VARIABLES,
    drawing,
    log_ticks,
    new_axes,
    to_svg,
)

MARKER_PATHS = {
    "o": "M5 1a4 4 0 1 0 0 8a4 4 0 1 0 0-8z",
    "s": "M1.5 1.5h7v7h-7z",
    "^": "M5 1l4 8H1z",
    "D": "M5 .5L9.5 5 5 9.5.5 5z",
    "v": "M5 9L1 1h8z",
    "P": "M3.5 1h3v2.5H9v3H6.5V9h-3V6.5H1v-3h2.5z",
    "X": "M3 1l2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2-2-2z",
    "<": "M1 5l8-4v8z",
    ">": "M9 5L1 9V1z",
    "p": "M5 .8l4.2 3.1-1.6 4.9H2.4L.8 3.9z",
}
"""matplotlib's markers, and the same shapes as SVG paths in a square of 10, for the legend outside the figure."""

_WIDTH, _HEIGHT = 4.6, 3.1  # inches: half a desktop page, and a whole phone, at a readable size of text


@dataclass(frozen=True)
class Chart:
    """A figure with a name and words for those who do not see it; the runs that it shows, and a note on what it does
    not show (may be empty)."""

    name: str
    figure: Figure
    description: str
    shown: tuple[Run, ...]
    note: str = ""

    @property
    def svg(self) -> str:
        """An element for a page, in the page's colours."""
        with drawing(self.name):
            return to_svg(self.figure, self.name, self.description)


def colour_of(index: int) -> str:
    """The colour of the run at this place among the runs; it repeats after ten, the marker then tells them apart."""
    return SERIES[index % len(SERIES)]


def variable_of(index: int) -> str:
    """The CSS variable which `colour_of` becomes in the page."""
    return VARIABLES[colour_of(index)]


def marker_of(index: int) -> str:
    """matplotlib's name for the marker of the run at this place among the runs."""
    return tuple(MARKER_PATHS)[(index + index // len(SERIES)) % len(MARKER_PATHS)]


def bytes_against_parameters(runs: Sequence[Run]) -> Chart | None:
    """Wire bytes per step against parameters, log-log, with 4 B x parameters x 2(n-1)/n for each world size n."""
    shown = [run for run in runs if run.wire_bytes_per_step]
    if not shown:
        return None
    low, high = (pick(run.num_parameters for run in shown) for pick in (min, max))
    left, right = low / 2.5, high * 2.5
    with drawing("bytes"):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        _proportional_lines(axes, left, right, sorted({run.world_size for run in shown if run.world_size > 1}))
        for index, run in enumerate(runs):
            if run in shown:
                _point_of(axes, index, run, not _crowded(run, shown), run.num_parameters > (left * right) ** 0.5)
        axes.set(xscale="log", yscale="log", xlim=(left, right))
        axes.margins(y=0.12)
        log_ticks(axes, "x", units.short_count)
        log_ticks(axes, "y", units.short_bytes)
        axes.set_xlabel("parameters", color=MUTED)
        axes.set_ylabel("wire bytes per step and rank", color=MUTED)
    words = "Wire bytes per step and rank against parameters, both axes logarithmic."
    return Chart("bytes", figure, words, tuple(shown), _not_shown(runs, shown, "sent no gradient bytes"))


def step_time(runs: Sequence[Run]) -> Chart | None:
    """The shares of the median step: compute and other, exposed communication; the codec under it, which overlaps."""
    shown = [run for run in runs if run.step_seconds_median and run.compute_and_other_seconds_median is not None]
    if not shown:
        return None
    with drawing("time"):
        figure, axes = new_axes(_WIDTH, 0.75 + 0.54 * len(shown))
        for place, run in enumerate(shown):
            _bar(axes, place, run)
        axes.set(xlim=(0, 1), ylim=(len(shown) - 0.45, -0.75))
        axes.yaxis.set_major_locator(NullLocator())
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("share of the median step", color=MUTED)
    words = "Where the time of a step goes: a bar per run, divided into shares."
    return Chart("time", figure, words, tuple(shown), _not_shown(runs, shown, "no step times"))


def curve(runs: Sequence[Run], quantity: str, against: str) -> Chart | None:
    """`quantity` (loss or accuracy) against `against` (step, or wire_bytes on a logarithmic axis), training and test.

    Points that are not finite are left out.
    """
    shown = [run for run in runs if any(_drawable(c, quantity, against) for c in (run.training, run.evaluation))]
    if not shown:
        return None
    name = f"{quantity}-{against.replace('_', '-')}"
    with drawing(name):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        for index, run in enumerate(runs):
            if run in shown:
                _curves_of(axes, index, run, quantity, against)
        _curve_axes(axes, quantity, against)
    what = "wire bytes sent by rank 0" if against == "wire_bytes" else "steps"
    words = f"{quantity.capitalize()} against {what}, training and test set."
    missing = "no gradient bytes to draw against" if against == "wire_bytes" else "nothing logged"
    return Chart(name, figure, words, tuple(shown), _not_shown(runs, shown, missing))


def _proportional_lines(axes: Axes, left: float, right: float, world_sizes: Sequence[int]) -> None:
    """A line per world size; they are close together, so only the highest and the lowest can be labelled."""
    for world_size in world_sizes:
        ends = [8 * parameters * (world_size - 1) / world_size for parameters in (left, right)]
        axes.plot([left, right], ends, color=MUTED, linewidth=1, dashes=(4, 3), zorder=1)
        if world_size in (world_sizes[0], world_sizes[-1]):
            highest = world_size == world_sizes[-1]
            text, at = f"n = {world_size}", (right if highest else left, ends[1] if highest else ends[0])
            offset, side = ((-8, 3), "right") if highest else ((12, -4), "left")
            vertical = "bottom" if highest else "top"
            axes.annotate(text, at, offset, textcoords="offset points", color=MUTED, ha=side, va=vertical)


def _crowded(run: Run, shown: Sequence[Run]) -> bool:
    """Whether the label of this point would be written over the label of one before it."""
    before = shown[: shown.index(run)]
    assert run.wire_bytes_per_step is not None
    return any(
        abs(math.log((other.wire_bytes_per_step or 1) / run.wire_bytes_per_step)) < 0.5
        and abs(math.log(other.num_parameters / run.num_parameters)) < 1.5
        for other in before
    )


def _point_of(axes: Axes, index: int, run: Run, label: bool, leftwards: bool) -> None:
    assert run.wire_bytes_per_step is not None
    at = (run.num_parameters, run.wire_bytes_per_step)
    axes.plot(*at, marker=marker_of(index), markersize=8, color=colour_of(index), linestyle="none", zorder=3)
    if label:
        side, offset = ("right", (-10, 3)) if leftwards else ("left", (10, -3))
        text = units.short_bytes(at[1])
        axes.annotate(text, at, offset, textcoords="offset points", ha=side, va="center", color=INK, zorder=4)


def _bar(axes: Axes, place: int, run: Run) -> None:
    """The step in two parts that add up to it, and under it the codec, which overlaps with both."""
    compute, exposed = run.compute_and_other_seconds_median or 0, run.exposed_comm_seconds_median or 0
    step = compute + exposed
    left = 0.0
    for seconds, colour in ((compute, COMPUTE), (exposed, EXPOSED)):
        share = seconds / step if step else 0
        axes.barh(place, share, left=left, height=0.38, color=colour)
        if share >= 0.09:
            axes.text(left + share / 2, place, f"{share:.0%}", ha="center", va="center", color="#14171c", fontsize=8)
        left += share
    axes.barh(place + 0.25, min(1, (run.codec_seconds_median or 0) / step if step else 0), height=0.08, color=CODEC)
    axes.text(0, place - 0.26, _shortened(run), ha="left", va="bottom", color=INK)
    axes.text(1, place - 0.26, units.seconds(run.step_seconds_median), ha="right", va="bottom", color=INK)


def _curves_of(axes: Axes, index: int, run: Run, quantity: str, against: str) -> None:
    colour = colour_of(index)
    training = _drawable(run.training, quantity, against)
    axes.plot(
        *_coordinates(training, quantity, against),
        color=colour,
        linewidth=1,
        alpha=0.45,
        marker="." if len(training) == 1 else "",
        zorder=2,
    )
    test = _drawable(run.evaluation, quantity, against)
    axes.plot(
        *_coordinates(test, quantity, against),
        color=colour,
        linewidth=1.8,
        marker=marker_of(index),
        markersize=5,
        markevery=max(1, len(test) // 12),
        zorder=3,
    )


def _curve_axes(axes: Axes, quantity: str, against: str) -> None:
    if against == "wire_bytes":
        axes.set_xscale("log")
        log_ticks(axes, "x", units.short_bytes)
        axes.set_xlabel("wire bytes sent by rank 0 so far", color=MUTED)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.count(value)))
        axes.set_xlabel("step", color=MUTED)
    if quantity == "accuracy":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylabel(quantity, color=MUTED)


def _drawable(points: Curve, quantity: str, against: str) -> list[Point]:
    """The points with a finite quantity and a place on the axis: zero bytes have none on a logarithmic one."""
    return [
        point
        for point in points
        if math.isfinite(_value(point, quantity)) and (against == "step" or point.wire_bytes > 0)
    ]


def _coordinates(points: Sequence[Point], quantity: str, against: str) -> tuple[list[float], list[float]]:
    return [_value(point, against) for point in points], [_value(point, quantity) for point in points]


def _value(point: Point, quantity: str) -> float:
    value: float | None = getattr(point, quantity)
    return math.nan if value is None else value


def _shortened(run: Run) -> str:
    room = 30
    label = run.label if len(run.label) <= room else f"{run.label[: room - 1]}…"
    return label if run.complete else f"{label} (incomplete)"


def _not_shown(runs: Sequence[Run], shown: Sequence[Run], why: str) -> str:
    names = [run.name for run in runs if run not in shown]
    return f"Not drawn ({why}): {', '.join(names)}." if names else ""
