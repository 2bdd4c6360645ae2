"""The page of a plan: the verdict, step time over links of all rates, where a step's time goes, and all figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.report import plan_charts, units
from dtrain.report.charts import MARKER_PATHS, marker_of, variable_of
from dtrain.report.svg import VARIABLES
from dtrain.report.template import fill, write_page

_KNOWN = {
    "holds": ("held", "holds"),
    "costs": ("costs", "costs"),
    "fails": ("fails", "does-not-hold"),
    "untried": ("not tried", "not-measured"),
}

COLUMNS = (
    *("step, ms", "quartiles", "of fp32", "of fp16", "exposed, ms", "codec, ms", "MB sent", "bound by", "pays below"),
    *("trains", "evidence"),
)


@dataclass(frozen=True)
class Swatch:
    """How a method looks in the chart: the CSS variable of its colour, and its marker in a square of 10."""

    label: str
    variable: str
    marker: str


@dataclass(frozen=True)
class Cell:
    """Of the table: what is said, and the CSS class of how."""

    text: str
    look: str = "number"


def render(told: Mapping[str, Any]) -> str:
    """The page as HTML, of what `dtrain plan --json` prints, with `curves`, `timelines` and `machine`.

    The same data give the same bytes.
    """
    curves, timelines, job = told["curves"], told["timelines"], told["job"]
    advice, _, rest = told["verdict"].replace(" ms", "\u00a0ms").partition(". ")
    swatches = [
        Swatch(method["label"], variable_of(index), MARKER_PATHS[marker_of(index)])
        for index, method in enumerate(curves["methods"])
    ]
    drawn = {one.label for one in swatches}
    return fill(
        "plan.html",
        told=told,
        advice=advice.rstrip("."),
        rest=rest,
        where=_where(job),
        swatches={one.label: one for one in swatches},
        not_drawn=[label for row in told["rows"] if (label := row["candidate"]["label"]) not in drawn],
        link_chart=plan_charts.step_time(curves, job["link"]["bits_per_second"]),
        timeline_chart=plan_charts.timeline(timelines),
        lanes={what: VARIABLES[colour] for what, colour in plan_charts.LANES.items()},
        rounds=[one for one in timelines if one["steps"] > 1],
        columns=COLUMNS,
        rows=[(row["candidate"]["label"], _cells(row), _totals(row)) for row in told["rows"]],
        assumed=_assumed(told),
    )


def write(told: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the page (UTF-8) and returns its path; directories on the way are made."""
    return write_page(path, render(told))


def _where(job: Mapping[str, Any]) -> str:
    ranks = job["host"]["ranks"]
    return (
        f"{units.count(job['world_size'])} ranks, {ranks} a node, "
        f"{units.rate(job['link']['bits_per_second'])}, {job['backend']}"
    )


def _cells(row: Mapping[str, Any]) -> list[Cell]:
    step, low, high, exposed, codec = (
        units.milliseconds(row[key], unit=False)
        for key in ("seconds", "low", "high", "exposed_seconds", "codec_seconds")
    )
    numbers = [step, f"{low} to {high}", f"{row['to_none']:.2f}", f"{row['to_fp16']:.2f}", exposed, codec]
    known, look = _KNOWN[row["known"]]
    return [
        *map(Cell, numbers),
        Cell(f"{row['sent_bytes'] / 1e6:,.3g}"),
        Cell(row["bound"], "word"),
        Cell(_pays_below(row)),
        Cell(known, f"word {look}"),
        Cell("; ".join(row["evidence"]) or units.MISSING, "evidence"),
    ]


def _totals(row: Mapping[str, Any]) -> list[Cell]:
    """Of the whole run: nothing where none was named."""
    total = row["total"]
    if total is None:
        return []
    cost = [Cell(f"{total['cost']:,.2f}")] if total["cost"] is not None else []
    return [Cell(f"{total['hours']:,.1f}"), Cell(f"{total['gigabytes']:,.0f}"), *cost]


def _pays_below(row: Mapping[str, Any]) -> str:
    if row["candidate"]["compressor"] in ("none", "fp16") and row["candidate"]["exchanged"] == "gradient":
        return units.MISSING
    rate = row["pays_below_bits_per_second"]
    return "any link" if rate is None else units.rate(rate) if rate else "never"


def _assumed(told: Mapping[str, Any]) -> dict[str, str]:
    """What the figures rest on, beside what is in the page's first line."""
    job, machine = told["job"], told["machine"]
    link = job["link"]
    busy = link["busy_latency_seconds"]
    return {
        "cores of a node": f"{job['host']['cores']:g}",
        "a message between nodes": units.seconds(link["latency_seconds"])
        + ("" if busy is None else f", {units.seconds(busy)} where cores are busy"),
        "share of data in the link's bits": units.percent(link["share"]),
        "a core's time for a byte": f"{1e9 * link['core_seconds_per_byte']:.3g} ns",
        "collectives at once": units.count(link["concurrent"]),
        "optimizer": job["optimizer"] or "not one that methods were tried with",
        "measured on": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} in use",
        "torch": str(machine["torch"]),
    }
