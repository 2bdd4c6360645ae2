"""A plan for people: the verdict first, then a row for each way to exchange."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dtrain.plan.candidates import FP16, NONE
from dtrain.plan.planner import Plan, Row, verdict
from dtrain.plan.scaling import Point

_KNOWN = {"holds": "held", "costs": "costs", "fails": "fails", "untried": "?"}


def plan_table(planned: Plan, name: str) -> Group:
    """Within 80 columns."""
    job = planned.job
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("exchange", max_width=24)
    for column in ("step, ms", "of fp32", "of fp16", "MB sent", "bound by", "pays below"):
        table.add_column(column, justify="right", max_width=9)
    table.add_column("trains", max_width=6)
    for row in planned.rows:
        table.add_row(
            row.candidate.label,
            f"{_ms(row.seconds)} ±{max(row.high - row.seconds, row.seconds - row.low) / row.seconds:.0%}",
            f"{row.to_none:.2f}",
            f"{row.to_fp16:.2f}",
            f"{row.sent_bytes / 1e6:.3g}",
            row.bound,
            _pays(row),
            _KNOWN[row.known],
        )
    rate = job.link.bits_per_second
    where = f"{name}: {job.world_size} ranks, {job.host.ranks} a node, {rate_in_words(rate)}, {job.backend}"
    return Group(Text(verdict(planned), style="bold"), Text(where), table, *_evidence(planned), *_whole_run(planned))


def scaling_table(points: Sequence[Point], name: str) -> Group:
    """A row for each number of ranks, a column for each way to exchange: the share of linear speed-up."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("ranks", justify="right")
    methods = list(dict.fromkeys(point.method for point in points))
    for method in methods:
        table.add_column(method, justify="right", max_width=12)
    for n in dict.fromkeys(point.world_size for point in points):
        row = {point.method: point for point in points if point.world_size == n}
        table.add_row(f"{n:,}", *(f"{row[method].efficiency:.0%}" for method in methods))
    return Group(Text(f"{name}: share of linear speed-up"), table)


def _evidence(planned: Plan) -> list[Text]:
    best = planned.best()
    if best.known != "holds" or not best.evidence:
        return []
    return [Text(f"{best.candidate.label}, where it was tried: {'; '.join(best.evidence)}.")]


def _whole_run(planned: Plan) -> list[Text | Table]:
    """Of none, fp16 and the best, where a run was named."""
    if planned.whole_run is None:
        return []
    priced = planned.whole_run.price is not None
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("exchange", max_width=36)
    for column in ("hours", "GB, all nodes", *(["cost"] if priced else [])):
        table.add_column(column, justify="right")
    shown = {row.candidate.label: row for row in (planned.row(NONE), planned.row(FP16), planned.best())}
    for label, row in shown.items():
        total = planned.total(row)
        assert total is not None
        cost = [f"{total.cost:,.2f}"] if total.cost is not None else []
        table.add_row(label, f"{total.hours:,.1f}", f"{total.gigabytes:,.0f}", *cost)
    return [Text(f"\nThe whole run, {planned.whole_run.num_steps:,} steps:"), table]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2f}"


def _pays(row: Row) -> str:
    if row.candidate.compressor in ("none", "fp16") and row.candidate.exchanged == "gradient":
        return ""
    if row.pays_below_bits_per_second == inf:
        return "any link"
    return rate_in_words(row.pays_below_bits_per_second) if row.pays_below_bits_per_second else "never"


def rate_in_words(bits_per_second: float) -> str:
    """In Mbit/s or Gbit/s."""
    if bits_per_second >= 1e9:
        return f"{bits_per_second / 1e9:.3g} Gbit/s"
    return f"{bits_per_second / 1e6:.3g} Mbit/s"
