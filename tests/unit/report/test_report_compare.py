"""The comparison: every figure where a reader looks for it, at any width, and the same figures as data."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from test_report_example_runs import PROMISED, write_demo, write_run

from dtrain.report import Run, compare_data, compare_table, load_runs


def printed(runs: tuple[Run, ...], width: int = 80, encoding: str = "utf-8", terminal: bool = False) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=width, force_terminal=terminal).print(compare_table(runs))
    file.flush()
    return raw.getvalue().decode(encoding)


def row(text: str, label: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"  {label} "))
    return line.removeprefix(f"  {label} ").split()


def test_the_demo_shows_parameters_all_four_bytes_savings_accuracy_and_time(tmp_path: Path) -> None:
    text = printed(load_runs(write_demo(tmp_path)))
    assert row(text, "parameters") == ["60,965,224", "1,235,496"]
    assert row(text, "grad (B)") == ["243,860,896", "4,941,984"]
    assert row(text, "payload (B)") == ["243,860,896", "4,941,984"]
    assert row(text, "wire (B)") == ["243,860,896", "4,941,984"]
    assert row(text, "nic (B)") == ["-", "-"]
    assert row(text, "against fp32") == ["1.00x", "1.00x"]
    assert row(text, "against fp16") == ["0.50x", "0.50x"]
    assert row(text, "accuracy") == ["96.9%", "98.3%"]
    assert row(text, "step") == ["1.82", "s", "206", "ms"]
    assert row(text, "compute & other") == ["1.21", "s", "195", "ms"]
    assert row(text, "(codec)") == ["21.0", "ms", "400", "µs"]
    assert row(text, "exposed comm.") == ["610", "ms", "11.0", "ms"]
    assert row(text, "(straggler wait)") == ["90.0", "ms", "3.10", "ms"]
    assert row(text, "(most of it for)") == ["rank", "1,", "93.0%", "none"]
    assert row(text, "complete") == ["yes", "yes"]
    assert "grouped" in text  # the layout of AlexNet is named


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("number", [1, 3, 10])
def test_no_figure_is_cut_at_any_width(tmp_path: Path, width: int, number: int) -> None:
    directories = [
        write_run(tmp_path / f"a-run-with-rather-a-long-name-{index}", num_parameters=60_965_224 + index, world_size=3)
        for index in range(number)
    ]
    text = printed(load_runs(directories), width)
    assert all(len(line) <= width for line in text.splitlines())
    for index in range(number):
        assert f"{4 * (60_965_224 + index) * 4 / 3:,.0f}" in text


def test_ten_runs_are_put_below_each_other_in_a_narrow_terminal(tmp_path: Path) -> None:
    runs = load_runs(write_run(tmp_path / f"run{index}") for index in range(10))
    narrow, wide = printed(runs, 80), printed(runs, 400)
    assert narrow.count("parameters") == 5
    assert wide.count("parameters") == 1


def test_a_dash_stands_for_what_a_lone_rank_does_not_have(tmp_path: Path) -> None:
    text = printed(load_runs([write_run(tmp_path / "alone", world_size=1, accuracy=None, loss=math.nan)]))
    assert row(text, "wire (B)") == ["0"]
    assert row(text, "against fp32") == row(text, "accuracy") == ["-"]
    assert row(text, "loss") == ["not", "finite"]


def test_an_incomplete_run_is_marked_at_the_top_and_in_its_row(tmp_path: Path) -> None:
    text = printed(load_runs([write_run(tmp_path / "cut", complete=False)]))
    assert "(incomplete)" in text
    assert row(text, "complete") == ["NO"]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    runs = load_runs([write_run(tmp_path / "a", run="[bold]x[/nonsense]", compressor="[red]y")])
    text = printed(runs, terminal=True)
    assert "[bold]x[/nonsense]" in text
    assert "[red]y" in text


def test_a_pipe_gets_plain_text_without_escapes(tmp_path: Path) -> None:
    assert "\x1b" not in printed(load_runs(write_demo(tmp_path)))


def test_data_has_every_promised_key_with_exact_bytes(tmp_path: Path) -> None:
    data = json.loads(json.dumps(compare_data(load_runs(write_demo(tmp_path))), allow_nan=False))
    assert data["schema"] == 1
    alexnet, squeezenet = data["runs"]
    assert set(PROMISED.split()) | {"label", "path", "compute_and_other_seconds_median"} <= set(alexnet)
    assert (alexnet["wire_bytes_per_step"], squeezenet["wire_bytes_per_step"]) == (243_860_896, 4_941_984)
    assert squeezenet["wire_bytes_by_phase_and_purpose"]["eval/metrics"] == 96
    assert squeezenet["nic_bytes_per_step"] is None


def test_data_is_json_even_where_a_loss_diverged(tmp_path: Path) -> None:
    data = compare_data(load_runs([write_run(tmp_path / "a", loss=math.inf)]))
    assert json.loads(json.dumps(data, allow_nan=False))["runs"][0]["loss"] is None


def test_phases_and_packed_models_are_json_too(tmp_path: Path) -> None:
    phase = {"name": "prune", "steps": 3, "exchanged_values": 9, "accuracy": 0.5}
    sent = {"payload_bytes_per_step": 4000, "wire_bytes_per_step": None}
    (run,) = json.loads(json.dumps(compare_data(load_runs([write_run(tmp_path / "a", phases=[phase | sent])]))))["runs"]
    assert run["phases"] == [phase | sent]
    assert run["packed"] == []
