"""Real training and a real Prometheus: every panel and every recording rule shows something, and it is right."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import REPOSITORY, read_summary, train_command
from watching import (
    EXPORTER_PORT,
    METRICS,
    OF_A_PLAN_OR_ELASTIC,
    Series,
    a_place_of_its_own,
    asking,
    ended_afterwards,
    needs_prometheus,
    panel_queries,
    prometheus,
    recording_rules,
    start_training,
    until,
)

pytestmark = needs_prometheus

RANKS = 4
PACE = {"5s": "1s", "15s": "1s", "1m": "10s"}
SETTINGS = [
    "compressor=int8",
    "batch_size=8",
    "num_epochs=10",
    "save_every=40",
    "run_dir=run",
    "observe.progress=false",
]


@dataclass(frozen=True)
class Seen:
    """What Prometheus said while training ran, and what training said at its end."""

    panels: dict[str, Series]
    rules: dict[str, Series]
    exposition: str
    targets: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluations: list[dict[str, Any]]
    textfiles: dict[str, str]
    targets_afterwards: list[dict[str, Any]]
    left_in_targets: list[str]
    output: str


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("watched")
    with a_place_of_its_own() as place, prometheus(place, folder, PACE, asks="127.0.0.1") as asked:
        settings = [*SETTINGS, "observe.prometheus.textfile=textfiles"]
        with ended_afterwards(start_training(place, folder, train_command(*settings, ranks=RANKS))) as training:

            def has_tested() -> bool:
                assert training.poll() is None, training.communicate()[0]
                # windows of 10 s then lie behind its start, where some series are not there yet
                return bool(asked.query('dtrain_loss{split="test"} and on (run) dtrain_steps_total offset 12s > 0'))

            until(has_tested, 180, "a test, and steps for 12 s")
            time.sleep(3)  # until the recording rules have seen it too
            queries, names = panel_queries(), recording_rules()
            panels = dict(zip(queries, asked.query_all(queries.values()), strict=True))
            rules = dict(zip(names, asked.query_all(names), strict=True))
            (exposition,) = place.get(f"http://127.0.0.1:{EXPORTER_PORT}/metrics")
            targets = asked.ask("targets")[0]["activeTargets"]
            assert training.poll() is None, "it ended before it was asked everything: train for longer"
            output = training.communicate(timeout=240)[0]
            assert training.returncode == 0, output

            def active() -> list[dict[str, Any]]:
                found: list[dict[str, Any]] = asked.ask("targets")[0]["activeTargets"]
                return found

            with suppress(AssertionError):  # Prometheus takes a list over every five seconds
                until(lambda: not active(), 30, "no target")
            targets_afterwards = active()
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        yield Seen(
            panels,
            rules,
            exposition,
            targets,
            read_summary(folder / "run"),
            [line for line in lines if line["kind"] == "eval"],
            {path.name: path.read_text() for path in (folder / "textfiles").iterdir()},
            targets_afterwards,
            [path.name for path in (folder / "targets").iterdir()],
            output,
        )


def only(rows: Series) -> float:
    ((_, value),) = rows
    return value


def test_every_panel_has_data(seen: Seen) -> None:
    assert len(seen.panels) > 40
    assert [where for where, rows in seen.panels.items() if not rows and OF_A_PLAN_OR_ELASTIC not in where] == []


def test_every_recording_rule_has_data(seen: Seen) -> None:
    assert [name for name, rows in seen.rules.items() if not rows] == []


def test_every_rank_was_found_by_asking_one_and_none_is_missed_that_ended_well(seen: Seen) -> None:
    labels = sorted((target["labels"]["run"], target["labels"]["rank"]) for target in seen.targets)
    assert labels == [("run", str(rank)) for rank in range(RANKS)]
    assert {target["health"] for target in seen.targets} == {"up"}
    assert seen.targets_afterwards == []


def test_a_rank_takes_away_the_file_that_names_it(seen: Seen) -> None:
    assert seen.left_in_targets == []


@pytest.mark.parametrize(
    ("panel", "field", "factor"),
    [
        ("bandwidth: Saving, whole run (A)", "saving_vs_fp32", 1.0),
        ("bandwidth: Sent for gradients, a rank and step (A)", "wire_bytes_per_step", 1.0),
        ("bandwidth: Dense it would be (A)", "grad_bytes", 2 * (RANKS - 1) / RANKS),
        ("bandwidth: A step's bytes: dense and sent (A)", "wire_bytes_per_step", 1.0),
        ("bandwidth: Saving (B)", "saving_vs_fp32", 1.0),
        ("compare: Runs (B)", "num_parameters", 1.0),
        ("compare: Runs (C)", "wire_bytes_per_step", 1.0),
        ("compare: Bytes a step (A)", "wire_bytes_per_step", 1.0),
        ("training: Ranks (A)", "world_size", 1.0),
    ],
)
def test_a_panel_shows_what_the_summary_says(seen: Seen, panel: str, field: str, factor: float) -> None:
    assert only(seen.panels[panel]) == pytest.approx(factor * seen.summary[field], rel=0.01)


def test_rules_say_what_the_summary_says(seen: Seen) -> None:
    rules, summary = seen.rules, seen.summary
    by_step = only(rules["run:dtrain_gradient_wire_bytes_per_step:ratio_rate1m"])
    assert by_step == pytest.approx(summary["wire_bytes_per_step"], rel=0.01)
    assert only(rules["run:dtrain_saving:ratio_rate1m"]) == pytest.approx(summary["saving_vs_fp32"], rel=0.01)
    assert only(rules["run:dtrain_saving:ratio"]) == pytest.approx(summary["saving_vs_fp32"], rel=0.01)
    # ranks are not scraped at the same moment, and scrapes go over that interface too
    assert 0.9 < only(rules["run:dtrain_nic_over_wire:ratio_rate1m"]) < 1.15


def test_the_parts_of_what_is_sent_add_up(seen: Seen) -> None:
    ranks = sum(value for _, value in seen.panels["bandwidth: On the wire, by rank (A)"])
    for panel in ("bandwidth: On the wire, by operation (A)", "bandwidth: On the wire, by purpose (A)"):
        assert sum(value for _, value in seen.panels[panel]) == pytest.approx(ranks, rel=0.05)  # asked a moment later


def test_loss_and_accuracy_are_of_a_test_of_this_run(seen: Seen) -> None:
    losses = [evaluation["loss"] for evaluation in seen.evaluations]
    accuracies = [evaluation["accuracy"] for evaluation in seen.evaluations]
    assert only(seen.panels["training: Test loss (A)"]) in losses
    assert only(seen.panels["training: Test accuracy (A)"]) in accuracies


def test_the_text_files_of_a_run_that_has_ended_hold_its_last_figures(seen: Seen) -> None:
    assert sorted(seen.textfiles) == [f"dtrain-run-rank{rank}.prom" for rank in range(RANKS)]
    total = sum(sample(text, "dtrain_wire_bytes_total") for text in seen.textfiles.values())
    assert total == seen.summary["total_wire_bytes_all_ranks"]
    first = seen.textfiles["dtrain-run-rank0.prom"]
    assert sample(first, "dtrain_steps_total") == seen.summary["num_steps"]
    assert sample(first, "dtrain_accuracy_ratio", 'split="test"') == seen.summary["accuracy"]


def sample(text: str, name: str, label: str = "") -> float:
    """The sum of a metric's samples in an exposition."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and label in line]
    assert lines, name
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_promtool_finds_nothing_wrong_with_the_metrics(seen: Seen) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=seen.exposition, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_rank_has_few_series(seen: Seen) -> None:
    for text in (seen.exposition, *seen.textfiles.values()):
        assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 120


def test_promtool_accepts_the_configurations_and_the_rules(tmp_path: Path) -> None:
    several_hosts = tmp_path / "prometheus.yml"
    several_hosts.write_text(asking((METRICS / "prometheus.yml").read_text(), "node0"))
    (tmp_path / "rules").symlink_to(METRICS / "rules")
    configurations = (METRICS / "prometheus.yml", several_hosts, REPOSITORY / "docker" / "prometheus.yml")
    for path in configurations:
        done = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("recording.yml", "alerts.yml"):
        done = subprocess.run(
            ["promtool", "check", "rules", str(METRICS / "rules" / name)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_hold_in_the_cases_that_were_thought_of() -> None:
    cases = sorted(str(path) for path in (METRICS / "rules" / "tests").glob("*.yml"))
    assert cases
    done = subprocess.run(["promtool", "test", "rules", *cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
