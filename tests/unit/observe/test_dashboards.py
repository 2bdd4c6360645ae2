"""The committed dashboards are those that the script builds, are complete, and ask for what there is."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from dtrain.exchange import Op
from dtrain.meter.ledger import Activity, Ledger, Purpose, Times
from dtrain.observe.figures import EvalFigures, PlanFigures, TrainFigures
from dtrain.observe.prometheus import Changes, RunCollector, RunFacts

METRICS = Path(__file__).resolve().parents[3] / "metrics"
NAMES = ("bandwidth", "training", "compare", "job")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_dashboards", METRICS / "build_dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((METRICS / "grafana" / "dashboards" / f"{name}.json").read_text())
    return content


def test_these_are_all() -> None:
    assert {path.stem for path in (METRICS / "grafana" / "dashboards").iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_building_them_again_gives_what_is_committed(build: ModuleType, name: str) -> None:
    text = (METRICS / "grafana" / "dashboards" / f"{name}.json").read_text()
    assert build.encoded(name) == text, "run python metrics/build_dashboards.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_can_be_provisioned(name: str) -> None:
    dashboard = committed(name)
    assert dashboard["uid"] == f"dtrain-{name}"
    assert 39 <= dashboard["schemaVersion"] <= 42
    assert {"datasource", "run"} <= {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {annotation["name"] for annotation in dashboard["annotations"]["list"]} >= {"restarts", "checkpoints"}


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_has_a_description_a_unit_and_the_data_source_that_is_chosen(name: str) -> None:
    panels = committed(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        units = [panel["fieldConfig"]["defaults"].get("unit")]
        units += [p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"]
        assert any(units), panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in committed(name)["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def queries(name: str) -> Iterator[str]:
    """Every expression of a dashboard: of its panels, annotations and variables."""
    dashboard = committed(name)
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"] if "expr" in annotation)
    asked = (variable.get("query") for variable in dashboard["templating"]["list"])
    yield from (query["query"] for query in asked if isinstance(query, dict))


def exposed() -> set[str]:
    """The names of all series of a run in which everything happens."""
    facts = dict.fromkeys(("run", "model", "data", "compressor"), "x") | {"backend": "gloo", "grad_bytes": 4}
    facts |= {"world_size": 2, "batch_size_per_rank": 1, "num_parameters": 1, "versions": {"dtrain": "1", "torch": "2"}}
    ledger = Ledger()
    metrics = RunCollector(RunFacts(facts, 0, "node0", "lo", changes=Changes(2, 1, 0)), ledger)
    ledger.sinks.append(metrics.on_record)
    with ledger.scope(activity=Activity.TRAIN, purpose=Purpose.GRADIENT):
        ledger.record(Op.ALL_GATHER, 1, 1.0, world_size=2, group="g").complete()
        ledger.close(0, Times(step=0.1, codec=0.1, exposed_comm=0.1))
    metrics.on_train(TrainFigures(1, 0, 1.0, 0.1, 0.1, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0))
    metrics.on_eval(EvalFigures(1, 0, 1.0, 0.1, 1, 1.0))
    metrics.on_plan(PlanFigures("int4", {"chosen": 0.1, "dense": 0.2, "fp16": 0.15}))
    return {sample.name for family in metrics.collect() for sample in family.samples}


def recorded() -> set[str]:
    groups = yaml.safe_load((METRICS / "rules" / "recording.yml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_dashboard_asks_for_is_exposed_by_a_rank_or_recorded_by_a_rule(name: str) -> None:
    asked = {found for query in queries(name) for found in re.findall(r"(?:\w+:)?dtrain_[\w:]+", query)}
    assert len(asked) > 5
    assert asked - exposed() - recorded() == set()
