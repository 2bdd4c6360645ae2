"""Pages: one HTML file each, that opens anywhere, loads nothing and runs nothing.

Escaping is Jinja's (autoescape is on); only our own SVG and CSS go in as they are. A content security policy in the
page forbids scripts and every connection, should an escape ever be missed.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dtrain.files import write_whole
from dtrain.report import units


def fill(name: str, **values: Any) -> str:
    """The template of this name with these values, in the style that all pages share."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        svg=Markup,
        count=units.count,
        exact=units.exact_bytes,
        short=units.short_bytes,
        milliseconds=units.milliseconds,
    )
    template = environment.from_string(_resource(name))
    return template.render(css=Markup(_resource("report.css")), missing=units.MISSING, **values)


def write_page(path: str | Path, html: str) -> Path:
    """Write it (UTF-8) and return its path; directories on the way are made. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html)
    return path


def _resource(name: str) -> str:
    return resources.files("dtrain.report").joinpath(name).read_text(encoding="utf-8")
