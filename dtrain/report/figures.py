"""The charts of a report as files of their own: SVG for papers and pages, PNG for all else."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dtrain.files import write_whole
from dtrain.report.charts import Chart, colour_of, marker_of
from dtrain.report.runs import Run
from dtrain.report.svg import CODEC, COMPUTE, EXPOSED, drawing

DOTS_PER_INCH = 200
_PAPER = "#ffffff"


def write(charts: Iterable[Chart | None], runs: Sequence[Run], folder: str | Path) -> tuple[Path, ...]:
    """Each chart as NAME.svg and NAME.png, on white, with its legend; folders on the way are made. Raises OSError."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in (chart for chart in charts if chart is not None):
        with drawing(chart.name):
            legend = chart.figure.legend(
                handles=_legend(chart, runs), loc="outside upper left", ncols=2, frameon=False, borderaxespad=0.3
            )
            width, height = chart.figure.get_size_inches()
            chart.figure.set_size_inches(width, height + 0.22 * -(-len(legend.legend_handles) // 2))
            for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
                content = io.BytesIO()
                chart.figure.savefig(
                    content, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata, facecolor=_PAPER, transparent=False
                )
                path = folder / f"{chart.name}.{suffix}"
                write_whole(path, content.getvalue())
                written.append(path)
    return tuple(written)


def _legend(chart: Chart, runs: Sequence[Run]) -> list[Artist]:
    if chart.name == "time":
        parts = ((COMPUTE, "compute and other"), (EXPOSED, "exposed communication"), (CODEC, "codec (overlaps)"))
        return [Patch(color=colour, label=label) for colour, label in parts]
    return [
        Line2D([], [], color=colour_of(index), marker=marker_of(index), linestyle="none", label=run.name)
        for index, run in enumerate(runs)
        if run in chart.shown
    ]
