"""The committed dashboards are those that the script builds, and are complete."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

METRICS = Path(__file__).resolve().parents[3] / "metrics"
NAMES = ("bandwidth", "training", "compare")


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
