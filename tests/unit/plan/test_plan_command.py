"""`dtrain plan` and `dtrain simulate`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dtrain.cli import main

SIZE = ["--params", "2M", "--compute", "20ms", "--threads", "1", "--methods", "int4", "local int4 every=4"]


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_verdict_comes_first_and_the_table_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = printed(capsys, "plan", *SIZE, "--nodes", "2", "--link", "100mbit", "--optimizer", "sgd")
    lines = shown.splitlines()
    assert lines[0].startswith("Use int4: a step takes")
    assert max(map(len, lines)) <= 80
    assert "2 ranks, 1 a node, 100 Mbit/s, gloo" in " ".join(shown.split())


def test_what_was_measured_is_kept_and_used_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["--nodes", "2", "--link", "1gbit", "--json", "--calibration", str(tmp_path / "calibration.json")]
    first, second = (json.loads(printed(capsys, "plan", *SIZE, *where)) for _ in range(2))
    assert first == second
    rows = {row["candidate"]["label"]: row for row in first["rows"]}
    assert rows["none"]["sent_bytes"] == 8_000_000
    assert rows["local int4 every=4"]["sent_bytes"] == pytest.approx(rows["int4"]["sent_bytes"] / 4)


def test_simulate_has_a_row_for_each_number_of_ranks_and_plans_own_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept = ["--calibration", str(tmp_path / "calibration.json"), "--link", "1gbit"]
    told = json.loads(printed(capsys, "simulate", *SIZE, *kept, "--ranks", "1", "2", "4", "8", "--json"))
    points = {(point["method"], point["world_size"]): point["seconds"] for point in told["points"]}
    assert {n for _, n in points} == {1, 2, 4, 8}
    assert points["none", 1] == pytest.approx(0.02, rel=0.5)
    for nodes in (2, 4, 8):
        planned = json.loads(printed(capsys, "plan", *SIZE, *kept, "--nodes", str(nodes), "--json"))
        for row in planned["rows"]:
            assert row["seconds"] == points[row["candidate"]["label"], nodes]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "--nodes", "2", "--link", "1gbit"], "say what to plan for"),
        (["plan", "--params", "2M", "--nodes", "2", "--link", "1gbit"], "go together"),
        (["plan", *SIZE, "--nodes", "0", "--link", "1gbit"], "--nodes 0"),
        (["plan", *SIZE, "--nodes", "2", "--link", "fast"], "'fast' is not a rate"),
        (["plan", *SIZE, "--nodes", "2", "--link", "1gbit", "--cores", "0"], "--cores 0"),
        (["plan", *SIZE, "--nodes", "2", "--link", "1gbit", "--ranks-per-node", "0"], "--ranks-per-node 0"),
        (["plan", "model=alexnet", *SIZE, "--nodes", "2", "--link", "1gbit"], "say what to plan for"),
        (["plan", "model=alexnet", "--optimizer", "sgd", "--nodes", "2", "--link", "1gbit"], "write optimizer="),
        (["plan", "model=alecsnet", "--nodes", "2", "--link", "1gbit"], "alexnet"),
        (["plan", "no.json", "--nodes", "2", "--link", "1gbit"], "no.json"),
        (["plan", "--module", "no.py:make", "--nodes", "2", "--link", "1gbit"], "no file"),
        (["simulate", *SIZE, "--ranks", "0", "--link", "1gbit"], "--ranks 0"),
    ],
)
def test_a_mistake_is_one_line_with_the_cure(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert says in told
    assert len(told.splitlines()) == 1
