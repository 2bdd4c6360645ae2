"""Reports: what runs measured, side by side, as tables, as data and as one self-contained HTML page.

Three verbs of the command line are these functions, and nothing else of dtrain is needed for them: they read run
directories (`summary.json`, `metrics.jsonl`) and print or write.

    runs = load_runs(["runs/demo/alexnet", "runs/demo/squeezenet1_1"])
    console.print(ranked_table(rank(runs)))       # dtrain compare; --json: ranked_data(rank(runs))
    console.print(compare_table(runs))            # dtrain compare --details
    console.print(claims_table(claims(runs)))     # dtrain claims;  --json: claims_data(claims(runs))
    write_report(runs, "runs/demo/report.html")   # dtrain report
    write_plan(told, "plan.html")                 # dtrain plan --html, of plain data

`load_runs` raises ValueError, with the file and the cure, for everything that can be wrong with the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtrain.report.compare import compare_data, compare_table
from dtrain.report.ranking import (
    Ranked,
    as_csv,
    as_latex,
    as_markdown,
    load_ranked,
    rank,
    ranked_data,
    ranked_table,
)
from dtrain.report.runs import Run, load_runs
from dtrain.report.squeezenet.headline import headline
from dtrain.report.squeezenet.paper import claims
from dtrain.report.squeezenet.verdicts import Claim, Finding, JudgedClaim, Verdict, claims_data, claims_table

__all__ = [
    "Claim",
    "Finding",
    "JudgedClaim",
    "Ranked",
    "Run",
    "Verdict",
    "as_csv",
    "as_latex",
    "as_markdown",
    "claims",
    "claims_data",
    "claims_table",
    "compare_data",
    "compare_table",
    "load_ranked",
    "load_runs",
    "rank",
    "ranked_data",
    "ranked_table",
    "verdict",
    "write_figures",
    "write_plan",
    "write_report",
]


def write_report(runs: Sequence[Run], path: str | Path) -> Path:
    """Writes one HTML file that loads nothing, and returns its path; missing directories are made.

    The same runs give the same bytes. Raises OSError where the file cannot be written.
    """
    from dtrain.report import page  # matplotlib takes a second to import, which the other verbs need not pay

    return page.write(runs, path)


def write_figures(runs: Sequence[Run], folder: str | Path) -> tuple[Path, ...]:
    """Writes each chart of the report that shows anything as SVG and as PNG, and returns their paths.

    The same runs give the same bytes. Raises OSError where a file cannot be written.
    """
    from dtrain.report import figures, page

    return figures.write((one.chart for one in page.described(runs)), runs, folder)


def verdict(runs: Sequence[Run]) -> str:
    """What these runs show, in the one sentence that the report opens with."""
    return f"{headline(runs).title}."


def write_plan(told: Mapping[str, Any], path: str | Path) -> Path:
    """Writes one HTML file about a plan, likewise: of what `dtrain plan --json` prints and what is drawn of it."""
    from dtrain.report import plan_page

    return plan_page.write(told, path)
