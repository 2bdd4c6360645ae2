"""`dtrain dashboard export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.cli import main

METRICS = Path(__file__).resolve().parents[3] / "metrics"
FILES = {
    "prometheus.yml",
    "rules/recording.yml",
    "rules/alerts.yml",
    "grafana/dashboards/bandwidth.json",
    "grafana/dashboards/compare.json",
    "grafana/dashboards/job.json",
    "grafana/dashboards/training.json",
    "grafana/provisioning/dashboards/dtrain.yml",
    "grafana/provisioning/datasources/dtrain.yml",
}


def test_it_writes_what_prometheus_and_grafana_read_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "export", str(tmp_path / "new" / "folder"), "--json"]) == 0
    written = {
        Path(path).relative_to(tmp_path / "new" / "folder").as_posix() for path in json.loads(capsys.readouterr().out)
    }
    assert written == FILES
    assert (tmp_path / "new" / "folder" / "targets").is_dir()
    for name in FILES:
        assert (tmp_path / "new" / "folder" / name).read_text() == (METRICS / name).read_text()


def test_again_is_no_mistake_and_a_changed_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "export", str(tmp_path)]) == 0
    assert main(["dashboard", "export", str(tmp_path)]) == 0
    mine = tmp_path / "prometheus.yml"
    mine.write_text("mine")
    (tmp_path / "rules" / "alerts.yml").unlink()
    capsys.readouterr()
    assert main(["dashboard", "export", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"dtrain: error: {mine} is there and differs: choose another folder, or add --overwrite to replace it\n"
    )
    assert mine.read_text() == "mine"
    assert not (tmp_path / "rules" / "alerts.yml").exists()
    assert main(["dashboard", "export", str(tmp_path), "--overwrite"]) == 0
    assert mine.read_text() == (METRICS / "prometheus.yml").read_text()
