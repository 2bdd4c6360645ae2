"""The charts of a plan: pure functions from its data (`dtrain plan --json`, and what is drawn) to SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from dtrain.report import units
from dtrain.report.charts import colour_of, marker_of
from dtrain.report.svg import CODEC, COMPUTE, EXPOSED, INK, MUTED, drawing, log_ticks, new_axes, to_svg

LANES = {"compute": COMPUTE, "codec": CODEC, "wire": EXPOSED}
"""The rows of a timeline, from the top, and their colours."""

_WIDTH, _HEIGHT = 4.6, 3.6  # inches: half a desktop page, and a whole phone, at a readable size of text
_LANE, _GAP = 0.62, 2.1
_ROOM = 44


def step_time(curves: Mapping[str, Any], planned_bits_per_second: float) -> str:
    """Seconds of a step against bits per second, both logarithmic, a line for each method; the planned link upright."""
    rates: Sequence[float] = curves["bits_per_second"]
    with drawing("link"):
        figure, axes = new_axes(_WIDTH, _HEIGHT)
        for index, method in enumerate(curves["methods"]):
            axes.plot(
                rates,
                method["seconds"],
                color=colour_of(index),
                linewidth=1.8,
                marker=marker_of(index),
                markersize=5,
                markevery=(index % 4, 8),  # lines that run together show the markers of all
                zorder=3 - index / 100,
            )
        axes.set(xscale="log", yscale="log", xlim=(rates[0], rates[-1]))
        axes.axvline(planned_bits_per_second, color=INK, linewidth=1.2, dashes=(4, 3), zorder=4)
        _name_link(axes, planned_bits_per_second)
        log_ticks(axes, "x", units.short_count)
        log_ticks(axes, "y", units.seconds)
        axes.set_xlabel("link of a node, bits per second", color=MUTED)
        axes.set_ylabel("step", color=MUTED)
        return to_svg(figure, "link", "Step time against the link's rate, both axes logarithmic, a line per method.")


def timeline(timelines: Sequence[Mapping[str, Any]]) -> str:
    """A step of each method, one below another on one axis: what computes, encodes or decodes, and is on the wire."""
    longest = max(one["drawn_seconds"] for one in timelines)
    with drawing("timeline"):
        height = len(LANES) * _LANE + _GAP
        figure, axes = new_axes(_WIDTH, 0.55 + 0.29 * height * len(timelines))
        for place, one in enumerate(timelines):
            top = place * height
            axes.text(0, top + 0.45, _shortened(one["label"]), ha="left", va="bottom", color=INK)
            axes.text(longest, top + 0.45, units.milliseconds(one["drawn_seconds"]), ha="right", va="bottom", color=INK)
            axes.axvline(one["drawn_seconds"], *_part(top, height, len(timelines)), color=MUTED, linewidth=1)
            for lane, (what, colour) in enumerate(LANES.items()):
                bars = [(start, stop - start) for start, stop in one[what]]
                axes.broken_barh(bars, (top + 0.7 + lane * _LANE, 0.5), color=colour, linewidth=0)
        axes.set(xlim=(0, longest), ylim=(len(timelines) * height - 0.6, -0.5))
        axes.yaxis.set_major_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.milliseconds(value).replace(".00", "")))
        axes.set_xlabel("from the beginning of a step", color=MUTED)
        return to_svg(figure, "timeline", "One step of each method on one axis of time: compute, codec and wire.")


def _name_link(axes: Axes, bits_per_second: float) -> None:
    """Beside the line, on the side where there is room."""
    low, high = axes.get_xlim()
    leftwards = bits_per_second > (low * high) ** 0.5
    axes.annotate(
        units.rate(bits_per_second).replace(".00", ""),
        (bits_per_second, 1),
        (-5, -3) if leftwards else (5, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if leftwards else "left",
        va="top",
        color=INK,
    )


def _part(top: float, height: float, count: int) -> tuple[float, float]:
    """Of the axes' height, from below, what a method's lanes take."""
    whole = count * height - 0.6 + 0.5
    return 1 - (top + 0.6 + len(LANES) * _LANE + 0.5) / whole, 1 - (top + 0.65 + 0.5) / whole


def _shortened(label: str) -> str:
    return label if len(label) <= _ROOM else f"{label[: _ROOM - 1]}…"
