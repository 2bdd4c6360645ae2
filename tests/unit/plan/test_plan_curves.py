"""What a plan's page draws of it."""

from __future__ import annotations

import json
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from planned import INT4, LOCAL, STEP, job, planned
from rich.console import Console

from dtrain.plan.candidates import FP16, NONE, Candidate
from dtrain.plan.curves import HIGHEST, LOWEST, MOST, curves, drawn, rates, seconds_at, timelines
from dtrain.plan.program import Work
from dtrain.plan.tables import plan_table
from dtrain.plan.whole_run import WholeRun
from dtrain.report import write_plan

COMPUTE_SECONDS = sum(one.seconds for one in STEP if isinstance(one, Work))


def test_rates_go_from_the_slowest_link_to_the_fastest_in_equal_steps_of_the_logarithm() -> None:
    found = rates()
    assert (found[0], found[-1]) == (pytest.approx(LOWEST), pytest.approx(HIGHEST))
    assert len({round(b / a, 9) for a, b in pairwise(found)}) == 1


def test_a_curve_passes_through_the_plan_and_falls_with_the_rate() -> None:
    measured, plan = planned()
    at = seconds_at(measured, INT4, plan.job, [1e6, plan.job.link.bits_per_second, 1e11])
    assert at[1] == pytest.approx(plan.row(INT4).seconds)
    assert at == sorted(at, reverse=True)
    assert at[2] == pytest.approx(COMPUTE_SECONDS)  # codec and wire hide behind backward


def test_methods_that_ruin_a_training_are_not_drawn_and_those_compared_with_come_first() -> None:
    failing = Candidate("one_bit")
    _, plan = planned(more=[failing])
    assert plan.row(failing).known == "fails"
    assert [row.candidate for row in drawn(plan)] == [NONE, FP16, LOCAL, INT4]


def test_where_nothing_is_known_of_an_optimizer_all_methods_are_drawn() -> None:
    _, plan = planned(None)
    assert INT4 in [row.candidate for row in drawn(plan)]


def test_no_more_methods_are_drawn_than_a_chart_has_room_for() -> None:
    many = [Candidate("int4", {"block": i}) for i in range(12)]
    _, plan = planned(None, more=many)
    assert len(drawn(plan)) == MOST


def test_curves_are_plain_data_with_a_value_for_each_rate() -> None:
    told = curves(*planned())
    assert json.loads(json.dumps(told)) == told
    assert {len(method["seconds"]) for method in told["methods"]} == {len(told["bits_per_second"])}


def test_timelines_are_of_what_is_compared_with_and_of_what_is_advised() -> None:
    measured, plan = planned()
    assert [one["label"] for one in timelines(measured, plan)] == [one.label for one in (NONE, FP16, INT4, LOCAL)]


def test_a_timeline_shows_the_exchange_after_its_bucket_was_ready_and_ends_with_the_step() -> None:
    measured, plan = planned()
    dense = timelines(measured, plan)[0]
    assert dense["compute"] == [[0.0, pytest.approx(COMPUTE_SECONDS)]]
    ((begin, end),) = dense["wire"]
    assert (begin, end) == (pytest.approx(0.06), pytest.approx(plan.row(NONE).seconds))
    assert dense["drawn_seconds"] == pytest.approx(plan.row(NONE).seconds)


def test_of_a_round_the_last_step_is_shown_with_its_exchange_behind_it() -> None:
    measured, plan = planned()
    last = timelines(measured, plan)[-1]
    assert (last["label"], last["steps"]) == (LOCAL.label, 4)
    assert last["compute"] == [[0.0, pytest.approx(COMPUTE_SECONDS)]]
    assert last["codec"][0][0] == pytest.approx(COMPUTE_SECONDS)
    assert last["drawn_seconds"] == pytest.approx(4 * plan.row(LOCAL).seconds - 3 * COMPUTE_SECONDS)


def test_spans_that_touch_are_one() -> None:
    measured, plan = planned()
    for one in timelines(measured, plan):
        for what in ("compute", "codec", "wire"):
            assert all(a[1] < b[0] for a, b in pairwise(one[what]))


def test_the_planned_job_has_as_many_nodes_as_its_ranks_fill() -> None:
    assert job().num_nodes == 2


def test_the_page_is_written_of_what_a_plan_tells(tmp_path: Path) -> None:
    measured, plan = planned(run=WholeRun(1000, 2.0))
    told = {"subject": measured.subject, **json.loads(json.dumps(plan.as_json())), "machine": dict(measured.machine)}
    path = write_plan(
        {**told, "curves": curves(measured, plan), "timelines": timelines(measured, plan)}, tmp_path / "plan.html"
    )
    html = path.read_text(encoding="utf-8")
    assert "The whole run, 1,000 steps" in html
    assert "a &lt;b&gt;, 2 cores" in html


def test_the_table_tells_the_whole_run_within_80_columns() -> None:
    _, plan = planned(run=WholeRun(10**9, 123.0))
    out = StringIO()
    Console(file=out, width=80).print(plan_table(plan, "a model"))
    lines = out.getvalue().splitlines()
    table = lines[lines.index("The whole run, 1,000,000,000 steps:") + 1 :]
    assert max(map(len, lines)) <= 80
    assert [line.split("  ")[0] for line in table if line][:3] == ["exchange", NONE.label, FP16.label]
    total = plan.total(plan.row(NONE))
    assert total is not None
    assert f"{total.cost:,.2f}" in table[1]


def test_json_has_the_whole_run_of_each_method_or_none() -> None:
    _, plan = planned(run=WholeRun(1000))
    assert [row["total"]["cost"] for row in plan.as_json()["rows"]] == [None] * 4
    _, plan = planned()
    assert {row["total"] for row in plan.as_json()["rows"]} == {plan.as_json()["whole_run"]} == {None}
