"""matplotlib figures as SVG that belongs in a page: its colours are the page's, its ids are its own, its text is text.

matplotlib writes fixed colours, the same ids in every figure, a doctype and metadata. Here a figure is drawn with the
light colours, and each is then replaced by the CSS variable of the same role, so that one drawing serves light and
dark. Nothing global is left behind: settings hold inside `drawing` only.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

INK, MUTED, GRID = "#1d2430", "#5b6472", "#dfe3e8"
COMPUTE, CODEC, EXPOSED = "#8fa3b8", "#e0a100", "#e2707f"
SERIES = ("#0b63b8", "#c2510a", "#087f5b", "#9c2f8f", "#7a6a00", "#4b4ce0", "#b3243c", "#0a7e8c", "#6b4a2b", "#55606e")

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    COMPUTE: "--compute",
    CODEC: "--codec",
    EXPOSED: "--exposed",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
"""Which CSS variable of report.css each colour stands for."""

_NAMESPACES = {"": "http://www.w3.org/2000/svg", "xlink": "http://www.w3.org/1999/xlink"}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Settings for a figure called `name`: text stays text, `$` is a dollar, the same input gives the same bytes."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change a report
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": f"dtrain {name}",
                "text.parse_math": False,
                "font.family": "DejaVu Sans",
                "font.size": 9.5,
            }
        )
        # The browser draws the text, with its own fonts; that ours lacks a glyph is of no consequence.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure (inches) without background, and axes in the page's style: no box, a light grid, small ticks."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(which="both", colors=MUTED, labelcolor=INK, length=3, width=0.8)
    axes.tick_params(axis="y", which="both", length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def log_ticks(axes: Axes, which: str, write: Callable[[float], str]) -> None:
    """Ticks at powers of 10 on the axis "x" or "y", closer where it is short; zeros after the point are left out."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    subs = (1.0,) if high / low >= 100 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+(?=\s|$)", "", write(value))))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element, every id prefixed with `name`, described for those who do not see it.

    Text that came from a run is escaped, by matplotlib first and by the serialisation again.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=no_metadata, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _adapt(element, f"{name}-")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", description)
    for prefix, uri in _NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, prefix: str) -> None:
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, prefix + value)
        elif key == _HREF:
            element.set(key, value.replace("#", f"#{prefix}", 1))
        elif key in ("style", "clip-path", "fill", "stroke"):
            value = value.replace("url(#", f"url(#{prefix}")
            element.set(key, re.sub(r"#[0-9a-f]{6}", _as_variable, value))


def _as_variable(match: re.Match[str]) -> str:
    colour = match.group(0)
    return f"var({VARIABLES[colour]}, {colour})" if colour in VARIABLES else colour
