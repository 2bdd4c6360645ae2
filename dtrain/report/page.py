"""The report: one HTML file that explains itself, opens anywhere, loads nothing and runs nothing (`template.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.report import charts, units
from dtrain.report.charts import Chart
from dtrain.report.compare import GROUPS
from dtrain.report.runs import Run, differ_in_length, result_of
from dtrain.report.squeezenet.headline import headline
from dtrain.report.squeezenet.paper import claims
from dtrain.report.squeezenet.verdicts import Verdict
from dtrain.report.template import fill, write_page


@dataclass(frozen=True)
class Series:
    """A run with the place in the palette that it keeps in every chart."""

    run: Run
    variable: str  # CSS variable of its colour
    marker: str  # SVG path in a square of 10


@dataclass(frozen=True)
class Described:
    """A chart with its heading and the sentence that says how to read it. `legend`: of what, runs or time."""

    title: str
    caption: str
    chart: Chart | None
    legend: str = "runs"


def render(runs: Sequence[Run]) -> str:
    """The page as HTML. The same runs give the same bytes: nothing in it depends on when or where it was made."""
    judged = claims(runs)
    most = max((run.wire_bytes_per_step or 0 for run in runs), default=0)
    first, *others = described(runs)
    return fill(
        "report.html",
        headline=headline(runs),
        runs=runs,
        series=_series(runs),
        most_bytes=most or 1,
        incomplete=[run for run in runs if not run.complete],
        claims=judged,
        tally={one.value: sum(claim.finding.verdict is one for claim in judged) for one in Verdict},
        first=first,
        figures=others,
        results={run.label: result_of(run, runs) for run in runs},
        lengths_differ=differ_in_length(runs),
        groups=GROUPS,
        settings=[(run, _settings(run)) for run in runs],
    )


def write(runs: Sequence[Run], path: str | Path) -> Path:
    """Writes the page (UTF-8) and returns its path; directories on the way are made."""
    return write_page(path, render(runs))


def _series(runs: Sequence[Run]) -> dict[str, Series]:
    return {
        run.label: Series(
            run,
            charts.variable_of(index),
            charts.MARKER_PATHS[charts.marker_of(index)],
        )
        for index, run in enumerate(runs)
    }


def described(runs: Sequence[Run]) -> tuple[Described, ...]:
    """All charts; first the one that shows most of what the verdict says, of those that there is something to draw for.

    A chart without anything to draw stays, so that a reader sees what is missing.
    """
    thin = "Thin: training set, as logged. Thick with markers: test set."
    charts_in_order = (
        Described("Accuracy against bytes exchanged", thin, charts.curve(runs, "accuracy", "wire_bytes")),
        Described("Loss against bytes exchanged", thin, charts.curve(runs, "loss", "wire_bytes")),
        Described(
            "Bytes per step against parameters",
            "Both axes are logarithmic. The dashed line is exact proportion: a dense fp32 ring all_reduce among n "
            "ranks sends 4 B x parameters x 2(n-1)/n. Points below it compress.",
            charts.bytes_against_parameters(runs),
        ),
        Described(
            "Where the time of a step goes",
            "Medians over steps. Exposed communication is what the step waited for its exchange after backward, codec "
            "included. The thin bar is all the work of the codec: backward hides some of it, so it is not added.",
            charts.step_time(runs),
            legend="time",
        ),
        Described("Accuracy against steps", thin, charts.curve(runs, "accuracy", "step")),
        Described("Loss against steps", thin, charts.curve(runs, "loss", "step")),
    )
    first = next((one for one in charts_in_order if one.chart is not None), charts_in_order[0])
    return (first, *(one for one in charts_in_order if one is not first))


def _settings(run: Run) -> Mapping[str, str]:
    return {
        "run directory": str(run.path),
        "model": run.model,
        "variant": run.variant,
        "data": run.data,
        "image size": units.MISSING if run.image_size is None else f"{run.image_size} px",
        "classes": units.count(run.num_classes),
        "world size": f"{units.count(run.world_size)} {'rank' if run.world_size == 1 else 'ranks'}",
        "backend": run.backend,
        "compressor": run.compressor,
        "batch size per rank": units.count(run.batch_size_per_rank),
        "steps": units.count(run.num_steps),
        "rounds": units.count(run.num_rounds),
        "seed": str(run.seed),
        "complete": "yes" if run.complete else "no: interrupted, the figures cover the steps that were done",
        **({"packed model": units.exact_bytes(run.packed_bytes)} if run.packed_bytes else {}),
        "sent by rank 0 at start-up": units.exact_bytes(run.init_wire_bytes),
        "sent in all, all ranks": units.exact_bytes(run.total_wire_bytes_all_ranks),
        **{f"{name} version": version for name, version in run.versions.items()},
    }
